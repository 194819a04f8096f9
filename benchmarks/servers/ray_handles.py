"""How does a Ray Serve handle make the calls of work 4, and how long does one more replica take?

As installed: a synchronous handler, and all else by default. With `fast` an asynchronous handler and 1,000 calls at once. Of the
variables that `contenders.py` sets for it, one takes `result()` away: the router then runs in the caller's event loop. There the
asynchronous calls have a handle of that kind, and the synchronous ones the kind that is the default.
"""

from __future__ import annotations

import time
from typing import Any

from ray import serve
from ray.serve.schema import ReplicaState

from benchmarks.servers import handle_calls
from benchmarks.servers.handle_calls import Timed

APPLICATION = "benchmark"
LOOK_S = 0.005


def take_orders(port: int, fast: bool, cpu_share: float) -> None:
    """Deploy, then make calls in this thread when told to."""
    replicas = 1
    settings: dict[str, Any] = {"ray_actor_options": {"num_cpus": cpu_share}} | ({"max_ongoing_requests": 1000} if fast else {})

    def deploy() -> None:
        inner = serve.deployment(handle_calls.async_noop if fast else handle_calls.noop, name="inner", **settings)
        outer = serve.deployment(handle_calls.Outer, name="outer", **settings)
        application = outer.bind(inner.options(num_replicas=replicas).bind())
        serve.run(application, name=APPLICATION, route_prefix=None)

    def one_more_replica(seconds: float) -> Timed:
        nonlocal replicas
        replicas += 1
        began = time.perf_counter()
        deploy()
        while serve.status().applications[APPLICATION].deployments["inner"].replica_states.get(ReplicaState.RUNNING, 0) < replicas:
            time.sleep(LOOK_S)
        return {"ms": (time.perf_counter() - began) * 1e3}

    def handle(name: str, *, own_loop: bool = True) -> Any:
        made = serve.get_deployment_handle(name, APPLICATION)
        if fast:
            made._init(_run_router_in_separate_loop=own_loop)
        return made

    deploy()
    known = handle_calls.ways(handle("inner"), handle("outer"), for_asyncio=(lambda: handle("inner", own_loop=False)) if fast else None)
    handle_calls.take_orders(port, known | {handle_calls.REPLICA: one_more_replica})
