"""How do the conformance checks reach the fake engine, and the local one?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import tempfile
from pathlib import Path
from typing import Self

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core import messages
from headgate.core.messages import Message, Ping
from headgate.engines.base import Engine, IngressSpec, InstanceSettings, ReplicaSpec, Running
from headgate.engines.local import folders, launch
from headgate.engines.local.engine import LocalEngine
from headgate.engines.local.folders import LocalWay
from headgate.errors import ReplicaStartError
from headgate.testing import ControlServer, FakeEngine, conformance
from headgate.testing.conformance import Records
from tests.conformance import standin
from tests.leaks import processes

RESOURCES = {"CPU": 4.0, "GPU": 2.0, "tpu": 1.0}
ROOT = "tests.conformance.standin"


class FakeHarness:
    """The fake engine: what replicas do is told to it."""

    def __init__(self, *, waits: bool = False) -> None:
        self.records = Records()
        self.engine = FakeEngine({**RESOURCES, "memory": 1e9}, waits=waits)
        self.adopted: list[Running] = []
        self._set_owner()

    async def __aenter__(self) -> Self:
        await self.engine.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.engine.close()

    def _set_owner(self) -> None:
        self.engine.on_end = self.records.on_end
        self.engine.on_message = self.records.on_message
        self.engine.on_leave = self.records.on_leave

    def replica(
        self, behaviour: str, id: str, *, options: ReplicaOptions | None = None, config: BackendConfig | None = None
    ) -> ReplicaSpec:
        spec = standin.replica_spec(behaviour, id, options or ReplicaOptions(), config or BackendConfig())
        if behaviour == conformance.GATED:
            self.engine.hold(spec.backend)
        elif behaviour == conformance.RAISES:
            self.engine.fail_next(spec.backend, ReplicaStartError("no model here", remote_traceback="Traceback: no model here"))
        elif behaviour == conformance.DIES:
            self.engine.fail_next(spec.backend, ReplicaStartError("exit status 3"))
        elif behaviour == conformance.STUCK:
            self.engine.busy.add(id)  # for the whole grace
            self.engine.stuck.add(id)
        return spec

    def ingress(self, id: str) -> IngressSpec:
        return standin.ingress_spec(id)

    def constructing(self, id: str) -> bool:
        return id in self.engine.running()

    def let(self, id: str) -> None:
        self.engine.release(f"{conformance.GATED}:{id}")

    def finished(self, id: str) -> bool:
        return [ended.reason for ended in self.engine.ended if ended.id == id] == ["exit status 0"]

    def crash(self, id: str) -> None:
        self.engine.end(id)

    def say(self, id: str, message: Message) -> None:
        self.engine.received(id, message)

    def heard(self, id: str) -> list[Message]:
        return [message for message in self.engine.sent[id] if not isinstance(message, Ping)]

    async def successor(self) -> Engine:
        self.engine = self.engine.successor()
        self._set_owner()
        self.adopted = await self.engine.open()
        return self.engine

    def leave(self) -> bool:
        self.engine.leave()
        return True

    def leftovers(self) -> list[str]:
        return list(self.engine.running())


class StandInHarness:
    """What stand-ins do is seen, and told to them, by files."""

    def replica(
        self, behaviour: str, id: str, *, options: ReplicaOptions | None = None, config: BackendConfig | None = None
    ) -> ReplicaSpec:
        return standin.replica_spec(behaviour, id, options or ReplicaOptions(), config or BackendConfig())

    def constructing(self, id: str) -> bool:
        return standin.scratch(f"constructing-{id}").exists()

    def let(self, id: str) -> None:
        standin.scratch(f"let-{id}").touch()

    def finished(self, id: str) -> bool:
        return standin.scratch(f"finished-{id}").exists()

    def crash(self, id: str) -> None:
        os.kill(int(standin.scratch(f"pid-{id}").read_text()), signal.SIGKILL)

    def say(self, id: str, message: Message) -> None:
        written = standin.scratch(f"saying-{id}")
        written.write_bytes(messages.encode(message))
        written.rename(standin.scratch(f"say-{id}"))

    def heard(self, id: str) -> list[Message]:
        path = standin.scratch(f"heard-{id}")
        return messages.MessageDecoder().received(path.read_bytes()) if path.exists() else []


class LocalHarness(StandInHarness):
    """The local engine in this process, with a real supervisor whose controller only passes bytes to here."""

    def __init__(self) -> None:
        self.records = Records()
        self.adopted: list[Running] = []
        self.settings = settings_for("conformance", resources=RESOURCES)
        self._stack = contextlib.AsyncExitStack()
        self._control = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hg-scratch-"))
        self._relay = socket.socket(socket.AF_UNIX)
        self._stack.callback(self._relay.close)
        self._relay.bind(f"{scratch}/relay")
        self._relay.listen()
        self._relay.setblocking(False)
        self._variables = {standin.SCRATCH: scratch, standin.RELAY: f"{scratch}/relay"}
        os.environ.update(self._variables)
        starting = asyncio.ensure_future(asyncio.to_thread(launch.launch, self.settings, root=ROOT))
        await self._open()
        self.engine.serving()
        assert await starting
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.engine.close()
        await self._control.aclose()
        assert await asyncio.to_thread(launch.wait_ended, self.settings.folder, 10.0)
        for name in self._variables:
            del os.environ[name]
        await self._stack.aclose()
        await asyncio.get_running_loop().shutdown_default_executor()

    async def _open(self) -> None:
        relay, _ = await asyncio.get_running_loop().sock_accept(self._relay)
        self._controller_pid = struct.unpack("3i", relay.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self.engine = LocalEngine(self.settings, relay)
        self.engine.on_end = self.records.on_end
        self.engine.on_message = self.records.on_message
        self.engine.on_leave = self.records.on_leave
        self.adopted = await self.engine.open()
        await self._control.enter_async_context(ControlServer(self.engine, LocalWay(self.settings.folder).control_path))

    def ingress(self, id: str) -> IngressSpec:
        return standin.ingress_spec(id)

    async def successor(self) -> Engine:
        self.engine.on_end = lambda _: None  # a dead controller's engine reports nothing
        await self._control.aclose()
        os.kill(self._controller_pid, signal.SIGKILL)
        await self._open()
        return self.engine

    def leave(self) -> bool:
        record = folders.read_record(self.settings.folder)
        assert record is not None
        os.kill(record.pid, signal.SIGTERM)
        return True

    def leftovers(self) -> list[str]:
        folder = Path(self.settings.folder)
        return [*map(str, processes().values()), *(map(str, folder.iterdir()) if folder.exists() else ())]


def settings_for(
    name: str,
    *,
    port: int = 0,
    resources: dict[str, float] | None = None,
    state_dir: str | None = None,
    detached: bool = False,
    num_ingresses: int = 1,
    host: str = "127.0.0.1",
) -> InstanceSettings:
    """Settings of an instance of stand-ins."""
    folder = launch.folder_for(name)
    return InstanceSettings(
        name=name,
        folder=folder,
        state_dir=state_dir or folder,
        state_kept=state_dir is not None,
        http_host=host,
        http_port=port,
        num_ingresses=num_ingresses,
        max_body_bytes=1 << 20,
        max_inflight_bytes=1 << 20,
        resources=resources or {},
        detached=detached,
        debug=False,
        ssl_certfile=None,
        ssl_keyfile=None,
        access_log=False,
        traces=False,
        log_format="text",
        log_dir=f"{state_dir or folder}/logs" if detached else "",
        driver_pid=os.getpid(),
    )
