"""Does the dispatcher keep its promises under any order of events?

The oracle keeps its own queue and its own lists of what is where; of the dispatcher it asks only the size of a window.
"""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from headgate.core import wire
from headgate.core.dispatch import SCANNED, SLOW_S, Dispatcher, Limits

DRAWS = st.floats(0, 1, exclude_max=True)
ELAPSED = st.sampled_from([0.0, 2e-6, 3e-5, 4e-4, 1.5e-3, 7e-3, 0.3])
OTHERS = st.sampled_from([0, 0, 0, 1, 5])
SILENT_S = 0.02


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    batch = draw(st.booleans())
    size = draw(st.integers(1, 4)) if batch else 1
    return Limits(
        concurrency=draw(st.integers(1, 3)),
        max_batch_size=size,
        is_batch=batch,
        max_concurrent_queries=draw(st.none() | st.integers(size, 12)),
        max_queued_queries=draw(st.integers(1, 8)),
    )


class Item:
    """A request; only its identity counts."""

    def __init__(self, age: float) -> None:
        self.age = age
        self.begun = False


class AnyOrderOfEvents(RuleBasedStateMachine):
    """A router's life, with every event that it can meet."""

    replicas = Bundle("replicas")

    @initialize(limits=limits())
    def begin(self, limits: Limits) -> None:
        self.limits = limits
        self.dispatcher: Dispatcher[Item, str] = Dispatcher(limits, self.unbegun_since)
        self.now = 100.0
        self.names = 0
        self.sent_at: dict[Item, float] = {}
        self.new: list[Item] = []  # queued, in order
        self.again: list[Item] = []  # queued once more, in order of age
        self.at: dict[str, list[Item]] = {}
        self.draining: set[str] = set()
        self.held_until: dict[str, float] = {}
        self.heard_at: dict[str, float] = {}
        self.longest_s: dict[str, float] = {}  # of its calls that were answered; it is known then how long they take
        self.had_others: set[str] = set()  # by the last report
        self.near: set[str] = set()

    def unbegun_since(self, replica: str) -> float:
        return min((self.sent_at[item] for item in self.at[replica] if not item.begun), default=math.inf)

    def is_silent(self, replica: str) -> bool:
        """Surely: ten of its longest calls could have run since."""
        if replica not in self.longest_s or replica in self.had_others:
            return False
        since = max(self.heard_at[replica], self.unbegun_since(replica))
        return since + max(SILENT_S, 10 * self.longest_s[replica]) < self.now

    def sent(self, item: Item, replica: str) -> None:
        assert replica not in self.draining
        is_last = self.is_held(replica) or self.is_silent(replica)
        self.at[replica].append(item)
        self.sent_at[item] = self.now
        item.begun = False
        assert len(self.at[replica]) <= self.dispatcher.window(replica)
        if is_last:
            rest = [other for other in self.at if other not in self.draining and not self.is_held(other)]
            rest = [other for other in rest if self.unbegun_since(other) + SILENT_S >= self.now]  # those that are surely not silent
            assert all(len(self.at[other]) >= self.dispatcher.window(other) for other in rest)

        if replica not in self.near and len(self.near) <= SCANNED:
            at_once = self.limits.concurrency * (self.limits.max_batch_size if self.limits.is_batch else 1)
            for other in (self.near & self.at.keys()) - self.draining - self.had_others:
                surely_well = not self.is_held(other) and self.unbegun_since(other) + SILENT_S >= self.now
                assert not surely_well or len(self.at[other]) >= min(at_once, self.dispatcher.window(other))

    def is_held(self, replica: str) -> bool:
        return self.held_until.get(replica, 0.0) > self.now

    def pump(self, draw: float) -> None:
        """What a router does after each event that makes room."""
        while (out := self.dispatcher.next(self.now, draw)) is not None:
            expected = self.again.pop(0) if self.again else self.new.pop(0)
            assert out[0] is expected
            self.sent(*out)

    def expect_again(self, items: list[Item]) -> None:
        for item in items:
            self.dispatcher.requeue(item, item.age, self.now)
        self.again = sorted([*self.again, *items], key=lambda item: item.age)

    @rule(draw=DRAWS, later=st.floats(0.001, 2), count=st.integers(1, 4))
    def offer(self, draw: float, later: float, count: int) -> None:
        for _ in range(count):
            self.now += later
            self.offer_one(draw)

    def offer_one(self, draw: float) -> None:
        if self.dispatcher.full:
            return
        item = Item(self.now)
        replica = self.dispatcher.offer(item, self.now, draw)
        if replica is None:
            self.new.append(item)
        else:
            assert not self.new
            assert not self.again
            self.sent(item, replica)

    @rule(target=replicas, draw=DRAWS, count=st.sampled_from([1, 1, 2, SCANNED]), near=st.booleans())
    def add(self, draw: float, count: int, near: bool) -> MultipleResults[str]:
        names = [f"r{self.names + number}" for number in range(count)]
        self.names += count
        for name in names:
            self.at[name] = []
            self.dispatcher.add_replica(name, near=near)
            if near:
                self.near.add(name)
        self.pump(draw)
        return multiple(*names)

    @rule(replica=replicas, draw=DRAWS)
    def drain_and_undo(self, replica: str, draw: float) -> None:
        if replica in self.draining:
            self.draining.discard(replica)
            self.dispatcher.add_replica(replica)
            self.pump(draw)
        else:
            self.draining.add(replica)
            self.dispatcher.remove_replica(replica)
            assert self.dispatcher.window(replica) == 0

    @rule(replica=consumes(replicas), draw=DRAWS)
    def lose(self, replica: str, draw: float) -> None:
        self.draining.discard(replica)
        self.held_until.pop(replica, None)
        self.longest_s.pop(replica, None)
        self.dispatcher.forget(replica)
        self.expect_again(self.at.pop(replica))
        self.pump(draw)

    @rule(replica=replicas, which=st.integers(0), elapsed_s=ELAPSED, others=OTHERS, draw=DRAWS)
    def answer(self, replica: str, which: int, elapsed_s: float, others: int, draw: float) -> None:
        if self.at[replica]:
            self.at[replica].pop(which % len(self.at[replica]))
            self.held_until.pop(replica, None)
            self.longest_s[replica] = max(self.longest_s.get(replica, 0.0), elapsed_s)
            self.heard(replica, others)
            self.dispatcher.answered(replica, elapsed_s, len(self.at[replica]) + others, self.now)
            self.pump(draw)

    def heard(self, replica: str, others: int) -> None:
        self.heard_at[replica] = self.now
        (self.had_others.add if others else self.had_others.discard)(replica)

    @rule(replica=replicas, count=st.integers(1, 3))
    def begin_some(self, replica: str, count: int) -> None:
        for item in [item for item in self.at[replica] if not item.begun][:count]:
            item.begun = True

    @rule(replica=replicas, kept=st.integers(0, 2), others=st.integers(0, 5), held_s=st.sampled_from([0.0, 0.0, 0.01, 1.0]), draw=DRAWS)
    def give_back(self, replica: str, kept: int, others: int, held_s: float, draw: float) -> None:
        given, self.at[replica] = self.at[replica][kept:], self.at[replica][:kept]
        for _ in given:
            self.heard(replica, kept + others)  # at most
            self.longest_s[replica] = max(self.longest_s.get(replica, 0.0), SLOW_S)
            self.dispatcher.returned(replica, kept + others, self.now, held_s)
            self.held_until[replica] = max(self.held_until.get(replica, 0.0), self.now + held_s)
        if given and replica not in self.draining and not self.limits.is_batch:
            cap = self.limits.max_concurrent_queries or wire.PLACES
            assert self.dispatcher.window(replica) == min(self.limits.concurrency, cap)
        self.expect_again(given)
        self.pump(draw)

    @rule(replica=replicas, others=st.integers(0, 5), draw=DRAWS)
    def release(self, replica: str, others: int, draw: float) -> None:
        if self.at[replica]:
            self.at[replica].pop()
            self.heard(replica, others)
            self.dispatcher.released(replica, len(self.at[replica]) + others, self.now)
            self.pump(draw)

    @precondition(lambda self: self.new or self.again)
    @rule(which=st.integers(0))
    def withdraw(self, which: int) -> None:
        queued = [*self.again, *self.new]
        item = queued[which % len(queued)]
        assert self.dispatcher.withdraw(item)
        assert not self.dispatcher.withdraw(item)
        (self.again if item in self.again else self.new).remove(item)

    @rule(limits=limits(), draw=DRAWS)
    def configure(self, limits: Limits, draw: float) -> None:
        self.limits = limits
        self.dispatcher.set_limits(limits)
        self.pump(draw)

    @rule()
    def empty_the_queue(self) -> None:
        assert self.dispatcher.drain() == [*self.again, *self.new]
        self.again, self.new = [], []

    @rule()
    def estimate(self) -> None:
        estimate = self.dispatcher.wait_estimate_s(self.now, lambda id: min((self.sent_at[item] for item in self.at[id]), default=math.inf))
        assert estimate is None or 0 <= estimate < math.inf

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "limits"):
            return
        queued = len(self.new) + len(self.again)
        assert self.dispatcher.queued == queued
        assert self.dispatcher.full == (queued >= self.limits.max_queued_queries)
        assert self.dispatcher.half_full == (2 * queued >= self.limits.max_queued_queries)

    @invariant()
    def nothing_waits_while_a_replica_has_room(self) -> None:
        if not hasattr(self, "limits"):
            return
        cap = min(self.limits.max_concurrent_queries or wire.PLACES, wire.PLACES)
        for replica, items in self.at.items():
            window = self.dispatcher.window(replica)
            assert self.dispatcher.in_flight(replica) == len(items)
            assert window <= cap
            if replica not in self.draining:
                assert window >= 1
                if self.new or self.again:
                    assert len(items) >= window


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(replicas=st.integers(1, SCANNED), concurrency=st.integers(1, 3), seed=st.integers(0, 1 << 32))
def test_no_request_is_bound_to_a_busy_replica_nor_queued_while_another_is_free(replicas: int, concurrency: int, seed: int) -> None:
    rng = random.Random(seed)
    dispatcher: Dispatcher[Item, int] = Dispatcher(Limits(concurrency=concurrency))
    at = [0] * replicas
    for replica in range(replicas):
        dispatcher.add_replica(replica)

    def sent(replica: int) -> None:
        assert at[replica] == min(at)
        at[replica] += 1

    now = 0.0
    for _ in range(300):
        now += 0.01
        busy = [replica for replica in range(replicas) if at[replica]]
        # About as many arrive as are answered, so that the queue is empty as often as not.
        if not busy or rng.random() < 0.5:
            to = dispatcher.offer(Item(now), now, rng.random())
            if to is not None:
                sent(to)
        else:
            replica = rng.choice(busy)
            at[replica] -= 1
            dispatcher.answered(replica, 0.006, at[replica], now)
            while (out := dispatcher.next(now, rng.random())) is not None:
                sent(out[1])
        assert not dispatcher.queued or min(at) == concurrency


