"""Which spans has this process made? OpenTelemetry's SDK, with an exporter that keeps them in memory."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from headgate.traces import spans, travel

SAMPLED = bytes.fromhex("11" * 16 + "22" * 8 + "01")
"""A span of somebody else's, as it travels."""
OTHER = bytes.fromhex("33" * 16 + "44" * 8 + "01")
UNSAMPLED = travel.unsampled(bytes.fromhex("55" * 16 + "66" * 8 + "00"))


class Recorder:
    """What Headgate's own spans, and those of `tracer`, go to."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("tests")

    def all(self) -> list[ReadableSpan]:
        """Those that have ended, by their beginning."""
        return sorted(self._kept.get_finished_spans(), key=lambda span: span.start_time or 0)

    def names(self) -> list[str]:
        return [span.name for span in self.all()]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.named(name)
        assert len(found) == 1, self.names()
        return found[0]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """One of the test's own."""
    recorder = Recorder()
    monkeypatch.setattr(spans, "tracer", recorder.tracer)
    return recorder


class Broken(SpanProcessor):
    """A user's processor that raises, always where a span begins, or where it ends."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.where == "begins":
            raise ZeroDivisionError

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "ends":
            raise ZeroDivisionError


@pytest.fixture(params=["begins", "ends"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever begins or ends a span in this process meets a user's processor that raises."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken(request.param))
    monkeypatch.setattr(spans, "tracer", provider.get_tracer("tests"))
    monkeypatch.setattr(spans, "_told", False)


def context(span: ReadableSpan) -> SpanContext:
    found = span.get_span_context()
    assert found is not None
    return found


def is_under(span: ReadableSpan, above: ReadableSpan | bytes) -> bool:
    """Whether that is its parent."""
    other = spans.context_of(above) if isinstance(above, bytes) else context(above)
    parent = span.parent
    return parent is not None and (parent.trace_id, parent.span_id) == (other.trace_id, other.span_id) == (
        context(span).trace_id,
        parent.span_id,
    )


def linked(span: ReadableSpan) -> set[int]:
    """The ids of the spans that it is linked with."""
    return {link.context.span_id for link in span.links}
