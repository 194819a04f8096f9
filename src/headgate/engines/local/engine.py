"""How does the controller start and stop processes on this machine?

`LocalEngine` lives in the controller. It keeps the books of resources, writes the specs, and tells the supervisor what to
fork and what to kill; the supervisor tells it every end. Everything here happens on the controller's event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket

import msgspec

from headgate.config import ReplicaOptions
from headgate.core.resources import Books
from headgate.engines.base import REPLICA, IngressSpec, InstanceSettings, ReplicaSpec, Running
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
from headgate.engines.members import Member, Members
from headgate.errors import NotRunningError


class LocalEngine(Members[Member]):
    """The engine of one machine: `headgate.engines.base.Engine`, by a supervisor at the other end of a socket.

    `supervisor` is the controller's end of that socket; `settings` are the instance's. `http_urls` are where the supervisor listens.
    """

    def __init__(self, settings: InstanceSettings, supervisor: socket.socket, http_urls: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._settings = settings
        self._http_urls = http_urls
        self._channel: Channel[ToEngine] = Channel(supervisor, protocol.to_engine)
        self._books = Books(*machine.resources(settings.resources, os.environ))

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
        return [member.running() for member in self._members.values()]

    async def start_replica(self, spec: ReplicaSpec) -> Running:
        """Start a replica; return when user construction has finished and it takes links.

        Raises `InsufficientResourcesError` at once where it doesn't fit, `ReplicaStartError` where construction raised or
        took longer than `config.startup_timeout`. After an error, or a cancellation, nothing of it is left.
        """
        self._check_new(spec.id)
        gpus = self._books.take(spec.id, spec.options)
        return await self._constructed(self._spawn(msgspec.structs.replace(spec, gpus=gpus)))

    async def start_ingress(self, spec: IngressSpec) -> Running:
        """Start an ingress; return when it has said hello. Raises `ReplicaStartError` where it ends before that."""
        self._check_new(spec.id)
        return await self._serves(self._spawn(spec))

    def places(self) -> list[str]:
        """The numbers of the listening sockets, which stay as they are."""
        return [str(number) for number in range(int(self._settings.num_ingresses))]

    def http_urls(self) -> tuple[str, ...]:
        """Where clients reach the ingresses."""
        return self._http_urls

    def serving(self) -> None:
        """HTTP answers now: the driver that started the instance goes on."""
        self._tell(Serving())

    def fits(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas fit into what is free (and what the replicas `without` give back), else what is asked and free."""
        return self._books.refusal(options, count, without or ())

    def may_fit(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """As `fits`: this engine refuses at once what doesn't fit now."""
        return self.fits(options, count, without)

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """All resources, and those that are free."""
        return self._books.totals(), self._books.free()

    async def close(self) -> None:
        """End everything; leaves no process, thread, socket, file. The instance ends when the controller does."""
        if not self._begins_to_close():
            return
        self._tell(Close())
        await asyncio.wait([self._closed])
        self._disconnect()
        for one in list(self._members):  # those whose last words were still waited for
            self._has_ended(one, "killed by SIGKILL")

    # Processes.

    def _spawn(self, spec: ReplicaSpec | IngressSpec) -> Member:
        member = Member(spec, self._loop)
        path = protocol.spec_path(self._settings.folder, spec.id)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(msgspec.msgpack.encode(spec))
        except BaseException:
            self._books.give_back(spec.id)
            raise
        self._members[spec.id] = member
        self._tell(Spawn(spec.id, member.role))
        return member

    async def _end(self, member: Member) -> None:
        """Kill a process and wait for its end, which nothing interrupts, since it comes at once."""
        if not member.ended.done():
            self._tell(Kill(member.id))
        interrupted: asyncio.CancelledError | None = None
        while not member.ended.done():
            try:
                await asyncio.wait([member.ended])
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _remember(self, member: Member) -> None:
        self._tell(Remember(member.id, member.state, member.address))

    def _gave_up(self, member: Member) -> None:
        self._books.give_back(member.id)

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
            for one in list(self._members):
                self._has_ended(one, "killed with the supervisor")
            return
        for record in records:
            if isinstance(record, Exited):
                self._hear_of_end(record.id, record.reason)
            elif isinstance(record, Spawned):
                member = self._members.get(record.id)
                if member is not None:
                    member.pid = record.pid
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
        member = Member(spec, self._loop)
        member.pid = runs.pid
        self._members[runs.id] = member
        if isinstance(spec, ReplicaSpec):
            self._books.adopt(runs.id, spec.options, spec.gpus)
        member.adopt(runs.state, runs.address)

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
