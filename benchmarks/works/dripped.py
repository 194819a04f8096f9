"""Work 6: when requests drip in, one every 4 ms, how many of them share a call of a 100 ms batch handler, and what does the last one wait?

Batches of at most 32, for which the oldest request waits at most 10 ms. A handler that took each batch as soon as it could, with all that
had come by then, would run 3: the first few requests, those of the next 100 ms, and the rest.
"""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.load import open_loop
from benchmarks.session import NOOP, Session

NUMBER = 6
TITLE = "dripped requests into a 100 ms batch handler"

REQUESTS: Final = 40
EVERY_S: Final = 0.004
OPTIONS: Final[dict[str, Any]] = {"sleep_ms": 100, "max_batch_size": 32, "batch_wait_ms": 10}
BODIES: Final = {"bentoml": b'{"x":[1]}'}  # whose requests are batches of one
UNITS: Final = {"p50": "ms", "max": "ms", "batches": "", "largest": "", "smallest": "", "failed": ""}


def measure(session: Session) -> None:
    """Work 6."""
    names = session.choose("headgate", "mosec", "litserve", "ray-serve-fast", "ray-serve", "bentoml")
    with contextlib.ExitStack() as stack:
        bodies = {name: BODIES.get(name, NOOP) for name in names}

        def warm_up(name: str, url: str) -> None:
            drip(url, bodies[name])  # not counted: some learn from the first batches how long to wait

        urls = session.serving_all(stack, NUMBER, names, "drip", warm_up, probes=bodies, **OPTIONS)
        windows: dict[str, Callable[[], dict[str, float]]] = {name: partial(drip, url, bodies[name]) for name, url in urls.items()}
        session.interleave(NUMBER, f"{REQUESTS} requests, one every {EVERY_S * 1000:g} ms", windows, agree_on="max", units=UNITS)


def drip(url: str, body: bytes) -> dict[str, float]:
    """Send the requests once; the answers say how many were in their batch."""
    arguments = ("--arrivals", "constant", "--rate", 1 / EVERY_S, "--seconds", REQUESTS * EVERY_S)
    result = open_loop.run(url, *arguments, "--body", body.decode(), "--keep-answers")
    figures = {"p50": result["admitted"]["p50_ms"], "max": result["admitted"]["max_ms"]}
    return figures | batches(result["answers"]) | {"failed": REQUESTS - len(result["answers"])}


def batches(answers: Sequence[str]) -> dict[str, float]:
    """How many there were, and of which sizes: each answer has the size of its batch in it."""
    sizes = collections.Counter(int(found[0]) for answer in answers if (found := re.search(r"\d+", answer)))
    return {
        "batches": sum(count / size for size, count in sizes.items()),
        "largest": max(sizes, default=0),
        "smallest": min(sizes, default=0),
    }
