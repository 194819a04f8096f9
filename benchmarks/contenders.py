"""Who takes part: under which name, in which environment, by which server program?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """One way to serve the same work."""

    name: str
    title: str  # as the report says it
    environment: str  # one of `environments.ENVIRONMENTS`
    program: str  # benchmarks/servers/PROGRAM.py, or benchmarks/ceiling.py
    path: str = "/"  # where it answers
    variables: Mapping[str, str] = field(default_factory=dict)  # beside the suite's own environment
    options: Mapping[str, str | int] = field(default_factory=dict)  # of the program, for every work
    wakes_s: float = 0.2  # until it has done what came due while it was stopped


# A cluster's processes have missed each other's heartbeats when they go on after a stop, and look after that for a second.
WAKES_S = 2.0

# "As installed" differs from that in one thing: a replica takes 100 requests at once, since with Ray Serve's default of 5 all others poll.
# Ray lets its workers give way to everything else (niceness 15): to the load's own process, on a machine that both share.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_worker_niceness": "0"}
RAY_FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
FAST: dict[str, str | int] = {"fast": 1, "at_once": 1000}

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("headgate", "Headgate", "headgate", "headgate_server"),
        Contender(
            "headgate-ray", "Headgate on a Ray cluster", "headgate", "headgate_server", variables=RAY, options={"ray": 1}, wakes_s=WAKES_S
        ),
        Contender("headgate-uncounted", "Headgate that counts nothing", "headgate", "uncounted_server"),
        Contender("headgate-traced", "Headgate that traces, 1 in 100 recorded", "headgate", "traced_server"),
        Contender("ceiling", "the same path without features", "headgate", "ceiling"),
        Contender("mosec", "mosec", "mosec", "mosec_server", "/inference"),
        Contender("litserve", "LitServe", "litserve", "litserve_server", "/predict"),
        Contender("ray-serve", "Ray Serve as installed", "ray", "ray_server", variables=RAY, options={"at_once": 100}, wakes_s=WAKES_S),
        Contender("ray-serve-fast", "Ray Serve at its best", "ray", "ray_server", variables=RAY | RAY_FAST, options=FAST, wakes_s=WAKES_S),
        Contender("bentoml", "BentoML", "bentoml", "bentoml_server", variables={"BENTOML_DO_NOT_TRACK": "True"}),
        Contender("fastapi", "FastAPI, one process, no hop", "fastapi", "fastapi_server"),
        Contender("uvicorn", "Uvicorn, one process, no hop", "fastapi", "uvicorn_server"),
        Contender("asgi-hop", "Uvicorn and one hop", "fastapi", "asgi_hop_server"),
    )
}

QUICK = ("headgate", "mosec")

# Works of server programs that compute with a model, and so need the models' libraries in their environments.
MODEL_WORKS = frozenset({"classifier", "network"})
