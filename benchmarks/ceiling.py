"""How fast can this design be in Python at all? The same request path as Headgate's, with nothing on it that could be left out.

HTTP over httptools and uvloop, frames of length and id over a Unix socket, a replica process with an I/O thread and user code in the
main thread; what is sent within one turn of a loop leaves in one write. There are no routes, limits, deadlines, errors or metrics, and
only requests with a `Content-Length` are understood: it is a measure, not a server to use.

It is a server program like those in `servers/`. The works `noop`, `batch` and `echo` answer any POST, `batch` with up to 32 requests in
one call of user code, by as many replicas as the option `backends` says, each request by one that is drawn. `handles` makes the calls of
work 4 by a handle of the same kind: a thread with a loop, one socket, pickle.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import queue
import random
import select
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, cast

import httptools
import uvloop

from benchmarks.servers import handle_calls
from benchmarks.servers.asked import BATCH, asked

HEAD = struct.Struct("<II")  # body length, request id
IN_PLACE_BYTES = 64 * 1024  # a body longer than this is received straight into its buffer
JOIN_BYTES = 64 * 1024  # what is shorter than this is joined before it is written

Body = bytes | bytearray
Frame = tuple[int, Body]


class InPlace(asyncio.BufferedProtocol):
    """Takes a transport over until `size` bytes, of which `begun` are there already, have been received into one buffer."""

    def __init__(self, transport: asyncio.Transport, begun: Sequence[bytes], size: int, done: Callable[[bytearray], None]) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.at = 0
        for part in begun:
            self.view[self.at : self.at + len(part)] = part
            self.at += len(part)
        self.transport, self.before, self.done = transport, transport.get_protocol(), done
        transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view[self.at :]

    def buffer_updated(self, nbytes: int) -> None:
        self.at += nbytes
        if self.at == len(self.buffer):
            self.transport.set_protocol(self.before)
            self.done(self.buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.before.connection_lost(exc)


class Framed(asyncio.Protocol):
    """Reads frames; `received` gets all that are complete, as many as one read brings."""

    transport: asyncio.Transport
    rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at, size = 0, len(data)
        frames: list[Frame] = []
        while size - at >= HEAD.size:
            length, request = HEAD.unpack_from(data, at)
            at += HEAD.size
            if size - at < length:
                if length > IN_PLACE_BYTES:
                    self.in_place(data[at:], length, request)
                    at = size
                else:
                    at -= HEAD.size
                break
            frames.append((request, data[at : at + length]))
            at += length
        self.rest = data[at:]
        if frames:
            self.received(frames)

    def in_place(self, begun: bytes, length: int, request: int) -> None:
        InPlace(self.transport, (begun,), length, lambda body: self.received([(request, body)]))

    def received(self, frames: list[Frame]) -> None:
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        os._exit(0)  # neither side is of use without the other


class Link(Framed):
    """The ingress's end: who waits for which answer."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting: dict[int, Callable[[Body], None]] = {}
        self.out: list[Body] = []
        self.last = 0

    def call(self, body: Sequence[Body], size: int, answered: Callable[[Body], None]) -> None:
        self.last = request = (self.last + 1) & 0xFFFFFFFF
        self.waiting[request] = answered
        out = self.out
        if not out:
            self.loop.call_soon(self.flush)
        out.append(HEAD.pack(size, request))
        out.extend(body)

    def flush(self) -> None:
        out, self.out = self.out, []
        write(self.transport, out)

    def received(self, frames: list[Frame]) -> None:
        pop = self.waiting.pop
        for request, body in frames:
            pop(request)(body)


def write(transport: asyncio.Transport, parts: list[Body]) -> None:
    """Write in one call; long parts are not copied."""
    if max(map(len, parts)) < JOIN_BYTES:
        transport.write(b"".join(parts))
    else:
        transport.writelines(parts)


class Client(asyncio.Protocol):
    """One HTTP connection."""

    def __init__(self, links: list[Link]) -> None:
        self.links = links
        self.call = links[0].call
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[Body] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        if self.body:
            self.in_place(data)

    def on_body(self, part: bytes) -> None:
        self.body.append(part)

    def on_message_complete(self) -> None:
        body, self.body = self.body, []
        if len(self.links) > 1:
            self.call = random.choice(self.links).call
        self.call(body, len(body[0]) if len(body) == 1 else sum(map(len, body)), self.answer)

    def in_place(self, head: bytes) -> None:
        """Of a long body only the beginning has come: leave the parser out for the rest of it."""
        at = head.lower().find(b"content-length:") if head.startswith(b"POST") else -1
        size = 0 if at < 0 else int(head[at + len(b"content-length:") : head.index(b"\r", at)])
        if size < IN_PLACE_BYTES:
            return
        begun, self.body = cast("list[bytes]", self.body), []
        self.parser = httptools.HttpRequestParser(self)
        InPlace(self.transport, begun, size, lambda body: self.call((body,), size, self.answer))

    def answer(self, body: Body) -> None:
        if self.transport.is_closing():
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body)
        if len(body) < JOIN_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))


class Replica(Framed):
    """The replica's end, in its I/O thread: what one read brings is one hand-over to the main thread."""

    inbox: queue.SimpleQueue[list[Frame]] = queue.SimpleQueue()

    def received(self, frames: list[Frame]) -> None:
        self.inbox.put(frames)


def send(descriptor: int, parts: list[Body]) -> None:
    """Write all of it, from the thread that made it."""
    rest: list[Body | memoryview] = [b"".join(parts)] if max(map(len, parts)) < JOIN_BYTES else list(parts)
    while rest:
        try:
            sent = os.writev(descriptor, rest)
        except BlockingIOError:
            select.select((), (descriptor,), ())
            continue
        while rest and sent >= len(rest[0]):
            sent -= len(rest.pop(0))
        if sent:
            rest[0] = memoryview(rest[0])[sent:]


