"""Works 1 and 2: how many no-op requests a second, one by one and in batches of up to 32?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.load import wrk
from benchmarks.session import Session

NUMBER = 1
TITLE = "no-op, 7-byte POST, 1 replica, 1 ingress"

CONNECTIONS = (1, 16, 64, 256)
CONNECTIONS_QUICK = (1, 64)


def measure(session: Session) -> None:
    """Work 1."""
    names = session.choose(
        "headgate", "ceiling", "mosec", "ray-serve-fast", "ray-serve", "litserve", "bentoml", "fastapi", "uvicorn", "asgi-hop"
    )
    compare(session, NUMBER, "noop", names)


def compare(session: Session, number: int, work: str, names: Sequence[str]) -> None:
    """All levels of connections for one of the two works."""
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(session.serving(name, work)).url for name in names}
        for url in urls.values():
            wrk.warm_up(url)
        for connections in CONNECTIONS_QUICK if session.quick else CONNECTIONS:
            windows: dict[str, Callable[[], dict[str, float]]] = {
                name: partial(wrk.closed_loop, url, connections) for name, url in urls.items()
            }
            session.interleave(number, f"{connections} connections", windows, agree_on="requests/s", units=wrk.UNITS)
