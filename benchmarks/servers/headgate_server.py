"""How does Headgate serve the works? One ingress and one replica, unless options say otherwise.

Options: `replicas`, `ingresses`, `max_batch_size`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from benchmarks.servers.asked import LARGEST_BODY, Asked, asked, exit_on_sigterm, unknown
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


WORKS: dict[str, Callable[..., Any]] = {"noop": noop, "batch": batch, "echo": echo}


def config(wanted: Asked) -> dict[str, object]:
    """The backend's config."""
    chosen: dict[str, object] = {"num_replicas": wanted.number("replicas", 1)}
    if wanted.work == "batch":
        chosen["max_batch_size"] = wanted.number("max_batch_size", 32)
    return chosen


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    exit_on_sigterm()
    name = f"benchmark-{wanted.port}"
    with serve.init(name, http_port=wanted.port, num_ingresses=wanted.number("ingresses", 1), max_body_bytes=LARGEST_BODY):
        serve.create_backend(wanted.work, WORKS[wanted.work], config=config(wanted))
        serve.create_endpoint(wanted.work, "/", methods=["POST"], backend=wanted.work)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
