"""Programs in place of the real ones, so that supervisor and engine are tested apart from what they carry.

Its replicas do what the names of their definitions say; files in the folder `$HG_SCRATCH` show what they did, and tell
them what to do. Its controller is one of two: where `$HG_RELAY` is set it only passes bytes between the supervisor and the
test at that socket, which plays the controller; otherwise it starts the ingresses and what `$HG_REPLICAS` names, and ends
when it is told to.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core import messages
from headgate.core.messages import PROTOCOL, Drain, Hello, Message, Ping, Pong, ReplicaFailed, ReplicaReady
from headgate.core.specs import Definition
from headgate.engines.base import IngressSpec, InstanceSettings, ReplicaSpec
from headgate.engines.local import boot, protocol, supervisor
from headgate.engines.local.engine import LocalEngine
from headgate.engines.local.programs import Programs
from headgate.errors import InvalidValueError, describe_user_error
from headgate.router.control import ControlLink
from headgate.router.remote import join
from headgate.router.way import Way
from headgate.testing import ControlServer, conformance

SCRATCH = "HG_SCRATCH"
RELAY = "HG_RELAY"
REPLICAS = "HG_REPLICAS"
PATIENCE = "HG_PATIENCE"
"""Seconds that the supervisor waits for a controller that is stuck, or late, in place of its own."""

FORKS = "forks"
"""A replica with a child in its group, and one in a session of its own; both outlive their parent."""


def scratch(name: str) -> Path:
    """A file by which a stand-in and its test speak."""
    return Path(os.environ[SCRATCH], name)


def replica_spec(behaviour: str, id: str, options: ReplicaOptions, config: BackendConfig) -> ReplicaSpec:
    """A spec of a stand-in replica."""
    return ReplicaSpec(
        id=id,
        token=f"token-{id}",
        backend=f"{behaviour}:{id}",
        definition=Definition(payload=b"", name=behaviour, environ=dict(os.environ), cwd=os.getcwd()),
        config=config,
        options=options,
        instance="test",
    )


def ingress_spec(id: str, number: int = 0) -> IngressSpec:
    """A spec of a stand-in ingress."""
    return IngressSpec(id=id, token=f"token-{id}", place=str(number))


class _Member:
    """A replica's or ingress' control connection."""

    def __init__(self, spec: ReplicaSpec | IngressSpec, way: Way, role: str) -> None:
        self.spec = spec
        self.role = role
        self.node = way.node
        self.address = ""
        self.behaviour = spec.definition.name if isinstance(spec, ReplicaSpec) else conformance.WORKS
        self.drained = asyncio.Event()
        self.link = ControlLink(way, self.hello, self.received)
        self.link.start()

    def hello(self) -> Hello:
        state = "ready" if self.address else "starting"
        gpus = self.spec.gpus if isinstance(self.spec, ReplicaSpec) else ()
        return Hello(
            PROTOCOL,
            self.role,
            self.spec.id,
            os.getpid(),
            token=self.spec.token,
            state=state,
            address=self.address,
            node=self.node,
            gpus=gpus,
        )

    def received(self, message: Message) -> None:
        if isinstance(message, Ping):
            if self.behaviour != conformance.STUCK:
                self.link.send(Pong(message.number))
            return
        with open(scratch(f"heard-{self.spec.id}"), "ab") as file:
            file.write(messages.encode(message))
        if isinstance(message, Drain):
            self.drained.set()

    async def run(self) -> None:
        told = scratch(f"say-{self.spec.id}")
        while not self.drained.is_set() or self.behaviour == conformance.STUCK:
            if told.exists():
                for message in messages.MessageDecoder().received(told.read_bytes()):
                    self.link.send(message)
                told.unlink()
            await asyncio.sleep(0.005)
        if self.behaviour == conformance.LINGERS:
            await asyncio.sleep(0.2)
            scratch(f"finished-{self.spec.id}").touch()
        await self.link.close()


async def _file(name: str) -> None:
    """Wait until the test has made this file."""
    while not scratch(name).exists():  # noqa: ASYNC110  # it comes from another process
        await asyncio.sleep(0.005)


def _fork() -> None:
    for new_session in (False, True):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=new_session)


async def _replica(spec: ReplicaSpec, way: Way) -> None:
    scratch(f"pid-{spec.id}").write_text(str(os.getpid()))
    member = _Member(spec, way, "replica")
    if member.behaviour == conformance.DIES:
        os._exit(3)
    if member.behaviour == conformance.RAISES:
        try:
            raise RuntimeError("no model here")
        except RuntimeError as error:
            await member.link.connected()
            member.link.send(ReplicaFailed(describe_user_error(error)))
        await member.link.close()
        sys.exit(1)
    if member.behaviour == conformance.GATED:
        scratch(f"constructing-{spec.id}").touch()
        await _file(f"let-{spec.id}")
    if member.behaviour == FORKS:
        _fork()
    member.address = way.link_path(spec.id)
    member.link.send(ReplicaReady(member.address))
    await member.run()


def replica(spec: ReplicaSpec, way: Way) -> None:
    """Be a replica."""
    asyncio.run(_replica(spec, way))


async def _ingress(spec: IngressSpec, way: Way, listener: socket.socket) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = spec.id.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    scratch(f"pid-{spec.id}").write_text(str(os.getpid()))
    server = await asyncio.start_server(answer, sock=listener)
    member = _Member(spec, way, "ingress")
    member.address = join(*listener.getsockname()[:2])
    await member.run()
    server.close()


def ingress(spec: IngressSpec, way: Way, listener: socket.socket) -> None:
    """Be an ingress that answers every request with its id."""
    asyncio.run(_ingress(spec, way, listener))


async def _controller(settings: InstanceSettings, way: Way, supervisor: socket.socket) -> None:
    engine = LocalEngine(settings, supervisor)
    ended = asyncio.Event()
    engine.on_end = lambda _: ended.set()
    engine.on_message = lambda _, __: None

    def leave() -> float:
        with open(scratch("told"), "a") as file:
            file.write(f"{os.getpid()}\n")
        if settings.name != "stays":
            scratch("shutdown").touch()
        return 0.1

    engine.on_leave = leave
    adopted = await engine.open()
    scratch("adopted").write_text(" ".join(sorted(running.id for running in adopted)))
    async with ControlServer(engine, way.control_path, name=settings.name):
        if not adopted:
            for number in range(int(settings.num_ingresses)):
                await engine.start_ingress(ingress_spec(f"ingress-{number}", number))
            for number, behaviour in enumerate(os.environ.get(REPLICAS, "").split()):
                spec = replica_spec(behaviour, f"replica-{number}", ReplicaOptions(), BackendConfig())
                await engine.start_replica(spec)
        engine.serving()
        await _file("shutdown")
        await engine.close()


def _relay(supervisor: socket.socket, path: str) -> None:
    test = socket.socket(socket.AF_UNIX)
    test.connect(path)
    poll = select.poll()
    to = {test.fileno(): supervisor, supervisor.fileno(): test}
    for descriptor in to:
        poll.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            data = os.read(descriptor, 65536)
            if not data:
                return
            to[descriptor].sendall(data)


def controller(settings: InstanceSettings, way: Way, supervisor: socket.socket, http_urls: tuple[str, ...]) -> None:
    """Be one of the two controllers, or fail as the instance's name says."""
    scratch("controller").write_text(str(os.getpid()))
    if settings.name == "refuses":
        raise InvalidValueError("this state can't be read")
    if settings.name == "crashes":
        os.write(1, b"the controller says goodbye\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.name == "hangs":
        time.sleep(600)
    if RELAY in os.environ:
        supervisor.setblocking(True)
        _relay(supervisor, os.environ[RELAY])
    else:
        scratch("urls").write_text(" ".join(http_urls))
        asyncio.run(_controller(settings, way, supervisor))


def warm() -> None:
    """All is imported already."""


if __name__ == "__main__":
    if PATIENCE in os.environ:
        supervisor.STUCK_AFTER_S = supervisor.LEAVE_TIMEOUT_S = float(os.environ[PATIENCE])  # type: ignore[misc]  # for this program alone
        protocol.ALIVE_PERIOD_S = supervisor.STUCK_AFTER_S / 10  # type: ignore[misc]  # as above
    boot.main(Programs(controller=controller, ingress=ingress, replica=replica, warm=warm))
