"""Work 9: how long from start to first answer, how much memory is held then, and how long does one more replica take?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.servers import handle_calls
from benchmarks.session import Session, descendants
from benchmarks.works.handles import order
from benchmarks.works.noop import BYTES

NUMBER = 9
TITLE = "start, memory, one more replica"


def measure(session: Session) -> None:
    """Work 9."""
    session.note(
        NUMBER,
        "Memory is the proportional set size of the server program and all that it started, after the first answer. One more replica of a "
        "no-op: until the program knows that it runs; the others can't add one while they serve. Ray Serve at its best starts as it does "
        "as installed, and HAProxy beside it. Whoever needs a cluster starts one of one node first; what an instance takes on one that "
        "runs is said apart: from `init` to the first answer of a backend over HTTP.",
    )
    names = session.choose(
        "headgate", "headgate-ray", "ceiling", "mosec", "ray-serve", "litserve", "bentoml", "fastapi", "uvicorn", "asgi-hop"
    )
    starts: dict[str, Callable[[], dict[str, float]]] = {name: partial(start, session, name) for name in names}
    session.interleave(NUMBER, "start to first answer", starts, agree_on="first answer", units={"first answer": "s", "memory": "MB"})
    with contextlib.ExitStack() as stack:
        growing: dict[str, Callable[[], dict[str, float]]] = {}
        urls = session.serving_all(stack, NUMBER, session.choose("headgate", "headgate-ray", "ray-serve"), "handles", path="/")
        for name, url in urls.items():
            growing[name] = partial(order, url, handle_calls.REPLICA)
        session.interleave(NUMBER, "one more replica", growing, agree_on="ms", units={"ms": "ms"})
        instances = {name: partial(order, url, handle_calls.START) for name, url in urls.items() if name == "headgate-ray"}
        if instances:
            session.interleave(
                NUMBER, "an instance on a running Ray cluster", instances, agree_on="first answer", units={"first answer": "s"}
            )


def start(session: Session, name: str) -> dict[str, float]:
    """Start a contender, and end it."""
    began = time.perf_counter()
    with session.serving(name, "noop", content_type=BYTES, attempts=1) as server:
        first_answer_s = time.perf_counter() - began
        return {"first answer": first_answer_s, "memory": sum(map(pss_mb, (server.pid, *descendants(server.pid))))}


def pss_mb(pid: int) -> float:
    """Proportional set size of a process; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), 0.0)
