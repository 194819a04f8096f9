"""Is nobody turned away while ingresses are killed under load?"""

from __future__ import annotations

import random
import time

import pytest
import requests

from headgate import serve
from tests.chaos.conftest import Figures
from tests.chaos.load import NO_ANSWER, Load, Outcome
from tests.chaos.moments import every, kill_with_clients, percentile, process, wait_other_process
from tests.chaos.workers import Worker


def on_the_dead_one(outcome: Outcome, killed_at: float, clients: frozenset[int]) -> bool:
    """Whether a request was on its way when an ingress was killed, or its connection idle, and the connection was that ingress's own."""
    began_at = min(outcome.connected_at, outcome.sent_at)  # an ingress may take a connection before its client is told
    return outcome.port in clients and began_at <= killed_at <= outcome.ended_at


@pytest.mark.timeout(700)
@pytest.mark.parametrize("num_ingresses", [1, 2])
def test_an_ingress_is_killed_every_2_seconds_under_load(
    num_ingresses: int, tmp_path_factory: pytest.TempPathFactory, figure: Figures, long: bool
):
    seconds = 600.0 if long else 8.0
    chance = random.Random(6)
    kills: list[tuple[float, frozenset[int]]] = []
    serves_s: list[float] = []
    with serve.init(http_port=0, num_ingresses=num_ingresses) as instance:
        instance.create_backend("b", Worker, str(tmp_path_factory.mktemp("journal") / "b"), config={"num_replicas": 3})
        instance.create_endpoint("e", "/e", ["POST"], backend="b")
        with Load(f"{instance.http_url}/e", 150.0) as load:
            for _ in every(2.0, seconds):
                victim = chance.choice(process(instance, "ingress"))
                killed_at, clients = kill_with_clients(victim)
                kills.append((killed_at, clients))
                if num_ingresses == 1:  # a connection that is made now waits for the successor
                    assert requests.get(f"{instance.http_url}/-/healthz", timeout=10).status_code == 200
                    serves_s.append(time.monotonic() - killed_at)
                wait_other_process(instance, "ingress", num_ingresses, without=victim)
                if num_ingresses > 1:
                    serves_s.append(time.monotonic() - killed_at)
    load.check_definite()
    for outcome in load.bad():
        assert outcome.status == NO_ANSWER, outcome
        assert any(on_the_dead_one(outcome, *kill) for kill in kills), f"{outcome} failed though its ingress was not killed"
    figure("connections that were refused", load.by_status().get(-2, 0), at_most=0)
    figure("a new ingress serves, p99", percentile(serves_s, 0.99), at_most_s=1.0)
    figure("requests on connections of killed ingresses", len(load.bad()))
    figure("requests", len(load.outcomes))
    figure("kills", len(kills))
