"""How does mosec serve the works? One worker, unless the option `replicas` says otherwise.

Options: `replicas`, `max_batch_size`, `batch_wait_ms`, `max_queued`, `timeout_ms`, `sleep_ms`.
Bodies are passed as bytes, without its JSON coding, except for models. Streams are server-sent events, which is what it has.
It waits at least 1 ms for a batch to fill; that is what it is given here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from mosec import Server, SSEWorker, Worker

from benchmarks.servers.asked import BATCH, CHUNK, CHUNKS, LARGEST_BODY, LONGEST_S, MODEL_BATCH, WORK, asked, sleep, unknown


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


class Stream(SSEWorker):
    """Work `stream`: a chunk's end of line would end an event, so the chunk goes without it."""

    def deserialize(self, data: bytes) -> bytes:
        """As it is."""
        return data

    def forward(self, data: bytes) -> str:
        """Send the chunks; what is returned isn't."""
        text = CHUNK.decode().rstrip()
        for _ in range(CHUNKS):
            self.send_stream_event(text)
        return ""


class Modelled(Worker):
    """Works `classifier` and `network`."""

    def __init__(self) -> None:
        from benchmarks.servers.model import Model

        super().__init__()
        self.model = Model(os.environ[WORK])

    def forward(self, data: list[dict[str, list[float]]]) -> list[dict[str, object]]:
        """Answer a batch of scans."""
        return self.model([item["pixels"] for item in data])


class Slow(Raw):
    """Work `slow`."""

    def forward(self, data: bytes) -> bytes:
        """Sleep."""
        sleep()
        return b"hello"


class Drip(Raw):
    """Work `drip`."""

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Sleep, then answer how many were in the batch."""
        sleep()
        return [str(len(data)).encode()] * len(data)


class Exponential(Raw):
    """Work `exponential`."""

    def forward(self, data: bytes) -> bytes:
        """Sleep for as many seconds as the body says."""
        time.sleep(float(data))
        return b"hello"


WORKS: dict[str, Callable[[], Any]] = {
    "noop": Noop,
    "batch": Batch,
    "echo": Echo,
    "stream": Stream,
    "classifier": Modelled,
    "network": Modelled,
    "slow": Slow,
    "drip": Drip,
    "exponential": Exponential,
}


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    settings = {
        "address": "127.0.0.1",
        "port": wanted.port,
        "timeout": wanted.number("timeout_ms", LONGEST_S * 1000),
        "capacity": wanted.number("max_queued", 1024),
        "log_level": "error",
        "max_request_size": LARGEST_BODY,
    }
    os.environ.update({f"MOSEC_{key.upper()}": str(value) for key, value in settings.items()})
    size = {"batch": BATCH, "drip": BATCH, "classifier": MODEL_BATCH, "network": MODEL_BATCH}.get(wanted.work, 1)
    server = Server()
    server.append_worker(
        WORKS[wanted.work],
        num=wanted.number("replicas", 1),
        max_batch_size=wanted.number("max_batch_size", size),
        max_wait_time=wanted.number("batch_wait_ms", 1),
    )
    server.run()


if __name__ == "__main__":
    main()
