"""How does mosec serve the works? One worker, unless the option `replicas` says otherwise.

Bodies are passed as bytes, without its JSON coding. It waits at least 1 ms for a batch to fill; that is what it is given here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mosec import Server, Worker

from benchmarks.servers.asked import LARGEST_BODY, LONGEST_S, asked, unknown


class Raw(Worker):
    """Takes and answers bytes."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        """As it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """As it is."""
        return data


class Noop(Raw):
    """Work `noop`."""

    def forward(self, data: bytes) -> bytes:
        """Answer without a look at the body."""
        return b"hello"


class Batch(Raw):
    """Work `batch`."""

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Answer without a look at the bodies."""
        return [b"hello"] * len(data)


class Echo(Raw):
    """Work `echo`."""

    def forward(self, data: bytes) -> bytes:
        """Answer the body."""
        return data


WORKS: dict[str, Callable[[], Any]] = {"noop": Noop, "batch": Batch, "echo": Echo}


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    settings = {
        "address": "127.0.0.1",
        "port": wanted.port,
        "timeout": LONGEST_S * 1000,
        "log_level": "error",
        "max_request_size": LARGEST_BODY,
    }
    os.environ.update({f"MOSEC_{key.upper()}": str(value) for key, value in settings.items()})
    server = Server()
    size = wanted.number("max_batch_size", 32) if wanted.work == "batch" else 1
    server.append_worker(WORKS[wanted.work], num=wanted.number("replicas", 1), max_batch_size=size, max_wait_time=1)
    server.run()


if __name__ == "__main__":
    main()
