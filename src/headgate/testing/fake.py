"""How does code that uses an engine behave when replicas start, fail, hang and die? Without a single process.

`FakeEngine` keeps the promises of `headgate.engines.base.Engine`, and its replicas do at once what they do. A test says what
goes otherwise:

    engine = FakeEngine({"CPU": 4, "GPU": 1})
    engine.fail_next("digits:v1", ReplicaStartError("no model"))   # its next start fails
    engine.hold("digits:v2")                                       # its starts wait in their constructor …
    engine.release("digits:v2")                                    # … until here
    engine.end(id, "killed by SIGSEGV")                            # a replica dies
    engine.stuck.add(id)                                           # it neither drains nor answers pings
    engine.busy.add(id)                                            # it drains until a test ends it
    engine.sent[id]                                                # what it was told
    engine.leave()                                                 # SIGTERM
    engine.add({"CPU": 4})                                         # a node has come, of an engine that `waits`
    successor = engine.successor()                                 # the engine of the next controller, which adopts
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec

from headgate.config import ReplicaOptions
from headgate.core import replica_life as life
from headgate.core.messages import Drain, Hello, Message, Ping, Pong, ReplicaFailed, ReplicaReady
from headgate.core.resources import Books
from headgate.engines.base import INGRESS, REPLICA, Ended, IngressSpec, Peer, ReplicaSpec, Running
from headgate.errors import InsufficientResourcesError, InvalidValueError, NotFoundError, NotRunningError, ReplicaStartError, rebuild


class _Replica:
    """One replica or ingress that doesn't exist."""

    def __init__(self, spec: ReplicaSpec | IngressSpec) -> None:
        self.spec = spec
        self.id = spec.id
        self.role = REPLICA if isinstance(spec, ReplicaSpec) else INGRESS
        self.state = life.STARTING
        self.asked_for = False
        self.address = ""
        self.peer: Peer | None = None
        self.failure: ReplicaStartError | InsufficientResourcesError | None = None
        self.reason: str | None = None  # why it has ended
        self.changed = asyncio.Event()  # ready, failed or ended

    def running(self) -> Running:
        gpus = self.spec.gpus if isinstance(self.spec, ReplicaSpec) else ()
        return Running(id=self.id, role=self.role, pid=None, state=self.state, address=self.address, gpus=gpus, spec=self.spec)


