"""Work 11: how much longer do requests wait than in one queue in front of all replicas, from which whoever is free takes the next?

That central queue is the best there is where nobody knows how long a request will take. It is computed, not run: from the very arrivals
and service times that the requests have, so that a window says how well a server queues and not which times were drawn. A request's body
says how long its handler sleeps; what it waits is its latency less that.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.load import open_loop
from benchmarks.session import Session

NUMBER = 11
TITLE = "late binding: 4 replicas, exponential service times of 50 ms on average, Poisson arrivals at 80 % load"

REPLICAS: Final = 4
MEAN_MS: Final = 50
LOAD: Final = 0.8
RATE: Final = LOAD * REPLICAS * 1000 / MEAN_MS
BYTES: Final = "application/octet-stream"
LEAD_S: Final = 1.0
SECONDS: Final = 8.0
UNITS: Final = {"mean wait": "ms", "p99 wait": "ms", "to central": "", "p99 to central": "", "central": "ms", "failed": ""}


def measure(session: Session) -> None:
    """Work 11."""
    in_the_long_run_ms = erlang_wait_ms(REPLICAS, LOAD, MEAN_MS)
    session.note(
        NUMBER, "`to central`: mean wait over that in one queue for all replicas (`central`) under the same arrivals and service times."
    )
    session.note(NUMBER, f"In the long run that queue's mean wait is {in_the_long_run_ms:.1f} ms. FastAPI and Uvicorn have no replicas.")
    names = session.choose("headgate", "mosec", "litserve", "ray-serve-fast", "ray-serve", "bentoml")
    settings: dict[str, Any] = {"probe": b"0.001", "content_type": BYTES, "replicas": REPLICAS, "at_once": 1}
    with contextlib.ExitStack() as stack:
        cases = {"one ingress": session.serving_all(stack, NUMBER, names, "exponential", **settings)}
        if "headgate" in names:
            server = session.serving("headgate", "exponential", name="headgate-2", ingresses=2, **settings)
            cases["two ingresses"] = {"headgate-2": stack.enter_context(server).url}
        for case, urls in cases.items():
            windows: Mapping[str, Callable[[], dict[str, float]]] = {name: Windows(url) for name, url in urls.items()}
            session.interleave(NUMBER, case, windows, agree_on="to central", units=UNITS)


class Windows:
    """The windows of one contender: each draws its own times, the same in each round for all."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seeds = itertools.count(1)

    def __call__(self) -> dict[str, float]:
        seed = next(self.seeds)
        arguments = (
            "--rate",
            RATE,
            "--seconds",
            SECONDS,
            "--lead-s",
            LEAD_S,
            "--seed",
            seed,
            "--service-mean-ms",
            MEAN_MS,
            "--content-type",
            BYTES,
        )
        result = open_loop.run(self.url, *arguments)
        due_s = open_loop.moments("poisson", RATE, SECONDS, LEAD_S, seed)
        waits_s = central_queue(due_s, open_loop.exponential(MEAN_MS / 1000, len(due_s), seed), REPLICAS)
        central = open_loop.latency([wait_s for moment, wait_s in zip(due_s, waits_s, strict=True) if moment >= LEAD_S])
        wait = result["wait"]
        return {
            "mean wait": wait["mean_ms"],
            "p99 wait": wait["p99_ms"],
            "to central": wait["mean_ms"] / central["mean_ms"],
            "p99 to central": wait["p99_ms"] / central["p99_ms"],
            "central": central["mean_ms"],
            "failed": sum(count for status, count in result["by_status"].items() if not status.startswith("2")),
        }


def central_queue(due_s: Sequence[float], services_s: Sequence[float], servers: int) -> list[float]:
    """What each request waits in one queue in order of arrival before so many servers, in seconds."""
    free_s = [0.0] * servers
    waits_s = []
    for moment, service_s in zip(due_s, services_s, strict=True):
        begin = max(moment, heapq.heappop(free_s))
        waits_s.append(begin - moment)
        heapq.heappush(free_s, begin + service_s)
    return waits_s


def erlang_wait_ms(servers: int, load: float, mean_ms: float) -> float:
    """The mean wait of such a queue in the long run (M/M/c; Erlang's C)."""
    offered = servers * load
    busy = offered**servers / math.factorial(servers) / (1 - load)
    waits = busy / (sum(offered**count / math.factorial(count) for count in range(servers)) + busy)
    return waits * mean_ms / (servers * (1 - load))
