"""Work 2: how many no-op requests a second, in batches of up to 32?"""

from __future__ import annotations

from benchmarks.session import Session
from benchmarks.works import noop

NUMBER = 2
TITLE = "no-op in batches of up to 32, 7-byte POST, 1 replica, 1 ingress"


def measure(session: Session) -> None:
    """All levels of connections."""
    names = session.choose("headgate", "ceiling", "mosec", "ray-serve-fast", "ray-serve", "litserve", "bentoml")
    session.note(NUMBER, "FastAPI and Uvicorn have no batches.")
    if "bentoml" in names:
        session.note(NUMBER, 'BentoML takes batches only as lists: its body is `{"x":[1]}`, 9 bytes.')
    noop.compare(session, NUMBER, "batch", names, noop.JSON)
