"""An ingress in this process, on a router that the test plays, and a client that says exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import uvloop

from headgate.core import wire
from headgate.core.messages import BackendEntry, EndpointEntry, ReplicaEntry, RoutingTable
from headgate.core.reports import Counters, Description, Measurement, RequestCount
from headgate.errors import ErrorInfo
from headgate.ingress.changes import Changes
from headgate.ingress.exchange import Exchange
from headgate.ingress.http1 import Connection
from headgate.ingress.service import Limits, Service
from headgate.router.call import Call
from headgate.router.certificate import Certificate
from tests.support import wait_until

T = TypeVar("T")
CERTIFICATE, KEY = (str(Path(__file__).parent / "data" / "tls" / name) for name in ("cert.pem", "key.pem"))
"""Of localhost and 127.0.0.1, signed by itself, for tests alone."""
TEXT = b"content-type: text/plain\r\n"


def backend(tag: str, *, ready: bool = True) -> BackendEntry:
    return BackendEntry(
        tag=tag,
        concurrency=1,
        max_batch_size=1,
        is_batch=False,
        batch_wait_timeout=0.0,
        max_concurrent_queries=None,
        max_queued_queries=1000,
        request_timeout=60.0,
        idempotent=False,
        http_methods=(),
        methods=("",),
        replicas=(ReplicaEntry("r1", "/nowhere", "token"),) if ready else (),
        starting=0,
    )


TABLE = RoutingTable(
    version=1,
    endpoints={
        "echo": EndpointEntry("echo", "/echo", ("GET", "POST"), {"b": 1.0}),
        "post": EndpointEntry("post", "/post", ("POST",), {"b": 1.0}),
        "tree": EndpointEntry("tree", "/tree/", ("GET",), {"b": 1.0}),
        "silent": EndpointEntry("silent", None, ("GET",), {"b": 1.0}),
    },
    backends={"b": backend("b")},
    max_body_bytes=1_000_000,
    max_inflight_bytes=10_000_000,
)


def answer(body: bytes = b"", *, code: int = 200, lines: bytes = TEXT) -> wire.Answer:
    return wire.Answer(1, code, 0, 0, lines, body)


def chunk(body: bytes, *, first: bool = False) -> wire.Frame:
    return wire.Frame(wire.CHUNK, wire.FIRST if first else 0, 1, 0, 200, 0, 0, TEXT, body)


def body_of(call: Call) -> bytes:
    return b"".join(call.body) if isinstance(call.body, list) else bytes(call.body)


def head_of(call: Call) -> wire.HttpHead:
    import msgspec

    return msgspec.msgpack.decode(call.http, type=wire.HttpHead)


def echo(router: FakeRouter, call: Call) -> None:
    """Answer at once, with the body or, where there is none, the target."""
    call.answered(answer(body_of(call) or head_of(call).target))


def echo_later(router: FakeRouter, call: Call) -> None:
    """Answer in the next turn of the loop."""
    asyncio.get_running_loop().call_soon(lambda: call in router.cancelled or echo(router, call))


def hold(router: FakeRouter, call: Call) -> None:
    """Leave it to the test."""


class FakeRouter:
    """Hands every call to `on_submit`, and remembers what it was told."""

    def __init__(self, on_submit: Callable[[FakeRouter, Call], None]) -> None:
        self.on_submit = on_submit
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.enough_of: list[tuple[Call, int]] = []
        self.credits: list[int] = []
        self.has_served = (0, 0.0)

    def submit(self, call: Call) -> None:
        self.calls.append(call)
        self.on_submit(self, call)

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)

    def enough(self, call: Call, status: int) -> None:
        self.enough_of.append((call, status))

    def credit(self, call: Call, count_bytes: int) -> None:
        self.credits.append(count_bytes)

    def reaches(self, tag: str) -> bool:
        return True

    def served(self) -> tuple[int, float]:
        return self.has_served


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool  # False where the connection ended before it was complete


class Client:
    """One TCP connection. Knows just enough HTTP to tell where an answer ends."""

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        if tls:
            context = ssl.create_default_context(cafile=CERTIFICATE)
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self._got = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes, *, bare: bool = False) -> Answer:
        self.send(data)
        return self.answer(bare=bare)

    def answer(self, *, bare: bool = False) -> Answer:
        """The next answer; `bare` for that of a HEAD."""
        while (head_ends := self._got.find(b"\r\n\r\n")) < 0:
            assert self._more(), f"the connection ended; got {self._got!r}"
        head, self._got = self._got[:head_ends].decode("latin-1"), self._got[head_ends + 4 :]
        first, *lines = head.split("\r\n")
        version, status = first.split(" ")[:2]
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} came twice"
            headers[name.lower()] = value
        code = int(status)
        if bare or code in (204, 304) or code < 200:
            return Answer(code, headers, b"", True)
        if "content-length" in headers:
            body, whole = self._take(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body, whole = self._chunks()
        else:
            body, whole = self.rest(), True
        return Answer(code, headers, body, whole)

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._more():
            pass
        rest, self._got = self._got, b""
        return rest

    def at_end(self) -> bool:
        """True when the server has closed its side and nothing is left to read; waits for it."""
        return not self._got and not self._more()

    def _take(self, count: int) -> tuple[bytes, bool]:
        while len(self._got) < count:
            if not self._more():
                return self._got, False
        taken, self._got = self._got[:count], self._got[count:]
        return taken, True

    def _line(self) -> bytes | None:
        while b"\r\n" not in self._got:
            if not self._more():
                return None
        line, _, self._got = self._got.partition(b"\r\n")
        return line

    def _chunks(self) -> tuple[bytes, bool]:
        body = b""
        while (line := self._line()) is not None:
            part, whole = self._take(int(line, 16))
            body += part
            if not whole or self._line() is None:
                return body, False
            if line == b"0":
                return body, True
        return body, False

    def _more(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._got += data
        return bool(data)


class IngressServer:
    """An ingress on a thread of its own. `call` runs a function on its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, service: Service, router: FakeRouter, port: int, *, tls: bool) -> None:
        self.loop, self.service, self.router, self.port, self.tls = loop, service, router, port, tls

    def call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def client(self) -> Client:
        return Client(self.port, tls=self.tls)

    def calls(self, count: int) -> list[Call]:
        """The router's calls, once there are that many."""
        wait_until(lambda: len(self.router.calls) >= count, what=f"{count} calls")
        return self.router.calls

    def no_bytes_held(self) -> bool:
        return self.call(lambda: self.service.admission.held_bytes) == 0

    def pass_time(self, seconds: float) -> None:
        """Have the sweep see the state of every connection now, and again that much later."""

        def sweep() -> None:
            now = self.loop.time()
            self.service.sweep(now)
            self.service.sweep(now + seconds)

        self.call(sweep)


