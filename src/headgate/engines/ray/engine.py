"""How does the controller start and stop actors on a Ray cluster?

`RayEngine` lives in the controller's actor. Ray places actors, counts what they take, and tells when they die: each makes one
call, whose end is the news of its own. All else comes over our control connections. What a later controller has to know is in
`records.py`. Everything here happens on the controller's event loop; what blocks is done by threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headgate.config import ReplicaOptions
from headgate.core import replica_life as life
from headgate.core.messages import Drain, Hello, Message, Ping, Pong, ReplicaFailed, ReplicaReady
from headgate.engines.base import INGRESS, REPLICA, Ended, IngressSpec, InstanceSettings, Peer, ReplicaSpec, Running
from headgate.engines.ray import records
from headgate.engines.ray.cluster import Cluster
from headgate.engines.ray.records import ActorRecord
from headgate.errors import (
    AddressInUseError,
    HeadgateError,
    InsufficientResourcesError,
    InvalidValueError,
    NotFoundError,
    NotRunningError,
    ReplicaStartError,
    rebuild,
)
from headgate.router.remote import join, split

_log = logging.getLogger("headgate.controller")

_LAST_WORDS_TURNS: Final = 16
_GONE_WITHIN_S: Final = 2.0
"""An actor that was killed and whose end Ray doesn't tell for so long is out of reach, with its node."""
_LOOK_S: Final = 0.5
"""How often the cluster's nodes are looked at."""
_ALL: Final = ("0.0.0.0", "::", "")  # what is listened on is the user's choice; this is how it is told from an address
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}")

T = TypeVar("T")


class Actors(Protocol):
    """The classes of actors, as the composition root makes them; each has `run(name, id)`, once, and `wait()` after it."""

    replica: Any
    ingress: Any


def namespace(name: str) -> str:
    """The namespace of the actors of the instance of that name."""
    return f"headgate:{name}"


