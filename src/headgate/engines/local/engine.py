"""How does the controller start and stop processes on this machine?

`LocalEngine` lives in the controller. It keeps the books of resources, writes the specs, and tells the supervisor what to
fork and what to kill; the supervisor tells it every end. Everything here happens on the controller's event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from headgate.config import ReplicaOptions
from headgate.core import replica_life as life
from headgate.core.messages import Drain, Hello, Message, Ping, Pong, ReplicaFailed, ReplicaReady
from headgate.core.resources import Books
from headgate.engines.base import INGRESS, REPLICA, Ended, IngressSpec, InstanceSettings, Peer, ReplicaSpec, Running
from headgate.engines.local import machine, protocol
from headgate.engines.local.protocol import (
    Alive,
    Channel,
    Close,
    Closed,
    Complete,
    Exited,
    Kill,
    Leave,
    Leaving,
    Remember,
    Runs,
    Serving,
    Spawn,
    Spawned,
    ToEngine,
    ToSupervisor,
)
from headgate.errors import InvalidValueError, NotFoundError, NotRunningError, ReplicaStartError, rebuild

_LAST_WORDS_TURNS: Final = 16
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}")


class _Process:
    """One replica or ingress, from its spawn to its end."""

    def __init__(self, spec: ReplicaSpec | IngressSpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.id = spec.id
        self.role = REPLICA if isinstance(spec, ReplicaSpec) else INGRESS
        self.pid: int | None = None
        self.address = ""
        self.state = life.STARTING
        self.asked_for = False
        self.peer: Peer | None = None
        self.unsent: list[Message] = []  # until it first connects
        self.failure: ReplicaStartError | None = None
        self.started: asyncio.Future[None] = loop.create_future()  # done when ready, or ended
        self.ended: asyncio.Future[str] = loop.create_future()  # the reason
        self.pings: dict[int, asyncio.Future[Pong]] = {}

    def running(self) -> Running:
        gpus = self.spec.gpus if isinstance(self.spec, ReplicaSpec) else ()
        return Running(id=self.id, role=self.role, pid=self.pid, state=self.state, address=self.address, gpus=gpus, spec=self.spec)


class LocalEngine:
    """The engine of one machine: `headgate.engines.base.Engine`, by a supervisor at the other end of a socket.

    `supervisor` is the controller's end of that socket; `settings` are the instance's. `http_urls` are where the supervisor listens.
    """

    on_end: Callable[[Ended], None]
    on_message: Callable[[str, Message], None]
    on_leave: Callable[[], float]
    on_places: Callable[[], None]

    def __init__(self, settings: InstanceSettings, supervisor: socket.socket, http_urls: tuple[str, ...] = ()) -> None:
        self._settings = settings
        self._http_urls = http_urls
        self._channel: Channel[ToEngine] = Channel(supervisor, protocol.to_engine)
        self._books = Books(*machine.resources(settings.resources, os.environ))
        self._processes: dict[str, _Process] = {}
        self._numbers = 0
        self._closing = False

    async def open(self) -> list[Running]:
        """Begin, and return what runs already, started by an engine before this one; what was still starting goes on.

        Raises `NotRunningError` where the supervisor is gone.
        """
        self._loop = asyncio.get_running_loop()
        self._complete: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._channel.sock, self._hear)
        self._show_life()
        await self._complete
        return [process.running() for process in self._processes.values()]

    async def start_replica(self, spec: ReplicaSpec) -> Running:
        """Start a replica; return when user construction has finished and it takes links.

        Raises `InsufficientResourcesError` at once where it doesn't fit, `ReplicaStartError` where construction raised or
        took longer than `config.startup_timeout`. After an error, or a cancellation, nothing of it is left.
        """
        self._check_new(spec.id)
        gpus = self._books.take(spec.id, spec.options)
        process = self._spawn(msgspec.structs.replace(spec, gpus=gpus))
        return await self._constructed(process)

    async def start_ingress(self, spec: IngressSpec) -> Running:
        """Start an ingress; return when it has said hello. Raises `ReplicaStartError` where it ends before that."""
        self._check_new(spec.id)
        process = self._spawn(spec)
        try:
            await asyncio.wait([process.started])
        except asyncio.CancelledError:
            process.asked_for = True
            await self._end(process)
            raise
        if process.ended.done():
            raise ReplicaStartError(f"ingress {spec.place} ended while it started ({process.ended.result()}); its output says why")
        return process.running()

    async def wait_ready(self, id: str) -> Running:
        """Wait for a replica that `open` returned as starting; same errors as `start_replica`.

        Its `startup_timeout` counts anew from here. Raises `NotFoundError` for an unknown id.
        """
        process = self._processes.get(id)
        if process is None:
            raise NotFoundError(f"replica {id!r} doesn't run")
        return await self._constructed(process)

    def places(self) -> list[str]:
        """The numbers of the listening sockets, which stay as they are."""
        return [str(number) for number in range(int(self._settings.num_ingresses))]

    def http_urls(self) -> tuple[str, ...]:
        """Where clients reach the ingresses."""
        return self._http_urls

    def serving(self) -> None:
        """HTTP answers now: the driver that started the instance goes on."""
        self._tell(Serving())

    def connected(self, hello: Hello, peer: Peer) -> bool:
        """A replica or ingress has opened its control connection, or opened it again. False refuses it: unknown id, or wrong token."""
        process = self._processes.get(hello.id)
        if process is None or process.role != hello.role or not hmac.compare_digest(process.spec.token.encode(), hello.token.encode()):
            return False
        process.peer = peer
        for message in process.unsent:
            peer.send(message)
        process.unsent.clear()
        if process.role == INGRESS:
            self._is_ready(process, "")
        elif hello.address:
            self._is_ready(process, hello.address)
        return True

    def received(self, id: str, message: Message) -> None:
        """A message from a replica or ingress. What isn't the engine's own goes on to `on_message`; unknown ids are dropped."""
        process = self._processes.get(id)
        if process is None:
            return
        if isinstance(message, ReplicaReady):
            self._is_ready(process, message.address)
        elif isinstance(message, ReplicaFailed):
            self._has_failed(process, message)
        elif isinstance(message, Pong):
            waiting = process.pings.pop(message.number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        else:
            self.on_message(id, message)

    def send(self, id: str, message: Message) -> None:
        """Send to a replica or ingress, such as `Configure`; kept until it first connects, dropped where it has ended."""
        process = self._processes.get(id)
        if process is None:
            return
        if process.peer is None:
            process.unsent.append(message)
        else:
            process.peer.send(message)

    async def ping(self, id: str) -> Pong:
        """Ask a sign of life. Never returns for one that is stuck: the caller sets the limit.

        Raises `NotFoundError` where it has ended, or ends before it answers.
        """
        process = self._processes.get(id)
        if process is None:
            raise NotFoundError(f"{id!r} doesn't run")
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Pong] = self._loop.create_future()
        process.pings[number] = answer
        self.send(id, Ping(number))
        try:
            return await answer
        finally:
            process.pings.pop(number, None)

    async def stop(self, id: str, grace_s: float) -> None:
        """Drain, then end it; kill it after `grace_s`. Returns when it has ended. Unknown ids are ended already.

        One that is still starting has nothing to drain: it is killed at once, and `start_replica` raises `ReplicaStartError`.
        After a cancellation it may still be draining.
        """
        process = self._processes.get(id)
        if process is None:
            return
        process.asked_for = True
        if process.state != life.STARTING:
            self._reaches(process, life.DRAINING)
            self.send(id, Drain(grace_s))
            await asyncio.wait([process.ended], timeout=grace_s)
        await self._end(process)

    async def kill(self, id: str) -> None:
        """End it now, with all that it has started. Returns when it has ended. Unknown ids are ended already."""
        process = self._processes.get(id)
        if process is not None:
            process.asked_for = True
            await self._end(process)

    def fits(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas fit into what is free (and what the replicas `without` give back), else what is asked and free."""
        return self._books.refusal(options, count, without or ())

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """All resources, and those that are free."""
        return self._books.totals(), self._books.free()

    async def close(self) -> None:
        """End everything; leaves no process, thread, socket, file. The instance ends when the controller does."""
        if self._closing:
            return
        self._closing = True
        for process in self._processes.values():
            process.asked_for = True
        self._tell(Close())
        await asyncio.wait([self._closed])
        self._disconnect()
        for one in list(self._processes):  # those whose last words were still waited for
            self._has_ended(one, "killed by SIGKILL")

    # Processes.

    def _check_new(self, id: str) -> None:
        if not _ID.fullmatch(id):
            raise InvalidValueError(f"{id!r} can't be an id: use at most 36 letters, digits, '.', '_' and '-'")
        if id in self._processes:
            raise InvalidValueError(f"{id!r} runs already; each start has an id of its own")
        if self._closing:
            raise NotRunningError("the engine is closed")

    def _spawn(self, spec: ReplicaSpec | IngressSpec) -> _Process:
        process = _Process(spec, self._loop)
        path = protocol.spec_path(self._settings.folder, spec.id)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(msgspec.msgpack.encode(spec))
        except BaseException:
            self._books.give_back(spec.id)
            raise
        self._processes[spec.id] = process
        self._tell(Spawn(spec.id, process.role))
        return process

    async def _constructed(self, process: _Process) -> Running:
        if not isinstance(process.spec, ReplicaSpec):
            raise InvalidValueError(f"{process.id!r} is an ingress; only a replica is constructed")
        limit_s = process.spec.config.startup_timeout
        try:
            await asyncio.wait([process.started], timeout=limit_s)
            late = not process.started.done()
            if late or process.failure is not None:
                await self._end(process)
        except asyncio.CancelledError:
            process.asked_for = True
            await self._end(process)
            raise
        if process.failure is not None:
            raise process.failure
        backend = process.spec.backend
        if late:
            raise ReplicaStartError(
                f"a replica of backend {backend!r} was not ready after startup_timeout={limit_s:g} s and was killed; raise startup_timeout "
                "in the backend's config if its import, its constructor and the first check_health() need longer"
            )
        if process.ended.done():
            raise ReplicaStartError(f"a replica of backend {backend!r} ended while it was constructed ({process.ended.result()})")
        return process.running()

    async def _end(self, process: _Process) -> None:
        """Kill a process and wait for its end, which nothing interrupts, since it comes at once."""
        if not process.ended.done():
            self._tell(Kill(process.id))
        interrupted: asyncio.CancelledError | None = None
        while not process.ended.done():
            try:
                await asyncio.wait([process.ended])
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _is_ready(self, process: _Process, address: str) -> None:
        if process.state != life.STARTING:
            return
        process.address = address
        self._reaches(process, life.READY)
        if not process.started.done():
            process.started.set_result(None)

    def _reaches(self, process: _Process, state: str) -> None:
        process.state = state
        self._tell(Remember(process.id, state, process.address))

    def _has_failed(self, process: _Process, message: ReplicaFailed) -> None:
        found = rebuild(msgspec.structs.replace(message.error, pickled=b""))  # user data is never opened here
        if isinstance(found, ReplicaStartError):
            process.failure = found
        else:
            process.failure = ReplicaStartError(found.message, remote_traceback=message.error.traceback)
        if not process.started.done():
            process.started.set_result(None)

    def _hear_of_end(self, id: str, reason: str, turns: int) -> None:
        """Note an end, a few turns of the loop later.

        What it said last, such as why its constructor failed, was in the control socket before it ended, and is read by then.
        """
        if id in self._processes and turns:
            self._loop.call_soon(self._hear_of_end, id, reason, turns - 1)
        else:
            self._has_ended(id, reason)

    def _has_ended(self, id: str, reason: str) -> None:
        process = self._processes.pop(id, None)
        if process is None:
            return
        self._books.give_back(id)
        process.ended.set_result(reason)
        if not process.started.done():
            process.started.set_result(None)
        for waiting in process.pings.values():
            if not waiting.done():
                waiting.set_exception(NotFoundError(f"{id!r} has ended ({reason})"))
        self.on_end(Ended(id=id, role=process.role, pid=process.pid, reason=reason, asked_for=process.asked_for))

    # The supervisor.

    def _tell(self, record: ToSupervisor) -> None:
        if not self._channel.send(record):
            self._loop.add_writer(self._channel.sock, self._flush)

    def _show_life(self) -> None:
        self._tell(Alive())
        self._next_sign = self._loop.call_later(protocol.ALIVE_PERIOD_S, self._show_life)

    def _flush(self) -> None:
        if self._channel.flush():
            self._loop.remove_writer(self._channel.sock)

    def _hear(self) -> None:
        records = self._channel.receive()
        if records is None:  # the supervisor is gone, and with it all that it started
            self._disconnect()
            for one in list(self._processes):
                self._has_ended(one, "killed with the supervisor")
            return
        for record in records:
            if isinstance(record, Exited):
                self._hear_of_end(record.id, record.reason, _LAST_WORDS_TURNS)
            elif isinstance(record, Spawned):
                process = self._processes.get(record.id)
                if process is not None:
                    process.pid = record.pid
            elif isinstance(record, Runs):
                self._adopt(record)
            elif isinstance(record, Complete):
                self._complete.set_result(None)
            elif isinstance(record, Leave):
                self._tell(Leaving(self.on_leave()))
            elif isinstance(record, Closed):
                self._closed.set_result(None)

    def _adopt(self, runs: Runs) -> None:
        decoder = protocol.replica_specs if runs.role == REPLICA else protocol.ingress_specs
        try:
            with open(protocol.spec_path(self._settings.folder, runs.id), "rb") as file:
                spec = decoder.decode(file.read())
        except FileNotFoundError:  # it has ended since
            return
        process = _Process(spec, self._loop)
        process.pid = runs.pid
        self._processes[runs.id] = process
        if isinstance(spec, ReplicaSpec):
            self._books.adopt(runs.id, spec.options, spec.gpus)
        process.state, process.address = runs.state, runs.address
        if runs.state != life.STARTING:
            process.started.set_result(None)

    def _disconnect(self) -> None:
        self._next_sign.cancel()
        self._loop.remove_reader(self._channel.sock)
        self._loop.remove_writer(self._channel.sock)
        self._channel.sock.close()
        self._closing = True
        if not self._complete.done():
            self._complete.set_exception(NotRunningError("the supervisor is gone"))
        if not self._closed.done():
            self._closed.set_result(None)