async def _measure() -> Measurement:
    return Measurement(Counters(requests=(RequestCount("e", 'b"1', 200, 3, 0.5),)), {"b": 2}, {}, 1)


async def _describe() -> Description:
    return Description("test", (), {}, {}, (), {}, {}, (), ready=True)


@contextmanager
def ingress(
    on_submit: Callable[[FakeRouter, Call], None] = echo,
    *,
    table: RoutingTable | None = TABLE,
    limits: Limits | None = None,
    measure: Callable[[], Awaitable[Measurement]] | None = None,
    describe: Callable[[], Awaitable[Description]] | None = None,
    tls: bool = False,
    exchange: type[Exchange] | None = None,
    changes: Changes | None = None,
) -> Iterator[IngressServer]:
    """An ingress that listens on a free port until the block ends."""
    ready: list[IngressServer] = []
    started = threading.Event()

    async def serve() -> None:
        router = FakeRouter(on_submit)
        service = Service(
            router,
            measure or _measure,
            describe or _describe,
            server="127.0.0.1:0",
            limits=limits,
            changes=changes,
            exchange=exchange,
        )
        if table is not None:
            service.apply(table)
        loop = asyncio.get_running_loop()
        context = Certificate(CERTIFICATE, KEY, protocols=("http/1.1",)).context if tls else None
        server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, ssl=context)
        ready.append(IngressServer(loop, service, router, server.sockets[0].getsockname()[1], tls=tls))
        ended.append(loop.create_future())
        started.set()
        await ended[0]
        server.close()
        await service.drain(0.01)

    ended: list[asyncio.Future[None]] = []
    thread = threading.Thread(target=uvloop.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(10)
        yield ready[0]
    finally:
        if ended:
            ready[0].loop.call_soon_threadsafe(ended[0].set_result, None)
        thread.join(10)


def error_info(kind: str = "UserCodeError", message: str = "ValueError: secret", traceback: str = "Traceback …") -> ErrorInfo:
    return ErrorInfo(kind, message, traceback)
