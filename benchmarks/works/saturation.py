"""Work 5: what becomes of throughput and latency when there are more users than a 100 ms handler can serve at once?

Every contender is loaded by itself, one level after the other without a pause, and not in turns: what it can do is set by the handler's
sleep, and until 64 users wait behind each other takes as long as they wait, every time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from benchmarks import environments
from benchmarks.contenders import CONTENDERS
from benchmarks.load import users
from benchmarks.session import AGREEING, MAX_ROUNDS, MAX_ROUNDS_QUICK, NO_WINDOW, NOOP, Session, post

NUMBER = 5
TITLE = "a 100 ms handler and more users than it can serve"

SLEEP_MS: Final = 100
LEVELS: Final = (1, 4, 16, 64)
LEVELS_QUICK: Final = (1, 4, 16)
UNITS: Final = {"requests/s": "1/s", "p50": "ms", "p99": "ms", "of peak": "", "p99 to ideal": ""}

HANDLES: Final = {"headgate": "headgate:benchmark-{port}/slow", "ray-serve": "ray:default"}
"""What `users.py` is told to call."""

Ladder = dict[int, list[dict[str, float]]]
"""Windows by number of users."""


class Setting(NamedTuple):
    """How many calls run at once, and how."""

    title: str
    at_once: int
    options: dict[str, Any]
    over_http: tuple[str, ...]
    by_handle: tuple[str, ...]


ALL: Final = ("headgate", "mosec", "litserve", "ray-serve-fast", "ray-serve", "bentoml")
SETTINGS: Final = (
    Setting("1 replica", 1, {"at_once": 1}, ALL, ("headgate", "ray-serve")),
    Setting("5 replicas", 5, {"at_once": 1, "replicas": 5}, ALL, ("headgate", "ray-serve")),
    Setting("1 replica, 5 at once", 5, {"at_once": 5}, ("headgate", "ray-serve-fast", "ray-serve"), ()),
)
QUICK: Final = ("5 replicas",)


def measure(session: Session) -> None:
    """Work 5."""
    session.note(
        NUMBER,
        "`of peak`: throughput over that of the contender's best level; `p99 to ideal`: p99 over users / capacity, the least it can be. "
        "A window has 10 to 50 answers, so its p99 is its slowest.",
    )
    session.note(NUMBER, "FastAPI and Uvicorn have no replicas.")
    levels = LEVELS_QUICK if session.quick else LEVELS
    most = MAX_ROUNDS_QUICK if session.quick else MAX_ROUNDS
    for setting in SETTINGS:
        if session.quick and setting.title not in QUICK:
            continue
        capacity = setting.at_once * 1000 / SLEEP_MS
        over_http: dict[str, Ladder] = {}
        by_handle: dict[str, Ladder] = {}
        for name in session.choose(*setting.over_http):
            try:
                with session.serving(name, "slow", sleep_ms=SLEEP_MS, **setting.options) as server:
                    over_http[name] = users.run(server.url, capacity=capacity, levels=levels, most=most)
                    if name in setting.by_handle and not session.quick:
                        post(server.url, NOOP, timeout_s=60.0)  # answered after what the last users have left behind
                        by_handle[name] = users.run(
                            HANDLES[name].format(port=urlsplit(server.url).port),
                            capacity=capacity,
                            levels=levels,
                            most=most,
                            python=environments.python(CONTENDERS[name].environment),
                            variables={**CONTENDERS[name].variables, "TMPDIR": str(session.folder)},
                        )
            except NO_WINDOW as error:
                session.leave_out(NUMBER, name, error)
        for way, ladders in (("HTTP", over_http), ("handles", by_handle)):
            if ladders:
                record(session, f"{setting.title}, {way}", ladders, capacity)


def record(session: Session, title: str, ladders: Mapping[str, Ladder], capacity: float) -> None:
    """Keep what was measured, each level as a case."""
    peaks = {name: max(statistics.median(pick(windows, "requests/s")) for windows in ladder.values()) for name, ladder in ladders.items()}
    for level in next(iter(ladders.values())):
        windows: dict[str, list[dict[str, float]]] = {}
        for name, ladder in ladders.items():
            for window in ladder[level]:
                if level > capacity * SLEEP_MS / 1000 and peaks[name]:  # past saturation
                    window["of peak"] = window["requests/s"] / peaks[name]
                    if "p99" in window:  # where anything was answered
                        window["p99 to ideal"] = window["p99"] / (level / capacity * 1000)
            windows[name] = ladder[level]
        session.record(NUMBER, f"{title}, {level} user{'s' if level > 1 else ''}", windows, agree_on="requests/s", units=UNITS)


def pick(windows: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """This figure of the last windows, those that count."""
    return [window[key] for window in windows[-AGREEING:]]
