"""Work 3: how fast are bodies of 10 KB, 1 MB and 10 MB taken in and sent back?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from benchmarks.load import wrk
from benchmarks.session import Session, post

NUMBER = 3
TITLE = "echo of a body, 8 connections, 1 replica, 1 ingress"

CONNECTIONS = 8
BINARY = "application/octet-stream"
SIZES = {"10 KB": 10_000, "1 MB": 1_000_000, "10 MB": 10_000_000}


def measure(session: Session) -> None:
    """All sizes, with what comes back compared once for each."""
    names = session.choose("headgate", "ceiling", "mosec", "ray-serve-fast", "ray-serve", "litserve", "bentoml", "fastapi", "uvicorn")
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(session.serving(name, "echo", probe=b"\0" * 1000, content_type=BINARY)).url for name in names}
        for case, size in SIZES.items():
            body = bytes(range(256)) * (size // 256) + bytes(size % 256)
            windows: dict[str, Callable[[], dict[str, float]]] = {}
            for name, url in urls.items():
                if post(url, body, content_type=BINARY) != body:
                    session.note(NUMBER, f"{name} is left out at {case}: it sends back something else")
                    continue
                wrk.warm_up(url, CONNECTIONS, body=body, content_type=BINARY)
                windows[name] = partial(wrk.closed_loop, url, CONNECTIONS, body=body, content_type=BINARY)
            session.interleave(NUMBER, case, windows, agree_on="requests/s", units=wrk.UNITS)
