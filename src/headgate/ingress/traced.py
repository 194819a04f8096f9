"""What does the span of an HTTP request say, when does it begin, and under whose?

Names and attributes are those of OpenTelemetry's semantic conventions for HTTP servers. Pages under `/-/` have none.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time_ns
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from opentelemetry.trace import SpanKind, StatusCode

from headgate.core import wire
from headgate.errors import ErrorInfo
from headgate.ingress.access import NotedExchange, line_of, without_secrets
from headgate.ingress.memory import KnownHead
from headgate.ingress.routes import Target
from headgate.traces import spans, travel

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from headgate.ingress.http1 import Connection

_METHODS: Final = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
_OTHER: Final = "_OTHER"
"""In place of a method that isn't known: a client can make up any number of them."""
_PORT_DIGITS: Final = 5
_UNKNOWN: Final = KnownHead()
_head: Final = msgspec.msgpack.Decoder(wire.HttpHead)


class TracedExchange(NotedExchange):
    """An exchange with a span, which begins when its head was read, and ends with its answer, or when its client leaves."""

    __slots__ = ("_began_ns", "_error", "_span", "_trace")

    draw: ClassVar[Callable[[], bytes]] = bytes
    """Makes what travels of a request that begins a trace of which nothing is recorded; see `Lot`."""

    def __init__(self, connection: Connection, known: KnownHead = _UNKNOWN, request_id: str = "") -> None:
        super().__init__(connection, known, request_id)
        self._began_ns = time_ns()
        self._error: ErrorInfo | None = None
        self._span: Span | None = None
        self._trace: bytes | None = None

    @property
    def trace(self) -> bytes:  # type: ignore[override]  # a plain attribute there
        """Its span as it travels to a replica; begun where it is asked for first, since all is known then."""
        if self._trace is None:
            self._trace = self._begin()
        return self._trace

    def failed(self, error: ErrorInfo) -> None:
        """As `Exchange`."""
        if not self.complete:
            self._error = error
        super().failed(error)

    def _begin(self) -> bytes:
        http: bytes = getattr(self, "http", b"")  # none where its head could not be read
        parent = travel.from_headers(_head.decode(http).headers) if b"traceparent" in http else b""
        if parent and not travel.is_sampled(parent):
            return parent
        if not parent and (drawn := TracedExchange.draw()):
            return drawn
        method, _, _ = line_of(http)
        known = method if method in _METHODS else _OTHER
        route = self._route()
        name = f"{known if method in _METHODS else 'HTTP'} {route}".rstrip()
        attributes = {"http.request.method": known, **({"http.route": route} if route else {})}
        span = spans.begin(name, spans.under(parent), kind=SpanKind.SERVER, attributes=attributes, began_ns=self._began_ns)
        if span.is_recording():
            self._span = span
        return spans.to_travel(span.get_span_context())

    def _route(self) -> str:
        table = self.connection.service.table
        endpoint = None if table is None else table.endpoints.get(self.endpoint)
        return "" if endpoint is None or endpoint.route is None else endpoint.route

    def _note(self, status: int, sent_bytes: int) -> None:
        if self._span is not None or self._trace is None:  # else nothing is recorded of it
            self._end(status)
        access = self.connection.service.access
        if access is not None:
            access.note(self, status, sent_bytes, self._trace or b"")

    def _end(self, status: int) -> None:
        if self._trace is None and not isinstance(self.instead, Target):  # it was refused here
            self._trace = self._begin()
        span, self._span = self._span, None
        if span is None:
            return
        span.set_attributes({"http.response.status_code": status, **self._described()})
        is_failure = status >= 500 or self.started_stream
        if self._error is not None:
            spans.failed(span, self._error, is_failure=is_failure)
        elif status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        spans.end(span)

    def _described(self) -> dict[str, str | int]:
        """What is known of the request; asked for at its end, when that holds up nobody."""
        backend: str = getattr(self, "backend", "")
        found: dict[str, str | int] = {
            "url.scheme": self.connection.service.scheme,
            "headgate.request_id": self.request_id,
            "headgate.endpoint": self.endpoint,
            "headgate.backend": backend,
        }
        http: bytes = getattr(self, "http", b"")
        if http:
            head = _head.decode(http)
            path, _, query = head.target.decode("utf-8", "backslashreplace").partition("?")
            address, port = _host_and_port(_header(head, b"host"))
            found |= {
                "url.path": path,
                "url.query": without_secrets(query),
                "network.protocol.version": head.version,
                "client.address": head.client,
                "server.address": address,
                "server.port": port,
                "user_agent.original": _header(head, b"user-agent"),
                "http.request.method_original": "" if head.method in _METHODS else head.method,
            }
        return {name: value for name, value in found.items() if value}


def _header(head: wire.HttpHead, wanted: bytes) -> str:
    return next((value.decode("utf-8", "backslashreplace") for name, value in head.headers if name == wanted), "")


def _host_and_port(host: str) -> tuple[str, int]:
    address, colon, port = host.rpartition(":")
    return (address, int(port)) if colon and port.isdecimal() and len(port) <= _PORT_DIGITS else (host, 0)
