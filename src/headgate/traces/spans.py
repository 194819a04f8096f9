"""How is a span begun, by OpenTelemetry, as a part of what has travelled here? And what does it say of an error?

Whether something is recorded is decided where its trace begins; what is not costs no span here.
"""

from __future__ import annotations

import time
from typing import Final

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, StatusCode, TraceFlags, TraceState, set_span_in_context

from headgate import __version__
from headgate.errors import ErrorInfo
from headgate.traces.travel import FLAGS_AT, TRACE_BYTES

tracer: Final = api.get_tracer("headgate", __version__)
"""Whose spans go where this process's tracer provider has them go, whenever that is set."""

NOWHERE: Final = Context()
"""What is begun here begins a trace."""


def context_of(trace: bytes) -> SpanContext:
    """The span that has travelled here."""
    state = trace[FLAGS_AT + 1 :]
    return SpanContext(
        int.from_bytes(trace[:TRACE_BYTES]),
        int.from_bytes(trace[TRACE_BYTES:FLAGS_AT]),
        is_remote=True,
        trace_flags=TraceFlags(trace[FLAGS_AT]),
        trace_state=TraceState.from_header([state.decode("latin-1")]) if state else None,
    )


class Travelled(NonRecordingSpan):
    """The span that has travelled here, to be a parent. What it is is looked at only where somebody asks."""

    def __init__(self, trace: bytes) -> None:
        self._trace = trace

    def get_span_context(self) -> SpanContext:
        """Its ids and flags."""
        return context_of(self._trace)

    def __repr__(self) -> str:
        return f"Travelled({self._trace!r})"


def under(trace: bytes) -> Context:
    """In which to begin what belongs to the span that has travelled here; where there is none, what begins a trace."""
    return set_span_in_context(Travelled(trace), NOWHERE) if trace else NOWHERE


def to_travel(span: SpanContext) -> bytes:
    """A span as it travels; empty where nothing makes spans in this process."""
    if not span.is_valid:
        return b""
    state = span.trace_state.to_header().encode("latin-1") if span.trace_state else b""
    return span.trace_id.to_bytes(TRACE_BYTES) + span.span_id.to_bytes(FLAGS_AT - TRACE_BYTES) + bytes((span.trace_flags,)) + state


def begin_call(endpoint: str, method: str) -> tuple[Span | None, bytes]:
    """A call of an endpoint, made by what runs here: its span, unless it isn't recorded, and how that travels."""
    current = api.get_current_span().get_span_context()
    if current.is_valid and not current.trace_flags.sampled:
        return None, to_travel(current)
    attributes = {"headgate.endpoint": endpoint, **({"headgate.method": method} if method else {})}
    span = tracer.start_span(f"call {endpoint}", kind=api.SpanKind.CLIENT, attributes=attributes)
    return (span if span.is_recording() else None), to_travel(span.get_span_context())


def clock() -> int:
    """What to add to a time of `time.monotonic()`, in nanoseconds, to have the time of day."""
    return time.time_ns() - time.monotonic_ns()


def at(moment: float, clock: int) -> int:
    """A moment of `time.monotonic()` as spans have it."""
    return int(moment * 1e9) + clock


def failed(span: Span, error: ErrorInfo, *, is_failure: bool = True) -> None:
    """Say on a span what became of a request in place of an answer."""
    attributes = {"exception.type": error.kind, "exception.message": error.message}
    if error.traceback:
        attributes["exception.stacktrace"] = error.traceback
    span.add_event("exception", attributes)
    if is_failure:
        span.set_attribute("error.type", error.kind)
        span.set_status(StatusCode.ERROR, error.message)