class FakeEngine:
    """An `Engine` in memory: deterministic, without processes, sockets, threads or a clock of its own.

    `totals` are the resources it pretends to have, by name ("CPU", "GPU", "memory", custom); 8 CPUs if not given. There is one place for
    an ingress, unless `set_places` says otherwise. As on one machine what doesn't fit is refused at once; with `waits` it waits for room,
    as on a cluster; and what is larger than all there is, too, where the cluster `grows`.
    """

    on_end: Callable[[Ended], None]
    on_message: Callable[[str, Message], None]
    on_leave: Callable[[], float]
    on_places: Callable[[], None]

    def __init__(self, totals: Mapping[str, float] | None = None, *, waits: bool = False, grows: bool = False) -> None:
        self._totals = dict(totals if totals is not None else {"CPU": 8})
        self._books = Books(self._totals)
        self._waits, self._grows = waits, grows
        self._waiting: dict[str, _Replica] = {}  # by age
        self._running: dict[str, _Replica] = {}
        self._fail_next: dict[str, list[ReplicaStartError | InsufficientResourcesError]] = defaultdict(list)
        self._held: set[str] = set()
        self._places = ["0"]
        self._closed = False
        self._told_to_leave = False
        self.stuck: set[str] = set()
        """Ids of replicas that neither drain nor answer pings."""
        self.busy: set[str] = set()
        """Ids of replicas that have something to finish, and drain until a test ends them, or for the whole `grace_s`."""
        self.sent: dict[str, list[Message]] = defaultdict(list)
        """What was sent to each id, also after its end."""
        self.ended: list[Ended] = []
        """Every end, in order."""
        self.is_serving = False
        """Whether `serving` was called."""

    # What a test says.

    def fail_next(self, backend: str, error: ReplicaStartError | InsufficientResourcesError) -> None:
        """The next start of a replica of this backend raises `error`; called twice, the next two do."""
        self._fail_next[backend].append(error)

    def hold(self, backend: str) -> None:
        """Replicas of this backend stay in their constructor from now on."""
        self._held.add(backend)

    def release(self, backend: str) -> None:
        """Replicas of this backend finish construction, also those that are in it."""
        self._held.discard(backend)
        for replica in list(self._running.values()):
            is_of_it = isinstance(replica.spec, ReplicaSpec) and replica.spec.backend == backend
            if is_of_it and replica.state == life.STARTING and replica.id not in self._waiting:
                self._construct(replica)

    def end(self, id: str, reason: str = "killed by SIGKILL") -> None:
        """A replica or ingress ends by itself. Raises `NotFoundError` where it doesn't run."""
        self._find(id)
        self._end(id, reason)

    def set_places(self, *places: str) -> None:
        """From now on ingresses are to run at these places."""
        self._places = list(places)
        self.on_places()

    def add(self, resources: Mapping[str, float]) -> None:
        """There is so much more from now on, and whoever waits for room gets it."""
        for name, amount in resources.items():
            self._totals[name] = self._totals.get(name, 0.0) + amount
        books = Books(self._totals)
        for replica in self._running.values():
            if isinstance(replica.spec, ReplicaSpec) and replica.id not in self._waiting:
                books.adopt(replica.id, replica.spec.options, replica.spec.gpus)
        self._books = books
        self._give_room()
        self.on_places()

    def leave(self) -> float:
        """Tell the owner to end everything, as by SIGTERM; returns within how many seconds it will. The next owner is told, too."""
        self._told_to_leave = True
        return self.on_leave()

    def running(self) -> dict[str, Running]:
        """All that runs now, by id."""
        return {id: replica.running() for id, replica in self._running.items()}

    def successor(self) -> FakeEngine:
        """The engine of a controller after this one, which finds what runs now. This one is of no further use."""
        engine = FakeEngine(self._totals, waits=self._waits, grows=self._grows)
        engine._told_to_leave = self._told_to_leave
        engine._fail_next, engine._held, engine.sent = self._fail_next, self._held, self.sent
        engine.stuck, engine.busy, engine._places = self.stuck, self.busy, self._places
        for replica in self._running.values():
            adopted = _Replica(replica.spec)
            adopted.state, adopted.address, adopted.failure = replica.state, replica.address, replica.failure
            engine._running[replica.id] = adopted
            if replica.id in self._waiting:
                engine._waiting[replica.id] = adopted
            elif isinstance(replica.spec, ReplicaSpec):
                engine._books.adopt(replica.id, replica.spec.options, replica.spec.gpus)
        self._running.clear()
        self._closed = True
        return engine

    # The seam.

    async def open(self) -> list[Running]:
        """What runs already: nothing, or what the engine before this one has started."""
        if self._told_to_leave:
            self.on_leave()
        return list(self.running().values())

    async def start_replica(self, spec: ReplicaSpec) -> Running:
        """Start a replica; it is ready at once, unless its backend is held or told to fail, or it waits for room."""
        self._check_new(spec.id)
        why = self.may_fit(spec.options, 1)
        if why is not None:
            raise InsufficientResourcesError(why)
        replica = _Replica(spec)
        self._running[spec.id] = self._waiting[spec.id] = replica
        self._give_room()
        return await self._constructed(replica)

    async def start_ingress(self, spec: IngressSpec) -> Running:
        """Start an ingress; it is ready at once."""
        self._check_new(spec.id)
        ingress = _Replica(spec)
        ingress.state = life.READY
        self._running[spec.id] = ingress
        return ingress.running()

    async def wait_ready(self, id: str) -> Running:
        """Wait for a replica that `open` returned as starting."""
        return await self._constructed(self._find(id))

    def places(self) -> list[str]:
        """As `set_places` has said."""
        return list(self._places)

    def http_urls(self) -> tuple[str, ...]:
        """Nothing listens there."""
        return ("http://127.0.0.1:1234",)

    def serving(self) -> None:
        """Remembered in `is_serving`."""
        self.is_serving = True

    def connected(self, hello: Hello, peer: Peer) -> bool:
        """Accept a connection that knows the token; what is sent later goes there, too."""
        replica = self._running.get(hello.id)
        if replica is None or replica.role != hello.role or not hmac.compare_digest(replica.spec.token.encode(), hello.token.encode()):
            return False
        if replica.peer is None:
            for message in self.sent[hello.id]:
                peer.send(message)
        replica.peer = peer
        return True

    def received(self, id: str, message: Message) -> None:
        """Pass on what isn't the engine's own."""
        replica = self._running.get(id)
        if replica is None or isinstance(message, Pong):
            return
        if isinstance(message, ReplicaReady):
            replica.address = message.address
            self._is_ready(replica)
        elif isinstance(message, ReplicaFailed):
            error = rebuild(msgspec.structs.replace(message.error, pickled=b""))
            replica.failure = ReplicaStartError(error.message, remote_traceback=message.error.traceback)
            replica.changed.set()
        else:
            self.on_message(id, message)

    def send(self, id: str, message: Message) -> None:
        """Remembered in `sent`, and passed to the peer where there is one."""
        replica = self._running.get(id)
        if replica is not None:
            self.sent[id].append(message)
            if replica.peer is not None:
                replica.peer.send(message)

    async def ping(self, id: str) -> Pong:
        """Answered at once; never for ids in `stuck`. Raises `NotFoundError` where it has ended, or ends meanwhile."""
        replica = self._find(id)
        number = len(self.sent[id])
        self.send(id, Ping(number))
        while id in self.stuck:
            await _next_change(replica)
            self._find(id)
        return Pong(number)

    async def stop(self, id: str, grace_s: float) -> None:
        """It drains and ends at once; ids in `stuck` are killed, without waiting for `grace_s`, those in `busy` after that."""
        replica = self._running.get(id)
        if replica is None:
            return
        replica.asked_for = True
        drains = replica.state != life.STARTING and id not in self.stuck
        if replica.state != life.STARTING:
            replica.state = life.DRAINING
            self.send(id, Drain(grace_s))
        if id in self.busy:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    while replica.reason is None:
                        await _next_change(replica)
            drains = False
        self._end(id, "exit status 0" if drains else "killed by SIGKILL")

    async def kill(self, id: str) -> None:
        """It ends at once."""
        replica = self._running.get(id)
        if replica is not None:
            replica.asked_for = True
            self._end(id, "killed by SIGKILL")

    def fits(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas fit into what is free, else what is asked and what is free."""
        return self._books.refusal(options, count, without or ())

    def may_fit(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """As `fits`; where the engine `waits`, None if so many fit into all there is, or into what may come."""
        if not self._waits:
            return self.fits(options, count, without)
        return None if self._grows else Books(self._totals).refusal(options, count)

    def waiting(self) -> dict[str, str]:
        """Those that `_give_room` had none for."""
        return {id: self._no_room(replica) for id, replica in self._waiting.items()}

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """All resources, and those that are free."""
        return self._books.totals(), self._books.free()

    async def close(self) -> None:
        """End everything."""
        self._closed = True
        for replica in list(self._running.values()):
            replica.asked_for = True
            self._end(replica.id, "killed by SIGKILL")

    # Inside.

    def _check_new(self, id: str) -> None:
        if self._closed:
            raise NotRunningError("the engine is closed")
        if id in self._running:
            raise InvalidValueError(f"{id!r} runs already; each start has an id of its own")

    def _find(self, id: str) -> _Replica:
        replica = self._running.get(id)
        if replica is None:
            raise NotFoundError(f"{id!r} doesn't run")
        return replica

    def _give_room(self) -> None:
        """Who waits for room gets what there is, the oldest first."""
        for id, replica in list(self._waiting.items()):
            assert isinstance(replica.spec, ReplicaSpec)
            try:
                gpus = self._books.take(id, replica.spec.options)
            except InsufficientResourcesError:
                continue
            del self._waiting[id]
            replica.spec = msgspec.structs.replace(replica.spec, gpus=gpus)
            replica.changed.set()
            if replica.spec.backend not in self._held:
                self._construct(replica)

    def _no_room(self, replica: _Replica) -> str:
        assert isinstance(replica.spec, ReplicaSpec)
        return self._books.refusal(replica.spec.options) or ""

    def _construct(self, replica: _Replica) -> None:
        assert isinstance(replica.spec, ReplicaSpec)  # ingresses construct nothing
        failures = self._fail_next[replica.spec.backend]
        if failures:
            replica.failure = failures.pop(0)
            replica.changed.set()
        else:
            replica.address = f"fake:{replica.id}"
            self._is_ready(replica)

    def _is_ready(self, replica: _Replica) -> None:
        replica.state = life.READY
        replica.changed.set()

    async def _constructed(self, replica: _Replica) -> Running:
        if not isinstance(replica.spec, ReplicaSpec):
            raise InvalidValueError(f"{replica.id!r} is an ingress; only a replica is constructed")
        limit_s = replica.spec.config.startup_timeout
        try:
            async with asyncio.timeout(limit_s):
                while replica.id in self._waiting and replica.reason is None:
                    await _next_change(replica)
        except TimeoutError:
            replica.asked_for = True
            why = self._no_room(replica)
            self._end(replica.id, "there was no room")
            raise InsufficientResourcesError(f"{why}; waited {limit_s:.1f} s") from None
        except asyncio.CancelledError:
            replica.asked_for = True
            self._end(replica.id, "killed by SIGKILL")
            raise
        try:
            async with asyncio.timeout(limit_s):
                while replica.state == life.STARTING and replica.failure is None and replica.reason is None:
                    await _next_change(replica)
        except TimeoutError:
            self._end(replica.id, "killed by SIGKILL")
            backend = replica.spec.backend
            raise ReplicaStartError(f"a replica of backend {backend!r} was not ready after startup_timeout={limit_s:g} s") from None
        except asyncio.CancelledError:
            replica.asked_for = True
            self._end(replica.id, "killed by SIGKILL")
            raise
        if replica.failure is not None:
            self._end(replica.id, "exit status 1")
            raise replica.failure
        if replica.reason is not None:
            raise ReplicaStartError(f"a replica of backend {replica.spec.backend!r} ended while it was constructed ({replica.reason})")
        return replica.running()

    def _end(self, id: str, reason: str) -> None:
        replica = self._running.pop(id, None)
        if replica is None:
            return
        self._waiting.pop(id, None)
        self._books.give_back(id)
        replica.reason = reason
        replica.changed.set()
        ended = Ended(id=id, role=replica.role, pid=None, reason=reason, asked_for=replica.asked_for)
        self.ended.append(ended)
        self.on_end(ended)
        if not self._closed:
            self._give_room()


async def _next_change(replica: _Replica) -> None:
    replica.changed.clear()
    await replica.changed.wait()