class _Actor:
    """One replica or ingress, from its start to its end."""

    def __init__(self, spec: ReplicaSpec | IngressSpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.id = spec.id
        self.role = REPLICA if isinstance(spec, ReplicaSpec) else INGRESS
        self.handle: Any = None
        self.pid: int | None = None
        self.node = ""
        self.gpus: tuple[str, ...] = ()
        self.address = ""
        self.state = life.STARTING
        self.asked_for = False
        self.peer: Peer | None = None
        self.unsent: list[Message] = []  # until it first connects
        self.failure: HeadgateError | None = None
        self.started: asyncio.Future[None] = loop.create_future()  # done when ready, or ended
        self.ended: asyncio.Future[str] = loop.create_future()  # the reason
        self.pings: dict[int, asyncio.Future[Pong]] = {}

    def running(self) -> Running:
        return Running(id=self.id, role=self.role, pid=self.pid, state=self.state, address=self.address, gpus=self.gpus, spec=self.spec)


class RayEngine:
    """The engine of a Ray cluster: `headgate.engines.base.Engine`, by detached actors in a namespace of the instance."""

    on_end: Callable[[Ended], None]
    on_message: Callable[[str, Message], None]
    on_leave: Callable[[], float]
    on_places: Callable[[], None]

    def __init__(self, settings: InstanceSettings, actors: Actors, *, on_serving: Callable[[], object]) -> None:
        self._settings = settings
        self._actors_made_by = actors
        self._namespace = namespace(settings.name)
        self._cluster = Cluster(settings)
        self._actors: dict[str, _Actor] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writer = ThreadPoolExecutor(1, "headgate records")
        self._numbers = 0
        self._closing = False
        self._on_serving = on_serving
        self._ports: dict[str, int] = {}  # of the ingress of each node, so that the next one there has it too

    async def open(self) -> list[Running]:
        """Begin, and return what runs already, started by an engine before this one; what was still starting goes on."""
        self._loop = asyncio.get_running_loop()
        await _in_thread(self._cluster.look)
        for spec, record, handle in await _in_thread(self._find):
            actor = _Actor(spec, self._loop)
            actor.handle = handle
            actor.state, actor.pid, actor.address = record.state, record.pid, record.address
            actor.node, actor.gpus = record.node, record.gpus
            if actor.state != life.STARTING:
                actor.started.set_result(None)
            self._actors[spec.id] = actor
            if isinstance(spec, ReplicaSpec):
                self._cluster.take(spec.id, spec.options)
                self._cluster.placed(spec.id, actor.node, actor.gpus)
            self._watch(actor, handle.wait.remote())
        self._spawn(self._keep_looking())
        return [actor.running() for actor in self._actors.values()]

    async def start_replica(self, spec: ReplicaSpec) -> Running:
        """Start a replica; return when user construction has finished and it takes links.

        Raises `InsufficientResourcesError` at once where it doesn't fit, `ReplicaStartError` where construction raised or
        took longer than `config.startup_timeout`. After an error, or a cancellation, nothing of it is left.
        """
        self._check_new(spec.id)
        why = self._cluster.refusal(spec.options, 1)
        if why is not None:
            raise InsufficientResourcesError(why)
        return await self._constructed(self._make(spec))

    async def start_ingress(self, spec: IngressSpec) -> Running:
        """Start an ingress; return when it has said hello. Raises `ReplicaStartError` where it ends before that."""
        self._check_new(spec.id)
        shared = [self._cluster.host(place) for place in self._cluster.places()].count(self._cluster.host(spec.place)) > 1
        actor = self._make(msgspec.structs.replace(spec, port=self._ports.get(spec.place, 0), shares_port=shared))
        try:
            await asyncio.wait([actor.started])
        except asyncio.CancelledError:
            actor.asked_for = True
            await self._end(actor)
            raise
        if actor.failure is not None:
            raise actor.failure
        if actor.ended.done():
            raise ReplicaStartError(f"the ingress of node {spec.place} ended while it started ({actor.ended.result()})")
        return actor.running()

    async def wait_ready(self, id: str) -> Running:
        """Wait for a replica that `open` returned as starting; same errors as `start_replica`.

        Its `startup_timeout` counts anew from here. Raises `NotFoundError` for an unknown id.
        """
        actor = self._actors.get(id)
        if actor is None:
            raise NotFoundError(f"replica {id!r} doesn't run")
        return await self._constructed(actor)

    def places(self) -> list[str]:
        """The nodes that are to have an ingress."""
        return self._cluster.places()

    def http_urls(self) -> tuple[str, ...]:
        """Where clients reach the ingresses that run, the head's first."""
        scheme = "http" if self._settings.ssl_certfile is None else "https"
        addresses = {actor.spec.place: actor.address for actor in self._actors.values() if isinstance(actor.spec, IngressSpec)}
        found = []
        for place in self._cluster.places():
            if addresses.get(place):
                host, port = split(addresses[place])
                found.append(f"{scheme}://{join(self._cluster.host(place) if host in _ALL else host, port)}")
        return tuple(dict.fromkeys(found))

    def serving(self) -> None:
        """HTTP answers now: the driver that started the instance goes on."""
        self._spawn(self._tell_serving())

    def connected(self, hello: Hello, peer: Peer) -> bool:
        """A replica or ingress has opened its control connection, or opened it again. False refuses it: unknown id, or wrong token."""
        actor = self._actors.get(hello.id)
        if actor is None or actor.role != hello.role or not hmac.compare_digest(actor.spec.token.encode(), hello.token.encode()):
            return False
        actor.peer, actor.pid = peer, hello.pid
        if hello.node:
            actor.node, actor.gpus = hello.node, hello.gpus
            self._cluster.placed(actor.id, actor.node, actor.gpus)
        for message in actor.unsent:
            peer.send(message)
        actor.unsent.clear()
        if hello.address:
            self._is_ready(actor, hello.address)
        return True

    def received(self, id: str, message: Message) -> None:
        """A message from a replica or ingress. What isn't the engine's own goes on to `on_message`; unknown ids are dropped."""
        actor = self._actors.get(id)
        if actor is None:
            return
        if isinstance(message, ReplicaReady):
            self._is_ready(actor, message.address)
        elif isinstance(message, ReplicaFailed):
            self._has_failed(actor, message)
        elif isinstance(message, Pong):
            waiting = actor.pings.pop(message.number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        else:
            self.on_message(id, message)

    def send(self, id: str, message: Message) -> None:
        """Send to a replica or ingress, such as `Configure`; kept until it first connects, dropped where it has ended."""
        actor = self._actors.get(id)
        if actor is None:
            return
        if actor.peer is None:
            actor.unsent.append(message)
        else:
            actor.peer.send(message)

    async def ping(self, id: str) -> Pong:
        """Ask a sign of life. Never returns for one that is stuck: the caller sets the limit.

        Raises `NotFoundError` where it has ended, or ends before it answers.
        """
        actor = self._actors.get(id)
        if actor is None:
            raise NotFoundError(f"{id!r} doesn't run")
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Pong] = self._loop.create_future()
        actor.pings[number] = answer
        self.send(id, Ping(number))
        try:
            return await answer
        finally:
            actor.pings.pop(number, None)

    async def stop(self, id: str, grace_s: float) -> None:
        """Drain, then end it; kill it after `grace_s`. Returns when it has ended. Unknown ids are ended already.

        One that is still starting has nothing to drain: it is killed at once, and `start_replica` raises `ReplicaStartError`.
        After a cancellation it may still be draining.
        """
        actor = self._actors.get(id)
        if actor is None:
            return
        actor.asked_for = True
        if actor.state != life.STARTING:
            actor.state = life.DRAINING
            await self._note(actor)  # first: what drains must not be taken for ready by the next controller
            self.send(id, Drain(grace_s))
            await asyncio.wait([actor.ended], timeout=grace_s)
        await self._end(actor)

    async def kill(self, id: str) -> None:
        """End it now. Returns when it has ended. Unknown ids are ended already."""
        actor = self._actors.get(id)
        if actor is not None:
            actor.asked_for = True
            await self._end(actor)

    def fits(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas fit into what is free (and what the replicas `without` give back), else what is asked and free."""
        return self._cluster.refusal(options, count, without or ())

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """All resources of the cluster, and those that are free."""
        return self._cluster.totals(), self._cluster.free()

    async def close(self) -> None:
        """End everything; leaves no actor, and nothing in the cluster's store."""
        if self._closing:
            return
        self._closing = True
        for actor in self._actors.values():
            actor.asked_for = True
        await asyncio.gather(*(self._end(actor) for actor in list(self._actors.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._in_order(records.delete_all, self._settings.name)
        self._writer.shutdown()

    # Actors.

    def _check_new(self, id: str) -> None:
        if not _ID.fullmatch(id):
            raise InvalidValueError(f"{id!r} can't be an id: use at most 36 letters, digits, '.', '_' and '-'")
        if id in self._actors:
            raise InvalidValueError(f"{id!r} runs already; each start has an id of its own")
        if self._closing:
            raise NotRunningError("the engine is closed")

    def _find(self) -> list[tuple[ReplicaSpec | IngressSpec, ActorRecord, Any]]:
        """What runs. Blocks."""
        found: list[tuple[ReplicaSpec | IngressSpec, ActorRecord, Any]] = []
        for named in ray.util.list_named_actors(all_namespaces=True):
            role, _, id = named["name"].partition(":")
            if named["namespace"] != self._namespace or role not in (REPLICA, INGRESS):
                continue
            key = records.spec_key(self._settings.name, id)
            spec = records.read_as(key, ReplicaSpec) if role == REPLICA else records.read_as(key, IngressSpec)
            record = records.read_as(records.actor_key(self._settings.name, id), ActorRecord)
            try:
                handle = ray.get_actor(named["name"], namespace=self._namespace)
            except ValueError:  # it has ended
                continue
            if spec is None:  # its start was not finished
                ray.kill(handle)
            else:
                found.append((spec, record or ActorRecord(state=life.STARTING), handle))
        return found

    def _make(self, spec: ReplicaSpec | IngressSpec) -> _Actor:
        actor = _Actor(spec, self._loop)
        self._actors[spec.id] = actor
        if isinstance(spec, ReplicaSpec):
            self._cluster.take(spec.id, spec.options)
        self._spawn(self._create(actor))
        return actor

    async def _create(self, actor: _Actor) -> None:
        try:
            actor.handle, over = await _in_thread(self._create_in_thread, actor.spec)
        except Exception as error:  # noqa: BLE001  # whatever Ray says of the options: it did not start
            self._has_ended(actor.id, f"could not be started: {error}")
            return
        self._watch(actor, over)

    def _create_in_thread(self, spec: ReplicaSpec | IngressSpec) -> tuple[Any, Any]:
        records.write_as(records.spec_key(self._settings.name, spec.id), spec)
        if isinstance(spec, ReplicaSpec):
            made_by, role, options = self._actors_made_by.replica, REPLICA, _options(spec.options)
        else:
            made_by, role = self._actors_made_by.ingress, INGRESS
            options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(spec.place, soft=False)}
        options |= {"name": f"{role}:{spec.id}", "namespace": self._namespace, "lifetime": "detached", "max_restarts": 0}
        handle = made_by.options(**options).remote()
        return handle, handle.run.remote(self._settings.name, spec.id)

    def _watch(self, actor: _Actor, over: Any) -> None:
        """Note the end of an actor when Ray tells that its call is over."""

        def tell(future: Any) -> None:
            error = future.exception()
            reason = "exit status 0" if error is None else _reason(error)
            if isinstance(error, AddressInUseError):
                actor.failure = AddressInUseError(error.message)
            with contextlib.suppress(RuntimeError):  # the controller has ended
                self._loop.call_soon_threadsafe(self._hear_of_end, actor.id, reason, _LAST_WORDS_TURNS)

        over.future().add_done_callback(tell)

    async def _constructed(self, actor: _Actor) -> Running:
        if not isinstance(actor.spec, ReplicaSpec):
            raise InvalidValueError(f"{actor.id!r} is an ingress; only a replica is constructed")
        limit_s = actor.spec.config.startup_timeout
        try:
            await asyncio.wait([actor.started], timeout=limit_s)
            late = not actor.started.done()
            if late or actor.failure is not None:
                await self._end(actor)
        except asyncio.CancelledError:
            actor.asked_for = True
            await self._end(actor)
            raise
        if actor.failure is not None:
            raise actor.failure
        backend = actor.spec.backend
        if late:
            raise ReplicaStartError(
                f"a replica of backend {backend!r} was not ready after startup_timeout={limit_s:g} s and was killed; raise startup_timeout "
                "in the backend's config if its import, its constructor and the first check_health() need longer"
            )
        if actor.ended.done():
            raise ReplicaStartError(f"a replica of backend {backend!r} ended while it was constructed ({actor.ended.result()})")
        return actor.running()

    async def _end(self, actor: _Actor) -> None:
        """Kill an actor and wait for its end; one whose node is out of reach is taken for ended, and may do nothing any more."""
        interrupted: asyncio.CancelledError | None = None
        killing: asyncio.Task[None] | None = None
        until = self._loop.time() + _GONE_WITHIN_S
        while not actor.ended.done():
            if killing is None and actor.handle is not None:
                killing = self._spawn(_in_thread(_kill, actor.handle))
                until = self._loop.time() + _GONE_WITHIN_S
            try:
                await asyncio.wait([actor.ended], timeout=0.02 if killing is None else until - self._loop.time())
            except asyncio.CancelledError as error:
                interrupted = error
            if killing is not None and self._loop.time() >= until:
                self._has_ended(actor.id, "killed, and out of reach")
        if interrupted is not None:
            raise interrupted

    def _is_ready(self, actor: _Actor, address: str) -> None:
        if actor.state != life.STARTING:
            return
        actor.state, actor.address = life.READY, address
        if isinstance(actor.spec, IngressSpec):
            self._ports[actor.spec.place] = split(address)[1]
        self._spawn(self._note(actor))
        if not actor.started.done():
            actor.started.set_result(None)

    async def _note(self, actor: _Actor) -> None:
        """Keep for the next controller how far it has come."""
        record = ActorRecord(state=actor.state, pid=actor.pid, address=actor.address, node=actor.node, gpus=actor.gpus)
        await self._in_order(records.write_as, records.actor_key(self._settings.name, actor.id), record)

    def _has_failed(self, actor: _Actor, message: ReplicaFailed) -> None:
        found = rebuild(msgspec.structs.replace(message.error, pickled=b""))  # user data is never opened here
        if isinstance(found, ReplicaStartError):
            actor.failure = found
        else:
            actor.failure = ReplicaStartError(found.message, remote_traceback=message.error.traceback)
        if not actor.started.done():
            actor.started.set_result(None)

    def _hear_of_end(self, id: str, reason: str, turns: int) -> None:
        """Note an end, a few turns of the loop later: what it said last may be in the control socket still."""
        if id in self._actors and turns:
            self._loop.call_soon(self._hear_of_end, id, reason, turns - 1)
        else:
            self._has_ended(id, reason)

    def _has_ended(self, id: str, reason: str) -> None:
        actor = self._actors.pop(id, None)
        if actor is None:
            return
        self._cluster.give_back(id)
        actor.ended.set_result(reason)
        if not actor.started.done():
            actor.started.set_result(None)
        for waiting in actor.pings.values():
            if not waiting.done():
                waiting.set_exception(NotFoundError(f"{id!r} has ended ({reason})"))
        if not self._closing:
            self._spawn(self._in_order(self._forget, id, actor.handle))
        self.on_end(Ended(id=id, role=actor.role, pid=actor.pid, reason=reason, asked_for=actor.asked_for))

    def _forget(self, id: str, handle: Any) -> None:
        if handle is not None:  # an actor outlives a call that raises
            _kill(handle)
        records.delete(records.spec_key(self._settings.name, id))
        records.delete(records.actor_key(self._settings.name, id))

    async def _tell_serving(self) -> None:
        await self._in_order(records.note, self._settings, {"serving": True})
        self._on_serving()

    async def _in_order(self, function: Callable[..., object], *args: Any) -> None:
        """Write something about an actor after all that was to be written before."""
        await self._loop.run_in_executor(self._writer, function, *args)

    # The cluster.

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            places = self._cluster.places()
            try:
                await _in_thread(self._cluster.look)
            except Exception as error:  # noqa: BLE001  # Ray's control service is away; what was true stays so
                _log.debug("the cluster can't be looked at: %s", error)
            if self._cluster.places() != places:
                self.on_places()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _options(options: ReplicaOptions) -> dict[str, Any]:
    """As Ray wants them. Replicas that say nothing of where they want to be are spread over the nodes."""
    asked: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "scheduling_strategy": "SPREAD"}
    if options.memory:
        asked["memory"] = options.memory
    if options.resources:
        asked["resources"] = dict(options.resources)
    if options.runtime_env:
        asked["runtime_env"] = dict(options.runtime_env)
    return asked


def _reason(error: BaseException) -> str:
    """The first words of what Ray says of a death."""
    text = str(error) if isinstance(error, RayError) else repr(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _kill(handle: Any) -> None:
    ray.kill(handle, no_restart=True)


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(function, *args)
