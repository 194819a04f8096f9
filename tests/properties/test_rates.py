"""Are rates and times between two measurements those of what happened in between?"""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import histograms, rates
from headgate.core.histograms import TICKS_PER_S, Histogram
from headgate.core.reports import RequestCount
from headgate.timings import Timings

TIMES = st.lists(st.floats(0, 1e4), max_size=40)
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["e1", "e2"]), st.sampled_from(["", "b1", "b2"]), st.sampled_from([200, 404, 499, 500, 503]), st.floats(0, 100)
    ),
    max_size=40,
)


def histogram(times: list[float]) -> Histogram:
    found = Timings()
    for seconds in times:
        found.take(seconds)
    return found.told()


def counts(requests: list[tuple[str, str, int, float]]) -> list[RequestCount]:
    keys = sorted({request[:3] for request in requests})
    found = []
    for key in keys:
        told = histogram([request[3] for request in requests if request[:3] == key])
        found.append(RequestCount(*key, told.count, told.sum, told.buckets))
    return found


@given(TIMES, TIMES)
def test_what_lies_between_two_histograms_is_what_came_after_the_first(before: list[float], more: list[float]):
    found = rates.between(histogram(before), histogram(before + more))
    assert found.buckets == histogram(more).buckets
    assert found.sum == pytest.approx(sum(more), abs=1e-6 * (1 + sum(before)))


@given(TIMES.filter(bool))
def test_where_what_was_counted_is_lost_all_that_is_there_is_new(times: list[float]):
    assert rates.between(histogram([*times, *times]), histogram(times)) == histogram(times)


@given(TIMES, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_lies_in_the_bucket_of_the_time_that_it_stands_for(times: list[float], share: float):
    found = rates.percentile(histogram(times), share)
    if not times:
        assert found is None
        return
    assert found is not None
    true = sorted(times)[math.ceil(share * len(times)) - 1]
    number = min(int(true * TICKS_PER_S).bit_length(), histograms.BOUNDS)
    least = 2 ** (number - 1) / TICKS_PER_S if number else 0.0
    most = least if number == histograms.BOUNDS else 2**number / TICKS_PER_S
    assert least * (1 - 1e-9) <= found <= most * (1 + 1e-9)


@given(TIMES)
def test_percentiles_grow_with_their_share(times: list[float]):
    found = [rates.percentile(histogram(times), share / 10) for share in range(1, 11)]
    assert found == sorted(found, key=lambda seconds: seconds or 0.0)


@given(REQUESTS, REQUESTS, st.floats(0.1, 60))
def test_rates_are_those_of_the_requests_in_between(before: list, more: list, seconds: float):
    between = rates.requests_between(counts(before), counts(before + more))
    assert {(count.endpoint, count.backend, count.status): count.count for count in between} == Counter(request[:3] for request in more)
    found = rates.rates(between, seconds)
    assert found.per_s == pytest.approx(len(more) / seconds)
    assert found.failed_per_s == pytest.approx(sum(request[2] >= 500 for request in more) / seconds)
    assert found.statuses == {str(status): number for status, number in Counter(request[2] for request in more).items()}
    answered = [request[3] for request in more if request[2] in (200, 404)]
    assert found.times == rates.times(histogram(answered))


def test_the_times_of_an_example():
    found = rates.times(histogram([0.003] * 98 + [0.2] * 2))
    assert found.p50_s == pytest.approx(0.0016 + 0.0016 * 50 / 98)
    assert found.p99_s == pytest.approx(0.1024 + 0.1024 * 0.5)
