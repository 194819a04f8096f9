"""How are requests sent at a rate, whatever becomes of those before them?

An open loop: each request is due at a moment that was fixed before the run, and its time counts from then. So one that waits because
others are slow, for a connection or for this program, is as slow as its client would find it; nothing is omitted.
Each connection carries one request at a time; a request that finds none idle opens another, up to a limit.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections import Counter, deque
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from headgate.cli.headers import Header, beside
from headgate.cli.latencies import Latencies

_SWEEP_S: Final = 0.1
_TIMER_S: Final = 0.001
_BEHIND: Final = 64


class Plan(NamedTuple):
    """What to send, where, and how fast."""

    url: str
    rate: float  # requests a second
    duration_s: float
    method: str = "GET"
    headers: tuple[Header, ...] = ()
    body: bytes | None = None
    timeout_s: float = 10.0  # from when it was due
    max_connections: int = 1000
    insecure: bool = False

    @property
    def total(self) -> int:
        """How many requests that makes."""
        return max(math.ceil(self.rate * self.duration_s), 1)


class Run:
    """What came of it, so far."""

    def __init__(self) -> None:
        self.due = 0  # requests whose moment has come
        self.latencies = Latencies()  # of all that were answered, from when they were due
        self.late = Latencies()  # how long after that this program looked at them
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()  # what was not answered: why
        self.connections = 0  # most at once
        self.elapsed_s = 0.0

    @property
    def answered(self) -> int:
        """Whatever the status."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Not answered, or with a status of 400 or more."""
        return self.errors.total() + sum(count for status, count in self.statuses.items() if status >= 400)


async def drive(plan: Plan, run: Run) -> None:
    """Send all of it and wait for the answers; `run` is kept up to date."""
    await _Driver(plan, run).drive()


class _Driver:
    def __init__(self, plan: Plan, run: Run) -> None:
        self.plan = plan
        self.run = run
        self.loop = asyncio.get_running_loop()
        self.request = _bytes_of(plan)
        self.idle: list[_Connection] = []
        self.busy: set[_Connection] = set()
        self.opening: dict[asyncio.Task[None], float] = {}  # with when their request was due
        self.waiting: deque[float] = deque()  # when requests were due that found no connection
        parts = urlsplit(plan.url)
        self._tls = _tls(insecure=plan.insecure) if parts.scheme == "https" else None
        self._host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._began = 0.0
        self._sent, self._done = False, asyncio.Event()  # everything

    async def drive(self) -> None:
        self._began = began = time.perf_counter()
        sweep = self.loop.create_task(self._sweep())
        try:
            for number in range(self.plan.total):
                due = began + number / self.plan.rate
                await self._until(due, number)
                now = time.perf_counter()
                self.run.due += 1
                self.run.late.add(max(now - due, 0.0))
                self._send(due)
            self._sent = True
            self._look_whether_done()
            await self._done.wait()
        finally:
            self.run.elapsed_s = time.perf_counter() - began
            sweep.cancel()
            for task in self.opening:
                task.cancel()
            await asyncio.gather(sweep, *self.opening, return_exceptions=True)
            for connection in (*self.idle, *self.busy):
                connection.transport.abort()
            await asyncio.sleep(0)

    async def _until(self, due: float, number: int) -> None:
        """Timers of event loops are good to a millisecond: the rest is spent looking at the clock, and reading answers."""
        left_s = due - time.perf_counter()
        if left_s > 2 * _TIMER_S:
            await asyncio.sleep(left_s - _TIMER_S)
        elif left_s <= 0 and number % _BEHIND == 0:
            await asyncio.sleep(0)  # answers are read all the same
        while time.perf_counter() < due:  # noqa: ASYNC110  # nothing sets an event at a moment
            await asyncio.sleep(0)

    def _send(self, due: float) -> None:
        if self.idle:
            self.idle.pop().send(due)
        elif len(self.busy) + len(self.opening) < self.plan.max_connections:
            self.opening[self.loop.create_task(self._open(due))] = due
            self.run.connections = max(self.run.connections, len(self.busy) + len(self.opening))
        else:
            self.waiting.append(due)

    async def _open(self, due: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            limit_s = max(due + self.plan.timeout_s - time.perf_counter(), 0.0)
            async with asyncio.timeout(limit_s):
                _, connection = await self.loop.create_connection(lambda: _Connection(self), self._host, self._port, ssl=self._tls)
        except TimeoutError:
            self.failed("timeout")
        except OSError as error:
            self.failed(f"{type(error).__name__}: {error.strerror or error}")
        else:
            connection.send(due)
        finally:
            del self.opening[task]
            self._next()

    def answered(self, connection: _Connection, due: float, status: int, *, keeps: bool) -> None:
        self.run.latencies.add(time.perf_counter() - due)
        self.run.statuses[status] += 1
        self.busy.discard(connection)
        if keeps:
            self.idle.append(connection)
        else:
            connection.transport.close()
        self._next()

    def lost(self, connection: _Connection, due: float | None) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        if due is not None:
            self.busy.discard(connection)
            self.failed("connection closed before the answer")
            self._next()

    def failed(self, why: str) -> None:
        self.run.errors[why] += 1

    def _next(self) -> None:
        while self.waiting and (self.idle or len(self.busy) + len(self.opening) < self.plan.max_connections):
            self._send(self.waiting.popleft())
        self._look_whether_done()

    def _look_whether_done(self) -> None:
        if self._sent and not (self.busy or self.opening or self.waiting):
            self._done.set()

    async def _sweep(self) -> None:
        """End what has taken too long."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.run.elapsed_s = time.perf_counter() - self._began
            oldest = time.perf_counter() - self.plan.timeout_s
            while self.waiting and self.waiting[0] < oldest:
                self.waiting.popleft()
                self.failed("timeout")
            for connection in [each for each in self.busy if each.due is not None and each.due < oldest]:
                connection.due = None
                self.busy.discard(connection)
                connection.transport.abort()
                self.failed("timeout")
            self._next()


class _Connection(asyncio.Protocol):
    """One connection; `due` is when the request was due that it carries."""

    transport: asyncio.Transport

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._parser = httptools.HttpResponseParser(self)
        self.due: float | None = None

    def send(self, due: float) -> None:
        self.due = due
        self._driver.busy.add(self)
        self.transport.write(self._driver.request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has no such base

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()  # and with it the request

    def connection_lost(self, exc: Exception | None) -> None:
        due, self.due = self.due, None
        self._driver.lost(self, due)

    def on_message_complete(self) -> None:
        status, due = self._parser.get_status_code(), self.due
        if status >= 200 and due is not None:
            keeps = self._parser.should_keep_alive()
            self._parser, self.due = httptools.HttpResponseParser(self), None
            self._driver.answered(self, due, status, keeps=keeps)


def _bytes_of(plan: Plan) -> bytes:
    parts = urlsplit(plan.url)
    own = [("host", parts.netloc), ("user-agent", "headgate-bench"), ("accept", "*/*")]
    if plan.body is not None:
        own.append(("content-length", str(len(plan.body))))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = "".join([f"{plan.method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in beside(own, plan.headers)), "\r\n"])
    return head.encode() + (plan.body or b"")


def _tls(*, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
