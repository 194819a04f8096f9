"""How are times and sizes counted by their magnitude, at hardly any cost?

Bucket `n` of times ends at 2**n times the shortest bound, so the number of a bucket is the length in bits of the time in that unit.
What is counted seldom goes into a tally: a list that only one thread writes to, with a place for each bucket and, last, the sum.

On the hot path times are gathered (`timings.py`) and go in many at once, sorted, which costs a tenth for each.

What is told is the buckets without the empty ones at the end, so that most take a few bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import zip_longest
from typing import Final

import msgspec

Tally = list[float]

TICKS_PER_S: Final = 1e4
"""Bucket 0 of times ends at 100 microseconds."""
START_TICKS_PER_S: Final = 100.0
"""The same of start times of replicas: 10 ms."""
_PLACES: Final = 64  # far beyond what a clock can say, so that nobody need ask whether a bucket is there
SUM: Final = _PLACES
BOUNDS: Final = 21
"""So many buckets have a bound: times up to 104.8576 s. All beyond are in one more, without."""
SIZE_BOUNDS: Final = 15
"""The same for the sizes of batches: up to 16,384."""


def tally() -> Tally:
    """Nothing counted yet."""
    return [0] * (_PLACES + 1)


def observe(tally: Tally, seconds: float, ticks_per_s: float) -> None:
    """Count a time in that unit."""
    tally[int(seconds * ticks_per_s).bit_length()] += 1
    tally[SUM] += seconds


def observe_all(tally: Tally, times: list[float]) -> None:
    """Count times, which this sorts."""
    tally[SUM] += sum(times)
    times.sort()
    first = 0
    while first < len(times):
        number = max(int(times[first] * TICKS_PER_S), 0).bit_length()
        end = bisect_left(times, float(1 << number), first, key=TICKS_PER_S.__mul__)
        tally[number] += end - first
        first = end


def observe_size(tally: Tally, size: int) -> None:
    """Count something of that size: bucket `n` holds those up to 2**n."""
    tally[(size - 1).bit_length()] += 1
    tally[SUM] += size


class Histogram(msgspec.Struct, frozen=True, array_like=True):
    """How many there were of each magnitude, and their sum."""

    buckets: tuple[int, ...] = ()
    """The count in each, up to the last that isn't empty; bucket `n` of times ends at 2**n times 100 microseconds."""
    sum: float = 0.0
    """All of them added up: seconds, or requests."""

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)


def of(tally: Tally, bounds: int = BOUNDS) -> Histogram:
    """What is told of a tally; whatever is over the last bound is in the bucket behind it."""
    buckets = [int(count) for count in tally[:bounds]]
    buckets.append(int(sum(tally[bounds:SUM])))
    while buckets and not buckets[-1]:
        buckets.pop()
    return Histogram(tuple(buckets), float(tally[SUM]))


def add_up(several: Iterable[Histogram]) -> Histogram:
    """One histogram of what is in all of them."""
    buckets: tuple[int, ...] = ()
    total = 0.0
    for histogram in several:
        buckets = tuple(map(sum, zip_longest(buckets, histogram.buckets, fillvalue=0)))
        total += histogram.sum
    return Histogram(buckets, total)


def cumulative(histogram: Histogram, first: float, bounds: int = BOUNDS) -> list[tuple[float, int]]:
    """For each bound how many were no more than that, as Prometheus wants it. `first` is the lowest; the last is infinity."""
    found, count = [], 0
    for number in range(bounds + 1):
        count += histogram.buckets[number] if number < len(histogram.buckets) else 0
        found.append((first * 2**number if number < bounds else float("inf"), count))
    return found
