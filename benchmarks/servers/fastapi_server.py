"""How does FastAPI on Uvicorn serve the works, in one process and so without a hop?

Handlers are asynchronous, which saves FastAPI a thread; they read the request themselves, which saves it a validation.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import fastapi
import uvicorn
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from benchmarks.servers.asked import CHUNK, CHUNKS, asked, unknown


async def noop(request: Request) -> Response:
    """Work `noop`."""
    return Response(b"hello")


async def echo(request: Request) -> Response:
    """Work `echo`."""
    return Response(await request.body())


async def stream(request: Request) -> Response:
    """Work `stream`."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK

    return StreamingResponse(chunks(), media_type="application/octet-stream")


def modelled(work: str) -> Callable[[Request], Awaitable[Any]]:
    """Works `classifier` and `network`: one by one, on the event loop, as there is but one process."""
    from benchmarks.servers.model import Model

    model = Model(work)

    async def answer(request: Request) -> dict[str, object]:
        return model([(await request.json())["pixels"]])[0]

    return answer


WORKS: dict[str, Callable[[Request], Awaitable[Any]]] = {"noop": noop, "echo": echo, "stream": stream}
MODELS = ("classifier", "network")


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    if wanted.work not in (*WORKS, *MODELS):
        raise unknown(wanted.work)
    app = fastapi.FastAPI()
    app.post("/")(modelled(wanted.work) if wanted.work in MODELS else WORKS[wanted.work])
    uvicorn.run(app, host="127.0.0.1", port=wanted.port, http="httptools", loop="uvloop", access_log=False, log_level="error")


if __name__ == "__main__":
    main()
