"""Are percentiles and bars those of what was counted?"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.cli.latencies import Latencies


@given(st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=200), st.sampled_from([50.0, 90.0, 99.0, 100.0]))
def test_percentiles_are_within_a_hundredth_of_the_exact_ones(seconds: list[float], percent: float) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    exact = sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
    assert latencies.percentile(percent) == pytest.approx(exact, rel=0.011)
    assert latencies.max_s == max(seconds)
    bars = latencies.bars(16)
    assert sum(bar.requests for bar in bars) == len(seconds)
    assert len(bars) <= 16


def test_without_any_there_is_nothing() -> None:
    assert (Latencies().percentile(99), Latencies().mean_s, list(Latencies().bars())) == (0.0, 0.0, [])
