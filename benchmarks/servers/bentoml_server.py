"""How does BentoML serve the works? One worker, unless the option `replicas` says otherwise; without its access log.

Handlers are asynchronous, which saves it a thread. Its workers import this file, which finds what is asked for in the environment.
"""
# No postponed annotations here: BentoML reads them.

import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.servers.asked import BATCH, CHUNK, CHUNKS, LONGEST_S, MODEL_BATCH, Asked, asked, sleep, unknown

ASKED = "HEADGATE_BENCHMARK_ASKED"
Content = Annotated[bytes, ContentType("application/octet-stream")]


class Noop:
    """Work `noop`."""

    @bentoml.api(route="/")
    async def noop(self, data: Content, /) -> Content:
        """Answer without a look at the body."""
        return b"hello"


class Batch:
    """Work `batch`."""

    @bentoml.api(route="/", batchable=True, max_batch_size=BATCH, max_latency_ms=LONGEST_S * 1000)
    async def batch(self, x: list[int]) -> list[str]:
        """Answer the list of one number that is posted: each request is a batch, of which BentoML makes larger ones."""
        return ["hello"] * len(x)


class Echo:
    """Work `echo`."""

    @bentoml.api(route="/")
    async def echo(self, data: Content, /) -> Content:
        """Answer the body."""
        return data


class Stream:
    """Work `stream`."""

    @bentoml.api(route="/")
    async def stream(self, x: int) -> AsyncIterator[str]:
        """Make the chunks."""
        text = CHUNK.decode()
        for _ in range(CHUNKS):
            yield text


class Modelled:
    """Works `classifier` and `network`; computed in a thread, so that the next batch fills meanwhile."""

    def __init__(self) -> None:
        from benchmarks.servers.model import Model

        self.model = Model(_wanted.work)

    @bentoml.api(route="/", batchable=True, max_batch_size=MODEL_BATCH, max_latency_ms=LONGEST_S * 1000)
    def answer(self, pixels: list[list[float]]) -> list[dict[str, object]]:
        """Answer the list of one scan that is posted, in a batch with others."""
        return self.model(pixels)


class Slow:
    """Work `slow`: synchronous handlers run in one thread."""

    @bentoml.api(route="/")
    def slow(self, x: int) -> str:
        """Sleep."""
        sleep()
        return "hello"


class Drip:
    """Work `drip`. BentoML decides by itself how long a batch waits."""

    @bentoml.api(route="/", batchable=True, max_batch_size=BATCH, max_latency_ms=LONGEST_S * 1000)
    def drip(self, x: list[int]) -> list[str]:
        """Sleep, then answer how many were in the batch."""
        sleep()
        return [str(len(x))] * len(x)


class Exponential:
    """Work `exponential`: synchronous handlers run in one thread."""

    @bentoml.api(route="/")
    def exponential(self, data: Content, /) -> str:
        """Sleep for as many seconds as the body says."""
        time.sleep(float(data))
        return "hello"


WORKS = {
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
    """Become BentoML's own command line, which serves until SIGTERM."""
    wanted = asked()
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    os.environ[ASKED] = json.dumps(wanted)
    command = ["serve", "benchmarks.servers.bentoml_server:service", "--host", "127.0.0.1", "--port", str(wanted.port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *command])


if __name__ == "__main__":
    main()
elif ASKED in os.environ:
    _wanted = Asked(*json.loads(os.environ[ASKED]))
    _traffic: dict[str, float] = {"timeout": _wanted.number("timeout_ms", LONGEST_S * 1000) / 1000}
    if "max_queued" in _wanted.options:  # of each worker, with what it runs
        _traffic["max_concurrency"] = _wanted.number("max_queued", 0) // _wanted.number("replicas", 1) + 1
    service = bentoml.service(
        name="benchmark",
        workers=_wanted.number("replicas", 1),
        traffic=_traffic,
        logging={"access": {"enabled": False}},
    )(WORKS[_wanted.work])
