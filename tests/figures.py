"""What do tests of deaths print and assert? Every figure, beside what it may be at most."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import TIME_FACTOR

Figures = Callable[..., None]

_lines: list[str] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figures:
    """Print a figure and hold it to its bound: `figure("replacement p99", 0.2, at_most_s=1.0)`.

    `at_most_s` is a time, of which shared machines are given more; `at_most_times` is a ratio of times, and as it is, like the others.
    """
    test = request.node.name.removeprefix("test_").replace("_", " ")

    def check(
        what: str,
        value: float,
        *,
        at_most_s: float | None = None,
        at_most_times: float | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        limit = at_most_s * TIME_FACTOR if at_most_s is not None else at_most if at_most_times is None else at_most_times
        unit = " s" if at_most_s is not None else "x" if at_most_times is not None else ""
        bound = f" (at most {limit:g}{unit})" if limit is not None else f" (at least {at_least:g})" if at_least is not None else ""
        _lines.append(f"{test}\n    {what}: {value:.4g}{unit}{bound}")
        assert limit is None or value <= limit, _lines[-1]
        assert at_least is None or value >= at_least, _lines[-1]

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """All figures, in one place."""
    if not _lines:
        return
    terminalreporter.section("what it came to")
    last = ""
    for line in _lines:
        test, _, figure = line.partition("\n")
        if test != last:
            terminalreporter.line(test)
            last = test
        terminalreporter.line(figure)