@given(
    replicas=st.integers(2, 2 * SCANNED),
    concurrency=st.integers(1, 3),
    elapsed_s=st.sampled_from([0.0, 3e-5, 4e-4, 4e-3]),
    gap_s=st.floats(0.001, 0.05),
    seed=st.integers(0, 1 << 32),
)
def test_a_replica_that_is_frozen_while_it_is_idle_gets_nothing_more_after_a_moment(
    replicas: int, concurrency: int, elapsed_s: float, gap_s: float, seed: int
) -> None:
    rng = random.Random(seed)
    first_at = math.inf  # when the first request went to the frozen replica
    dispatcher: Dispatcher[Item, int] = Dispatcher(Limits(concurrency=concurrency), lambda id: first_at if id == frozen else math.inf)
    for replica in range(replicas):
        dispatcher.add_replica(replica)
    now = 0.0
    frozen, last = -1, 0
    for number in range(200):
        now += gap_s
        if number == 100:
            frozen = last  # what quick calls are filled into
        to = dispatcher.offer(Item(now), now, rng.random())
        assert to is not None
        if to != frozen:
            last = to
            dispatcher.answered(to, elapsed_s, 0, now)
            continue
        first_at = min(first_at, now)
        assert now - first_at <= max(SILENT_S, 10 * elapsed_s) + 1e-9


