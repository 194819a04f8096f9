"""Is nobody turned away while ingresses are killed under load?"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import requests

from headgate import serve
from tests.chaos.conftest import Figures
from tests.chaos.load import NO_ANSWER, Load
from tests.chaos.moments import every, percentile, process, wait_other_process
from tests.chaos.workers import Worker


@pytest.mark.timeout(700)
@pytest.mark.parametrize("num_ingresses", [1, 2])
def test_an_ingress_is_killed_every_2_seconds_under_load(
    num_ingresses: int, tmp_path_factory: pytest.TempPathFactory, figure: Figures, long: bool
):
    seconds = 600.0 if long else 12.0
    chance = random.Random(6)
    kills: list[float] = []
    serves_s: list[float] = []
    with serve.init(http_port=0, num_ingresses=num_ingresses) as instance:
        instance.create_backend("b", Worker, str(tmp_path_factory.mktemp("journal") / "b"), config={"num_replicas": 3})
        instance.create_endpoint("e", "/e", ["POST"], backend="b")
        with Load(f"{instance.http_url}/e", 150.0) as load:
            for killed_at in every(2.0, seconds):
                before = process(instance, "ingress")
                victim = chance.choice(before)
                os.kill(victim, signal.SIGKILL)
                kills.append(killed_at)
                if num_ingresses == 1:  # a connection that is made now waits for the successor
                    assert requests.get(f"{instance.http_url}/-/healthz", timeout=10).status_code == 200
                    serves_s.append(time.monotonic() - killed_at)
                wait_other_process(instance, "ingress", num_ingresses, without=victim)
                if num_ingresses > 1:
                    serves_s.append(time.monotonic() - killed_at)
    load.check_definite()
    for outcome in load.bad():
        assert outcome.status == NO_ANSWER, outcome
        on_the_dead_one = any(outcome.connected_at <= kill <= outcome.ended_at + 0.001 for kill in kills)
        assert on_the_dead_one, f"{outcome} failed though its ingress was not killed"
    figure("connections that were refused", load.by_status().get(-2, 0), at_most=0)
    figure("a new ingress serves, p99", percentile(serves_s, 0.99), at_most_s=1.0)
    figure("requests on connections of killed ingresses", len(load.bad()))
    figure("requests", len(load.outcomes))
    figure("kills", len(kills))
