"""How does Ray Serve serve the works? One replica, unless the option `replicas` says otherwise, in a cluster of its own.

As installed: synchronous handlers where the work allows it. With `fast=1`: asynchronous ones, beside the variables in `contenders.py`.
`at_once` says how many requests a replica takes at once; without it, or with 0, that is Ray Serve's own default, which is 5.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from benchmarks.servers.asked import BATCH, CHUNK, CHUNKS, MODEL_BATCH, MODEL_WAIT_S, Asked, asked, exit_on_sigterm, sleep, unknown

WAIT_S = 0.001  # for a batch to fill
CPU_SHARE = 0.01  # of a core that Ray books for a replica, so that any number of them fits this machine


class Noop:
    """Work `noop`."""

    def __call__(self, request: Request) -> str:
        """Answer without a look at the body."""
        return "hello"


class NoopFast:
    """Work `noop`."""

    async def __call__(self, request: Request) -> str:
        """Answer without a look at the body."""
        return "hello"


class Echo:
    """Work `echo`: a body can only be awaited."""

    async def __call__(self, request: Request) -> Response:
        """Answer the body."""
        return Response(await request.body())


class Batch:
    """Work `batch`: Ray Serve's batches need an asynchronous handler."""

    def __init__(self, size: int) -> None:
        from ray import serve

        async def answer(requests: list[Request]) -> list[str]:
            return ["hello"] * len(requests)

        self.answer = serve.batch(max_batch_size=size, batch_wait_timeout_s=WAIT_S)(answer)

    async def __call__(self, request: Request) -> str:
        """Answer without a look at the body."""
        text: str = await self.answer(request)
        return text


class Stream:
    """Work `stream`."""

    def __call__(self, request: Request) -> StreamingResponse:
        """Make the chunks."""

        def chunks() -> Iterator[bytes]:
            for _ in range(CHUNKS):
                yield CHUNK

        return StreamingResponse(chunks(), media_type="application/octet-stream")


class StreamFast:
    """Work `stream`."""

    async def __call__(self, request: Request) -> StreamingResponse:
        """Make the chunks."""

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(CHUNKS):
                yield CHUNK

        return StreamingResponse(chunks(), media_type="application/octet-stream")


class Modelled:
    """Works `classifier` and `network`."""

    def __init__(self, work: str) -> None:
        from ray import serve

        from benchmarks.servers.model import Model

        model = Model(work)

        async def answer(scans: list[list[float]]) -> list[dict[str, object]]:
            return model(scans)

        self.answer = serve.batch(max_batch_size=MODEL_BATCH, batch_wait_timeout_s=MODEL_WAIT_S)(answer)

    async def __call__(self, request: Request) -> object:
        """Answer one scan, in a batch with others."""
        return await self.answer((await request.json())["pixels"])


class Slow:
    """Work `slow`."""

    def __call__(self, request: object) -> str:
        """Sleep, in the thread pool that Ray Serve has for synchronous handlers."""
        sleep()
        return "hello"


class SlowFast:
    """Work `slow`: a synchronous sleep, in a thread."""

    async def __call__(self, request: object) -> str:
        """Sleep."""
        await asyncio.to_thread(sleep)
        return "hello"


class Drip:
    """Work `drip`."""

    def __init__(self, size: int, wait_s: float) -> None:
        from ray import serve

        async def answer(requests: list[Request]) -> list[str]:
            await asyncio.to_thread(sleep)
            return [str(len(requests))] * len(requests)

        self.answer = serve.batch(max_batch_size=size, batch_wait_timeout_s=wait_s)(answer)

    async def __call__(self, request: Request) -> str:
        """Answer how many were in the batch."""
        text: str = await self.answer(request)
        return text


class Exponential:
    """Work `exponential`."""

    async def __call__(self, request: Request) -> str:
        """Sleep for as many seconds as the body says; a body can only be awaited."""
        await asyncio.to_thread(time.sleep, float(await request.body()))
        return "hello"


WORKS: dict[str, type[Any]] = {
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
FAST = WORKS | {"noop": NoopFast, "stream": StreamFast, "slow": SlowFast}


def apart(port: int) -> None:
    """Give this cluster's HAProxy files and ports of its own."""
    folder = tempfile.mkdtemp(prefix="h")
    os.environ.update(
        {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 1),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 2),
        }
    )


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    fast = bool(wanted.number("fast", 0))
    works = FAST if fast else WORKS
    if wanted.work not in works and wanted.work != "handles":
        raise unknown(wanted.work)
    apart(wanted.port)

    import ray
    from ray import serve

    from benchmarks.servers import ray_handles

    ray.init(address="local", include_dashboard=False, _temp_dir=tempfile.gettempdir(), log_to_driver=False)
    exit_on_sigterm()
    if wanted.work == "handles":
        serve.start(proxy_location="Disabled")
        return ray_handles.take_orders(wanted.port, fast, CPU_SHARE)
    http: dict[str, Any] = {"host": "127.0.0.1", "port": wanted.port}
    if "timeout_ms" in wanted.options:
        http["request_timeout_s"] = wanted.number("timeout_ms", 0) / 1000
    serve.start(http_options=http)
    settings: dict[str, Any] = {"num_replicas": wanted.number("replicas", 1), "ray_actor_options": {"num_cpus": CPU_SHARE}}
    at_once = wanted.number("at_once", 0)
    if at_once:
        settings["max_ongoing_requests"] = at_once
    if "max_queued" in wanted.options:
        settings["max_queued_requests"] = wanted.number("max_queued", 0)
    serve.run(deployment(wanted, works[wanted.work], settings), route_prefix="/")
    while True:
        signal.pause()


def deployment(wanted: Asked, code: type[Any], settings: dict[str, Any]) -> Any:
    """What Ray Serve runs."""
    from ray import serve

    arguments: list[Any] = []
    if code is Batch:
        arguments = [wanted.number("max_batch_size", BATCH)]
    elif code is Drip:
        arguments = [wanted.number("max_batch_size", BATCH), wanted.number("batch_wait_ms", 1) / 1000]
    elif code is Modelled:
        arguments = [wanted.work]
    return serve.deployment(code, **settings).bind(*arguments)


if __name__ == "__main__":
    main()
