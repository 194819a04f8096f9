"""How does an engine meet its replicas and ingresses, in a test without a controller?"""

from __future__ import annotations

import asyncio
import os
from typing import Self, cast

from headgate.core import messages
from headgate.core.messages import Hello, Message, Welcome
from headgate.engines.base import Engine
from headgate.errors import WireError


class ControlServer:
    """Takes control connections on a Unix socket and hands them to an engine, as a controller's server does.

    `path` is the socket's; `name` is what the instance's welcome says. Use it as an async context manager:
    at its end the socket and all connections are closed and the file is removed.
    """

    def __init__(self, engine: Engine, path: str, *, name: str = "test") -> None:
        self._engine = engine
        self._path = path
        self._welcome = Welcome(name, ())
        self._connections: set[_Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        if os.path.exists(self._path):  # of a server that was killed
            os.unlink(self._path)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), self._path)
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._server is not None  # made on entry
        self._closed = True
        self._server.close()
        for connection in list(self._connections):
            connection.end()
        await self._server.wait_closed()
        if os.path.exists(self._path):
            os.unlink(self._path)

    def _received(self, connection: _Connection, message: Message) -> None:
        if connection.id:
            self._engine.received(connection.id, message)
        elif isinstance(message, Hello) and self._engine.connected(message, connection):
            connection.id = message.id
            connection.send(self._welcome)
        else:
            connection.end()


class _Connection(asyncio.Protocol):
    """One control connection; it is the `Peer` that the engine sends to."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._decoder = messages.MessageDecoder()
        self._transport: asyncio.WriteTransport | None = None
        self.id = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # not asserted: uvloop's has no such base
        if self._server._closed:  # it was accepted, but not yet told so, when the server closed
            self.end()
            return
        self._server._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            received = self._decoder.received(data)
        except WireError:
            self.end()
            return
        for message in received:
            self._server._received(self, message)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server._connections.discard(self)

    def send(self, message: Message) -> None:
        """Queue a message; dropped where the connection is lost."""
        if self._transport is not None:
            self._transport.write(messages.encode(message))

    def end(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()
