"""Work 10: what does it cost Headgate to be large? Requests a second relative to a small instance, without anything to do for the size.

Both run at once and are measured in turns within each window, small, large, large, small, so that what else the machine does meets both.
"""

from __future__ import annotations

import contextlib
import http.client
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import wrk
from benchmarks.session import NOOP, Session

NUMBER = 10
TITLE = "the cost of size: requests/s relative to the first"

CONNECTIONS = 64
SECONDS = 1  # of each of the four measurements of a window
ENDPOINTS = 1000
REPLICAS = 32
IDLE = 2000
BACKENDS = 50
KEYS = 10_000
UNITS = {"of the first": "", "requests/s": "1/s", "first": "1/s"}

# wrk takes the requests from a list, as many on both sides, so that it has the same to do for both.
MANY = """
local requests, last = {}, 0

function init(args)
    for number = 0, %(count)d - 1 do
        %(vary)s
        requests[number + 1] = wrk.format(nil, path)
    end
end

function request()
    last = last %% #requests + 1
    return requests[last]
end
"""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    options: Mapping[str, Any] = field(default_factory=dict)  # of the server program
    idle: int = 0  # connections that have sent one request each, and then nothing
    vary: str = ""  # Lua: what is particular to request `number`
    count: int = 0  # of different requests

    @property
    def lua(self) -> str:
        """What wrk has to know beside what is the same for all."""
        return MANY % {"count": self.count, "vary": self.vary} if self.count else ""


def keyed(header: str, value: str) -> Side:
    """Two backends, and requests with this header."""
    return Side({"backends": 2}, vary=f'wrk.headers["{header}"] = {value}; local path = nil', count=KEYS)


MANY_BACKENDS = f"{BACKENDS} backends without keys"
CASES = {
    f"{ENDPOINTS:,} endpoints": (
        Side({"endpoints": 1}, vary='local path = "/e0000"', count=ENDPOINTS),
        Side({"endpoints": ENDPOINTS}, vary='local path = string.format("/e%04d", number)', count=ENDPOINTS),
    ),
    f"{REPLICAS} replicas": (Side(), Side({"replicas": REPLICAS})),
    f"{IDLE:,} idle connections": (Side(), Side(idle=IDLE)),
    MANY_BACKENDS: (Side(), Side({"backends": BACKENDS})),
    f"{KEYS:,} shard keys over 2 backends": (
        keyed("X-OTHER-SHARD-KEY", '"user-00000"'),
        keyed("X-SERVE-SHARD-KEY", 'string.format("user-%05d", number)'),
    ),
}


def measure(session: Session) -> None:
    """Work 10."""
    session.note(
        NUMBER,
        "The first of each pair: 1 endpoint; 1 replica; no idle connection; 1 backend; 2 backends, and a "
        "header of the same length that means nothing. Traffic goes to all of the many endpoints, in turns.",
    )
    session.note(
        NUMBER,
        f"Of {BACKENDS} backends each request draws one, so with {CONNECTIONS} connections it mostly wakes a process that sleeps: what the "
        "same path without features loses by that is beside it.",
    )
    if not session.choose("headgate"):
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))  # for idle connections, here and in the servers that are started
    try:
        measure_all(session)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def measure_all(session: Session) -> None:
    """Both sides of each case."""
    for title, sides in CASES.items():
        with contextlib.ExitStack() as stack:
            windows: dict[str, Callable[[], dict[str, float]]] = {}
            for name in session.choose("headgate", "ceiling") if title == MANY_BACKENDS else ["headgate"]:
                first, second = (stack.enter_context(serving(session, name, f"{name}, {at}", side)) for at, side in enumerate(sides))
                windows[name] = partial(compare, first, second)
            # All servers run on meanwhile: a window belongs to none of them.
            session.interleave(NUMBER, title, windows, agree_on="of the first", units=UNITS)


def compare(first: Callable[[], float], second: Callable[[], float]) -> dict[str, float]:
    """One window."""
    rates = [measured() for measured in (first, second, second, first)]
    small, large = (rates[0] + rates[3]) / 2, (rates[1] + rates[2]) / 2
    return {"of the first": large / small, "requests/s": large, "first": small}


@contextlib.contextmanager
def serving(session: Session, contender: str, name: str, side: Side) -> Iterator[Callable[[], float]]:
    """Start one side and warm it up; yields what measures it."""
    with session.serving(contender, "noop", name=name, **side.options) as server, contextlib.ExitStack() as stack:
        address = urlsplit(server.url).netloc
        for _ in range(side.idle):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection(address)))
            connection.request("POST", "/", NOOP)
            connection.getresponse().read()

        def rate(seconds: int = SECONDS) -> float:
            return wrk.closed_loop(server.url, CONNECTIONS, seconds=seconds, lua=side.lua)["requests/s"]

        rate(wrk.WARM_UP_S)
        yield rate
