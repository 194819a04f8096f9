"""Does every time and size end up in the bucket that its bounds promise, and is nothing lost on the way to a page?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import histograms
from headgate.core.histograms import BOUNDS, SIZE_BOUNDS, SUM, TICKS_PER_S, Histogram, Tally

TIMES = st.lists(st.floats(0, 1e7), max_size=30)
SIZES = st.lists(st.integers(1, 1 << 20), max_size=30)


def counted(times: list[float]) -> Tally:
    """As the hot path does."""
    tally = histograms.tally()
    for seconds in times:
        tally[int(seconds * TICKS_PER_S).bit_length()] += 1
        tally[SUM] += seconds
    return tally


@given(TIMES)
def test_each_bound_counts_the_times_below_it_and_infinity_all(times: list[float]):
    found = histograms.cumulative(histograms.of(counted(times)), 1 / TICKS_PER_S)
    assert len(found) == BOUNDS + 1
    for bound, count in found[:-1]:
        ticks = round(bound * TICKS_PER_S)
        assert count == sum(int(seconds * TICKS_PER_S) < ticks for seconds in times)
    assert found[-1] == (float("inf"), len(times))


def test_the_bounds_begin_at_100_microseconds_and_double():
    bounds = [bound for bound, _ in histograms.cumulative(Histogram(), 1 / TICKS_PER_S)]
    assert bounds[:3] == [0.0001, 0.0002, 0.0004]
    assert bounds[-2:] == [104.8576, float("inf")]


@given(SIZES)
def test_each_bound_counts_the_batches_that_are_no_larger(sizes: list[int]):
    tally = histograms.tally()
    for size in sizes:
        histograms.observe_size(tally, size)
    for bound, count in histograms.cumulative(histograms.of(tally, SIZE_BOUNDS), 1.0, SIZE_BOUNDS):
        assert count == sum(size <= bound for size in sizes)


@given(TIMES, TIMES)
def test_what_two_have_counted_is_what_one_would_have(some: list[float], others: list[float]):
    both = histograms.add_up([histograms.of(counted(some)), histograms.of(counted(others))])
    alone = histograms.of(counted(some + others))
    assert both.buckets == alone.buckets
    assert both.count == len(some) + len(others)
    assert both.sum == pytest.approx(alone.sum)
