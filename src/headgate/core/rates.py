"""How many requests were there between two measurements, and how long did they take?

What processes count only grows, so what lies between is the difference. Where something is smaller than before, what had been
counted was lost: then all that is there is new.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import msgspec

from headgate.core import histograms
from headgate.core.histograms import BOUNDS, TICKS_PER_S, Histogram
from headgate.core.reports import EventCount, RequestCount
from headgate.errors import CALLER_LEFT


class Times(msgspec.Struct, frozen=True):
    """In seconds: half of them are no longer than `p50_s`, and 99 of 100 than `p99_s`. None where there were none."""

    p50_s: float | None = None
    p99_s: float | None = None


class Rates(msgspec.Struct, frozen=True):
    """Requests that ended, and of those the ones that failed, with a status of 500 or more; and the times of those that were answered."""

    per_s: float = 0.0
    failed_per_s: float = 0.0
    times: Times = Times()
    statuses: dict[str, int] = {}  # how many ended with each status


def between(before: Histogram, after: Histogram) -> Histogram:
    """What is in `after` and was not yet in `before`."""
    buckets = tuple(new - old for old, new in zip_longest(before.buckets, after.buckets, fillvalue=0))
    if min(buckets, default=0) < 0:
        return after
    while buckets and not buckets[-1]:
        buckets = buckets[:-1]
    return Histogram(buckets, max(0.0, after.sum - before.sum) if buckets else 0.0)


def requests_between(before: Iterable[RequestCount], after: Iterable[RequestCount]) -> list[RequestCount]:
    """The requests that ended between two measurements."""
    known = {(count.endpoint, count.backend, count.status): count for count in before}
    found = []
    for count in after:
        old = known.get((count.endpoint, count.backend, count.status))
        if old is None or old.count > count.count:
            found.append(count)
        elif count.count > old.count:
            times = between(Histogram(old.buckets, old.seconds), Histogram(count.buckets, count.seconds))
            new = RequestCount(count.endpoint, count.backend, count.status, count.count - old.count, times.sum, times.buckets)
            found.append(new)
    return found


def events_between(before: Iterable[EventCount], after: Iterable[EventCount]) -> list[EventCount]:
    """What befell requests between two measurements."""
    known = {(count.event, count.endpoint, count.backend, count.reason): count.count for count in before}
    found = []
    for count in after:
        old = known.get((count.event, count.endpoint, count.backend, count.reason), 0)
        new = count.count - old if old <= count.count else count.count
        if new:
            found.append(msgspec.structs.replace(count, count=new))
    return found


def rates(counts: Iterable[RequestCount], seconds: float) -> Rates:
    """What so many requests come to that ended within this time."""
    statuses: dict[str, int] = {}
    answered: list[Histogram] = []
    for count in counts:
        statuses[str(count.status)] = statuses.get(str(count.status), 0) + count.count
        if count.status < CALLER_LEFT:
            answered.append(Histogram(count.buckets, count.seconds))
    failed = sum(number for status, number in statuses.items() if int(status) >= 500)
    return Rates(sum(statuses.values()) / seconds, failed / seconds, times(histograms.add_up(answered)), dict(sorted(statuses.items())))


def times(histogram: Histogram) -> Times:
    """What a histogram of times says of them."""
    return Times(percentile(histogram, 0.5), percentile(histogram, 0.99))


def percentile(histogram: Histogram, share: float) -> float | None:
    """The time that this share of all doesn't exceed, in seconds; None of none.

    It lies in the right bucket; where in it, is drawn as if they lay evenly there. What is beyond the last bound counts as that.
    """
    rank = share * histogram.count
    counted = 0
    for number, count in enumerate(histogram.buckets):
        if count and counted + count >= rank:
            lowest = 2.0 ** (number - 1) if number else 0.0
            ticks = lowest if number == BOUNDS else lowest + (2.0**number - lowest) * (rank - counted) / count
            return ticks / TICKS_PER_S
        counted += count
    return None
