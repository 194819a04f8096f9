"""What would a bare ASGI app do on the same path? Uvicorn (httptools, uvloop), one Unix socket to a replica process, and back.

It has no routes, limits, deadlines, errors, ids or metrics: it is a measure to hold Headgate against, not a server to use.
The replica has the shape that Headgate's has: an I/O thread, user code in the main thread, frames that coalesce both ways.
Its one work is `noop`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import uvicorn
import uvloop

from benchmarks.servers.asked import asked, unknown

HEAD = struct.Struct("<II")  # body length, request id

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def frames(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take the whole frames out of `buffer`: (request id, body)."""
    at = 0
    while len(buffer) - at >= HEAD.size:
        length, request = HEAD.unpack_from(buffer, at)
        end = at + HEAD.size + length
        if len(buffer) < end:
            break
        yield request, bytes(buffer[at + HEAD.size : end])
        at = end
    del buffer[:at]


class Link(asyncio.Protocol):
    """The app's side of the socket: what is sent within one turn of the loop leaves in one write."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.out: list[bytes] = []
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        self.last = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        for request, body in frames(self.buffer):
            self.waiting.pop(request).set_result(body)

    def call(self, body: bytes) -> asyncio.Future[bytes]:
        self.last = request = (self.last + 1) & 0xFFFFFFFF
        future = self.waiting[request] = self.loop.create_future()
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out.append(HEAD.pack(len(body), request))
        self.out.append(body)
        return future

    def flush(self) -> None:
        self.transport.write(b"".join(self.out))
        self.out.clear()


async def connect(path: str) -> Link:
    """Connect with the replica, once it listens."""
    while True:
        try:
            return (await asyncio.get_running_loop().create_unix_connection(Link, path))[1]
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.01)


async def serve(path: str, port: int) -> None:
    """Run the app until the process is terminated."""
    link = await connect(path)
    head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"5")]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        answer = await link.call(body)
        await send(head)
        await send({"type": "http.response.body", "body": answer})

    config = uvicorn.Config(app, port=port, http="httptools", lifespan="off", access_log=False, log_level="error")
    await uvicorn.Server(config).serve()


class Replica(asyncio.Protocol):
    """The replica's side: what arrives in one read is one hand-over to the main thread."""

    inbox: queue.SimpleQueue[tuple[Replica, list[tuple[int, bytes]]]] = queue.SimpleQueue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)
        self.buffer = bytearray()
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.inbox.put((self, list(frames(self.buffer))))

    def connection_lost(self, error: Exception | None) -> None:
        os._exit(0)  # the app has ended, and this process was only there for it


def user_code(body: bytes) -> bytes:
    """The no-op."""
    return b"hello"


def replica(path: str) -> None:
    """Run the replica; ends with the app's connection."""

    async def listen() -> None:
        await (await asyncio.get_running_loop().create_unix_server(Replica, path)).serve_forever()

    threading.Thread(target=lambda: uvloop.run(listen()), daemon=True).start()
    while True:
        connection, hand_over = Replica.inbox.get()
        out = []
        for request, body in hand_over:
            answer = user_code(body)
            out.append(HEAD.pack(len(answer), request))
            out.append(answer)
        connection.loop.call_soon_threadsafe(connection.transport.write, b"".join(out))


def main() -> None:
    """Start the replica as a process of its own, then serve."""
    if sys.argv[1] == "replica":
        replica(sys.argv[2])
        return
    wanted = asked()
    if wanted.work != "noop":
        raise unknown(wanted.work)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Uvicorn raises the signal again once it has stopped
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "r.sock")
        child = subprocess.Popen([sys.executable, __file__, "replica", path])
        try:
            uvloop.run(serve(path, wanted.port))
        finally:
            child.terminate()
            child.wait()


if __name__ == "__main__":
    main()
