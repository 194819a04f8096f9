"""Who may talk to the controller, and how do their messages reach it?

One listener for all: drivers, processes with handles, ingresses and replicas. Each connection begins with a hello. What
it then means is the owner's affair; here are only permission, framing, and a bound on what an idle reader is sent. Whoever comes
from afar (`admin.py`) is a client that asks for verbs, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from typing import Protocol, cast

from headgate.controller.admin import Door
from headgate.core import messages
from headgate.core.messages import Hello, Message, VerbCall, VerbLeft
from headgate.errors import WireError
from headgate.router.certificate import Certificate
from headgate.router.listening import Listening
from headgate.router.remote import HANDSHAKE_S, Gate, address_of
from headgate.router.tls import Tls, why
from headgate.router.way import Way

_log = logging.getLogger("headgate.controller")

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_BACKLOG = 512


class Owner(Protocol):
    """What the server tells, all of it on the event loop."""

    def connected(self, connection: Connection, hello: Hello) -> bool:
        """A hello has come. False refuses the connection."""
        ...

    def received(self, connection: Connection, message: Message) -> None:
        """A message after the hello."""
        ...

    def lost(self, connection: Connection) -> None:
        """A connection that was accepted has ended."""
        ...


class Connection(asyncio.Protocol):
    """One connection with the controller. Once it was accepted, `hello` says whose."""

    hello: Hello

    def __init__(self, owner: Owner, on_end: Callable[[Connection], None], *, from_afar: bool = False) -> None:
        self._owner = owner
        self._on_end = on_end
        self._from_afar = from_afar
        self._decoder = messages.MessageDecoder()
        self._transport: asyncio.Transport | None = None
        self._accepted = False
        self._slow = False
        self._unsent: Callable[[], bytes] | None = None

    def send(self, message: Message) -> None:
        """Queue a message; never blocks, drops it where the connection is lost."""
        if self._transport is not None:
            self._transport.write(messages.encode(message))

    def send_latest(self, make: Callable[[], bytes]) -> None:
        """Send what `make` returns; to a peer that doesn't read only for the latest call, and only once it reads again."""
        if self._slow:
            self._unsent = make
        elif self._transport is not None:
            data = make()
            if data:
                self._transport.write(data)

    @property
    def slow(self) -> bool:
        """Whether the peer does not read what it was sent."""
        return self._slow

    def close(self) -> None:
        """End the connection after what was sent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not asserted: uvloop's has no such base
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:  # it came through the gate, or from afar
            return
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.getuid():
            _log.warning("refused a connection of process %d: it runs as user %d, this instance as %d", pid, uid, os.getuid())
            self._refuse()

    def data_received(self, data: bytes) -> None:
        try:
            received = self._decoder.received(data)
        except WireError as error:
            _log.warning("%s: closed its connection: %s", self._name, error)
            self._refuse()
            return
        for message in received:
            if self._transport is None:
                return
            if self._accepted:
                if self._from_afar and not isinstance(message, VerbCall | VerbLeft):
                    _log.warning("%s: closed its connection: from afar verbs alone are taken", self._name)
                    self.close()
                    self._transport = None
                    return
                self._owner.received(self, message)
            else:
                self._first(message)

    def pause_writing(self) -> None:
        self._slow = True

    def resume_writing(self) -> None:
        self._slow = False
        if self._unsent is not None:
            make, self._unsent = self._unsent, None
            self.send_latest(make)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_end(self)
        if self._accepted:
            self._owner.lost(self)

    @property
    def _name(self) -> str:
        return f"{self.hello.role} {self.hello.id} (process {self.hello.pid})" if self._accepted else "an unknown process"

    def _first(self, message: Message) -> None:
        if not isinstance(message, Hello):
            _log.warning("refused a connection that did not begin with a hello")
            self._refuse()
            return
        if message.protocol != messages.PROTOCOL:
            _log.warning("refused process %d: it speaks protocol %d, this instance %d", message.pid, message.protocol, messages.PROTOCOL)
            self._refuse()
            return
        if self._from_afar and (message.role != "client" or message.routes or message.owner):
            _log.warning("refused a connection from afar: it asks for more than verbs")
            self._refuse()
            return
        self.hello = message
        if self._owner.connected(self, message):
            self._accepted = True
        elif self._transport is not None:
            self._transport.close()  # after what it was told
            self._transport = None

    def _refuse(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


class ControlServer:
    """Listens at a Unix socket, for the same user's processes only; where there are other nodes for those who know the secret.

    `add_door` has it listen to those who know the admin token.
    """

    def __init__(self, way: Way, owner: Owner) -> None:
        self._way = way
        self._door: Door | None = None
        self._gate = Gate(way.host, way.secret, _BACKLOG, self._admitted, tls=way.tls is not None) if way.host else None
        self._taking: set[asyncio.Task[object]] = set()
        self._path = way.control_path
        self._owner = owner
        self._listening: Listening | None = None
        self._connections: set[Connection] = set()

    @property
    def admin_address(self) -> str:
        """Where those from afar connect: host and port; empty where they don't."""
        return "" if self._door is None else self._door.address

    def add_door(self, listener: socket.socket, key: bytes, certificate: Certificate | None) -> None:
        """Also listen there, see `Door`: from `open` on, or from now on where that was before."""
        self._door = Door(listener, key, certificate, self._accept_from_afar)
        if self._listening is not None:
            self._door.open()

    async def open(self) -> None:
        """Take the place of whoever listened here before, listen, and have it known where."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o077)
        try:
            listener.bind(self._path)
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        self._listening = Listening(listener, self._take)
        address = self._path
        if self._gate is not None:
            address = address_of(self._way.node, self._gate.open(), self._path)
        await self._way.publish(address)
        if self._door is not None:
            self._door.open()

    async def close(self) -> None:
        """Stop listening and end every connection, each after what was sent to it."""
        if self._listening is not None:
            self._listening.close()
        if self._gate is not None:
            self._gate.close()
        if self._door is not None:
            await self._door.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        await asyncio.gather(*self._taking, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        for _ in range(100):
            if not self._connections:
                return
            await asyncio.sleep(0.01)

    def _take(self, sock: socket.socket) -> None:
        self._spawn(asyncio.get_running_loop().connect_accepted_socket(self._accept, sock))

    def _admitted(self, sock: socket.socket) -> None:
        if self._way.tls is None:
            self._take(sock)
        else:
            self._spawn(self._take_tls(sock, self._way.tls))

    async def _take_tls(self, sock: socket.socket, tls: Tls) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._accept, sock, ssl=tls.server, ssl_handshake_timeout=HANDSHAKE_S)
        except BaseException as error:
            sock.close()
            if isinstance(error, ssl.SSLError):
                _log.warning("refused a connection: %s", why(error))
            elif not isinstance(error, OSError):
                raise

    def _spawn(self, taking: Coroutine[object, object, object]) -> None:
        task = asyncio.ensure_future(taking)
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _accept(self) -> Connection:
        return self._added(Connection(self._owner, self._connections.discard))

    def _accept_from_afar(self) -> Connection:
        return self._added(Connection(self._owner, self._connections.discard, from_afar=True))

    def _added(self, connection: Connection) -> Connection:
        self._connections.add(connection)
        return connection
