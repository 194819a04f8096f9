"""How much longer do requests wait with routers and windows than in one central queue?"""

from __future__ import annotations

import heapq
import random
from collections import deque

import pytest

from headgate.core.dispatch import Dispatcher, Limits

REPLICAS = 4
MEAN_S = 0.05
REQUESTS = 40_000


class Request:
    """One request, with how long it will run wherever it runs."""

    __slots__ = ("arrival_s", "duration_s", "router", "started_s")

    def __init__(self, arrival_s: float, duration_s: float, router: int) -> None:
        self.arrival_s = arrival_s
        self.duration_s = duration_s
        self.router = router
        self.started_s = -1.0


def poisson_requests(rng: random.Random, load: float, routers: int, replicas: int = REPLICAS, mean_s: float = MEAN_S) -> list[Request]:
    now = 0.0
    requests = []
    for _ in range(REQUESTS):
        now += rng.expovariate(load * replicas / mean_s)
        requests.append(Request(now, rng.expovariate(1 / mean_s), rng.randrange(routers)))
    return requests


def mean_wait_in_one_queue(requests: list[Request], servers: int = REPLICAS) -> float:
    """First come, first served, by whichever server is free first."""
    free_at = [0.0] * servers
    total = 0.0
    for request in requests:
        start = max(request.arrival_s, heapq.heappop(free_at))
        total += start - request.arrival_s
        heapq.heappush(free_at, start + request.duration_s)
    return total / len(requests)


def mean_wait_with_routers(requests: list[Request], routers: int, rng: random.Random, *, reported: bool = True) -> float:
    """Each request goes to its router, and waits there or at the one replica that it was sent to."""
    dispatchers: list[Dispatcher[Request, int]] = [Dispatcher(Limits(concurrency=1)) for _ in range(routers)]
    for dispatcher in dispatchers:
        for replica in range(REPLICAS):
            dispatcher.add_replica(replica)
    waiting: list[deque[Request]] = [deque() for _ in range(REPLICAS)]
    running: list[Request | None] = [None] * REPLICAS
    ends: list[tuple[float, int]] = []

    def send(request: Request, replica: int, now: float) -> None:
        waiting[replica].append(request)
        start(replica, now)

    def start(replica: int, now: float) -> None:
        if running[replica] is None and waiting[replica]:
            request = running[replica] = waiting[replica].popleft()
            request.started_s = now
            heapq.heappush(ends, (now + request.duration_s, replica))

    def end() -> None:
        now, replica = heapq.heappop(ends)
        request = running[replica]
        assert request is not None
        running[replica] = None
        start(replica, now)
        dispatcher = dispatchers[request.router]
        load = len(waiting[replica]) + (running[replica] is not None) if reported else 0
        dispatcher.answered(replica, request.duration_s, load, now)
        while (sent := dispatcher.next(now, rng.random())) is not None:
            send(*sent, now)

    for request in requests:
        while ends and ends[0][0] <= request.arrival_s:
            end()
        to = dispatchers[request.router].offer(request, request.arrival_s, rng.random())
        if to is not None:
            send(request, to, request.arrival_s)
    while ends:
        end()
    assert all(request.started_s >= request.arrival_s for request in requests)
    return sum(request.started_s - request.arrival_s for request in requests) / len(requests)


@pytest.mark.parametrize("seed", range(3))
def test_one_router_makes_requests_wait_no_longer_than_one_queue_does(seed: int) -> None:
    rng = random.Random(seed)
    requests = poisson_requests(rng, load=0.8, routers=1)
    assert mean_wait_with_routers(requests, 1, rng) <= 1.2 * mean_wait_in_one_queue(requests)


@pytest.mark.parametrize("seed", range(3))
def test_two_routers_that_see_the_load_come_close_to_one_queue(seed: int) -> None:
    rng = random.Random(seed)
    requests = poisson_requests(rng, load=0.8, routers=2)
    assert mean_wait_with_routers(requests, 2, rng) <= 1.5 * mean_wait_in_one_queue(requests)


def test_the_reported_load_is_what_brings_several_routers_closer() -> None:
    seeds = [random.Random(seed) for seed in range(3)]
    batches = [(poisson_requests(rng, load=0.8, routers=4), rng) for rng in seeds]
    told = sum(mean_wait_with_routers(requests, 4, rng) for requests, rng in batches)
    untold = sum(mean_wait_with_routers(requests, 4, rng, reported=False) for requests, rng in batches)
    assert told < 0.97 * untold


def test_a_single_server_waits_as_the_textbook_says() -> None:
    """The oracle itself: in M/M/1 at half load a request waits as long as one runs, on average."""
    requests = poisson_requests(random.Random(1), load=0.5, routers=1, replicas=1)
    assert mean_wait_in_one_queue(requests, servers=1) == pytest.approx(MEAN_S, rel=0.1)
