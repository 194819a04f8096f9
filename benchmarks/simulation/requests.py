"""How are requests spread, how long do they take, and which are lost or tried again, when routers have all replicas or a subset?

Event by event in virtual time, with the product's own dispatchers and traffic policy. Requests arrive at random (Poisson) at all
ingresses alike. A handler takes an exponential time, and a replica runs several at once. Two things happen on the way: a node
falls silent, which routers learn only later than the window lasts, and replicas are replaced.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.simulation.subsetting import Way
from headgate.core.dispatch import Dispatcher, Limits
from headgate.core.traffic import TrafficPolicy

CONCURRENCY = 4
HANDLER_S = 0.008
HOP_S = 0.0001
"""From a router to a replica, and back."""
PER_REPLICA = 400.0
"""Requests/s that are offered for each replica: 80 % of what it can do."""
PER_INGRESS_BOUND = 1000
"""The bound of the queue of a backend in one ingress."""
_REPLACED = 20
"""One of so many replicas of the first backend is replaced at a time."""
_TABLE_S = 0.02
"""A table is with all routers within so long."""

_ARRIVES, _REACHES, _ENDS, _ANSWERS, _ACTS = range(5)


@dataclass
class Outcome:
    """Of one run; times in seconds."""

    offered: int = 0
    answered: int = 0
    refused: int = 0
    queued: int = 0
    """Requests that found no replica with room at once."""
    lost: int = 0
    """Of those that a silent node runs: they may have had effects. Where their backend is idempotent they run again."""
    retried: int = 0
    """Of those that it has not begun: they run elsewhere, once it counts as lost."""
    waiting: int = 0
    """Still in a queue when all others had ended."""
    latencies: list[float] = field(default_factory=list)
    busy_p99: float = 0.0
    """Requests of a replica in the window, 99th percentile over mean."""
    central: list[float] = field(default_factory=list)
    """Latencies where one queue before all replicas of a backend knew everything."""
    links: int = 0
    """At the start."""


class _Replica:
    __slots__ = ("alive", "got", "id", "queue", "running", "tag")

    def __init__(self, id: str, tag: str) -> None:
        self.id = id
        self.tag = tag
        self.alive = True
        self.running = 0
        self.got = 0
        self.queue: deque[_Request] = deque()


class _Request:
    __slots__ = ("at", "begun", "replica", "router", "tag")

    def __init__(self, router: int, tag: str, at: float) -> None:
        self.router = router
        self.tag = tag
        self.at = at
        self.begun = False
        self.replica: _Replica | None = None


def percentile(values: list[float], share: float) -> float:
    """Of values in any order."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else math.nan


def simulate(
    way: Way, ingresses: int, replicas: int, *, backends: int = 5, warm_s: float, window_s: float, seed: int = 1, events: bool = True
) -> Outcome:
    """One run. What arrives in the window after the warm-up counts."""
    return _Run(way, ingresses, replicas, backends, warm_s, window_s, seed, events).outcome


