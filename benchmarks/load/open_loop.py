"""How long do requests wait that come at their own pace, whatever the server does? An open-loop HTTP generator.

The moments at which requests are due are drawn before the first is sent. Latency counts from the moment a request was due, not from when
it was sent, so that a server that stalls is charged with all that came meanwhile. The generator's own lateness (sent after due) is part of
the result: a run in which its 99th percentile is over 1 ms says more about the generator than about the server, and is void.

A process of its own: one thread, no garbage collection while it sends, more connections than requests can be under way. Where it is allowed
to (by root) it goes before all others in the scheduler, since there are servers that leave no core idle; it needs a few percent of one.

Usage: open_loop.py URL --rate 300 --seconds 4 (prints one JSON object)
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import gc
import json
import math
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

GOOD_S: Final = 1.0
"""An answer is good where it is 2xx and takes no longer than this."""
LATE_S: Final = 0.001
"""The 99th percentile of lateness from which on a run is void."""
REJECTED: Final = (429, 503)
"""Statuses by which a server says that it doesn't take a request now."""

_SPIN_S = 0.0003  # a sleep may end that much late, so the last bit is spun
# Connections for so many seconds of arrivals: none is waited for, none idles as long as the 5 s after which Uvicorn closes it.
_AHEAD_S = 2.0
_APART_S = 0.0005  # between connections: of those that come at once, one process of a server may accept them all
_NO_ANSWER, _CLOSED = -1, -2  # in place of a status


class Latency(TypedDict):
    """Of some requests, in milliseconds; NaN where there were none."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Result(TypedDict):
    """What a run says of the requests that were due after its lead-in."""

    void: bool
    lateness_p99_ms: float
    lateness_max_ms: float
    offered_per_s: float
    goodput_per_s: float
    by_status: dict[str, int]
    """Answers by status; also `no answer` (in time) and `closed` (the connection, before the answer)."""
    admitted: Latency
    """All that was not rejected; one without an answer counts with the time after which it was given up."""
    rejected: Latency
    wait: Latency
    """Latency less the service time that the request asked for; of the 2xx answers of a run with drawn service times."""
    answers: list[str]
    """Bodies of the 2xx answers, where they were asked for."""


def constant(rate: float, seconds: float) -> list[float]:
    """Moments that are equally far apart, in seconds from the start."""
    return [index / rate for index in range(round(rate * seconds))]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments of a Poisson process of which it is known that as many come as are expected, so that every run offers the same load.

    In seconds from the start; the same for the same arguments.
    """
    chance = random.Random(f"arrivals {seed}")
    return sorted(chance.uniform(0.0, seconds) for _ in range(round(rate * seconds)))


def exponential(mean_s: float, count: int, seed: int) -> list[float]:
    """Service times in seconds, scaled to have exactly this mean, for the same reason; the same for the same arguments."""
    chance = random.Random(f"service {seed}")
    drawn = [chance.expovariate(1.0) for _ in range(count)]
    scale = mean_s * count / sum(drawn) if drawn else 0.0
    return [value * scale for value in drawn]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values; NaN of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def latency(values_s: Sequence[float]) -> Latency:
    """Sum up latencies in seconds."""
    ordered = sorted(value * 1000 for value in values_s)
    return {
        "count": len(ordered),
        "mean_ms": statistics.fmean(ordered) if ordered else math.nan,
        "p50_ms": percentile(ordered, 0.5),
        "p99_ms": percentile(ordered, 0.99),
        "p999_ms": percentile(ordered, 0.999),
        "max_ms": ordered[-1] if ordered else math.nan,
    }


