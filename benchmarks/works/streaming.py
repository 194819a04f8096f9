"""Work 8: how many chunks a second, and how soon does the first arrive?"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from benchmarks.load import open_loop, wrk
from benchmarks.servers.asked import CHUNK, CHUNKS
from benchmarks.session import NOOP, Session, VoidWindow, post

NUMBER = 8
TITLE = f"streaming: {CHUNKS} chunks of {len(CHUNK)} bytes a request, made at once"

USERS = (1, 8, 64)
UNITS = {"chunks/s": "1/s", "first p50": "ms", "first p99": "ms", "whole p50": "ms"}
PAUSE_S = 0.01


def measure(session: Session) -> None:
    """All levels of users; one more user notes when the first chunk arrives."""
    names = session.choose("headgate", "mosec", "ray-serve-fast", "ray-serve", "litserve", "bentoml", "fastapi", "uvicorn")
    with contextlib.ExitStack() as stack:
        urls = session.serving_all(stack, NUMBER, names, "stream", warm_up)
        for users in USERS[-1:] if session.quick else USERS:
            windows: dict[str, Callable[[], dict[str, float]]] = {name: partial(streams, url, users) for name, url in urls.items()}
            session.interleave(NUMBER, f"{users} user{'s' * (users > 1)}", windows, agree_on="chunks/s", units=UNITS)


def warm_up(name: str, url: str) -> None:
    """Look whether all chunks come, and warm up."""
    chunks = post(url, NOOP).count(CHUNK.rstrip())
    if chunks != CHUNKS:
        raise VoidWindow(f"it sends {chunks} chunks, not {CHUNKS}")
    wrk.warm_up(url)


def streams(url: str, users: int) -> dict[str, float]:
    """One window: `users` take one stream after the other, and one more asks every 10 ms to see how long its first chunk takes."""
    over = threading.Event()
    first_ms: list[float] = []
    probe = threading.Thread(target=_first_chunks, args=(url, over, first_ms))
    probe.start()
    try:
        figures = wrk.closed_loop(url, users)
    finally:
        over.set()
        probe.join()
    measured = {"chunks/s": figures["requests/s"] * CHUNKS}
    if "p50" in figures:
        measured["whole p50"] = figures["p50"]
    first_ms.sort()
    if first_ms:
        measured["first p50"] = open_loop.percentile(first_ms, 0.5)
    if len(first_ms) >= 100:
        measured["first p99"] = open_loop.percentile(first_ms, 0.99)
    return measured


def _first_chunks(url: str, over: threading.Event, first_ms: list[float]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    while not over.wait(PAUSE_S):
        began = time.perf_counter()
        connection.request("POST", parts.path, NOOP, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read1()
        first_ms.append((time.perf_counter() - began) * 1000)
        answer.read()
    connection.close()
