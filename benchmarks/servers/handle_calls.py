"""How are the calls of work 4 made and timed? The same for every contender, by whatever handle it has.

The program that has the handle listens for orders: a POST of `{"way": ..., "seconds": ...}` makes calls in one of the ways below for that
long and answers with `{"calls/s": ..., "p50": ...}`, the latter in ms from the call to its answer. All is done by the main thread.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

IN_FLIGHT = 1000
NESTED_IN_FLIGHT = 100
SEQUENTIAL, FLYING, ASYNC, NESTED = "sequential", "in flight", "asyncio", "nested"
# No ways to call: work 9 orders them.
REPLICA = "one more replica"
START = "one more instance"

Timed = dict[str, float]


class Reply(Awaitable[Any], Protocol):
    """What a call gives at once."""

    def result(self) -> Any:
        """Wait for the answer."""


class Handle(Protocol):
    """What makes calls; the answer to a number is that number."""

    def remote(self, number: int, /) -> Reply:
        """Call, and don't wait."""


def noop(number: int) -> int:
    """User code of work 4."""
    return number


async def async_noop(number: int) -> int:
    """The same for contenders that are quicker with it."""
    return number


class Outer:
    """A backend that calls another for each of its own calls."""

    def __init__(self, inner: Handle) -> None:
        self.inner = inner

    async def __call__(self, number: int) -> Any:
        return await self.inner.remote(number)


def sequential(handle: Handle, seconds: float) -> Timed:
    """One call after the other, from one thread."""
    took: list[float] = []
    began = now = time.perf_counter()
    while now - began < seconds:
        _check(handle.remote(len(took)).result(), len(took))
        before, now = now, time.perf_counter()
        took.append(now - before)
    return _figures(took, now - began)


def flying(handle: Handle, seconds: float, count: int) -> Timed:
    """`count` calls under way all the time, from one thread: for each answer, in the order of the calls, one more call."""
    took: list[float] = []
    began = time.perf_counter()
    calls = deque((time.perf_counter(), number, handle.remote(number)) for number in range(count))
    until = began + seconds
    while calls:
        called, number, reply = calls.popleft()
        _check(reply.result(), number)
        now = time.perf_counter()
        took.append(now - called)
        if now < until:
            calls.append((now, number, handle.remote(number)))
    return _figures(took, time.perf_counter() - began)


async def gathered(handle: Handle, seconds: float, count: int) -> Timed:
    """`count` calls at once by `asyncio.gather`, and when all are answered the next."""
    took: list[float] = []

    async def call(number: int) -> None:
        called = time.perf_counter()
        _check(await handle.remote(number), number)
        took.append(time.perf_counter() - called)

    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        await asyncio.gather(*[call(number) for number in range(count)])
    return _figures(took, time.perf_counter() - began)


def ways(handle: Handle, outer: Handle | None, *, for_asyncio: Callable[[], Handle] | None = None) -> dict[str, Callable[[float], Timed]]:
    """How a handle makes calls, by the name of the way; `for_asyncio` makes, on the loop, one that is quicker there."""

    runner = asyncio.Runner()  # all orders have one loop, as what a handle has may belong to it
    quicker: list[Handle] = []

    async def in_one_loop(seconds: float) -> Timed:
        if for_asyncio is not None and not quicker:
            quicker.append(for_asyncio())
        return await gathered(quicker[0] if quicker else handle, seconds, IN_FLIGHT)

    known = {
        SEQUENTIAL: lambda seconds: sequential(handle, seconds),
        FLYING: lambda seconds: flying(handle, seconds, IN_FLIGHT),
        ASYNC: lambda seconds: runner.run(in_one_loop(seconds)),
    }
    if outer is not None:
        known[NESTED] = lambda seconds: flying(outer, seconds, NESTED_IN_FLIGHT)
    return known


def take_orders(port: int, known: Mapping[str, Callable[[float], Timed]]) -> None:
    """Make calls in this thread when told to; an order that names no way is answered, and nothing happens."""

    class Orders(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps(known[order["way"]](order["seconds"]) if "way" in order else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method's own parameter
            pass

    http.server.HTTPServer(("127.0.0.1", port), Orders).serve_forever()


def _check(answer: object, number: int) -> None:
    if answer != number:
        raise AssertionError(f"the answer to {number} was {answer!r}")


def _figures(took: list[float], elapsed_s: float) -> Timed:
    return {"calls/s": len(took) / elapsed_s, "p50": statistics.median(took) * 1e3}
