"""How does a Ray Serve handle make the calls of work 4, and how long does one more replica take?

A replica takes all calls at once: with its default of 5 and 100 in flight, the router asks the replica so often how long its queue is
that it gets through 10 to 15 calls a second. As installed, the handler is synchronous, with `fast` it is asynchronous. What
`contenders.py` sets for `fast` makes handles run their router in the caller's event loop, which takes `result()` away; so only the
asynchronous calls have such a handle there, and the others the usual one.
"""

from __future__ import annotations

import time
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.servers import handle_calls
from benchmarks.servers.handle_calls import Timed

INNER, OUTER = "inner", "outer"
LOOK_S = 0.005


def take_orders(port: int, fast: bool, cpu_share: float) -> None:
    """Deploy, then make calls in this thread when told to."""
    settings: dict[str, Any] = {"ray_actor_options": {"num_cpus": cpu_share}, "max_ongoing_requests": handle_calls.IN_FLIGHT}
    inner = serve.deployment(handle_calls.async_noop if fast else handle_calls.noop, name=INNER, **settings)
    outer = serve.deployment(handle_calls.Outer, name=OUTER, **settings)
    replicas = 1

    def deploy() -> None:
        deployed = inner.options(num_replicas=replicas)
        deployed._version = "1"  # else it counts as new code, and all replicas are replaced
        serve.run(deployed.bind(), name=INNER, route_prefix=None)

    def one_more_replica(seconds: float) -> Timed:
        nonlocal replicas
        replicas += 1
        began = time.perf_counter()
        deploy()
        while serve.status().applications[INNER].deployments[INNER].replica_states != {"RUNNING": replicas}:
            time.sleep(LOOK_S)
        return {"ms": (time.perf_counter() - began) * 1e3}

    def blocking(name: str) -> Any:
        made = DeploymentHandle(name, name)
        made._init(_run_router_in_separate_loop=True)
        return made

    deploy()
    serve.run(outer.bind(DeploymentHandle(INNER, INNER)), name=OUTER, route_prefix=None)
    known = handle_calls.ways(blocking(INNER), blocking(OUTER), for_asyncio=(lambda: DeploymentHandle(INNER, INNER)) if fast else None)
    handle_calls.take_orders(port, known | {handle_calls.REPLICA: one_more_replica})
