"""Work 3: how fast are bodies of 10 KB, 1 MB and 10 MB taken in and sent back?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from benchmarks.load import wrk
from benchmarks.session import NO_WINDOW, Session, VoidWindow, post

NUMBER = 3
TITLE = "echo of a body, 8 connections, 1 replica, 1 ingress"

CONNECTIONS = 8
BINARY = "application/octet-stream"
SIZES = {"10 KB": 10_000, "1 MB": 1_000_000, "10 MB": 10_000_000}


def measure(session: Session) -> None:
    """All sizes, with what comes back compared once for each."""
    names = session.choose("headgate", "ceiling", "mosec", "ray-serve-fast", "ray-serve", "litserve", "bentoml", "fastapi", "uvicorn")
    session.note(NUMBER, "MB/s are those of the bodies, one way.")
    with contextlib.ExitStack() as stack:
        urls = session.serving_all(stack, NUMBER, names, "echo", probe=b"\0" * 1000, content_type=BINARY)
        for case, size in SIZES.items():
            body = bytes(range(256)) * (size // 256) + bytes(size % 256)
            windows: dict[str, Callable[[], dict[str, float]]] = {}
            for name, url in urls.items():
                try:
                    if post(url, body, content_type=BINARY) != body:
                        raise VoidWindow(f"it sends back something else at {case}")
                    wrk.warm_up(url, CONNECTIONS, body=body, content_type=BINARY)
                except NO_WINDOW as error:
                    session.leave_out(NUMBER, name, error)
                    continue
                windows[name] = partial(echoes, url, body)
            session.interleave(NUMBER, case, windows, agree_on="requests/s", units={**wrk.UNITS, "MB/s": "MB/s"})


def echoes(url: str, body: bytes) -> dict[str, float]:
    """One window."""
    figures = wrk.closed_loop(url, CONNECTIONS, body=body, content_type=BINARY)
    return figures | {"MB/s": figures["requests/s"] * len(body) / 1e6}
