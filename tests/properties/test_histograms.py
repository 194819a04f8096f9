"""Does every time and size end up in the bucket that its bounds promise, and is nothing lost on the way to a page?"""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import histograms
from headgate.core.histograms import BOUNDS, SIZE_BOUNDS, TICKS_PER_S, Histogram
from headgate.timings import MANY, Timings

TIMES = st.lists(st.floats(-1, 1e7), max_size=30) | st.lists(st.floats(0, 1e-3), min_size=MANY - 2, max_size=3 * MANY)
SIZES = st.lists(st.integers(1, 1 << 20), max_size=30)


def counted(times: list[float]) -> Histogram:
    """As the hot path does."""
    found = Timings()
    for seconds in times:
        found.append(seconds)
        if len(found) >= MANY:
            found.settle()
    return found.told()


@given(TIMES)
def test_each_bound_counts_the_times_below_it_and_infinity_all(times: list[float]):
    found = histograms.cumulative(counted(times), 1 / TICKS_PER_S)
    assert len(found) == BOUNDS + 1
    for bound, count in found[:-1]:
        ticks = round(bound * TICKS_PER_S)
        assert count == sum(int(seconds * TICKS_PER_S) < ticks for seconds in times)
    assert found[-1] == (float("inf"), len(times))


def test_the_bounds_begin_at_100_microseconds_and_double():
    bounds = [bound for bound, _ in histograms.cumulative(Histogram(), 1 / TICKS_PER_S)]
    assert bounds[:3] == [0.0001, 0.0002, 0.0004]
    assert bounds[-2:] == [104.8576, float("inf")]


def test_what_one_thread_counts_while_others_ask_is_all_there_once():
    times, count, over = Timings(), 20_000, threading.Event()
    told: list[int] = []

    def ask() -> None:
        while not over.is_set():
            told.append(times.told().count)

    others = [threading.Thread(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    for _ in range(count):
        times.take(1e-3)
    over.set()
    for other in others:
        other.join()
    assert times.told().count == count
    assert times.told().sum == pytest.approx(count * 1e-3)
    assert max(told, default=0) <= count


@given(SIZES)
def test_each_bound_counts_the_batches_that_are_no_larger(sizes: list[int]):
    tally = histograms.tally()
    for size in sizes:
        histograms.observe_size(tally, size)
    for bound, count in histograms.cumulative(histograms.of(tally, SIZE_BOUNDS), 1.0, SIZE_BOUNDS):
        assert count == sum(size <= bound for size in sizes)


@given(TIMES, TIMES)
def test_what_two_have_counted_is_what_one_would_have(some: list[float], others: list[float]):
    both = histograms.add_up([counted(some), counted(others)])
    alone = counted(some + others)
    assert both.buckets == alone.buckets
    assert both.count == len(some) + len(others)
    assert both.sum == pytest.approx(alone.sum)
