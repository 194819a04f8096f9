"""Work 4: how many no-op calls does a handle make, one after the other, many at once, on an event loop, and from a backend to another?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial

from benchmarks.servers import handle_calls
from benchmarks.session import Session, post

NUMBER = 4
TITLE = "no-op handle call, 1 replica"

SECONDS = 1.5
WARM_UP_S = 0.25
UNITS = {"calls/s": "1/s", "p50": "ms"}
CASES = {
    handle_calls.SEQUENTIAL: "sequential, from one thread",
    handle_calls.FLYING: f"{handle_calls.IN_FLIGHT:,} in flight, from one thread",
    handle_calls.ASYNC: f"asyncio, {handle_calls.IN_FLIGHT:,} at once",
    handle_calls.NESTED: f"one backend calling another, {handle_calls.NESTED_IN_FLIGHT} in flight",
}


def measure(session: Session) -> None:
    """Work 4."""
    session.note(
        NUMBER,
        f"`asyncio`: {handle_calls.IN_FLIGHT:,} calls by one `asyncio.gather`, and when all are answered the next. `One backend calling "
        "another`: an asynchronous backend awaits one call of the no-op for each of its own. The ceiling is the sketch of a handle "
        "in `ceiling.py`. The other contenders have no handles.",
    )
    names = session.choose("headgate", "headgate-ray", "ceiling", "ray-serve-fast", "ray-serve")
    with contextlib.ExitStack() as stack:

        def warm_up(name: str, url: str) -> None:
            for way in ways(name):
                order(url, way, WARM_UP_S)

        urls = session.serving_all(stack, NUMBER, names, "handles", warm_up, path="/")
        for way, title in CASES.items():
            windows: dict[str, Callable[[], dict[str, float]]] = {
                name: partial(order, url, way) for name, url in urls.items() if way in ways(name)
            }
            session.interleave(NUMBER, title, windows, agree_on="calls/s", units=UNITS)


def ways(contender: str) -> list[str]:
    """In which ways it can make calls: nothing in the sketch runs a backend that has a handle."""
    return [way for way in CASES if not (contender == "ceiling" and way == handle_calls.NESTED)]


def order(url: str, way: str, seconds: float = SECONDS) -> dict[str, float]:
    """Have the contender make calls; returns its figures."""
    figures: dict[str, float] = json.loads(post(url, json.dumps({"way": way, "seconds": seconds}).encode(), 60.0))
    return figures
