"""Does anything grow with the number of requests, while replicas come and go?"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import pytest

from headgate.serve import Handle, Instance
from tests.chaos.conftest import Figures
from tests.chaos.moments import ready
from tests.leaks import RUNTIME_VARIABLE
from tests.support import wait_until

PIPELINED: Final = 16
IN_FLIGHT: Final = 500
LASTING: Final = ("supervisor", "controller", "ingress")


def echo(request: object) -> object:
    return getattr(request, "data", request) if not isinstance(request, int) else request


class Steady:
    """Stays, while replicas of the other backend come and go. Also streams, and is slow, where it is asked to."""

    async def __call__(self, request: Any) -> object:
        what = request.args.get("what")
        if what == "slow":
            await asyncio.sleep(0.05)
        return self._parts() if what == "stream" else request.data

    async def _parts(self) -> AsyncIterator[str]:
        for number in range(3):
            yield str(number)


class Held(NamedTuple):
    """What the lasting processes of an instance, and this one, hold."""

    rss_kb: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    files: int
    """In the instance's folder: sockets, pages, specs."""
    shared_memory: int


def held(instance: Instance) -> Held:
    pids = {process.role: process.pid for process in instance.status().processes if process.role in LASTING}
    pids |= {"replica": ready(instance, "steady")[0], "driver": os.getpid()}
    rss_kb = {}
    for role, pid in pids.items():
        (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
        rss_kb[role] = int(line.split()[1])
    return Held(
        rss_kb,
        {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in pids.items()},
        {role: len(os.listdir(f"/proc/{pid}/task")) for role, pid in pids.items()},
        sum(len(names) for _, _, names in os.walk(os.environ[RUNTIME_VARIABLE])),
        len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0,
    )


def ask_over_http(instance: Instance, path: bytes, count: int, statuses: Counter[str]) -> None:
    """So many requests on one connection, of which some are always under way."""
    parts = urlsplit(instance.http_url)
    request = b"POST " + path + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\n1234567"
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        for _ in range(count // PIPELINED):
            connection.sendall(request * PIPELINED)
            received = b""
            while received.count(b"1234567") + received.count(b"}") < PIPELINED:  # an error is a JSON object
                data = connection.recv(65536)
                assert data, "the ingress closed a connection"
                received += data
            for line in received.split(b"HTTP/1.1 ")[1:]:
                statuses[line[:3].decode()] += 1


def ask_by_handle(handle: Handle, count: int, statuses: Counter[str]) -> None:
    """The same by calls from Python."""
    waiting: deque[object] = deque()
    for number in range(count):
        waiting.append(handle.remote(number))
        if len(waiting) >= IN_FLIGHT:
            waiting.popleft().result(60)  # type: ignore[attr-defined]  # a reply
    while waiting:
        waiting.popleft().result(60)  # type: ignore[attr-defined]  # a reply
    statuses["200"] += count


def ask_oddly(instance: Instance, count: int, statuses: Counter[str]) -> None:
    """So many clients that leave before their answer, requests whose deadline is too short, and streams."""
    parts = urlsplit(instance.http_url)
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)) as connection:
        for _ in range(count):
            with socket.create_connection((parts.hostname, parts.port), timeout=60) as leaves:
                leaves.sendall(b"POST /s?what=slow HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            for what, headers in (("slow", {"X-Serve-Timeout-Ms": "1"}), ("stream", {})):
                connection.request("POST", f"/s?what={what}", headers=headers)
                answer = connection.getresponse()
                assert what == "slow" or answer.read() == b"012"
                answer.read()
                statuses[f"{what} {answer.status}"] += 1


class Churn(threading.Thread):
    """Replicas die, come and go, until it is stopped."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(name="churn")
        self.changes = 0
        self._instance = instance
        self._chance = random.Random(7)
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            self.changes += 1
            if self.changes % 3 == 0:
                self._instance.update_backend_config("b", {"num_replicas": self._chance.choice((2, 3, 4))})
            elif self.changes % 3 == 1:
                self._instance.update_backend("b", echo)
            else:
                os.kill(self._chance.choice(ready(self._instance, "b")), signal.SIGKILL)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


@pytest.mark.timeout(900)
def test_many_requests_with_replicas_coming_and_going_leave_everything_as_it_was(instance: Instance, figure: Figures, long: bool):
    requests = 1_000_000 if long else 60_000
    instance.create_backend("b", echo, config={"num_replicas": 2, "idempotent": True, "max_queued_queries": 5000})
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    instance.create_backend("steady", Steady, config={"max_queued_queries": 5000})
    instance.create_endpoint("s", "/s", ["POST"], backend="steady")
    handle = instance.get_handle("e")
    statuses: Counter[str] = Counter()

    def soak(count: int) -> None:
        churn = Churn(instance)
        churn.start()
        try:
            asking = [threading.Thread(target=ask_over_http, args=(instance, path, count // 4, statuses)) for path in (b"/e", b"/s")]
            asking.append(threading.Thread(target=ask_oddly, args=(instance, count // 100, statuses)))
            for thread in asking:
                thread.start()
            ask_by_handle(handle, count // 2, statuses)
            for thread in asking:
                thread.join()
        finally:
            churn.stop()
        instance.update_backend_config("b", {"num_replicas": 2})
        wait_until(lambda: len(ready(instance, "b")) == 2 and len(instance.list_backends()["b"].replicas) == 2)
        figure("changes", churn.changes, at_least=count / 30_000)

    soak(requests // 2)  # what is made once is made
    before = held(instance)
    soak(requests)
    after = held(instance)
    wait_until(lambda: held(instance)[1:] == before[1:], 5, f"{before} is what is held again, not {held(instance)}")
    assert set(statuses) <= {"200", "slow 503", "slow 504", "stream 200"}, statuses
    figure("requests", statuses["200"], at_least=requests)
    figure("streams, and as many clients that left, and deadlines that were too short", statuses["stream 200"], at_least=requests // 100)
    for role, rss_kb in after.rss_kb.items():
        figure(f"{role}: memory grew by bytes for each request", 1024 * (rss_kb - before.rss_kb[role]) / requests, at_most=10)
