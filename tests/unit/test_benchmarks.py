"""Does the benchmark suite judge and sum up as it says? Its pure parts, without a server."""

from __future__ import annotations

import math
import platform
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import machine, report
from benchmarks.floors import Floor, Outcome, judge
from benchmarks.load import open_loop, users
from benchmarks.session import Figures, summarise
from benchmarks.works import late_binding


def case(name: str, agree_on: str = "requests/s", unsteady: tuple[str, ...] = (), **medians: float | None) -> dict[str, Any]:
    """A case with this figure of each contender; None is one of whom no window counted."""
    figures = {
        contender.replace("_", "-"): {
            "medians": {} if value is None else {agree_on: value},
            "unsteady": [agree_on] if contender in unsteady else [],
            "agreed": contender not in unsteady,
        }
        for contender, value in medians.items()
    }
    return {"name": name, "agree_on": agree_on, "units": {agree_on: "1/s"}, "figures": figures}


RATIO = Floor(1, "*", "requests/s", at_least=2, against=("mosec", "ray-serve"))


@pytest.mark.parametrize(
    ("floor", "cases", "expected"),
    [
        pytest.param(RATIO, [case("a", headgate=10.0, mosec=5.0)], (2.0, True), id="just met"),
        pytest.param(RATIO, [case("a", headgate=10.0, mosec=1.0, ray_serve=6.0)], (10 / 6, False), id="the best of the others counts"),
        pytest.param(RATIO, [case("a", headgate=9.0, mosec=3.0), case("b", headgate=5.0, mosec=4.0)], (1.25, False), id="the worst case"),
        pytest.param(RATIO, [case("a", headgate=9.0)], (None, None), id="nobody to compare with"),
        pytest.param(RATIO, [case("a", mosec=9.0)], (None, None), id="Headgate took no part"),
        pytest.param(RATIO, [case("a", headgate=None, mosec=9.0)], (None, False), id="no window of Headgate's counted"),
        pytest.param(
            Floor(1, "b*", "requests/s", at_least=2), [case("a", headgate=1.0), case("bc", headgate=3.0)], (3.0, True), id="by name"
        ),
        pytest.param(
            Floor(1, "*", "p50", at_most=1.1, against=("mosec",)), [case("a", "p50", headgate=2.0, mosec=1.0)], (2.0, False), id="at most"
        ),
        pytest.param(Floor(1, "*", "failed", at_most=0), [case("a", "failed", headgate=0.0)], (0.0, True), id="none"),
        pytest.param(
            Floor(1, "a", "requests/s", at_least=0.95, of_peak=True),
            [case("a", headgate=9.0), case("b", headgate=10.0)],
            (0.9, False),
            id="of its peak",
        ),
    ],
)
def test_a_floor_is_met_by_the_worst_case_against_the_best_of_others(
    floor: Floor, cases: list[dict[str, Any]], expected: tuple[float | None, bool | None]
) -> None:
    outcome = judge(floor, cases)
    assert (outcome.value, outcome.met) == expected


def test_a_floor_says_by_how_much_it_is_missed_and_whether_its_figures_are_steady() -> None:
    assert judge(RATIO, [case("a", headgate=1.0, mosec=2.0)]) == Outcome(RATIO, 0.5, met=False, steady=True, short_by=4.0)
    assert not judge(RATIO, [case("a", headgate=9.0, mosec=2.0, unsteady=("mosec",))]).steady
    assert judge(RATIO, [case("a", headgate=None, mosec=2.0)]).short_by == math.inf


def test_windows_that_agree_are_summed_up_by_the_last_three_and_others_by_all() -> None:
    figures = Figures([{"requests/s": value, "p99": p99} for value, p99 in ((50, 1), (100, 1), (104, 2), (109, 3))])
    summarise(figures, "requests/s")
    assert figures.agreed
    assert figures.medians == {"requests/s": 104, "p99": 2}
    assert figures.unsteady == ["p99"]
    figures = Figures([{"requests/s": value} for value in (50, 100, 104, 150)])
    summarise(figures, "requests/s")
    assert not figures.agreed
    assert figures.medians == {"requests/s": 102}
    assert figures.unsteady == ["requests/s"]


