"""How do tests run on a Ray cluster?"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from typing import Any

from headgate.arguments import EXPERIMENTAL_VARIABLE
from tests.leaks import RUNTIME_VARIABLE
from tests.support import leave_out


def start(*, gpus: int, **resources: float) -> None:
    """A cluster of one node and 4 CPUs. `stop` ends it, or the end of this process.

    To be called in the main thread: Ray's processes end with the thread that started them.
    """
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    runtime = os.environ.pop(RUNTIME_VARIABLE)  # what tests leave behind is told by it; the cluster stays longer
    try:
        ray.init(num_cpus=4, num_gpus=gpus, resources=resources, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    finally:
        os.environ[RUNTIME_VARIABLE] = runtime
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own


def stop() -> None:
    """End it."""
    import ray

    ray.shutdown()


def use_ray() -> None:
    """Have `serve.init` mean the Ray engine where a test doesn't say which."""
    from headgate import serve

    os.environ[EXPERIMENTAL_VARIABLE] = "ray"
    start(gpus=1)
    init = serve.init

    def init_on_ray(*args: Any, **kwargs: Any) -> Any:
        if kwargs.setdefault("engine", "ray") == "ray" and "GPU" in (kwargs.get("resources") or {}):
            del kwargs["resources"]  # the cluster has them
        return init(*args, **kwargs)

    serve.init = init_on_ray
