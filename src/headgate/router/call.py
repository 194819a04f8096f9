"""What is one request on its way from a caller to a replica and back?

A `Call` is made by the ingress or a handle, given to `Router.submit`, and ends exactly once: by `answered`, by `ended`
after its chunks, or by `failed`. Everything about it happens on the event loop of its router, or while that is borrowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headgate.core import wire

if TYPE_CHECKING:
    from headgate.errors import ErrorInfo
    from headgate.router.link import Link
    from headgate.router.routes import BackendRoute, EndpointRoute

WAITING = 0
"""In a router's queue."""
SENT = 1
"""In the window of a replica."""
OVER = 2
"""Ended; whatever still arrives for it is dropped."""


class Call:
    """One request. Subclasses say what becomes of its end by overriding the methods at the bottom."""

    __slots__ = (
        "admitted_at",
        "backend",
        "backend_route",
        "body",
        "body_bytes",
        "bucket",
        "caller_timeout_s",
        "deadline",
        "deaths",
        "endpoint",
        "endpoint_route",
        "http",
        "keywords",
        "link",
        "method",
        "number",
        "place",
        "positional",
        "request_id",
        "sent_at",
        "shadow",
        "shard_key",
        "started_stream",
        "state",
    )

    trace: bytes = b""
    """The span that it is a part of, as `traces/travel.py` has it; calls that are traced have their own."""

    # Set by whoever makes the call:
    endpoint: str
    method: str  # "" is the function itself, or __call__
    request_id: str
    shard_key: str | None
    http: bytes  # msgpack of `wire.HttpHead`; empty for a call from Python
    positional: int
    keywords: tuple[str, ...]
    body: bytes | bytearray | list[bytes]
    body_bytes: int
    admitted_at: float  # time.monotonic() at which the whole request had arrived
    caller_timeout_s: float | None  # the caller's own limit, which can only shorten the backend's

    # Set by the router:
    backend: str
    backend_route: BackendRoute  # what it was admitted to, also when the table has changed since
    endpoint_route: EndpointRoute
    state: int
    deadline: float  # time.monotonic(); infinity for none. For a stream, of its next chunk
    deaths: int  # replicas that died while they had it
    number: int  # its number on its link
    place: int
    link: Link | None
    sent_at: float  # time.monotonic() at which it was last given to its link
    bucket: int  # where the deadline wheel keeps it
    shadow: bool
    started_stream: bool  # a first chunk has arrived: it can't be run again

    def answered(self, answer: wire.Answer) -> None:
        """It was answered in one piece."""
        raise NotImplementedError

    def chunk(self, frame: wire.Frame) -> None:
        """A part of a streamed answer; the first one has the flag FIRST. Give credit by `Router.credit` when it is used up."""
        raise NotImplementedError

    def small_chunk(self, body: bytes) -> None:
        """The same for what came as a `wire.PART`."""
        raise NotImplementedError

    def ended(self) -> None:
        """Its stream is complete."""
        raise NotImplementedError

    def failed(self, error: ErrorInfo) -> None:
        """It ended without an answer, or in the middle of its stream."""
        raise NotImplementedError
