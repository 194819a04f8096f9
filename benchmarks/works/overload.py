"""Work 7: what do requests get that come at their own pace, below and above what a server can do?

A 10 ms handler on 3 replicas does at best 300 requests a second, far below what any server or the generator could pass on. Arrivals are
Poisson, the same for all; goodput counts 2xx answers within 1 s of the moment a request was due. Every contender is told what a user would
tell it who wants answers within a second: a time limit of 1 s, and, where it has such a setting, at most 100 requests that wait.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from benchmarks.load import open_loop
from benchmarks.session import Session

NUMBER = 7
TITLE = "open loop, a 10 ms handler on 3 replicas"

SLEEP_MS: Final = 10
REPLICAS: Final = 3
CAPACITY: Final = REPLICAS * 1000 / SLEEP_MS
OPTIONS: Final[dict[str, Any]] = {"sleep_ms": SLEEP_MS, "replicas": REPLICAS, "at_once": 1, "max_queued": 100, "timeout_ms": 1000}
SHARES: Final = (50, 80, 95, 120)
COUNTED_S: Final = 7.0
"""Enough for a thousand requests at half the capacity, of which one in a thousand can be told."""
COUNTED_QUICK_S: Final = 2.5
LEAD_S: Final = {120: 2.0}
"""Until queues are as long as they become; otherwise half a second."""
UNITS: Final = {
    "goodput": "1/s",
    "p50": "ms",
    "p99": "ms",
    "p99.9": "ms",
    "rejected": "1/s",
    "rejected p50": "ms",
    "rejected p99": "ms",
    "failed": "1/s",
    "lateness p99": "ms",
}


def measure(session: Session) -> None:
    """Work 7."""
    session.note(
        NUMBER,
        "p50, p99 and p99.9 are of all requests that weren't rejected (503 or 429), failed ones included; lateness is the generator's own. "
        "All have a time limit of 1 s, and at most 100 requests that wait where that can be set: in Headgate, mosec and Ray Serve, and in "
        "BentoML for each worker. FastAPI and Uvicorn have no replicas.",
    )
    names = session.choose("headgate", "mosec", "litserve", "ray-serve-fast", "ray-serve", "bentoml")
    with contextlib.ExitStack() as stack:
        urls = session.serving_all(stack, NUMBER, names, "slow", **OPTIONS)
        for share in SHARES[1:] if session.quick else SHARES:
            counted_s = COUNTED_QUICK_S if session.quick else COUNTED_S
            windows: dict[str, Callable[[], dict[str, float]]] = {
                name: partial(load, url, share, counted_s, itertools.count(100 * share)) for name, url in urls.items()
            }
            session.interleave(NUMBER, f"{share} % of capacity", windows, agree_on="goodput", units=UNITS)


def load(url: str, share: int, counted_s: float, seeds: Iterator[int]) -> dict[str, float]:
    """One run at a share of the capacity; the arrivals of each are drawn anew, the same for all contenders."""
    lead_s = LEAD_S.get(share, 0.5)
    arguments = ("--rate", CAPACITY * share / 100, "--seconds", lead_s + counted_s, "--lead-s", lead_s, "--seed", next(seeds))
    result = open_loop.run(url, *arguments)
    admitted, rejected = result["admitted"], result["rejected"]
    good = sum(count for status, count in result["by_status"].items() if status.startswith("2"))
    figures = {
        "goodput": result["goodput_per_s"],
        "p50": admitted["p50_ms"],
        "p99": admitted["p99_ms"],
        "p99.9": admitted["p999_ms"],
        "rejected": rejected["count"] / counted_s,
        "rejected p50": rejected["p50_ms"],
        "rejected p99": rejected["p99_ms"],
        "failed": (admitted["count"] - good) / counted_s,
        "lateness p99": result["lateness_p99_ms"],
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}
