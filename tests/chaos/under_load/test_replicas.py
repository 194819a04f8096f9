"""Does every request get what it is promised while replicas are killed or frozen under load?"""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import Load
from tests.chaos.moments import REPLACED_WITHIN_S, every, percentile, ready, wait_ready, wait_until_then, wait_without
from tests.chaos.workers import Worker, begun
from tests.support import TIME_FACTOR

REPLICAS = 3
HALF_S = 150.0
"""Requests a second: half of what three replicas can do that take 10 ms for each."""


def serve_workers(instance: Instance, folder: Path, name: str, **config: object) -> str:
    """A backend and endpoint of that name with three replicas; the journal of what began there."""
    journal = str(folder / name)
    instance.create_backend(name, Worker, journal, config={"num_replicas": REPLICAS, **config})
    instance.create_endpoint(name, f"/{name}", ["POST"], backend=name)
    return journal


def check_failures(load: Load, deaths: list[tuple[float, float]]) -> float:
    """Of a backend that isn't idempotent: each failed request was under way when a replica died, and each death failed one at most.

    `deaths` are the times between which each replica died. Returns how long after it the latest failure was told.
    """
    blamed = [[death for death in deaths if outcome.sent_at <= death[1] and outcome.ended_at >= death[0]] for outcome in load.bad()]
    assert all(outcome.status == 502 for outcome in load.bad()), load.bad()
    assert all(blamed), f"{load.bad()} failed beside the deaths at {deaths}"
    for death in deaths:
        assert sum(of == [death] for of in blamed) <= 1, f"more than what ran failed by the death at {death}: {load.bad()}"
    return max((outcome.ended_at - of[-1][0] for outcome, of in zip(load.bad(), blamed, strict=True)), default=0.0)


@pytest.mark.timeout(2100)
def test_a_replica_is_killed_every_second_under_load(instance: Instance, tmp_path: Path, figure: Figures, long: bool):
    seconds = 1800.0 if long else 20.0
    chance = random.Random(4)
    journals = {name: serve_workers(instance, tmp_path, name, idempotent=name == "again") for name in ("again", "once")}
    replaced_s: list[float] = []
    kills: dict[str, list[tuple[float, float]]] = {name: [] for name in journals}
    with Load(f"{instance.http_url}/again", HALF_S) as again, Load(f"{instance.http_url}/once", HALF_S) as once:
        for killed_at in every(0.5, seconds):  # of each backend one every second
            name = "again" if len(replaced_s) % 2 else "once"
            victim = chance.choice(ready(instance, name))
            os.kill(victim, signal.SIGKILL)
            kills[name].append((killed_at, time.monotonic()))
            wait_ready(instance, name, REPLICAS, without=victim)
            replaced_s.append(time.monotonic() - killed_at)
    again.check_definite()
    once.check_definite()
    assert begun(journals["once"]).most_common(1)[0][1] == 1, "a request of a backend that is not idempotent ran twice"
    told_s = check_failures(once, kills["once"])
    figure("idempotent: requests that failed", len(again.bad()), at_most=0)
    figure("not idempotent: requests that failed, for each kill", len(once.bad()) / len(kills["once"]), at_most=1)
    figure("not idempotent: the latest failure was told after", told_s, at_most_s=0.5)
    figure("replacement p99", percentile(replaced_s, 0.99), at_most_s=REPLACED_WITHIN_S)
    figure("requests", len(again.outcomes) + len(once.outcomes))
    figure("kills", len(replaced_s), at_least=seconds / REPLACED_WITHIN_S)  # of 2 a second


@pytest.mark.timeout(2100)
def test_a_replica_is_frozen_every_3_seconds_under_load(instance: Instance, tmp_path: Path, figure: Figures, long: bool):
    seconds = 1800.0 if long else 20.0
    chance = random.Random(5)
    health = {"health_check_period": 0.1, "health_check_timeout": 0.5}
    journals = {name: serve_workers(instance, tmp_path, name, idempotent=name == "again", **health) for name in ("again", "once")}
    found_s: list[float] = []
    replaced_s: list[float] = []
    frozen: dict[str, list[tuple[float, float]]] = {name: [] for name in journals}
    with Load(f"{instance.http_url}/again", HALF_S) as again, Load(f"{instance.http_url}/once", HALF_S) as once:
        for frozen_at in every(1.5, seconds):  # of each backend one every 3 s
            name = "again" if sum(map(len, frozen.values())) % 2 else "once"
            victim = chance.choice(ready(instance, name))
            os.kill(victim, signal.SIGSTOP)
            if len(frozen[name]) % 2:  # it goes on just when it is given up, or a little before
                wait_until_then(frozen_at + chance.uniform(0.4, 0.6))
                try:
                    os.kill(victim, signal.SIGCONT)
                except ProcessLookupError:
                    pass
            else:
                wait_without(instance, name, victim)
                found_at = time.monotonic()
                found_s.append(found_at - frozen_at)
                wait_ready(instance, name, REPLICAS, without=victim)
                replaced_s.append(time.monotonic() - found_at)
            wait_ready(instance, name, REPLICAS)
            frozen[name].append((frozen_at, time.monotonic()))
    again.check_definite()
    once.check_definite()
    assert begun(journals["once"]).most_common(1)[0][1] == 1, "a request of a backend that is not idempotent ran twice"
    check_failures(once, frozen["once"])
    figure("idempotent: requests that failed", len(again.bad()), at_most=0)
    figure("not idempotent: requests that failed, for each freeze", len(once.bad()) / len(frozen["once"]), at_most=1)
    figure("found, the latest", max(found_s), at_most_s=0.7)
    figure("replacement after that, p99", percentile(replaced_s, 0.99), at_most_s=REPLACED_WITHIN_S)
    figure("requests", len(again.outcomes) + len(once.outcomes))
    figure("freezes", sum(map(len, frozen.values())), at_least=seconds / 3 / REPLACED_WITHIN_S)  # of one each 1.5 s


def test_a_replica_that_is_frozen_while_it_is_idle_gets_next_to_nothing_while_others_are_free(instance: Instance, figure: Figures):
    instance.create_backend("quick", lambda request: os.getpid(), config={"num_replicas": 4})
    instance.create_endpoint("quick", "/quick", ["POST"], backend="quick")
    wait_ready(instance, "quick", 4)
    url = f"{instance.http_url}/quick"
    victim = 0
    with requests.Session() as session:
        for _ in range(50):  # so that its calls are known to be quick
            victim = int(session.post(url, timeout=10).text)
    outcomes: list[tuple[float, int, str]] = []

    def ask() -> None:
        sent_at = time.monotonic()
        answer = requests.post(url, headers={"X-Serve-Timeout-Ms": str(1000 * TIME_FACTOR)}, timeout=30)
        outcomes.append((time.monotonic() - sent_at, answer.status_code, answer.text))

    os.kill(victim, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(50) as pool:
            for _ in every(0.03 * TIME_FACTOR, 0.03 * TIME_FACTOR * 51):
                pool.submit(ask)
    finally:
        os.kill(victim, signal.SIGCONT)
    assert len(outcomes) == 50
    swallowed = [text for took_s, status, text in outcomes if status != 200 or took_s > 0.5 * TIME_FACTOR]
    figure("requests that failed or took long", len(swallowed), at_most=3)
    assert all("its replica had not begun it" in text for text in swallowed), swallowed
