"""How does a call take its trace along, and where is the span of a call from Python begun and ended?

These stand in for what they are named after where an instance traces; where it doesn't nothing is asked on a call's way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headgate.core import wire
from headgate.core.messages import Message
from headgate.errors import ErrorInfo
from headgate.router.call import Call
from headgate.router.connection import Connection
from headgate.router.handle import PyCall
from headgate.router.link import Link
from headgate.router.router import Router, Shadow
from headgate.router.way import Way
from headgate.traces import spans, travel

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TracedLink(Link):
    """Sends with each call which span it is a part of."""

    def send(self, call: Call, now: float, trace: bytes = b"") -> None:
        """As `Link`."""
        super().send(call, now, trace or call.trace)


class TracedShadow(Shadow):
    """A copy, of which nothing is recorded: nor does anything that it asks of others begin a trace."""

    __slots__ = ("trace",)

    def __init__(self, call: Call, tag: str, deadline: float) -> None:
        super().__init__(call, tag, deadline)
        self.trace = travel.unsampled(call.trace)


class TracedRouter(Router):
    """A router whose calls take their traces along."""

    def __init__(self, name: str, way: Way, report: Callable[[Message], None]) -> None:
        super().__init__(name, way, report)
        self.link = TracedLink
        self.shadow = TracedShadow


class TracedCall(PyCall):
    """A call from Python with a span of its own, under what was the current one where it was made; to its answer, or its stream's end."""

    __slots__ = ("span", "trace")

    def __init__(self) -> None:
        super().__init__()
        self.span: Span | None = None
        self.trace = b""

    def begin(self) -> None:
        """In the thread that makes the call."""
        self.span, self.trace = spans.begin_call(self.endpoint, self.method)

    def answered(self, answer: wire.Answer) -> None:
        """As `PyCall`, which comes first: nobody is to wait for what is recorded of it."""
        super().answered(answer)
        self._end()

    def ended(self) -> None:
        """As `PyCall`."""
        super().ended()
        self._end()

    def failed(self, error: ErrorInfo) -> None:
        """As `PyCall`."""
        was_over = self.over
        super().failed(error)
        if self.span is not None and not was_over:
            spans.failed(self.span, error)
        self._end()

    def _end(self) -> None:
        span, self.span = self.span, None
        if span is not None:
            spans.end(span)


class TracedConnection(Connection):
    """A connection whose calls are traced."""

    router = TracedRouter
    new_call = TracedCall

    def submit(self, call: Call) -> None:
        """As `Connection`."""
        if isinstance(call, TracedCall):  # unless its handle was connected with another instance meanwhile
            call.begin()
        super().submit(call)