class _Run:
    def __init__(
        self, way: Way, ingresses: int, replicas: int, backends: int, warm_s: float, window_s: float, seed: int, events: bool
    ) -> None:
        self.outcome = Outcome()
        self.random = random.Random(seed)
        self.way = way
        self.begin, self.end = warm_s, warm_s + window_s
        self.routers = [f"i{number:08x}" for number in range(ingresses)]
        tags = [f"model-{number}" for number in range(backends)]
        self.policy = TrafficPolicy("front", dict.fromkeys(tags, 1 / backends))
        self.of = {tag: [_Replica(f"1-{self.random.getrandbits(32):08x}", tag) for _ in range(replicas // backends)] for tag in tags}
        self.by_id = {replica.id: replica for mine in self.of.values() for replica in mine}
        self.sent_to_dead: dict[tuple[int, str], float] = {}
        limits = Limits(concurrency=CONCURRENCY, max_queued_queries=PER_INGRESS_BOUND)
        self.dispatchers: list[dict[str, Dispatcher[_Request, str]]] = [
            {tag: Dispatcher(limits, self._unbegun_since(router)) for tag in tags} for router in range(ingresses)
        ]
        self.linked: dict[str, dict[str, set[str]]] = {}
        for tag in tags:
            self._link(tag)
        self.outcome.links = sum(len(ids) for by_router in self.linked.values() for ids in by_router.values())
        self.heap: list[tuple[float, int, int, Any, Any]] = []  # when, in what order, what, and of what
        self.order = itertools.count()
        self.rate = PER_REPLICA * sum(map(len, self.of.values()))
        self._push(self.random.expovariate(self.rate), _ARRIVES)
        if events:
            self._push(warm_s + 0.5 * window_s, _ACTS, "silent")
            self._push(warm_s + 0.25 * window_s, _ACTS, "replace")
        self.arrivals: list[tuple[float, str, float]] = []  # for the central queue
        self._run()

    def _unbegun_since(self, router: int) -> Callable[[str], float]:
        return lambda id: self.sent_to_dead.get((router, id), math.inf)

    def _link(self, tag: str, late: bool = False) -> None:
        """Routers follow the subsets of the replicas that are there; `late`: each within a moment."""
        links = self.way([replica.id for replica in self.of[tag]], self.routers)
        before = self.linked.get(tag, {})
        self.linked[tag] = {router: set(ids) for router, ids in links.items()}
        for number, router in enumerate(self.routers):
            old, new = before.get(router, set()), self.linked[tag][router]
            if late:
                self._push(self.now + self.random.random() * _TABLE_S, _ACTS, (number, tag, old - new), new - old)
            else:
                self._follow(number, tag, old - new, new - old)

    def _follow(self, router: int, tag: str, gone: set[str], come: set[str]) -> None:
        dispatcher = self.dispatchers[router][tag]
        for id in sorted(gone):
            dispatcher.remove_replica(id)
        for id in sorted(come):
            dispatcher.add_replica(id)

    def _push(self, at: float, kind: int, a: Any = None, b: Any = None) -> None:
        heapq.heappush(self.heap, (at, next(self.order), kind, a, b))

    # Events.

    def _run(self) -> None:
        heap, pop = self.heap, heapq.heappop
        handle: list[Callable[[Any, Any], None]] = [self._arrives, self._reaches, self._ends, self._answers, self._acts]
        while heap:
            self.now, _, kind, a, b = pop(heap)
            handle[kind](a, b)
        self._sum_up()

    def _counts(self, at: float) -> bool:
        return self.begin <= at < self.end

    def _arrives(self, a: None, b: None) -> None:
        now, random_ = self.now, self.random
        if now >= self.end:
            return
        self._push(now + random_.expovariate(self.rate), _ARRIVES)
        router = int(random_.random() * len(self.routers))
        tag = self.policy.choose(random_.random(), None)
        assert tag is not None
        request = _Request(router, tag, now)
        counts = self._counts(now)
        self.outcome.offered += counts
        self.arrivals.append((now, tag, random_.expovariate(1 / HANDLER_S)))
        dispatcher = self.dispatchers[router][tag]
        id = dispatcher.place(now, random_.random())
        if id is not None:
            self._send(request, id)
        elif dispatcher.full:
            self.outcome.refused += counts
        else:
            self.outcome.queued += counts
            dispatcher.enqueue(request, now)

    def _send(self, request: _Request, id: str) -> None:
        replica = request.replica = self.by_id[id]
        if not replica.alive:
            self.sent_to_dead.setdefault((request.router, id), self.now)
            self.outcome.retried += 1
            return
        self._push(self.now + HOP_S, _REACHES, request, replica)

    def _reaches(self, request: _Request, replica: _Replica) -> None:
        if not replica.alive:
            self.sent_to_dead.setdefault((request.router, replica.id), self.now)
            self.outcome.retried += 1
        elif replica.running < CONCURRENCY:
            self._begin(request, replica)
        else:
            replica.queue.append(request)

    def _begin(self, request: _Request, replica: _Replica) -> None:
        replica.running += 1
        request.begun = True
        elapsed_s = self.random.expovariate(1 / HANDLER_S)
        self._push(self.now + elapsed_s, _ENDS, request, elapsed_s)

    def _ends(self, request: _Request, elapsed_s: float) -> None:
        replica = request.replica
        assert replica is not None
        if not replica.alive:
            self.outcome.lost += 1
            return
        replica.running -= 1
        replica.got += self._counts(request.at)
        load = replica.running + len(replica.queue)
        if replica.queue:
            self._begin(replica.queue.popleft(), replica)
        self._push(self.now + HOP_S, _ANSWERS, request, (elapsed_s, load))

    def _answers(self, request: _Request, told: tuple[float, int]) -> None:
        elapsed_s, load = told
        assert request.replica is not None
        dispatcher = self.dispatchers[request.router][request.tag]
        dispatcher.answered(request.replica.id, elapsed_s, load, self.now)
        if self._counts(request.at):
            self.outcome.answered += 1
            self.outcome.latencies.append(self.now - request.at)
        while (found := dispatcher.next(self.now, self.random.random())) is not None:
            self._send(*found)

    def _acts(self, what: Any, b: Any) -> None:
        if what == "silent":
            for replica in [mine[0] for mine in self.of.values()]:  # a node has one of each backend
                replica.alive = False
                for request in replica.queue:
                    self.sent_to_dead.setdefault((request.router, replica.id), self.now)
                self.outcome.retried += len(replica.queue)
                replica.queue.clear()
        elif what == "replace":
            tag = "model-0"
            mine = self.of[tag]
            fresh = [_Replica(f"2-{self.random.getrandbits(32):08x}", tag) for _ in mine[1::_REPLACED]]
            del mine[1::_REPLACED]
            mine += fresh
            self.by_id |= {replica.id: replica for replica in fresh}
            self._link(tag, late=True)
        else:
            router, tag, gone = what
            self._follow(router, tag, gone, b)
            dispatcher = self.dispatchers[router][tag]
            while (found := dispatcher.next(self.now, self.random.random())) is not None:
                self._send(*found)

    def _sum_up(self) -> None:
        outcome = self.outcome
        waiting = [request for mine in self.dispatchers for dispatcher in mine.values() for request in dispatcher.drain()]
        outcome.waiting = len(waiting)
        got = [float(replica.got) for mine in self.of.values() for replica in mine if replica.alive and replica.id.startswith("1-")]
        outcome.busy_p99 = percentile(got, 0.99) / (sum(got) / len(got))
        for tag in self.of:
            servers = [0.0] * (len(self.of[tag]) * CONCURRENCY)
            for at, which, elapsed_s in self.arrivals:
                if which == tag:
                    begun = max(heapq.heappop(servers), at)
                    heapq.heappush(servers, begun + elapsed_s)
                    if self._counts(at):
                        outcome.central.append(begun + elapsed_s - at + 2 * HOP_S)
