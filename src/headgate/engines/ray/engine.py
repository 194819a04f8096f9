"""How does the controller start and stop actors on a Ray cluster?

`RayEngine` lives in the controller's actor. Ray places actors, counts what they take, and tells when they die: each makes one
call, whose end is the news of its own. All else comes over our control connections. What a later controller has to know is in
`records.py`. Everything here happens on the controller's event loop; what blocks is done by threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

import msgspec
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headgate.config import ReplicaOptions
from headgate.core import replica_life as life
from headgate.core.messages import Hello
from headgate.engines.base import INGRESS, REPLICA, IngressSpec, InstanceSettings, ReplicaSpec, Running
from headgate.engines.members import Member, Members
from headgate.engines.ray import placement, records
from headgate.engines.ray.cluster import Cluster
from headgate.engines.ray.options import LIGHT, SPREAD, actor_options
from headgate.engines.ray.records import ActorRecord
from headgate.errors import (
    AddressInUseError,
    InsufficientResourcesError,
    InvalidValueError,
    ReplicaStartError,
    in_one_line,
)
from headgate.router.listening import ALL_ADDRESSES
from headgate.router.remote import join, split

_log = logging.getLogger("headgate.controller")

_GONE_WITHIN_S: Final = 2.0
"""An actor that was killed and whose end Ray doesn't tell for so long is out of reach, with its node."""
_LOOK_S: Final = 0.5
"""How often the cluster's nodes are looked at."""
_BEGUN_WITHIN_S: Final = 20.0
"""Where there is room, the process of a replica has so long at least until it is heard of."""
_EXIT: Final = re.compile(r"Worker exit detail: (.*?)\.? *(?:Some common causes|$)", re.MULTILINE)
"""Where Ray says how the process of an actor has ended."""

T = TypeVar("T")


class Actors(Protocol):
    """The classes of actors, as the composition root makes them; each is an `Actor` of `actors.py`."""

    replica: Any
    ingress: Any


def namespace(name: str) -> str:
    """The namespace of the actors of the instance of that name."""
    return f"headgate:{name}"


