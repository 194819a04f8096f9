"""Work 12: how many answers of a real model a second, in batches of up to 16 where the contender has them?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial

from benchmarks.load import wrk
from benchmarks.session import Session, VoidWindow, post

NUMBER = 12
CONNECTIONS = 32
TITLE = f"a real model, JSON in and out, {CONNECTIONS} connections, 1 replica, batches of up to 16 where there are any"
WORKS = {
    "classifier": "the demo's classifier of digits",
    "network": "a dense network in ONNX Runtime",
}
# One of the scans: 8 by 8 pixels from 0 to 16.
PIXELS = [
    *(0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0, 0, 3, 15, 2, 0, 11, 8, 0, 0, 4, 12, 0, 0, 8, 8, 0),
    *(0, 5, 8, 0, 0, 9, 8, 0, 0, 4, 11, 0, 1, 12, 7, 0, 0, 2, 14, 5, 10, 12, 0, 0, 0, 0, 6, 13, 10, 0, 0, 0),
]


def measure(session: Session) -> None:
    """Both models, one after the other; all contenders must compute the same."""
    names = session.choose("headgate", "mosec", "ray-serve-fast", "ray-serve", "litserve", "bentoml", "fastapi")
    if "bentoml" in names:
        session.note(NUMBER, "BentoML takes batches only as lists: its body is a list of one scan.")
    if "fastapi" in names:
        session.note(NUMBER, "FastAPI has no batches: it answers one by one")
    for work, title in WORKS.items():
        with contextlib.ExitStack() as stack:
            bodies = {name: json.dumps({"pixels": [PIXELS] if name == "bentoml" else PIXELS}).encode() for name in names}
            expected: list[float] = []

            def warm_up(name: str, url: str, bodies: dict[str, bytes] = bodies, expected: list[float] = expected) -> None:
                answer = json.loads(post(url, bodies[name]))
                found = (answer[0] if name == "bentoml" else answer)["probabilities"]
                expected[:] = expected or found
                if any(abs(one - other) > 0.001 for one, other in zip(found, expected, strict=True)):
                    raise VoidWindow(f"it computes {found}, not {expected}")
                wrk.warm_up(url, body=bodies[name])

            urls = session.serving_all(stack, NUMBER, names, work, warm_up, probes=bodies)
            windows: dict[str, Callable[[], dict[str, float]]] = {
                name: partial(wrk.closed_loop, url, CONNECTIONS, body=bodies[name]) for name, url in urls.items()
            }
            session.interleave(NUMBER, title, windows, agree_on="requests/s", units=wrk.UNITS)
