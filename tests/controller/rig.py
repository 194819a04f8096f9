"""A controller with a fake engine, and the processes around it: ingresses, routers and drivers that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headgate.config import BackendConfig, ReplicaOptions
from headgate.controller.controller import Controller
from headgate.controller.store import Store
from headgate.core import messages, replica_life, tables
from headgate.core.messages import (
    Applied,
    Count,
    Counted,
    CreateBackend,
    CreateEndpoint,
    Describe,
    Hello,
    Idle,
    Message,
    Pong,
    RoutingChanges,
    RoutingTable,
    Shutdown,
    Verb,
    VerbCall,
    VerbDone,
)
from headgate.core.reports import Counters, Description
from headgate.core.specs import Definition, MethodInfo
from headgate.engines.base import IngressSpec, InstanceSettings, ReplicaSpec
from headgate.errors import rebuild
from headgate.router.control import ControlLink
from headgate.router.way import Way
from headgate.testing import FakeEngine
from tests.support import until

PATIENCE_S = 10.0

T = TypeVar("T")


def definition(name: str = "f", payload: bytes = b"code", **methods: MethodInfo) -> Definition:
    """A function; with `methods`, a class."""
    return Definition(payload=payload, name=name, methods={"": MethodInfo("")} | methods)


def create(tag: str, *, code: Definition | None = None, options: ReplicaOptions | None = None, **config: Any) -> CreateBackend:
    return CreateBackend(tag, code or definition(), BackendConfig(**config), options or ReplicaOptions())


def settings_in(folder: str, **changes: Any) -> InstanceSettings:
    given: dict[str, Any] = {
        "name": "test",
        "folder": folder,
        "state_dir": folder,
        "state_kept": False,
        "http_host": "127.0.0.1",
        "http_port": 0,
        "num_ingresses": 1,
        "max_body_bytes": 1000,
        "max_inflight_bytes": 10000,
        "resources": {},
        "detached": False,
        "debug": False,
        "ssl_certfile": None,
        "ssl_keyfile": None,
        "access_log": False,
        "traces": False,
        "log_format": "text",
        "log_dir": "",
        "driver_pid": os.getpid(),
    }
    return InstanceSettings(**given | changes)


class Engine(FakeEngine):
    """A fake engine whose replicas answer pings as they are told."""

    def __init__(self, totals: dict[str, float] | None = None, *, waits: bool = False, grows: bool = False) -> None:
        super().__init__(totals, waits=waits, grows=grows)
        self.pongs: dict[str, Pong] = {}

    async def ping(self, id: str) -> Pong:
        pong = await super().ping(id)
        return self.pongs.get(id, pong)


class Process:
    """A process with a router, or a driver without one; it follows tables unless it is `frozen`."""

    def __init__(
        self,
        way: Way,
        role: str,
        id: str,
        token: str = "",
        *,
        routes: bool = True,
        replica: str = "",
        owner: bool = False,
        place: str = "",
    ) -> None:
        self.id = id
        self.tables: list[RoutingTable] = []
        self.arrived: list[Message] = []
        self.frozen = False
        self.busy_endpoints: tuple[str, ...] = ()
        self.busy_backends: tuple[str, ...] = ()
        self._old_endpoints: set[str] = set()  # busy ones that were deleted, whether or not others have their names by now
        self.counters = Counters()
        hello = Hello(messages.PROTOCOL, role, id, os.getpid(), token, routes, replica=replica, owner=owner, place=place)
        self.link = ControlLink(way, lambda: hello, self._received)
        self.link.start()

    @property
    def table(self) -> RoutingTable:
        return self.tables[-1]

    def replicas(self, tag: str) -> list[str]:
        """The ids of the ready replicas that its table has."""
        return [replica.id for replica in self.table.backends[tag].replicas]

    def is_idle(self, version: int | None = None) -> None:
        self.busy_endpoints = self.busy_backends = ()
        self._old_endpoints.clear()
        self.link.send(Idle(self.table.version if version is None else version))

    def _received(self, message: Message) -> None:
        self.arrived.append(message)
        if isinstance(message, RoutingTable | RoutingChanges):
            table = tables.follow(self.tables[-1] if self.tables else None, message)
            assert table is not None, "changes are of the table that was sent before"
            self.tables.append(table)
            if not self.frozen:
                self.link.send(Applied(table.version))
                self._old_endpoints.update(name for name in self.busy_endpoints if name not in table.endpoints)
                gone = tuple(self._old_endpoints)
                self.link.send(Idle(table.version, gone, tuple(tag for tag in self.busy_backends if tag not in table.backends)))
        elif isinstance(message, Count) and not self.frozen:
            self.link.send(Counted(message.number, self.counters))


class Rig:
    """One instance: its folder, its engine, its controller (the latest), and everybody who is connected."""

    def __init__(self, folder: str, engine: FakeEngine, settings: InstanceSettings) -> None:
        self.folder = folder
        self.way = Way(folder)
        self.engine = engine
        self.settings = settings
        self.processes: list[Process] = []
        self._ingresses: dict[str, Process] = {}
        self._task: asyncio.Task[None] | None = None
        self._ingress_keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin a controller and the ingresses that it starts, and connect a driver."""
        self._controller = Controller(
            self.settings, self.engine, self.way, Store(self.settings.state_dir, durable=self.settings.state_kept)
        )
        self._task = asyncio.create_task(self._controller.run())
        self._ingress_keeper = asyncio.create_task(self._keep_ingresses())
        if not self.processes:
            self.driver = self.process("driver", routes=False)
        await asyncio.wait_for(self.driver.link.connected(), PATIENCE_S)
        await until(lambda: self.engine.is_serving, "the engine is told that HTTP answers")

    async def crash(self) -> None:
        """Kill the controller where it stands; what the engine runs lives on, for the next one."""
        assert self._task is not None
        assert self._ingress_keeper is not None
        self.cut_off()
        for task in (self._ingress_keeper, self._task):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def cut_off(self) -> None:
        """Nothing that the controller still does as it ends reaches anybody."""
        self._controller._store._db.close()
        for connection in self._controller._server._connections:
            connection._refuse()
        self.engine = self.engine.successor()

    async def ended(self) -> None:
        """Wait until the controller has ended by itself."""
        assert self._task is not None
        await asyncio.wait_for(self._task, PATIENCE_S)

    @property
    def ingress(self) -> Process:
        """The first ingress that runs."""
        return next(process for id, process in self._ingresses.items() if id in self.engine.running())

    def say(self, id: str, pong: Pong) -> None:
        """What a replica answers to pings from now on."""
        assert isinstance(self.engine, Engine)
        self.engine.pongs[id] = pong

    def process(self, id: str, *, routes: bool = True, replica: str = "") -> Process:
        """Connect a process of the user, or the router in a replica."""
        process = Process(self.way, "client", id, routes=routes, replica=replica)
        self.processes.append(process)
        return process

    async def try_verb(self, verb: Verb) -> VerbDone:
        return await asyncio.wait_for(self.driver.link.call(verb), PATIENCE_S)

    async def verb(self, verb: Verb) -> VerbDone:
        """Send a verb and wait for its end; raises its error."""
        done = await self.try_verb(verb)
        if done.error is not None:
            raise rebuild(done.error)
        return done

    async def repeat(self, id: str, verb: Verb) -> VerbDone:
        """Send a verb under an id of its own, as a process does that lost its connection."""
        reader, writer = await asyncio.open_unix_connection(self.way.control_path)
        decoder = messages.MessageDecoder()
        writer.write(messages.encode(Hello(messages.PROTOCOL, "client", f"sender of {id}", os.getpid())))
        writer.write(messages.encode(VerbCall(id, verb)))
        try:
            while data := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
                for message in decoder.received(data):
                    if isinstance(message, VerbDone):
                        return message
            raise ConnectionError("the controller closed the connection")
        finally:
            writer.close()

    async def create(self, tag: str, **config: Any) -> None:
        await self.verb(create(tag, **config))

    async def endpoint(self, name: str, backend: str | None = None) -> None:
        await self.verb(CreateEndpoint(name, f"/{name}", ("GET",), backend))

    async def describe(self) -> Description:
        return msgspec.msgpack.decode((await self.verb(Describe())).result, type=Description)

    def replicas(self, tag: str) -> list[str]:
        """The ids of the replicas of a backend that the engine runs."""
        running = self.engine.running().values()
        return [found.id for found in running if isinstance(found.spec, ReplicaSpec) and found.spec.backend == tag]

    def draining(self) -> list[str]:
        """The ids of the replicas that were told to end, and have something to finish."""
        return [id for id, running in self.engine.running().items() if running.state == replica_life.DRAINING]

    async def finishing(self, work: asyncio.Task[T]) -> T:
        """What `work` returns, while replicas that drain finish what they have."""

        def over() -> bool:
            for id in self.draining():
                self.engine.end(id, "exit status 0")
            return work.done()

        await until(over, "replicas that drain are waited for")
        return await work

    async def shut_down(self) -> None:
        await self.verb(Shutdown())
        await self.ended()

    async def close(self) -> None:
        for process in [*self.processes, *self._ingresses.values()]:
            await process.link.close()
        for task in (self._ingress_keeper, self._task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _keep_ingresses(self) -> None:
        """Be the processes of the ingresses that the engine runs."""
        while True:
            for id, found in self.engine.running().items():
                if isinstance(found.spec, IngressSpec) and id not in self._ingresses:
                    self._ingresses[id] = Process(self.way, "ingress", id, found.spec.token, place=found.spec.place)
            for id in [id for id in self._ingresses if id not in self.engine.running()]:
                await self._ingresses.pop(id).link.close()
            await asyncio.sleep(0.002)


def play(
    scene: Callable[[Rig], Awaitable[None]],
    *,
    resources: dict[str, float] | None = None,
    state_dir: Path | None = None,
    hold: tuple[str, ...] = (),
    waits: bool = False,
    grows: bool = False,
    **settings: Any,
) -> None:
    """Run a scene on a running instance. Replicas of the backends in `hold` stay in their constructors.

    With `waits` and `grows` the engine is that of a cluster, as `FakeEngine` has it.
    """

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="hg-") as folder:
            if state_dir is not None:
                settings.update(state_dir=str(state_dir), state_kept=True)
            rig = Rig(folder, Engine(resources, waits=waits, grows=grows), settings_in(folder, **settings))
            for tag in hold:
                rig.engine.hold(tag)
            try:
                await rig.start()
                await asyncio.wait_for(scene(rig), 60)
            finally:
                await rig.close()

    asyncio.run(main())
