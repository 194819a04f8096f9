"""Does the wheel report each item once, never early, and at most a bucket late?"""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headgate.core.deadlines import NEVER, DeadlineWheel

LATE_S = 0.005 + 1e-9


class Item:
    """Something with a deadline; only its identity counts."""


class AgainstAList(RuleBasedStateMachine):
    """The oracle is a list of deadlines that is searched from end to end."""

    @initialize(start=st.floats(100, 1e6))
    def begin(self, start: float) -> None:
        self.now = start
        self.wheel: DeadlineWheel[Item] = DeadlineWheel()
        self.watched: dict[Item, tuple[float, int]] = {}

    @rule(ahead_s=st.sampled_from([0.0, 0.001, 0.005, 0.5, 60.0]) | st.floats(-1, 10))
    def add(self, ahead_s: float) -> None:
        item = Item()
        self.watched[item] = (self.now + ahead_s, self.wheel.add(item, self.now + ahead_s))

    @rule()
    def add_one_without_a_deadline(self) -> None:
        item = Item()
        self.watched[item] = (math.inf, self.wheel.add(item, math.inf))

    @precondition(lambda self: self.watched)
    @rule(which=st.integers(0))
    def discard(self, which: int) -> None:
        item = list(self.watched)[which % len(self.watched)]
        _, bucket = self.watched.pop(item)
        self.wheel.discard(item, bucket)

    @rule(later_s=st.sampled_from([0.0, 0.005, 0.05]) | st.floats(0, 20))
    def look(self, later_s: float) -> None:
        self.now += later_s
        for item in self.wheel.expired(self.now):
            deadline, bucket = self.watched.pop(item)
            assert deadline <= self.now
            self.wheel.discard(item, bucket)
        assert all(deadline > self.now - LATE_S for deadline, _ in self.watched.values())

    @invariant()
    def the_next_look_is_neither_too_early_nor_too_late(self) -> None:
        if not hasattr(self, "wheel"):
            return
        due = self.wheel.next_due()
        first = min((deadline for deadline, _ in self.watched.values()), default=math.inf)
        if first == math.inf:
            assert due is None
        else:
            assert due is not None
            assert first <= due <= first + LATE_S


TestAgainstAList = AgainstAList.TestCase


@given(deadline=st.floats(0, 1e9))
def test_what_is_due_is_reported_at_the_time_that_the_wheel_itself_names(deadline: float) -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    wheel.add("x", deadline)
    due = wheel.next_due()
    assert due is not None
    assert due >= deadline
    assert wheel.expired(math.nextafter(due, 0)) == []
    assert wheel.expired(due) == ["x"]
    assert wheel.next_due() is None


def test_discarding_what_was_reported_or_never_had_a_deadline_does_nothing() -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    bucket = wheel.add("x", 1.0)
    wheel.add("y", 1.0)
    assert set(wheel.expired(2.0)) == {"x", "y"}
    wheel.discard("x", bucket)
    assert wheel.add("z", math.inf) == NEVER
    wheel.discard("z", NEVER)
    assert wheel.expired(1e12) == []
