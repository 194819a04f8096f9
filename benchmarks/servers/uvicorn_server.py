"""What does an HTTP server in Python do alone: Uvicorn with a bare ASGI app, no framework, no hop?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from benchmarks.servers.asked import CHUNK, CHUNKS, asked, unknown

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def body_of(receive: Receive) -> bytes:
    """The whole body of a request."""
    message = await receive()
    if not message["more_body"]:
        return bytes(message["body"])
    parts = [message["body"]]
    while message["more_body"]:
        message = await receive()
        parts.append(message["body"])
    return b"".join(parts)


async def answer(send: Send, content: bytes) -> None:
    """A whole answer."""
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def noop(scope: Scope, receive: Receive, send: Send) -> None:
    """Work `noop`."""
    await body_of(receive)
    await answer(send, b"hello")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Work `echo`."""
    await answer(send, await body_of(receive))


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Work `stream`."""
    await body_of(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/octet-stream")]})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


WORKS = {"noop": noop, "echo": echo, "stream": stream}


def main() -> None:
    """Serve until SIGTERM."""
    wanted = asked()
    if wanted.work not in WORKS:
        raise unknown(wanted.work)
    app: Any = WORKS[wanted.work]
    uvicorn.run(
        app, host="127.0.0.1", port=wanted.port, http="httptools", loop="uvloop", lifespan="off", access_log=False, log_level="error"
    )


if __name__ == "__main__":
    main()
