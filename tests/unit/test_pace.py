"""Does costly work take a bounded share of the time, and is the first done at once?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.pace import LONGEST_REST_S, REST_TIMES, SHORTEST_REST_S, Pace


def test_the_first_is_done_at_once_and_so_is_one_after_a_rest() -> None:
    pace = Pace()
    assert pace.delay_s(100.0) == 0.0
    pace.done(0.01, 100.01)
    assert 0 < pace.delay_s(100.01) <= REST_TIMES * 0.01 + 1e-9
    assert pace.delay_s(100.2) == 0.0


@given(costs=st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_work_that_is_always_asked_for_takes_its_share_and_no_more(costs: list[float]) -> None:
    pace, now, worked = Pace(), 1000.0, 0.0
    for cost in costs:
        delay = pace.delay_s(now)
        assert delay <= LONGEST_REST_S + 1e-9
        now += delay
        now += cost
        pace.done(cost, now)
        worked += cost
        assert pace.delay_s(now) >= min(REST_TIMES * cost, LONGEST_REST_S) - 1e-9
        assert pace.delay_s(now) >= SHORTEST_REST_S - 1e-9
