"""How is a span begun and ended, by OpenTelemetry, as a part of what has travelled here? And what does it say of an error?

Whether something is recorded is decided where its trace begins; what is not costs no span here. A tracer provider may be user code, and
so may be its sampler and its processors: what they raise costs spans, never a request.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState, set_span_in_context

from headgate import __version__
from headgate.errors import ErrorInfo, format_traceback
from headgate.traces.travel import FLAGS_AT, TRACE_BYTES

tracer: Final = api.get_tracer("headgate", __version__)
"""Whose spans go where this process's tracer provider has them go, whenever that is set."""

NOWHERE: Final = Context()
"""What is begun here begins a trace."""
_log = logging.getLogger("headgate.traces")
_told = False


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


def begin(
    name: str,
    above: Context | None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, str | int],
    links: Sequence[Link] = (),
    began_ns: int | None = None,
) -> Span:
    """Begin a span under what `above` says, or with None under the current one; where it can't be made, go on with that, unrecorded."""
    try:
        return tracer.start_span(name, above, kind, attributes, links, began_ns)
    except Exception as error:  # noqa: BLE001 - it may be user code, see above
        _tell(error)
        return NonRecordingSpan(api.get_current_span(above).get_span_context())


def end(span: Span, ended_ns: int | None = None) -> None:
    """End it, now or then."""
    try:
        span.end(ended_ns)
    except Exception as error:  # noqa: BLE001 - as in `begin`
        _tell(error)


@contextlib.contextmanager
def losing_spans_alone() -> Iterator[None]:
    """Where something is said on a span: that it raises is told, and costs nothing else."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - as in `begin`
        _tell(error)


def _tell(error: Exception) -> None:
    """Once in a process: it would be the same for each request."""
    global _told
    if not _told:
        _told = True
        with contextlib.suppress(Exception):  # user code may have hung filters of its own into logging
            _log.error("the tracer provider, or a part of it, raises; spans are lost, and this is said once:\n%s", format_traceback(error))


def begin_call(endpoint: str, method: str) -> tuple[Span | None, bytes]:
    """A call of an endpoint, made by what runs here: its span, unless it isn't recorded, and how that travels."""
    current = api.get_current_span().get_span_context()
    if current.is_valid and not current.trace_flags.sampled:
        return None, to_travel(current)
    attributes = {"headgate.endpoint": endpoint, **({"headgate.method": method} if method else {})}
    span = begin(f"call {endpoint}", None, kind=SpanKind.CLIENT, attributes=attributes)
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
    with losing_spans_alone():
        span.add_event("exception", attributes)
        if is_failure:
            span.set_attribute("error.type", error.kind)
            span.set_status(StatusCode.ERROR, error.message)
