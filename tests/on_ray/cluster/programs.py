"""What do the drivers on a cluster's nodes do? Functions for `Driver.call`, and the user code that they serve."""

from __future__ import annotations

import os
import warnings
from typing import Any

from headgate import serve
from headgate.core.reports import Description
from tests.chaos.workers import Worker


class Tells:
    """Gives back where it runs: the devices that it may see."""

    def __call__(self, request: Any) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "none")


def start(name: str, num_ingresses: int | str = 1, **more: Any) -> tuple[str, ...]:
    """Start an instance whose ingresses listen on all addresses of their nodes; its URLs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of that
        return serve.init(name, engine="ray", http_host="0.0.0.0", http_port=0, num_ingresses=num_ingresses, **more).http_urls


def connect(name: str) -> tuple[str, ...]:
    """Connect to an instance that runs; its URLs."""
    return serve.init(name, engine="ray").http_urls


def serve_worker(tag: str, journal: str, work_s: float, config: dict[str, Any], options: dict[str, Any] | None = None) -> None:
    """A backend of `Worker`, and its endpoint of the same name."""
    serve.create_backend(tag, Worker, journal, work_s, config=config, ray_actor_options=options)
    serve.create_endpoint(tag, f"/{tag}", ["POST"], backend=tag)


def update_worker(tag: str, journal: str, work_s: float, version: str) -> None:
    """Another version of its code."""
    serve.update_backend(tag, Worker, journal, work_s, version)


def serve_devices(tag: str, count: int, num_gpus: float) -> None:
    """A backend whose replicas have devices."""
    serve.create_backend(tag, Tells, config={"num_replicas": count}, ray_actor_options={"num_gpus": num_gpus})


def serve_where() -> None:
    """Something that answers, on two nodes."""
    serve.create_backend("where", Tells, config={"num_replicas": 2})
    serve.create_endpoint("where", "/where", backend="where")


def remove(tag: str) -> None:
    """A backend, and its endpoint."""
    if tag in serve.list_endpoints():
        serve.delete_endpoint(tag)
    serve.delete_backend(tag)


def status() -> Description:
    """Of the latest instance."""
    return serve.status()


def shutdown() -> None:
    """Of the latest instance."""
    serve.shutdown()


def left_of(name: str) -> list[str]:
    """The actors of an instance, and its keys in the cluster's store."""
    from ray.experimental import internal_kv

    from headgate.engines.ray import launch

    keys = internal_kv._internal_kv_list(f"{name}/".encode(), namespace=b"headgate")
    return [*launch.actors(name), *(key.decode() for key in keys)]


def pids_of(name: str) -> set[int]:
    """The processes of an instance that this process is connected with: its controller, ingresses and replicas."""
    roles = ("controller", "ingress", "replica")
    return {process.pid for process in serve.init(name, engine="ray").status().processes if process.role in roles}


def controller_pid() -> int:
    """The process of the controller of the latest instance."""
    return next(process.pid for process in serve.status().processes if process.role == "controller")


def nodes_alive() -> list[str]:
    """The addresses of the nodes that Ray counts on."""
    import ray

    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


def devices_seen(tags: list[str]) -> set[str]:
    """What replicas of these backends see as their devices, by some calls of each."""
    seen = set()
    for tag in tags:
        serve.create_endpoint(tag, backend=tag)
        handle = serve.get_handle(tag)
        seen |= set(serve.get([handle.remote(None) for _ in range(40)], timeout_s=30))
    return seen


def scale(tag: str, count: int) -> None:
    """A backend has so many replicas from now on."""
    serve.update_backend_config(tag, {"num_replicas": count})