@given(
    replicas=st.integers(1, 4),
    concurrency=st.integers(1, 3),
    requests=st.lists(st.tuples(st.floats(0.002, 3), st.sampled_from([0.01, 0.5, 2.0, 2.0, 2.0, 9.0])), min_size=20, max_size=60),
    same=st.booleans(),
)
def test_where_nothing_waits_the_wait_is_what_is_left_of_the_calls_that_run_if_they_are_as_quick_as_the_quickest_of_late(
    replicas: int, concurrency: int, requests: list[tuple[float, float]], same: bool
) -> None:
    """Nobody is queued here, so that all that a request waits for is the first call that ends; where all last the same, that is known."""
    dispatcher: Dispatcher[Item, int] = Dispatcher(Limits(concurrency=concurrency))
    for replica in range(replicas):
        dispatcher.add_replica(replica)
    running: list[tuple[float, float, int]] = []  # until when, since when, where
    durations: list[float] = []  # of those that were answered
    now = 0.0

    def oldest_at(replica: int) -> float:
        return min((since for _, since, at in running if at == replica), default=math.inf)

    for gap_s, duration_s in requests:
        now += gap_s
        while running and running[0][0] <= now:
            until, since, replica = heapq.heappop(running)
            durations.append(until - since)
            dispatcher.answered(replica, until - since, dispatcher.in_flight(replica) - 1, until)
        to = dispatcher.place(now, 0.5)
        if to is not None:
            heapq.heappush(running, (now + (2.0 if same else duration_s), now, to))
            continue
        assert len(running) == replicas * concurrency
        wait_s = dispatcher.wait_estimate_s(now, oldest_at)
        if not durations:
            assert wait_s is None
            continue
        oldest = min(since for _, since, _ in running)
        assert wait_s is not None
        assert wait_s <= max(oldest + min(durations[-8:]) - now, 0.0) + 1e-9
        assert wait_s >= max(oldest + min(durations) - now, 0.0) - 1e-9
        if same:
            assert wait_s == pytest.approx(running[0][0] - now, abs=1e-6)
