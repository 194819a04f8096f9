"""Is what is asked of tracing checked, and does the lot agree with the SDK's sampler?"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from headgate import serve
from headgate.errors import ConfigError
from headgate.traces import begin, spans, travel
from headgate.traces.sampling import Lot, share_of_roots
from headgate.traces.sending import Sending
from tests.support import wait_until


def test_without_the_extra_traces_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin, "_NEEDED", ("opentelemetry", "opentelemetry.missing", "nothing.of_the.kind"))
    with pytest.raises(ConfigError, match=r"pip install '../headgate\[otel\]'"):
        serve.init("never", http_port=0, traces=True)
    assert "never" not in serve.list_instances()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER='zipkin' isn't known here; there are otlp, console, none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL='grpc': spans leave here by http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='http/json'"),
    ],
)
def test_a_variable_that_asks_for_what_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        serve.init("never", http_port=0, traces=True)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "-1"])
@pytest.mark.parametrize("variable", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT"])
def test_a_limit_that_is_none_is_refused_before_it_ends_a_process(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} must be a non-negative integer but got {value}; give it such a number"):
        serve.init("never", http_port=0, traces=True)


def test_also_one_that_the_sdk_reads_when_it_is_imported() -> None:
    program = (
        "from headgate.errors import ConfigError\n"
        "from headgate.traces import begin\n"
        "try:\n"
        "    begin.check()\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "begin.begin('replica', '1').end()"  # as in a process that has other variables than the one that was asked
    )
    environ = {**os.environ, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True, timeout=60)
    says = "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer but got many; give it such a number, or leave it out"
    assert done.stdout.strip() == says
    assert done.stderr.strip() == f"no spans are made in this process: {says}"


def test_a_tracer_provider_by_variable_would_turn_tracing_off_and_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider")
    with pytest.raises(ConfigError, match=r"OTEL_PYTHON_TRACER_PROVIDER='sdk_tracer_provider' stands in the way .* leave it out"):
        serve.init("never", http_port=0, traces=True)


def test_what_the_exporter_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("no such compression")  # as some versions of it do; others log it

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", refuse)
    with pytest.raises(ConfigError, match=r"one of OTEL_EXPORTER_OTLP_\* can't be used: no such compression"):
        serve.init("never", http_port=0, traces=True)


@pytest.mark.parametrize("exporter", ["", "otlp", "console", "none"])
def test_what_the_variables_may_say_is_taken(monkeypatch: pytest.MonkeyPatch, exporter: str) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    begin.check()


def test_nothing_of_opentelemetry_is_imported_where_nothing_is_traced() -> None:
    program = (
        "import sys, headgate.serve, headgate.ingress.main, headgate.replica.main, headgate.router.handle\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_span_travels_and_comes_back_as_it_was() -> None:
    given = SpanContext(0x1234, 0x56, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "1"), ("b@c", "2")]))
    back = spans.context_of(spans.to_travel(given))
    assert (back.trace_id, back.span_id, back.trace_flags, back.is_remote) == (0x1234, 0x56, 1, True)
    assert dict(back.trace_state) == {"a": "1", "b@c": "2"}
    assert travel.trace_id(spans.to_travel(given)) == f"{0x1234:032x}"
    assert spans.to_travel(NonRecordingSpan(SpanContext(0, 0, is_remote=False)).get_span_context()) == b""


@pytest.mark.parametrize(
    ("sampler", "argument", "share"),
    [
        ("", "", None),
        ("parentbased_always_on", "", None),
        ("always_off", "", 0.0),
        ("parentbased_traceidratio", "0.25", 0.25),
        ("traceidratio", "1", 1.0),
        ("traceidratio", "many", None),
        ("traceidratio", "2", None),
        ("jaeger_remote", "", None),
    ],
)
def test_the_share_of_new_traces_is_what_the_variables_say(sampler: str, argument: str, share: float | None) -> None:
    assert share_of_roots({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}) == share


def test_the_lot_decides_as_the_sampler_does_and_once_for_each_trace() -> None:
    lot = Lot(0.3)
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(0.3), id_generator=lot, shutdown_on_exit=False)
    tracer = provider.get_tracer("t")
    sampler = TraceIdRatioBased(0.3)
    recorded, drawn = 0, set()
    for _ in range(1000):
        trace = lot.draw()
        if trace:
            assert not travel.is_sampled(trace)
            assert not sampler.should_sample(None, int.from_bytes(trace[:16]), "").decision.is_sampled()
            drawn.add(trace[:16])
        else:
            span = tracer.start_span("s", spans.NOWHERE)
            assert span.is_recording()  # for it is begun with the id that was drawn
            drawn.add(span.get_span_context().trace_id.to_bytes(16))
            recorded += 1
    assert len(drawn) == 1000
    assert 200 < recorded < 400


class Played(SpanExporter):
    """An exporter whose results the test gives, and that says what is wrong as OpenTelemetry's does."""

    def __init__(self, *results: SpanExportResult) -> None:
        self.results = list(results)
        self.go_on = threading.Event()
        self.is_over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self.results.pop(0) if self.results else None
        if result is None:
            self.go_on.wait(30)
            return SpanExportResult.SUCCESS
        if result is SpanExportResult.FAILURE:
            logging.getLogger(__name__).warning("nobody is there")
        return result

    def shutdown(self) -> None:
        self.is_over = True


def test_that_nothing_can_be_sent_is_said_once_and_once_more_when_it_can(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    sending = Sending(Played(good, bad, bad, bad, good, good, bad))
    hopeless = []
    for _ in range(7):
        sending.export([])
        hopeless.append(sending.is_hopeless)
    assert hopeless == [False, True, True, True, False, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "nobody is there",
        "spans are sent again; those of meanwhile are lost",
        "nobody is there",
    ]


def test_the_end_waits_for_a_receiver_only_where_that_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def tracing(exporter: Played) -> tuple[begin.Tracing, TracerProvider]:
        sending = Sending(exporter)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(sending, schedule_delay_millis=600_000))
        return begin.Tracing(provider, sending), provider

    quick = Played(SpanExportResult.SUCCESS)
    ends, provider = tracing(quick)
    provider.get_tracer("t").start_span("s").end()
    ends.end()
    assert (quick.results, quick.is_over) == ([], True)

    dead = Played(SpanExportResult.FAILURE)
    ends, provider = tracing(dead)
    provider.get_tracer("t").start_span("s").end()
    provider.force_flush()
    ends.end()
    assert not dead.is_over  # it wasn't even asked
    provider.shutdown()

    monkeypatch.setattr(begin, "END_WITHIN_S", 0.01)
    slow = Played()
    ends, provider = tracing(slow)
    provider.get_tracer("t").start_span("s").end()
    ends.end()
    assert not slow.is_over  # it is left to itself
    slow.go_on.set()
    wait_until(lambda: slow.is_over)


def test_where_the_lot_can_not_say_it_draws_nothing_and_ids_are_random() -> None:
    lot = Lot(None)
    assert {lot.draw() for _ in range(10)} == {b""}
    assert len({lot.generate_trace_id() for _ in range(10)}) == 10


def test_ids_are_not_those_of_user_code_that_seeds_its_random_numbers() -> None:
    drawn = []
    for _ in range(2):
        random.seed(0)
        lot = Lot(None)
        drawn += [lot.generate_trace_id(), lot.generate_span_id()]
    assert len(set(drawn)) == 4
