"""How does Headgate serve the works? One ingress and one replica, unless options say otherwise.

Options: `replicas`, `ingresses`, `max_batch_size`, `batch_wait_ms`, `at_once`, `max_queued`, `timeout_ms`, `sleep_ms`, `endpoints`,
`backends`; `ray=1` runs it on a Ray cluster of its own, of one node.
"""

from __future__ import annotations

import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.servers import handle_calls
from benchmarks.servers.asked import (
    BATCH,
    CHUNK,
    CHUNKS,
    LARGEST_BODY,
    MODEL_BATCH,
    MODEL_WAIT_S,
    Asked,
    asked,
    exit_on_sigterm,
    sleep,
    unknown,
)
from headgate import serve


def noop(request: object) -> bytes:
    """Work `noop`."""
    return b"hello"


@serve.accept_batch
def batch(requests: list[object]) -> list[bytes]:
    """Work `batch`."""
    return [b"hello"] * len(requests)


def echo(request: serve.Request) -> bytes:
    """Work `echo`."""
    return request.data


def stream(request: object) -> Iterator[bytes]:
    """Work `stream`."""
    for _ in range(CHUNKS):
        yield CHUNK


class Modelled:
    """Works `classifier` and `network`."""

    def __init__(self, work: str) -> None:
        from benchmarks.servers.model import Model

        self.model = Model(work)

    @serve.accept_batch
    def __call__(self, requests: list[serve.Request]) -> list[dict[str, object]]:
        """Answer a batch of scans."""
        return self.model([request.json["pixels"] for request in requests])


def slow(request: object) -> bytes:
    """Work `slow`."""
    sleep()
    return b"hello"


@serve.accept_batch
def drip(requests: list[object]) -> list[str]:
    """Work `drip`: answers how many were in the batch."""
    sleep()
    return [str(len(requests))] * len(requests)


def exponential(request: serve.Request) -> bytes:
    """Work `exponential`: the body says for how many seconds to sleep."""
    time.sleep(float(request.data))
    return b"hello"


WORKS: dict[str, Callable[..., Any]] = {
    "noop": noop,
    "batch": batch,
    "echo": echo,
    "stream": stream,
    "classifier": Modelled,
    "network": Modelled,
    "slow": slow,
    "drip": drip,
    "exponential": exponential,
}


def config(wanted: Asked) -> dict[str, object]:
    """The backend's config."""
    chosen: dict[str, object] = {"num_replicas": wanted.number("replicas", 1)}
    if wanted.work in ("batch", "drip"):
        chosen["max_batch_size"] = wanted.number("max_batch_size", BATCH)
    if WORKS[wanted.work] is Modelled:
        chosen |= {"max_batch_size": MODEL_BATCH, "batch_wait_timeout": MODEL_WAIT_S}
    if "batch_wait_ms" in wanted.options:
        chosen["batch_wait_timeout"] = wanted.number("batch_wait_ms", 0) / 1000
    if "at_once" in wanted.options:
        chosen["concurrency"] = wanted.number("at_once", 1)
    if "max_queued" in wanted.options:
        chosen["max_queued_queries"] = wanted.number("max_queued", 1000)
    if "timeout_ms" in wanted.options:
        chosen["request_timeout"] = wanted.number("timeout_ms", 60_000) / 1000
    return chosen


def more_of(wanted: Asked) -> list[str]:
    """Work 10: as many `endpoints` as asked for at `/e0000` and so on, and `backends` that share the traffic; returns the tags of all."""
    for number in range(wanted.number("endpoints", 0)):
        serve.create_endpoint(f"e{number}", f"/e{number:04}", methods=["POST"], backend=wanted.work)
    tags = [wanted.work] + [f"{wanted.work}-{number}" for number in range(1, wanted.number("backends", 1))]
    for tag in tags[1:]:
        serve.create_backend(tag, WORKS[wanted.work], config=config(wanted))
    return tags


def engine(wanted: Asked) -> dict[str, Any]:
    """Which engine `init` is to use."""
    if not wanted.number("ray", 0):
        return {}
    import ray

    ray.init(address="local", include_dashboard=False, _temp_dir=tempfile.gettempdir(), log_to_driver=False)
    return {"engine": "ray"}


def handles(port: int, where: dict[str, Any]) -> None:
    """Work `handles`: this process makes the calls of work 4, and adds the replicas and instances of work 9 when it is told to."""
    replicas = 1

    def one_more_replica(seconds: float) -> handle_calls.Timed:
        nonlocal replicas
        replicas += 1
        began = time.perf_counter()
        serve.update_backend_config("inner", {"num_replicas": replicas})
        return {"ms": (time.perf_counter() - began) * 1e3}

    def one_more_instance(seconds: float) -> handle_calls.Timed:
        began = time.perf_counter()
        with serve.init(f"benchmark-{port}-more", http_port=0, **where) as instance:
            instance.create_backend("noop", noop)
            instance.create_endpoint("noop", "/", backend="noop")
            with urllib.request.urlopen(f"{instance.http_url}/") as answer:
                assert answer.read() == b"hello"
            return {"first answer": time.perf_counter() - began}

    with serve.init(f"benchmark-{port}", http_port=0, **where):
        serve.create_backend("inner", handle_calls.noop)
        serve.create_endpoint("inner", backend="inner")
        inner = serve.get_handle("inner")
        serve.create_backend("outer", handle_calls.Outer, inner)
        serve.create_endpoint("outer", backend="outer")
        known = handle_calls.ways(inner, serve.get_handle("outer"))
        handle_calls.take_orders(port, known | {handle_calls.REPLICA: one_more_replica, handle_calls.START: one_more_instance})


def main(**given: Any) -> None:
    """Serve until SIGTERM, with these arguments of `init` beside the suite's own."""
    wanted = asked()
    if wanted.work == "handles":
        where = engine(wanted) | given
        exit_on_sigterm()
        return handles(wanted.port, where)
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    where = engine(wanted) | given  # Ray sets a handler of its own
    exit_on_sigterm()
    name = f"benchmark-{wanted.port}"
    with serve.init(name, http_port=wanted.port, num_ingresses=wanted.number("ingresses", 1), max_body_bytes=LARGEST_BODY, **where):
        arguments = [wanted.work] if WORKS[wanted.work] is Modelled else []
        serve.create_backend(wanted.work, WORKS[wanted.work], *arguments, config=config(wanted))
        tags = more_of(wanted)
        serve.create_endpoint(wanted.work, "/", methods=["POST"], backend=wanted.work)
        if len(tags) > 1:
            serve.set_traffic(wanted.work, dict.fromkeys(tags, 1 / len(tags)))
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