@given(
    st.lists(st.floats(0, 10), max_size=30).map(sorted),
    st.lists(st.floats(0.001, 5), min_size=30, max_size=30),
    st.integers(1, 4),
)
def test_the_central_queue_is_that_of_whoever_is_free_first(due_s: list[float], services_s: list[float], servers: int) -> None:
    services_s = services_s[: len(due_s)]
    busy: list[tuple[float, float]] = []  # from when to when, of each request that has begun
    for moment, service_s, wait_s in zip(due_s, services_s, late_binding.central_queue(due_s, services_s, servers), strict=True):
        begin = moment + wait_s
        assert wait_s >= 0
        assert sum(since <= begin < until - 1e-9 for since, until in busy) < servers
        if wait_s > 1e-9:  # it began when another ended, and all were busy until then
            assert any(abs(until - begin) < 1e-9 for _, until in busy)
            assert sum(since <= (moment + begin) / 2 < until for since, until in busy) >= servers
        busy.append((begin, begin + service_s))


def test_in_the_long_run_a_queue_of_one_server_waits_as_the_textbook_says() -> None:
    assert late_binding.erlang_wait_ms(1, 0.5, 10) == pytest.approx(10)  # M/M/1: load / (1 - load) services
    due_s = open_loop.poisson(64, 2000, seed=1)
    waits_s = late_binding.central_queue(due_s, open_loop.exponential(0.05, len(due_s), seed=1), 4)
    assert 1000 * sum(waits_s) / len(waits_s) == pytest.approx(late_binding.erlang_wait_ms(4, 0.8, 50), rel=0.1)


ANSWERS = [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", False),
    (b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 503, "", True),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n", 200, "onetwo", False),
]


@given(st.sampled_from(ANSWERS), st.data())
def test_an_answer_is_whole_at_its_last_byte_however_it_is_cut(answer: tuple[bytes, int, str, bool], data: st.DataObject) -> None:
    raw, status, body, closes = answer
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=6, unique=True)))
    connection = open_loop._Connection(None)  # type: ignore[arg-type]  # nothing is received
    parts = [raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert [connection.feed(part) for part in parts] == [False] * len(cuts) + [True]
    assert (connection.status, connection.body, connection.closes) == (status, body, closes)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [open_loop.percentile([1, 2, 3, 4], share) for share in (0.5, 0.75, 0.99, 0.0)] == [2, 3, 4, 1]
    assert math.isnan(open_loop.percentile([], 0.5))


def test_a_window_of_users_goes_from_one_answer_to_another() -> None:
    answers = [users.Answer(ended, 0.1, failed=False) for ended in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)]
    figures = users.figures(answers, 0.75, 1.0)
    assert figures["requests/s"] == 2  # those at 1.5 and 2.0, in the second after 1.0
    assert figures["failed"] == 0
    failed = [users.Answer(1.2, 0.1, failed=True)]
    assert users.figures(failed, 1.0, 1.0) == {"requests/s": 0.0, "failed": 1}


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1234.5, "1/s", "1,234"),
        (12.34, "ms", "12.3 ms"),
        (0.05, "ms", "50 µs"),
        (1500, "ms", "1.50 s"),
        (3, "", "3"),
        (1200, "MB", "1.20 GB"),
    ],
)
def test_quantities_are_said_in_a_unit_that_suits(value: float, unit: str, expected: str) -> None:
    assert report.quantity(value, unit) == expected


def test_a_report_names_the_kernel_without_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.44-somebodys-own")
    monkeypatch.setattr(machine, "_wrk", lambda: "")
    assert machine.describe()["kernel"] == "6.1"
