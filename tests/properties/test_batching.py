"""Do batches leave as promised, whatever arrives in which order?

The oracle is a flat list of requests; it works out by search who may leave.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headgate.core.batching import BatchQueue


class Member:
    """A waiting request."""

    def __init__(self, group: str, admitted_at: float, serial: int) -> None:
        self.group = group
        self.age = (admitted_at, serial)


class AgainstAFlatList(RuleBasedStateMachine):
    """One replica's waiting requests."""

    @initialize(size=st.integers(1, 5), wait_s=st.sampled_from([0.0, 0.01, 1.0]))
    def begin(self, size: int, wait_s: float) -> None:
        self.size, self.wait_s = size, wait_s
        self.queue: BatchQueue[Member] = BatchQueue(size, wait_s)
        self.now = 50.0
        self.serial = 0
        self.waiting: list[Member] = []

    def groups(self) -> list[list[Member]]:
        """Each group by age, the one with the oldest member first."""
        by_group: dict[str, list[Member]] = defaultdict(list)
        for member in sorted(self.waiting, key=lambda member: member.age):
            by_group[member.group].append(member)
        return sorted(by_group.values(), key=lambda members: members[0].age)

    def may_leave(self, members: list[Member]) -> bool:
        return len(members) >= self.size or self.now >= members[0].age[0] + self.wait_s

    def next_batch(self, *, even_if_early: bool = False) -> list[Member] | None:
        groups = self.groups()
        for members in groups:
            if self.may_leave(members):
                return members[: self.size]
        return groups[0][: self.size] if groups and even_if_early else None

    @rule(group=st.sampled_from(["a", "b", ""]), age_s=st.sampled_from([0.0, 0.005, 0.5, 3.0]), count=st.integers(1, 6))
    def add(self, group: str, age_s: float, count: int) -> None:
        for _ in range(count):
            self.serial += 1
            member = Member(group, self.now - age_s, self.serial)
            self.waiting.append(member)
            self.queue.add(member, group, self.now - age_s)

    @rule(later_s=st.sampled_from([0.001, 0.01, 1.0]))
    def time_passes(self, later_s: float) -> None:
        self.now += later_s

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def withdraw(self, which: int) -> None:
        member = self.waiting.pop(which % len(self.waiting))
        assert self.queue.withdraw(member)
        assert not self.queue.withdraw(member)

    @rule(size=st.integers(1, 5), wait_s=st.sampled_from([0.0, 0.01, 1.0]))
    def configure(self, size: int, wait_s: float) -> None:
        self.size, self.wait_s = size, wait_s
        self.queue.configure(size, wait_s)

    @rule()
    def seal(self) -> None:
        expected = self.next_batch()
        batch = self.queue.seal(self.now)
        assert batch == expected
        for member in batch or ():
            self.waiting.remove(member)

    @rule()
    def take_back(self) -> None:
        kept = self.next_batch(even_if_early=True) or []
        self.waiting = [member for member in self.waiting if member not in kept]
        assert self.queue.take_back(self.now) == sorted(self.waiting, key=lambda member: member.age)
        self.waiting = kept

    @invariant()
    def says_when_the_next_batch_leaves(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        leaves_at = self.queue.leaves_at(self.now)
        if not self.waiting:
            assert leaves_at is None
        elif self.next_batch() is not None:
            assert leaves_at == self.now
        else:
            assert leaves_at == min(member.age[0] for member in self.waiting) + self.wait_s
            assert leaves_at > self.now


TestAgainstAFlatList = AgainstAFlatList.TestCase


@pytest.mark.parametrize("wait_s", [0.0, 0.01])
def test_forty_requests_that_drip_in_make_three_or_four_batches(wait_s: float) -> None:
    """One every 4 ms, a batch takes 100 ms, at most 32 in one: after the first, all that waits goes together."""
    queue: BatchQueue[int] = BatchQueue(32, wait_s)
    arrivals = [0.004 * number for number in range(40)]
    sizes: list[int] = []
    now, free_at, added = 0.0, 0.0, 0
    while added < len(arrivals) or len(queue):
        while added < len(arrivals) and arrivals[added] <= now:
            queue.add(added, "", arrivals[added])
            added += 1
        if now >= free_at and (batch := queue.seal(now)) is not None:
            sizes.append(len(batch))
            free_at = now + 0.1
            assert all(free_at - arrivals[member] <= 0.25 for member in batch)
        leaves_at = queue.leaves_at(now)
        events = [*arrivals[added : added + 1], *([max(leaves_at, free_at)] if leaves_at is not None else [])]
        now = min(events, default=now)
    assert sum(sizes) == 40
    assert len(sizes) in (3, 4)
    assert max(sizes) > 20


def test_a_full_batch_leaves_before_an_older_one_that_still_waits_for_company() -> None:
    queue: BatchQueue[str] = BatchQueue(2, 1.0)
    queue.add("alone", "x", 0.0)
    queue.add("one", "y", 0.1)
    queue.add("two", "y", 0.2)
    assert queue.seal(0.2) == ["one", "two"]
    assert queue.seal(0.2) is None
    assert queue.leaves_at(0.2) == 1.0
    assert queue.seal(1.0) == ["alone"]
