"""What does a verb change, and when is it over?

A verb is applied to what is asked for (`core/desired.py`), which the store keeps together with the verb's result. Between a
check and its act there is no `await`; verbs that start replicas first hold their backend's lock meanwhile, so that others
go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from headgate.controller.departures import Departures
from headgate.controller.fleet import Fleet, Replica
from headgate.controller.restarts import Restarts
from headgate.controller.rollout import Rollouts
from headgate.controller.routers import Routers
from headgate.controller.store import Pending, PendingDeployment, Store
from headgate.controller.tasks import Changes, Tasks
from headgate.core import desired
from headgate.core import replica_life as life
from headgate.core.desired import Backend, State
from headgate.core.messages import (
    CompareInit,
    CreateBackend,
    DeleteBackend,
    Deploy,
    Describe,
    Measure,
    ReadLog,
    Shutdown,
    UpdateBackend,
    UpdateBackendConfig,
    Verb,
    VerbCall,
    VerbDone,
)
from headgate.core.reports import Description, Measurement
from headgate.engines.base import Engine
from headgate.errors import ChangedMeanwhileError, HeadgateError, InsufficientResourcesError, NotRunningError, describe
from headgate.logs.reading import Part

_log = logging.getLogger("headgate.controller")

Question = Describe | Measure | ReadLog | CompareInit | Shutdown
"""The verbs that change nothing of what is asked for."""


class Leaving(msgspec.Struct, frozen=True):
    """Of what a verb makes something leave, which it waits for: kept as its result, so that it does so also under a later controller."""

    endpoints: list[str]
    """Deleted ones."""
    backends: list[str]
    """Deleted ones, and those of which replicas may go."""


@contextlib.contextmanager
def _telling_of_room() -> Iterator[None]:
    """What a deployment finds no room for may be done in steps."""
    try:
        yield
    except InsufficientResourcesError as error:
        raise InsufficientResourcesError(
            f"{error.message}; a deployment starts what is new beside what runs: make room first, by delete_backend or by "
            "update_backend_config with fewer num_replicas, or replace code by update_backend with allow_gap=True"
        ) from None


class Verbs:
    """What is asked for, and the verbs under way that change it. None begins before `adopted` is set.

    `ask` answers a `Question`; `reconcile` is called when something else is asked for; `publish` returns the version of the
    routing table that shows it.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        store: Store,
        fleet: Fleet,
        rollouts: Rollouts,
        departures: Departures,
        restarts: Restarts,
        routers: Routers,
        changes: Changes,
        adopted: asyncio.Event,
        *,
        ask: Callable[[Question], Awaitable[Description | Measurement | Part | None]],
        reconcile: Callable[[], None],
        publish: Callable[[], int],
    ) -> None:
        self.state = State()
        """What is asked for."""
        self._name = name
        self._engine = engine
        self._store = store
        self._fleet = fleet
        self._rollouts = rollouts
        self._departures = departures
        self._restarts = restarts
        self._routers = routers
        self._changes = changes
        self._adopted = adopted
        self._ask = ask
        self._reconcile = reconcile
        self._publish = publish
        self._tasks = Tasks()
        self._shutdowns = Tasks()
        """Apart from the others, which a shutdown ends."""
        self._begun: dict[str, asyncio.Task[VerbDone]] = {}
        self._under_way: dict[str, Pending | PendingDeployment] = {}
        """By id: those that start replicas, from when it is their turn."""
        self._left: set[str] = set()
        """The ids of those under way that nobody waits for any more."""
        self._unwanted: Counter[str] = Counter()
        """The backends that are about to be deleted, …"""
        self._never_begun: set[str] = set()
        """… and those of them whose creation was given up for that."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closing = False

    def load(self) -> list[Pending | PendingDeployment]:
        """Take over what the store has: what is asked for, and, returned, the verbs that were under way."""
        self.state, pending = self._store.load()
        return pending

    def call(self, call: VerbCall, answer: Callable[[VerbDone], None]) -> None:
        """Begin a verb, or listen to one that has begun under this id; `answer` is called once it is over."""
        task = self._begun.get(call.id)
        if task is None:
            task = self._begin(call.id, self._do(call.id, call.verb), self._shutdowns if isinstance(call.verb, Shutdown) else self._tasks)
        task.add_done_callback(lambda done: answer(self._answer(call.id, done)))

    def left(self, id: str, answer: Callable[[VerbDone], None]) -> None:
        """Nobody waits any more for the verb of this id; `answer` is called once nothing more will come of it."""
        task = self._begun.get(id)
        if task is not None:
            self._left.add(id)
            task.add_done_callback(lambda done: answer(self._answer(id, done)))
            self.give_up_waits()
        elif self._adopted.is_set():
            answer(VerbDone(id))
        else:
            self._tasks.spawn(self._left_before_adoption(id, answer), f"leaving of verb {id}")

    async def _left_before_adoption(self, id: str, answer: Callable[[VerbDone], None]) -> None:
        """It may be one that an earlier controller began."""
        await self._adopted.wait()
        self.left(id, answer)

    def give_up_waits(self) -> None:
        """Have those verbs end that wait for room although nobody waits for them, or their backend is about to be deleted.

        A deployment that nobody waits for ends also where its replicas are in their constructors.
        """
        waiting = self._engine.waiting()
        for id, pending in self._under_way.items():
            for backend in pending.backends:
                unwanted = self._unwanted[backend.tag] > 0
                if unwanted or id in self._left:
                    why = "its backend was deleted" if unwanted else "its caller left"
                    gives_up_starts = isinstance(pending, PendingDeployment) and not unwanted
                    self._give_up(backend, waiting, why, unwanted=unwanted, starting=gives_up_starts)

    def _give_up(self, backend: Backend, waiting: dict[str, str], why: str, *, unwanted: bool, starting: bool) -> None:
        for replica in self._fleet.of(backend.tag, backend.generation):
            if not (replica.held and replica.live):
                continue
            if replica.id in waiting:
                replica.given_up = f"{waiting[replica.id]}; {why} while it waited"
            elif starting and replica.state == life.STARTING:
                replica.given_up = f"{why} while it started"
            else:
                continue
            self._fleet.kill_soon(replica, replica.given_up)
            if unwanted and backend.tag not in self.state.backends:
                self._never_begun.add(backend.tag)

    def carry_on(self, pending: Pending | PendingDeployment, replicas: list[Replica]) -> None:
        """Go on with a verb that an earlier controller began, and of which these replicas run, held."""
        if isinstance(pending, Pending) and pending.kind == "update":
            self._rollouts.resume(self.state.backends[pending.backend.tag], pending.backend, replicas)
        self._begin(pending.id, self._carry_on(pending, replicas), self._tasks)

    async def give_up(self) -> None:
        """Refuse new changes, and end those under way as if they had not begun."""
        self._closing = True
        await self._tasks.close()

    async def settle(self) -> None:
        """Wait until everybody who asked for the shutdown has the answer."""
        await self._shutdowns.settle()

    async def close(self) -> None:
        """End every verb."""
        await self.give_up()
        await self._shutdowns.close()

    def _begin(self, id: str, work: Coroutine[Any, Any, VerbDone], tasks: Tasks) -> asyncio.Task[VerbDone]:
        task = self._begun[id] = tasks.spawn(work, f"verb {id}")

        def forget(done: asyncio.Task[VerbDone]) -> None:
            if self._begun.get(id) is done:
                del self._begun[id]
                self._left.discard(id)

        task.add_done_callback(forget)
        return task

    def _answer(self, id: str, task: asyncio.Task[VerbDone]) -> VerbDone:
        if task.cancelled():
            return VerbDone(id, error=describe(NotRunningError(f"instance {self._name!r} was shut down before this was done")))
        error = task.exception()
        return task.result() if error is None else VerbDone(id, error=describe(error))

    async def _do(self, id: str, verb: Verb) -> VerbDone:
        await self._adopted.wait()
        carried = self._begun.get(id)
        if carried is not None and carried is not asyncio.current_task():  # begun under an earlier controller
            return await asyncio.shield(carried)
        if isinstance(verb, Question):
            return VerbDone(id, msgspec.msgpack.encode(await self._ask(verb)))
        if self._closing:
            raise NotRunningError(f"instance {self._name!r} is shutting down")
        done = self._store.result(id)
        if done is None:
            try:
                match verb:
                    case CreateBackend() | UpdateBackend() | UpdateBackendConfig():
                        await self._apply_with_replicas(id, verb)
                    case DeleteBackend():
                        await self._delete(id, verb)
                    case Deploy():
                        await self._deploy(id, verb)
                    case _:
                        self._commit(id, desired.apply(self.state, verb))
            except NotRunningError:
                raise  # which says something of the instance, and nothing of the verb
            except HeadgateError as error:
                return self._failed(id, error)
            done = self._store.result(id)
        return await self._in_force(done)

    def _failed(self, id: str, error: HeadgateError) -> VerbDone:
        done = VerbDone(id, error=describe(error))
        self._store.finish(done, self.state, self.state)
        return done

    async def _delete(self, id: str, verb: DeleteBackend) -> None:
        """Delete a backend; what a verb is about to start for it, and has no room yet, never starts."""
        known = verb.tag in self.state.backends
        if known:
            desired.apply(self.state, verb)  # else what can't be deleted would lose what it waits for
        self._unwanted[verb.tag] += 1
        self.give_up_waits()
        try:
            async with self._turn(verb.tag):
                gone = verb.tag in self._never_begun and verb.tag not in self.state.backends
                self._commit(id, self.state if gone else desired.apply(self.state, verb))
        finally:
            self._unwanted[verb.tag] -= 1
            if not self._unwanted[verb.tag]:
                del self._unwanted[verb.tag]
                self._never_begun.discard(verb.tag)

    def _commit(self, id: str, state: State) -> None:
        """Make it what is asked for, durably and together with the verb's result, and begin to act on it."""
        changed = [tag for tag, backend in self.state.backends.items() if state.backends.get(tag) is not backend]
        leaving = Leaving([*self.state.endpoints.keys() - state.endpoints.keys()], changed)
        self._store.finish(VerbDone(id, msgspec.msgpack.encode(leaving)), self.state, state)
        told = self._routers.table
        if told is not None and not told.endpoints.keys().isdisjoint(state.endpoints.keys() - self.state.endpoints.keys()):
            self._routers.push()  # else a router wouldn't see that this endpoint is another than the one just deleted
        for tag in self.state.backends.keys() - state.backends.keys():
            self._departures.begin(self.state.backends[tag])
        self.state = state
        self._restarts.keep(state.backends.keys() | self._departures.backends.keys())
        self._reconcile()

    async def _in_force(self, done: VerbDone | None) -> VerbDone:
        """Wait until what a verb asked for holds: routers know it, and nothing is left of what it has made leave.

        With warnings for whom it does not hold yet.
        """
        assert done is not None  # it was committed
        if done.error is not None:
            return done
        leaving = msgspec.msgpack.decode(done.result, type=Leaving)
        version = self._publish()
        warnings = await self._routers.in_force(version)
        for name in leaving.endpoints:
            await self._routers.idle(version, endpoint=name)
        for tag in leaving.backends:
            await self._settled(tag)
        return msgspec.structs.replace(done, warnings=warnings)

    async def _deploy(self, id: str, verb: Deploy) -> None:
        """Start all that is missing beside what runs, and then commit everything at once."""
        tags = self.state.backends.keys() | {given.tag for given in verb.backends}
        async with self._turns(tags):
            if id in self._left:
                raise ChangedMeanwhileError("its caller left before its turn")
            state = desired.apply(self.state, verb)
            starts = [(backend, count) for backend in state.backends.values() if (count := desired.missing(self.state, backend))]
            if not starts:
                self._commit_deployment(id, state)
                return
            with _telling_of_room():
                for backend, count in starts:  # each by itself; whether all fit together is seen when they start
                    self._check_room_for(backend, count, beside_old=True)
            self.state = msgspec.structs.replace(self.state, next_generation=state.next_generation)
            pending = PendingDeployment(id, state, verb.based_on)
            self._store.begin(pending, state.next_generation)
            await self._see_through(pending, [])

    async def _start_and_commit_all(self, pending: PendingDeployment, have: list[Replica]) -> None:
        starts: list[tuple[Backend, int, list[Replica]]] = []
        for backend in pending.backends:
            count = desired.missing(self.state, backend)
            theirs = [replica for replica in have if replica.tag == backend.tag]
            if count or theirs:
                starts.append((backend, max(count - len(theirs), 0), theirs))
        await self._routers.all_back()  # who has left while there was no controller has the time to say so
        with _telling_of_room():
            replicas = await self._rollouts.start_all(starts)
        self._rollouts.release(replicas)
        for backend, _, _ in starts:
            self._restarts.forget(backend.tag)
        try:
            if pending.id in self._left:
                raise ChangedMeanwhileError("its caller left before it took effect")
            desired.check_unchanged(self.state, pending.based_on)
            next_generation = max(self.state.next_generation, pending.state.next_generation)
            self._commit_deployment(pending.id, msgspec.structs.replace(pending.state, next_generation=next_generation))
        except BaseException:
            self._reconcile()  # nobody asked for these replicas after all
            raise

    def _commit_deployment(self, id: str, state: State) -> None:
        old = self.state
        self._commit(id, state)
        for tag, backend in state.backends.items():
            before = old.backends.get(tag)
            if before is not None and before.generation == backend.generation and before.config != backend.config:
                self._fleet.configure(self._fleet.of(tag, backend.generation), backend.config)

    async def _apply_with_replicas(self, id: str, verb: CreateBackend | UpdateBackend | UpdateBackendConfig) -> None:
        async with self._turn(verb.tag):
            state = desired.apply(self.state, verb)
            backend = state.backends[verb.tag]
            old = self.state.backends.get(verb.tag)
            if isinstance(verb, UpdateBackendConfig) and old is not None and backend.config.num_replicas <= old.config.num_replicas:
                self._commit(id, state)
                self._fleet.configure(self._fleet.of(verb.tag, backend.generation), backend.config)
                return
            if isinstance(verb, CreateBackend):
                pending = Pending(id, "create", backend)
            elif isinstance(verb, UpdateBackend):
                pending = Pending(id, "update", backend, verb.allow_gap)
            else:
                pending = Pending(id, "configure", backend)
            self._check_room(pending)
            self.state = msgspec.structs.replace(self.state, next_generation=state.next_generation)
            self._store.begin(pending, state.next_generation)
            await self._see_through(pending, [])

    async def _carry_on(self, pending: Pending | PendingDeployment, replicas: list[Replica]) -> VerbDone:
        tags = {backend.tag for backend in pending.backends}
        _log.info("going on with %s, of which %d replicas run", pending, len(replicas))
        if isinstance(pending, PendingDeployment):
            tags |= self.state.backends.keys()
        try:
            async with self._turns(tags):
                await self._see_through(pending, replicas)
        except HeadgateError as error:
            return self._failed(pending.id, error)
        return await self._in_force(self._store.result(pending.id))

    async def _see_through(self, pending: Pending | PendingDeployment, have: list[Replica]) -> None:
        """Start the replicas of a pending verb, besides those that it has already, and commit it."""
        self._under_way[pending.id] = pending
        try:
            if isinstance(pending, PendingDeployment):
                await self._start_and_commit_all(pending, have)
            else:
                await self._start_and_commit(pending, have)
        finally:
            del self._under_way[pending.id]

    async def _start_and_commit(self, pending: Pending, have: list[Replica]) -> None:
        backend = pending.backend
        if pending.kind == "create":
            replicas = await self._rollouts.start(backend, backend.config.num_replicas - len(have), have)
        elif pending.kind == "update":
            replicas = await self._rollouts.replace(self.state.backends[backend.tag], backend, have, allow_gap=pending.allow_gap)
        else:
            more = backend.config.num_replicas - self.state.backends[backend.tag].config.num_replicas
            replicas = await self._rollouts.start(backend, max(more - len(have), 0), have)
        self._rollouts.release(replicas)
        self._restarts.forget(backend.tag)
        try:
            self._commit(pending.id, desired.with_backend(self.state, backend))
        except BaseException:
            self._reconcile()  # nobody asked for these replicas after all
            raise
        if pending.kind == "configure":
            self._fleet.configure(self._fleet.of(backend.tag, backend.generation), backend.config)

    def _check_room(self, pending: Pending) -> None:
        """Refuse at once what can't fit; what may fit later waits."""
        backend = pending.backend
        if pending.kind == "update":
            return  # `next_step` decides
        old = self.state.backends.get(backend.tag)
        self._check_room_for(backend, backend.config.num_replicas - (old.config.num_replicas if old is not None else 0))

    def _check_room_for(self, backend: Backend, count: int, *, beside_old: bool = False) -> None:
        why = self._engine.fits(backend.options, count)
        if why is not None:
            theirs = [replica.id for replica in self._fleet.of(backend.tag) if replica.live]
            in_all = len(theirs) + count if beside_old else backend.config.num_replicas
            why = self._engine.may_fit(backend.options, in_all, theirs)
        if why is not None:
            raise InsufficientResourcesError(f"backend {backend.tag!r}: {count} replica{'s do' if count > 1 else ' does'} not fit: {why}")

    async def _settled(self, tag: str) -> None:
        """Wait until everything of this backend has ended that is to go."""
        await self._changes.until(
            lambda: tag not in self._departures.backends and not any(replica.dismissed for replica in self._fleet.of(tag))
        )

    @contextlib.asynccontextmanager
    async def _turns(self, tags: Collection[str]) -> AsyncIterator[None]:
        """Held by a deployment, which changes several backends. All take them in one order, so that none waits in a circle."""
        async with contextlib.AsyncExitStack() as stack:
            for tag in sorted(tags):
                await stack.enter_async_context(self._turn(tag))
            yield

    @contextlib.asynccontextmanager
    async def _turn(self, tag: str) -> AsyncIterator[None]:
        """Held by the verb that changes a backend; others on it wait their turn, and all for a deleted one of that tag to leave."""
        lock = self._locks.get(tag)
        if lock is None:
            lock = self._locks[tag] = asyncio.Lock()
        async with lock:
            if tag not in self.state.backends:
                await self._settled(tag)  # what runs of it belongs to a deleted one, and may have the room that a new one needs
            yield
