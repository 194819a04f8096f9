"""Work 1: how many no-op requests a second, one by one?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.load import wrk
from benchmarks.session import NOOP, Session

NUMBER = 1
TITLE = "no-op, 7-byte POST, 1 replica, 1 ingress"

CONNECTIONS = (1, 16, 64, 256)
CONNECTIONS_QUICK = (1, 64)
BYTES = "application/octet-stream"  # so that nobody takes the body apart; all have the same 7 bytes
JSON = "application/json"
LIST = b'{"x":[1]}'  # what BentoML takes as a batch


def measure(session: Session) -> None:
    """All levels of connections; and 64 with Ray Serve's own default of requests at once."""
    names = session.choose(
        "headgate",
        "headgate-ray",
        "headgate-uncounted",
        "headgate-traced",
        "ceiling",
        "mosec",
        "ray-serve-fast",
        "ray-serve",
        "litserve",
        "bentoml",
        "fastapi",
        "uvicorn",
        "asgi-hop",
    )
    compare(session, NUMBER, "noop", names, BYTES)
    if "ray-serve" in names and not session.quick:
        with session.serving("ray-serve", "noop", at_once=0, content_type=BYTES) as server:
            wrk.warm_up(server.url, content_type=BYTES)
            window = partial(wrk.closed_loop, server.url, 64, content_type=BYTES)
            case = "64 connections, a replica takes 5 at once"
            session.interleave(NUMBER, case, {"ray-serve": window}, agree_on="requests/s", units=wrk.UNITS)


def compare(session: Session, number: int, work: str, names: Sequence[str], content_type: str) -> None:
    """All levels of connections, for this work and for the one in batches."""
    bodies = {name: LIST if (work, name) == ("batch", "bentoml") else NOOP for name in names}

    def warm_up(name: str, url: str) -> None:
        wrk.warm_up(url, body=bodies[name], content_type=content_type)

    with contextlib.ExitStack() as stack:
        urls = session.serving_all(stack, number, names, work, warm_up, probes=bodies, content_type=content_type)
        for connections in CONNECTIONS_QUICK if session.quick else CONNECTIONS:
            windows: dict[str, Callable[[], dict[str, float]]] = {
                name: partial(wrk.closed_loop, url, connections, body=bodies[name], content_type=content_type) for name, url in urls.items()
            }
            session.interleave(
                number, f"{connections} connection{'s' * (connections > 1)}", windows, agree_on="requests/s", units=wrk.UNITS
            )
