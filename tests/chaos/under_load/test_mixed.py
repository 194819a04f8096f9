"""Does what isn't one plain call come through, too, while things die: nested calls, batches, streams, clients that leave?"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from headgate import serve
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import NO_ANSWER, Load
from tests.chaos.moments import every, process, ready, wait_nothing_under_way, wait_ready
from tests.chaos.workers import begun

RATE = 25.0
"""Requests a second to each of the outer backends, which have two replicas each."""
SHORT_S = 0.012
"""A deadline that about half of the requests meet."""


class Inner:
    """What the others call. Each call is a line in the journal."""

    def __init__(self, journal: str) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, name: str) -> str:
        os.write(self._journal, f"{name}\n".encode())
        time.sleep(0.003)
        return name


class Outer:
    """Has a handle of the inner one."""

    def __init__(self, version: str) -> None:
        self._inner = serve.get_handle("inner")
        self._version = version


class Relayed(Outer):
    """One call for each request, on the event loop."""

    async def __call__(self, request: Any) -> str:
        return f"{await self._inner.remote(request.data.decode())} {self._version}"


class Together(Outer):
    """One call for each member of a batch, all at once."""

    @serve.accept_batch
    def __call__(self, requests: list[Any]) -> list[str]:
        names = serve.get([self._inner.remote(request.data.decode()) for request in requests])
        return [f"{name} {self._version}" for name in names]


class Streamed(Outer):
    """One call for each of three parts."""

    def __call__(self, request: Any) -> Iterator[str]:
        name = request.data.decode()
        for number in range(3):
            part = self._inner.remote(f"{name}-{number}").result()
            yield f"{name} " if number == 0 else f"{part} "


class StreamedAsync(Outer):
    """The same on the event loop."""

    async def __call__(self, request: Any) -> AsyncIterator[str]:
        name = request.data.decode()
        for number in range(3):
            part = await self._inner.remote(f"{name}-{number}")
            yield f"{name} " if number == 0 else f"{part} "


OUTER: dict[str, type[Outer]] = {"relayed": Relayed, "together": Together, "streamed": Streamed, "streamed-async": StreamedAsync}
STREAMS = ("streamed", "streamed-async")
CONFIGS: dict[str, dict[str, object]] = {"together": {"max_batch_size": 8, "batch_wait_timeout": 0.005}}


class Leaving(threading.Thread):
    """Clients that ask and leave, most of them before their answer."""

    def __init__(self, url: str) -> None:
        super().__init__(name=f"clients that leave {url}")
        self.asked = 0
        self._parts = urlsplit(url)
        self._chance = random.Random(9)
        self._stopping = threading.Event()

    def run(self) -> None:
        host, port = self._parts.hostname, self._parts.port
        for number in itertools.count():
            if self._stopping.wait(0.05):
                return
            paths = [f"/{name}" for name in OUTER]
            body = f"left-{number}"
            with socket.create_connection((host, port), 10) as client:
                client.sendall(
                    f"POST {self._chance.choice(paths)} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                self.asked += 1
                self._stopping.wait(self._chance.uniform(0.0, 0.02))

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def serve_all(instance: Instance, folder: Path, **config: object) -> str:
    """The inner backend and the outer ones; the journal of the inner calls."""
    journal = str(folder / "inner")
    instance.create_backend("inner", Inner, journal, config={"num_replicas": 2, **config})
    instance.create_endpoint("inner", backend="inner")
    for name, code in OUTER.items():
        instance.create_backend(name, code, "v0", config={"num_replicas": 2, **config, **CONFIGS.get(name, {})})
        instance.create_endpoint(name, f"/{name}", ["POST"], backend=name)
    return journal


class Mixed:
    """All of them under load, from entry to exit of the `with` block."""

    def __init__(self, instance: Instance) -> None:
        url = instance.http_url
        self.loads = {name: Load(f"{url}/{name}", RATE, timeout_s=10.0, seed=seed) for seed, name in enumerate(OUTER)}
        self.short = {
            name: Load(f"{url}/{name}", RATE / 2, timeout_s=SHORT_S, seed=7, name=f"short-{name}") for name in ("relayed", "together")
        }
        self.leaving = Leaving(url)
        self._instance = instance
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for load in (*self.loads.values(), *self.short.values()):
            self._stack.enter_context(load)
        self.leaving.start()
        self._stack.callback(self.leaving.stop)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def check(self, figure: Figures) -> None:
        """Everything has come to its end; nobody has had anything of somebody else's, and nothing is left."""
        for load in (*self.loads.values(), *self.short.values()):
            load.check_definite()
        for load in self.short.values():
            assert set(load.by_status()) <= {200, 500, 502, 503, 504}, load.by_status()  # 500: the inner call's time was over first
        for name in STREAMS:
            for outcome in self.loads[name].outcomes:
                parts = [outcome.name, f"{outcome.name}-1", f"{outcome.name}-2"]
                assert outcome.status != 200 or outcome.body.split() == parts, outcome
        for name in ("inner", *OUTER):
            wait_nothing_under_way(self._instance, name)
        figure("requests", sum(len(load.outcomes) for load in self.loads.values()))
        figure("requests with a short deadline", sum(len(load.outcomes) for load in self.short.values()))
        figure("of these in time", sum(load.by_status().get(200, 0) for load in self.short.values()), at_least=1)
        figure("clients that left", self.leaving.asked)


