"""Does bisection find exactly the members that fail?"""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.bisection import Bisection


def run(count: int, raises: set[int]) -> tuple[list[int], list[int], int]:
    """Bisect a batch in which a call raises that holds any of `raises`; return the bad, the answered, and the runs it took."""
    bisection = Bisection(count)
    answered: list[int] = []
    runs = 0
    while (indices := bisection.next()) is not None:
        runs += 1
        if raises.isdisjoint(indices):
            answered += indices
        else:
            bisection.failed(indices)
    return bisection.bad, answered, runs


@given(data=st.data(), count=st.integers(1, 70))
def test_exactly_the_bad_members_fail_and_the_others_are_answered_once_in_order(data: st.DataObject, count: int) -> None:
    raises = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    bad, answered, runs = run(count, raises)
    assert bad == sorted(raises)
    assert answered == sorted(set(range(count)) - raises)
    assert runs <= max(0, 2 * count - 2)


@given(data=st.data(), count=st.integers(2, 1000))
def test_one_bad_member_is_found_in_logarithmic_time(data: st.DataObject, count: int) -> None:
    bad, answered, runs = run(count, {data.draw(st.integers(0, count - 1))})
    assert len(bad) == 1
    assert len(answered) == count - 1
    assert runs <= 2 * math.ceil(math.log2(count))


def test_a_batch_that_fails_only_once_has_no_bad_member() -> None:
    assert run(8, set()) == ([], list(range(8)), 2)


def test_a_batch_of_one_is_not_run_again() -> None:
    assert run(1, {0}) == ([0], [], 0)


def test_a_batch_that_fails_only_together_has_no_bad_member() -> None:
    bisection = Bisection(2)
    assert [bisection.next(), bisection.next(), bisection.next()] == [range(1), range(1, 2), None]
    assert bisection.bad == []