class _Actor(Member):
    """One replica or ingress."""

    def __init__(self, spec: ReplicaSpec | IngressSpec, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(spec, loop)
        self.handle: Any = None
        self.placed: asyncio.Future[None] = loop.create_future()  # done when it has room


class RayEngine(Members[_Actor]):
    """The engine of a Ray cluster: `headgate.engines.base.Engine`, by detached actors in a namespace of the instance.

    `on_serving` is called when HTTP answers.
    """

    def __init__(self, settings: InstanceSettings, actors: Actors, *, on_serving: Callable[[], object]) -> None:
        super().__init__()
        self._settings = settings
        self._actors_made_by = actors
        self._namespace = namespace(settings.name)
        self._cluster = Cluster(settings)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writer = ThreadPoolExecutor(1, "headgate records")
        self._on_serving = on_serving
        self._ports: dict[str, int] = {}  # of the ingress of each node, so that the next one there has it too

    async def open(self) -> list[Running]:
        """Begin, and return what runs already, started by an engine before this one; what was still starting goes on."""
        self._loop = asyncio.get_running_loop()
        await self._look()
        found = await _in_thread(self._find)
        self._cluster.has_ingresses([spec.place for spec, _, _ in found if isinstance(spec, IngressSpec)])
        for spec, record, handle in found:
            actor = _Actor(spec, self._loop)
            actor.handle = handle
            actor.pid, actor.node, actor.gpus = record.pid, record.node, record.gpus
            actor.adopt(record.state, record.address)
            self._members[spec.id] = actor
            if isinstance(spec, ReplicaSpec):
                self._cluster.take(spec.id, spec.options, spec.backend)
                if actor.node:
                    self._has_room(actor)
            self._watch(actor, handle.run.remote(self._settings.name, spec.id))
        self._spawn(self._keep_looking())
        return [actor.running() for actor in self._members.values()]

    async def start_replica(self, spec: ReplicaSpec) -> Running:
        """Start a replica; return when user construction has finished and it takes links.

        Raises `InsufficientResourcesError` where it doesn't fit: at once if no node could ever have room for it, else after it
        has waited for that for `config.startup_timeout`. Raises `ReplicaStartError` where construction raised or took longer
        than that. After an error, or a cancellation, nothing of it is left.
        """
        self._check_new(spec.id)
        why = self._cluster.never(spec.options, 1)
        if why is not None:
            raise InsufficientResourcesError(why)
        return await self._constructed(self._make(spec))

    async def start_ingress(self, spec: IngressSpec) -> Running:
        """Start an ingress; return when it has said hello.

        Raises `AddressInUseError`, `InvalidValueError` where its node has no such address, or `ReplicaStartError` where it ends
        before that.
        """
        self._check_new(spec.id)
        shared = [self._cluster.host(place) for place in self._cluster.places()].count(self._cluster.host(spec.place)) > 1
        return await self._serves(self._make(msgspec.structs.replace(spec, port=self._ports.get(spec.place, 0), shares_port=shared)))

    def places(self) -> list[str]:
        """The nodes that are to have an ingress."""
        return self._cluster.places()

    def http_urls(self) -> tuple[str, ...]:
        """Where clients reach the ingresses that run, the head's first."""
        scheme = "http" if self._settings.ssl_certfile is None else "https"
        addresses = {actor.spec.place: actor.address for actor in self._members.values() if isinstance(actor.spec, IngressSpec)}
        found = []
        for place in self._cluster.places():
            if addresses.get(place):
                host, port = split(addresses[place])
                found.append(f"{scheme}://{join(self._cluster.host(place) if host in ALL_ADDRESSES else host, port)}")
        return tuple(dict.fromkeys(found))

    def serving(self) -> None:
        """HTTP answers now: the driver that started the instance goes on."""
        self._spawn(self._tell_serving())

    def fits(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas fit into what is free (and what the replicas `without` give back), else what is asked and free."""
        return self._cluster.refusal(options, count, without or ())

    def may_fit(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if the nodes have so much in all, or more of them may come; else what is asked and there."""
        return self._cluster.never(options, count)

    def waiting(self) -> dict[str, str]:
        """The replicas that Ray has no room for so far, and what each asks for and what is free."""
        found = self._cluster.waiting()
        return {id: why for id, why in found.items() if id in self._members and self._members[id].handle is not None}

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """All resources of the cluster, and those that are free."""
        return self._cluster.totals(), self._cluster.free()

    async def close(self) -> None:
        """End everything; leaves no actor, and nothing in the cluster's store."""
        if not self._begins_to_close():
            return
        await asyncio.gather(*(self._end(actor) for actor in list(self._members.values())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._in_order(records.delete_all, self._settings.name)
        self._writer.shutdown()

    # Actors.

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
        for id in records.ids(self._settings.name) - {spec.id for spec, _, _ in found}:  # they ended while there was no controller
            self._forget(id, None)
        return found

    def _make(self, spec: ReplicaSpec | IngressSpec) -> _Actor:
        actor = _Actor(spec, self._loop)
        self._members[spec.id] = actor
        if isinstance(spec, ReplicaSpec):
            self._cluster.take(spec.id, spec.options, spec.backend)
        self._spawn(self._create(actor))
        return actor

    async def _create(self, actor: _Actor) -> None:
        try:
            place = await self._place_for(actor)
            actor.handle, over = await _in_thread(self._create_in_thread, actor.spec, place)
        except Exception as error:  # noqa: BLE001  # whatever Ray says of the options: it did not start
            self._has_ended(actor.id, f"could not be started: {error}")
            return
        self._watch(actor, over)

    async def _place_for(self, actor: _Actor) -> Any:
        """Where it is to be, as Ray wants it; None where its options say. Replicas of a backend are spread over the nodes that answer.

        An ingress waits until its node does: Ray, asked in vain, would ask again less and less often.
        """
        if isinstance(actor.spec, IngressSpec):
            while not await _in_thread(self._cluster.answers, actor.spec.place):
                if actor.asked_for:
                    raise ReplicaStartError("its node is out of reach")
                await asyncio.sleep(_LOOK_S)
            return NodeAffinitySchedulingStrategy(actor.spec.place, soft=False)
        if not placement.is_anywhere(actor.spec.options):
            return None
        silent: set[str] = set()
        while node := self._cluster.next_node(actor.id, silent):
            if await _in_thread(self._cluster.answers, node):
                return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
            silent.add(node)
        return SPREAD

    def _create_in_thread(self, spec: ReplicaSpec | IngressSpec, place: Any) -> tuple[Any, Any]:
        records.write_as(records.spec_key(self._settings.name, spec.id), spec)
        if isinstance(spec, ReplicaSpec):
            made_by, role, options = self._actors_made_by.replica, REPLICA, actor_options(spec.options)
        else:
            made_by, role, options = self._actors_made_by.ingress, INGRESS, LIGHT
        options = options | {"name": f"{role}:{spec.id}", "namespace": self._namespace, "lifetime": "detached", "max_restarts": 0}
        if place is not None:
            options["scheduling_strategy"] = place
        handle = made_by.options(**options).remote()
        return handle, handle.run.remote(self._settings.name, spec.id)

    def _watch(self, actor: _Actor, over: Any) -> None:
        """Note the end of an actor when Ray tells that its call is over."""

        def tell(future: Any) -> None:
            error = future.exception()
            reason = "exit status 0" if error is None else _reason(error)
            for kind in (AddressInUseError, InvalidValueError):
                if isinstance(error, kind):  # Ray's own class for it is one of both
                    actor.failure = kind(error.message)
            with contextlib.suppress(RuntimeError):  # the controller has ended
                self._loop.call_soon_threadsafe(self._hear_of_end, actor.id, reason)

        over.future().add_done_callback(tell)

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

    def _met(self, actor: _Actor, hello: Hello) -> None:
        if hello.node:
            actor.node, actor.gpus = hello.node, hello.gpus
            self._has_room(actor)

    def _has_room(self, actor: _Actor) -> None:
        """It is where its `node` and `gpus` say."""
        self._cluster.placed(actor.id, actor.node, actor.gpus)
        if not actor.placed.done():
            actor.placed.set_result(None)

    async def _has_place(self, actor: _Actor, limit_s: float) -> None:
        """Ray has an actor wait until a node has room. Where one should have, its process may only be slow to begin."""
        began = self._loop.time()
        while True:
            waits = actor.id in self._cluster.waiting()
            until = began + (limit_s if waits else max(limit_s, _BEGUN_WITHIN_S))
            left_s = until - self._loop.time()
            if left_s > 0:
                await asyncio.wait([actor.placed, actor.started], timeout=min(left_s, _LOOK_S), return_when=asyncio.FIRST_COMPLETED)
            if actor.placed.done() or actor.started.done():
                return
            if left_s <= 0:
                break
        why = "" if waits else "; Ray has not placed it there, or its runtime_env is still being set up"
        actor.failure = InsufficientResourcesError(f"{self._cluster.asked(actor.id)}{why}; waited {self._loop.time() - began:.1f} s")

    def _remember(self, actor: _Actor) -> asyncio.Task[Any]:
        if isinstance(actor.spec, IngressSpec):
            self._ports[actor.spec.place] = split(actor.address)[1]
        record = ActorRecord(state=actor.state, pid=actor.pid, address=actor.address, node=actor.node, gpus=actor.gpus)
        return self._spawn(self._in_order(records.write_as, records.actor_key(self._settings.name, actor.id), record))

    def _gave_up(self, actor: _Actor) -> None:
        self._cluster.give_back(actor.id)
        if not self._closing:
            self._spawn(self._in_order(self._forget, actor.id, actor.handle))

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

    async def _look(self) -> None:
        """Take note of the nodes, and of the replicas that Ray has placed by now."""
        unplaced = {}
        for id in self._cluster.unplaced():
            actor = self._members.get(id)
            if actor is not None and actor.handle is not None:
                unplaced[id] = actor.handle._actor_id.hex()
        self._cluster.take_note(await _in_thread(self._cluster.ask, unplaced))
        for id in unplaced.keys() - set(self._cluster.unplaced()):
            placed = self._members.get(id)
            if placed is not None and not placed.placed.done():
                placed.placed.set_result(None)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            before = self._cluster.places(), self._cluster.totals()
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  # Ray's control service is away; what was true stays so
                _log.debug("the cluster can't be looked at: %s", error)
            if (self._cluster.places(), self._cluster.totals()) != before:
                self.on_places()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _reason(error: BaseException) -> str:
    """What is known of a death, from all that Ray says of it."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and isinstance(cause, BaseException):
        return in_one_line(cause)[:300]
    text = str(error) if isinstance(error, RayError) else repr(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    why = _EXIT.search(text)
    if why is not None and why[1]:  # the rest is advice
        lines = [f"its process has died: {why[1]}"]
    return lines[0][:300] if lines else type(error).__name__


def _kill(handle: Any) -> None:
    ray.kill(handle, no_restart=True)


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(function, *args)