class _Connection:
    """One connection: at most one request under way."""

    __slots__ = ("head_end", "index", "length", "received", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.index = -1  # of the request under way
        self.clear()

    def clear(self) -> None:
        self.received = b""
        self.head_end = 0
        self.length = -1  # of the whole answer; -1 while it isn't known

    def feed(self, data: bytes) -> bool:
        """Take what has arrived; whether the answer is whole."""
        self.received += data
        if not self.head_end:
            self.head_end = self.received.find(b"\r\n\r\n") + 4
            if self.head_end < 4:
                self.head_end = 0
                return False
            head = self.received[: self.head_end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                self.length = self.head_end + int(head[at + 17 : head.index(b"\r\n", at + 2)])
        if self.length < 0:  # chunked; no answer here has trailers
            return self.received.endswith(b"0\r\n\r\n")
        return len(self.received) >= self.length

    @property
    def status(self) -> int:
        return int(self.received[9:12])

    @property
    def body(self) -> str:
        body = self.received[self.head_end :]
        if self.length < 0:  # chunked
            chunks, rest = [], body
            while size := int(rest.partition(b"\r\n")[0], 16):
                rest = rest.partition(b"\r\n")[2]
                chunks.append(rest[:size])
                rest = rest[size + 2 :]
            body = b"".join(chunks)
        return body.decode(errors="replace")

    @property
    def closes(self) -> bool:
        return b"\r\nconnection: close" in self.received[: self.head_end].lower()


class Generator:
    """Sends requests when they are due and takes their answers: `due_s` from the start, each with its whole request."""

    def __init__(
        self, address: tuple[str, int], due_s: Sequence[float], requests: Sequence[bytes], connections: int, timeout_s: float
    ) -> None:
        self.address = address
        self.due_s = due_s
        self.requests = requests
        self.timeout_s = timeout_s
        self.late_s = [0.0] * len(due_s)
        self.took_s = [0.0] * len(due_s)
        self.status = [0] * len(due_s)
        self.answers: list[str] | None = None  # a list takes the bodies of 2xx answers
        self._left = len(due_s)
        self._poll = select.epoll()
        self._by_descriptor: dict[int, _Connection] = {}
        self._free: collections.deque[_Connection] = collections.deque()  # in turn, so that all of a server's processes get their share
        self._sent: collections.deque[tuple[float, _Connection, int]] = collections.deque()  # given up at that time, where not yet answered
        self._start = 0.0
        for _ in range(connections):
            self._free.append(self._connect())
            time.sleep(_APART_S)

    def run(self) -> None:
        """Send everything and wait until every request is answered or given up."""
        gc.collect()
        gc.disable()
        try:
            self._start = start = time.perf_counter() + 0.02
            for index, due_s in enumerate(self.due_s):
                self._take_until(start + due_s)
                self._send(index, start + due_s)
            while self._left:
                self._take_until(time.perf_counter() + 0.05)
        finally:
            gc.enable()

    def close(self) -> None:
        for connection in self._by_descriptor.values():
            connection.socket.close()
        self._poll.close()

    def _connect(self) -> _Connection:
        connected = socket.create_connection(self.address, timeout=5)
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._by_descriptor[connected.fileno()] = _Connection(connected)
        self._poll.register(connected.fileno(), select.EPOLLIN)
        return connection

    def _replace(self, connection: _Connection) -> None:
        """Close this connection and have another instead."""
        with contextlib.suppress(ValueError):
            self._free.remove(connection)
        del self._by_descriptor[connection.socket.fileno()]
        connection.socket.close()
        with contextlib.suppress(OSError):  # one fewer is free; the next request that finds none tries again
            self._free.append(self._connect())

    def _take_until(self, until: float) -> None:
        """Take answers until this moment: asleep, at last spinning."""
        while True:
            now = time.perf_counter()
            while self._sent and (self._sent[0][0] <= now or self._sent[0][1].index != self._sent[0][2]):
                _, connection, index = self._sent.popleft()
                if connection.index == index:
                    self._end(connection, _NO_ANSWER, now)
                    self._replace(connection)
            left = until - now
            if left <= 0:
                return
            if left > _SPIN_S:  # a poll of epoll itself sleeps whole milliseconds
                select.select([self._poll], [], [], left - _SPIN_S)
            for descriptor, _ in self._poll.poll(0):
                if descriptor in self._by_descriptor:
                    self._take(self._by_descriptor[descriptor])

    def _send(self, index: int, due: float) -> None:
        connection = self._free.popleft() if self._free else self._connect()
        connection.index = index
        now = time.perf_counter()
        self.late_s[index] = now - due
        self._sent.append((now + self.timeout_s, connection, index))
        try:
            sent = connection.socket.send(self.requests[index])
            if sent < len(self.requests[index]):
                raise OSError(errno.EAGAIN, "a request that doesn't fit into the socket's buffer is too large for this generator")
        except ConnectionError:
            self._end(connection, _CLOSED, time.perf_counter())
            self._replace(connection)

    def _take(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        now = time.perf_counter()
        if not data:
            if connection.index >= 0:
                self._end(connection, _CLOSED, now)
            self._replace(connection)
        elif connection.feed(data):
            closes = connection.closes
            if self.answers is not None and 200 <= connection.status < 300:
                self.answers.append(connection.body)
            self._end(connection, connection.status, now)
            if closes:
                self._replace(connection)
            else:
                self._free.append(connection)

    def _end(self, connection: _Connection, status: int, now: float) -> None:
        index, connection.index = connection.index, -1
        connection.clear()
        self.status[index] = status
        self.took_s[index] = now - self._start - self.due_s[index]
        self._left -= 1


def generate(
    url: str,
    *,
    due_s: Sequence[float],
    bodies: Sequence[bytes],
    services_s: Sequence[float],
    lead_s: float,
    seconds: float,
    connections: int,
    timeout_s: float,
    keep_answers: bool,
    content_type: str,
) -> Result:
    """Send a request with its body at each moment, in this process; only what was due from `lead_s` to `seconds` is counted."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    generator = Generator(address, due_s, requests, connections, timeout_s)
    if keep_answers:
        generator.answers = []
    try:
        generator.run()
    finally:
        generator.close()
    counted = [index for index, moment in enumerate(due_s) if moment >= lead_s]
    took_s, status = generator.took_s, generator.status
    late_ms = sorted(generator.late_s[index] * 1000 for index in counted)
    span_s = seconds - lead_s
    good = [index for index in counted if 200 <= status[index] < 300]
    rejected = [index for index in counted if status[index] in REJECTED]
    words = {_NO_ANSWER: "no answer", _CLOSED: "closed"}
    return {
        "void": percentile(late_ms, 0.99) > LATE_S * 1000,
        "lateness_p99_ms": percentile(late_ms, 0.99),
        "lateness_max_ms": late_ms[-1],
        "offered_per_s": len(counted) / span_s,
        "goodput_per_s": sum(took_s[index] <= GOOD_S for index in good) / span_s,
        "by_status": {words.get(kind, str(kind)): count for kind, count in sorted(collections.Counter(status[i] for i in counted).items())},
        "admitted": latency([took_s[index] for index in counted if status[index] not in REJECTED]),
        "rejected": latency([took_s[index] for index in rejected]),
        "answers": generator.answers or [],
        "wait": latency([took_s[index] - services_s[index] for index in good] if services_s else []),
    }


def run(url: str, *arguments: str | float) -> Result:
    """Run the generator as a process of its own, with arguments as on its command line; raises `VoidWindow` where it was late."""
    from benchmarks.session import VoidWindow  # this file is also a program, which doesn't find it

    command = [sys.executable, __file__, url, *map(str, arguments)]
    result: Result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    if not any(status.startswith("2") for status in result["by_status"]):
        raise VoidWindow(f"nothing was answered: {result['by_status']}")
    if result["void"]:
        raise VoidWindow(f"the generator was {result['lateness_p99_ms']:.2f} ms late at p99, over {LATE_S * 1000:g} ms")
    return result


def moments(arrivals: str, rate: float, seconds: float, lead_s: float, seed: int) -> list[float]:
    """When requests are due: the lead-in, then what is counted, each of which offers exactly `rate`."""
    if arrivals == "constant":
        return constant(rate, seconds)
    return poisson(rate, lead_s, seed) + [lead_s + moment for moment in poisson(rate, seconds - lead_s, seed + 1)]


def go_first() -> None:
    """Have the scheduler run this process whenever it can run, where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def main() -> int:
    """Run once and print the result; where it is void, also say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True, help="how long requests are sent, the lead-in included")
    parser.add_argument("--lead-s", type=float, default=0.0, help="what is due before that isn't counted")
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same moments and service times")
    parser.add_argument("--body", default='{"x":1}')
    parser.add_argument("--content-type", default="application/json")
    parser.add_argument("--service-mean-ms", type=float, default=0.0, help="the body is an exponential service time in seconds")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="a request without an answer is given up after that")
    parser.add_argument("--keep-answers", action="store_true", help="the result has the bodies of the 2xx answers")
    options: Any = parser.parse_args()
    due_s = moments(options.arrivals, options.rate, options.seconds, options.lead_s, options.seed)
    services_s: list[float] = []
    bodies = [options.body.encode()] * len(due_s)
    if options.service_mean_ms:
        services_s = exponential(options.service_mean_ms / 1000, len(due_s), options.seed)
        bodies = [b"%.6f" % service_s for service_s in services_s]
    go_first()
    result = generate(
        options.url,
        due_s=due_s,
        bodies=bodies,
        services_s=services_s,
        lead_s=options.lead_s,
        seconds=options.seconds,
        connections=math.ceil(options.rate * _AHEAD_S) + 16,
        timeout_s=options.timeout_s,
        keep_answers=options.keep_answers,
        content_type=options.content_type,
    )
    print(json.dumps(result))
    if result["void"]:
        print(f"void: the generator was {result['lateness_p99_ms']:.2f} ms late at p99, over {LATE_S * 1000:g} ms", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
