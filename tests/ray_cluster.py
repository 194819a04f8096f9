"""How do tests run on a Ray cluster?"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
from typing import Any

from tests.support import leave_out

CLUSTER_VARIABLE = "HEADGATE_TEST_CLUSTER"
"""Ray's own processes have it, which stay longer than an instance."""
_ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Where Ray itself looks for a cluster."""


def start(*, gpus: int, **resources: float) -> None:
    """A cluster of one node and 4 CPUs. `stop` ends it, or the end of this process.

    To be called in the main thread: Ray's processes end with the thread that started them.
    """
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    os.environ[CLUSTER_VARIABLE] = "1"
    try:
        ray.init(
            address="local",  # not one that somebody else has started
            num_cpus=4,
            num_gpus=gpus,
            resources=resources,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    finally:
        del os.environ[CLUSTER_VARIABLE]
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own


def stop() -> None:
    """End it. It is in use no more: Ray would look for it, for minutes."""
    import ray

    ray.shutdown()
    os.environ.pop(_ADDRESS_VARIABLE, None)


def use_ray() -> None:
    """Have `serve.init` mean the Ray engine where a test doesn't say which, here and in the scripts of tests, which call `join`."""
    import ray

    start(gpus=1)
    os.environ[_ADDRESS_VARIABLE] = ray.get_runtime_context().gcs_address
    join()


def environ() -> dict[str, str]:
    """What another program needs to find the cluster that is in use, if one is."""
    return {_ADDRESS_VARIABLE: os.environ[_ADDRESS_VARIABLE]} if in_use() else {}


def in_use() -> bool:
    """Whether `use_ray` was called."""
    return _ADDRESS_VARIABLE in os.environ


def join() -> None:
    """Have `serve.init` mean the Ray engine in this process."""
    from headgate import serve

    init = serve.init

    def init_on_ray(*args: Any, **kwargs: Any) -> Any:
        if kwargs.setdefault("engine", "ray") == "ray" and "GPU" in (kwargs.get("resources") or {}):
            del kwargs["resources"]  # the cluster has them
        return init(*args, **kwargs)

    serve.init = init_on_ray


def actors() -> list[str]:
    """What instances have on the cluster: the namespaces and names of their actors."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [f"{actor['namespace']} {actor['name']}" for actor in named if actor["namespace"].startswith("headgate:")]


def kill_all_actors() -> None:
    """All of them die at once, and for good, as when the machines lose their power."""
    import ray

    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"].startswith("headgate:"):
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)


def said(output: str) -> str:
    """What a program and its replicas have printed, without what Ray adds: warnings, and the words by which it says whose a line is."""
    lines = [line for line in output.splitlines() if "(raylet" not in line]
    return "\n".join(re.sub(r"^\S*\(\w+ pid=[^)]*\)\S* ", "", line) for line in lines)