def noop(body: Body) -> Body:
    """User code of work `noop`."""
    return b"hello"


def echo(body: Body) -> Body:
    """User code of work `echo`."""
    return body


def noop_batch(bodies: list[Body]) -> list[Body]:
    """User code of work `batch`."""
    return [b"hello"] * len(bodies)


def called(body: Body) -> Body:
    """User code of work 4 and what has to be around it."""
    args, kwargs = pickle.loads(body)
    return pickle.dumps(handle_calls.noop(*args, **kwargs), pickle.HIGHEST_PROTOCOL)


def replica(work: str, descriptor: int) -> None:
    """Run user code in this thread until the other side ends."""
    link = socket.socket(fileno=descriptor)
    threading.Thread(target=lambda: uvloop.run(read(link)), daemon=True).start()
    take, empty = Replica.inbox.get, Replica.inbox.empty
    answering = os.dup(descriptor)  # the loop's transport wants its own to itself
    gc.freeze()
    if work == "batch":
        frames: list[Frame] = []
        while True:
            if not frames:
                frames = take()
            while len(frames) < BATCH and not empty():
                frames += take()
            batch, frames = frames[:BATCH], frames[BATCH:]
            answers = noop_batch([body for _, body in batch])
            send(
                answering,
                [part for (request, _), answer in zip(batch, answers, strict=True) for part in (HEAD.pack(len(answer), request), answer)],
            )
    user_code = {"noop": noop, "echo": echo, "handles": called}[work]
    while True:
        out: list[Body] = []
        for request, body in take():
            answer = user_code(body)
            out.append(HEAD.pack(len(answer), request))
            out.append(answer)
        send(answering, out)


async def read(link: socket.socket) -> None:
    """The replica's I/O thread."""
    await asyncio.get_running_loop().create_unix_connection(Replica, sock=link)
    await asyncio.Event().wait()


def start_replica(work: str) -> socket.socket:
    """Start it as a process of its own; it ends when the socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen([sys.executable, __file__, "replica", work, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    return ours


class Reply:
    """The answer to a call by the sketch of a handle: set in the loop's thread, opened by whoever waits for it."""

    __slots__ = ("body", "waiter")

    def __init__(self) -> None:
        self.body: Body | None = None
        self.waiter: Callable[[], object] | None = None

    def answered(self, body: Body) -> None:
        self.body = body
        if self.waiter is not None:
            self.waiter()

    def result(self) -> Any:
        if self.body is None:
            lock = threading.Lock()
            lock.acquire()
            self.waiter = lock.release
            if self.body is None:  # else it came before the waiter was there, or will release a lock that nobody waits for
                lock.acquire()
        return self.open()

    def __await__(self) -> Generator[Any, None, Any]:
        if self.body is None:
            bell = Bell.of_this_thread()
            future = bell.loop.create_future()
            self.waiter = partial(bell.ring, future)
            if self.body is None:
                yield from future
        return self.open()

    def open(self) -> Any:
        assert self.body is not None
        return pickle.loads(self.body)


class Bell:
    """Wakes an event loop once for many answers."""

    threads = threading.local()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ready: deque[asyncio.Future[None]] = deque()
        self.rung = False

    @classmethod
    def of_this_thread(cls) -> Bell:
        loop = asyncio.get_running_loop()
        bell: Bell | None = getattr(cls.threads, "bell", None)
        if bell is None or bell.loop is not loop:
            bell = cls.threads.bell = Bell(loop)
        return bell

    def ring(self, future: asyncio.Future[None]) -> None:
        self.ready.append(future)
        if not self.rung:
            self.rung = True
            self.loop.call_soon_threadsafe(self.answer)

    def answer(self) -> None:
        self.rung = False  # first, so that what is added from here on rings again
        while self.ready:
            future = self.ready.popleft()
            if not future.done():
                future.set_result(None)


class Handle:
    """The sketch of a handle: a thread with a loop, which many calls wake once."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.inbox: deque[tuple[bytes, Reply]] = deque()
        self.woken = False
        self.link = self.loop.run_until_complete(self.connect())
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    async def connect(self) -> Link:
        link = Link()
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=start_replica("handles"))
        return link

    def remote(self, /, *args: Any, **kwargs: Any) -> Reply:
        reply = Reply()
        self.inbox.append((pickle.dumps((args, kwargs), pickle.HIGHEST_PROTOCOL), reply))
        if not self.woken:
            self.woken = True
            self.loop.call_soon_threadsafe(self.empty_inbox)
        return reply

    def empty_inbox(self) -> None:
        self.woken = False  # first, so that what is added from here on wakes the loop again
        while self.inbox:
            body, reply = self.inbox.popleft()
            self.link.call((body,), len(body), reply.answered)


async def serve(work: str, port: int, backends: int) -> None:
    """Answer HTTP until the process is terminated."""
    loop = asyncio.get_running_loop()
    links = [(await loop.create_unix_connection(Link, sock=start_replica(work)))[1] for _ in range(backends)]
    server = await loop.create_server(lambda: Client(links), "127.0.0.1", port, backlog=2048)
    gc.freeze()
    await server.serve_forever()


def main() -> None:
    """Be a replica, or start one and serve."""
    if sys.argv[1] == "replica":
        replica(sys.argv[2], int(sys.argv[3]))
        return
    wanted = asked()
    if wanted.work == "handles":
        handle_calls.take_orders(wanted.port, handle_calls.ways(Handle(), None))
    else:
        uvloop.run(serve(wanted.work, wanted.port, wanted.number("backends", 1)))


if __name__ == "__main__":
    main()