@pytest.mark.timeout(700)
def test_replicas_of_both_ends_of_nested_calls_are_killed_under_a_mixed_load(
    instance: Instance, tmp_path: Path, figure: Figures, long: bool
):
    seconds = 600.0 if long else 10.0
    chance = random.Random(8)
    serve_all(instance, tmp_path, idempotent=True)
    kills: list[tuple[float, float]] = []
    with Mixed(instance) as mixed:
        for killed_at in every(1.0, seconds):
            name = chance.choice(["inner", *OUTER])
            victim = chance.choice(ready(instance, name))
            os.kill(victim, signal.SIGKILL)
            kills.append((killed_at, time.monotonic()))
            wait_ready(instance, name, 2, without=victim)
    mixed.check(figure)
    cut = [outcome for name in STREAMS for outcome in mixed.loads[name].bad()]
    for outcome in cut:  # a stream that has begun can't begin again
        assert outcome.status in (NO_ANSWER, 502), outcome
        assert any(outcome.sent_at <= end and outcome.ended_at >= begin for begin, end in kills), outcome
    figure("kills", len(kills))
    figure("streams that were cut, for each kill", len(cut) / len(kills))
    for name in ("relayed", "together"):
        figure(f"{name}: requests that failed", len(mixed.loads[name].bad()), at_most=0)


@pytest.mark.timeout(700)
def test_controllers_are_killed_while_code_is_replaced_under_a_mixed_load(instance: Instance, tmp_path: Path, figure: Figures, long: bool):
    seconds = 600.0 if long else 15.0
    journal = serve_all(instance, tmp_path)
    ending = threading.Event()
    updates: list[str] = []

    def update() -> None:
        for number in itertools.count(1):
            for name, code in OUTER.items():
                if ending.is_set():
                    return
                instance.update_backend(name, code, f"v{number}")
                updates.append(name)

    updating = threading.Thread(target=update, name="updates")
    kills = 0
    with Mixed(instance) as mixed:
        updating.start()
        try:
            for _ in every(2.0, seconds):
                (controller,) = process(instance, "controller")
                os.kill(controller, signal.SIGKILL)
                kills += 1
        finally:
            ending.set()
            updating.join()
    mixed.check(figure)
    assert begun(journal).most_common(1)[0][1] == 1, "a call of a backend that is not idempotent ran twice"
    figure("kills", kills)
    figure("updates", len(updates), at_least=len(OUTER))
    for name, load in mixed.loads.items():
        figure(f"{name}: requests that failed", len(load.bad()), at_most=0)
