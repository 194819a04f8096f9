"""When does the span of a call by a handle begin and end, and under which?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from opentelemetry import context as contexts
from opentelemetry.trace import SpanKind, set_span_in_context

from headgate.core import wire
from headgate.errors import ErrorInfo, RequestCancelledError
from headgate.router import connections, payload
from headgate.router.call import Call
from headgate.router.handle import Handle
from headgate.router.traced import TracedCall
from headgate.traces import spans, travel
from tests.recorder import SAMPLED, UNSAMPLED, Recorder, context, is_under
from tests.support import FakeConnection


class Traced(FakeConnection):
    new_call = TracedCall  # type: ignore[assignment]  # as a traced connection has it

    def submit(self, call: Call) -> None:
        assert isinstance(call, TracedCall)
        call.begin()
        super().submit(call)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Traced:
    made = Traced()
    monkeypatch.setattr(connections, "of", lambda name: made)
    return made


def frame(body: bytes) -> wire.Frame:
    return wire.Frame(wire.CHUNK, wire.FIRST, 1, 0, 200, 0, 0, b"", body)


def test_it_ends_with_the_answer_and_is_a_clients_under_the_current_one(connection: Traced, recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("mine"):
        reply = Handle("i", "e").options(method_name="run").remote(1)
    (call,) = connection.calls
    assert recorder.names() == ["mine"]
    call.answered(wire.Answer(1, 200, 0, 0, b"", payload.dump("done")))
    assert reply.result() == "done"
    span = recorder.one("call e")
    assert is_under(span, recorder.one("mine"))
    assert span.kind == SpanKind.CLIENT
    assert dict(span.attributes or {}) == {"headgate.endpoint": "e", "headgate.method": "run"}
    assert call.trace == spans.to_travel(context(span))


def test_it_ends_when_the_stream_ends(connection: Traced, recorder: Recorder) -> None:
    reply = Handle("i", "e").remote()
    (call,) = connection.calls
    call.chunk(frame(payload.dump(1)))
    assert next(reply) == 1
    assert recorder.names() == []
    call.ended()
    assert recorder.one("call e").status.is_unset


def test_a_call_that_is_cancelled_or_fails_says_so_once(connection: Traced, recorder: Recorder) -> None:
    reply = Handle("i", "e").remote()
    reply.cancel()
    with pytest.raises(RequestCancelledError):
        reply.result()
    connection.calls[0].failed(ErrorInfo("UnavailableError", "comes too late"))
    span = recorder.one("call e")
    assert not span.status.is_unset
    assert (span.attributes or {})["error.type"] == "RequestCancelledError"
    assert len(span.events) == 1


ENDS: list[Callable[[Call], None]] = [
    lambda call: call.answered(wire.Answer(1, 200, 0, 0, b"", payload.dump("done"))),
    lambda call: call.ended(),
    lambda call: call.failed(ErrorInfo("RequestCancelledError", "gone")),
]
"""All ways."""


def test_who_waits_has_the_answer_before_the_span_ends(connection: Traced, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    over: list[list[bool]] = []
    replies = [Handle("i", "e").remote() for _ in ENDS]
    calls = [call for call in connection.calls if isinstance(call, TracedCall)]
    monkeypatch.setattr(spans, "end", lambda span: over.append([call.over for call in calls]))
    for call, end in zip(calls, ENDS, strict=True):
        end(call)
    assert len(replies) == 3
    assert over == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_tracer_provider_of_the_program_that_raises_costs_spans_and_no_reply(connection: Traced, broken: None) -> None:
    answered, streamed, failed = [Handle("i", "e").remote() for _ in ENDS]
    for call, end in zip(connection.calls, ENDS, strict=True):
        end(call)
    assert answered.result() == "done"
    assert list(streamed) == []
    with pytest.raises(RequestCancelledError):
        failed.result()


def test_under_what_is_not_recorded_there_is_none_and_the_trace_goes_on(connection: Traced, recorder: Recorder) -> None:
    for above in (UNSAMPLED, SAMPLED):
        token = contexts.attach(set_span_in_context(spans.Travelled(above)))
        try:
            Handle("i", "e").remote()
        finally:
            contexts.detach(token)
    unsampled, sampled = connection.calls
    assert unsampled.trace == UNSAMPLED
    assert sampled.trace[: travel.TRACE_BYTES] == SAMPLED[: travel.TRACE_BYTES]
    for call in connection.calls:
        call.answered(wire.Answer(1, 200, 0, 0, b"", payload.dump(None)))
    assert is_under(recorder.one("call e"), SAMPLED)


def test_a_copy_of_a_call_is_never_recorded() -> None:
    assert travel.unsampled(SAMPLED + b"a=1") == SAMPLED[: travel.FLAGS_AT] + b"\0a=1"
    made_up = travel.unsampled(b"")
    assert spans.context_of(made_up).is_valid
    assert not travel.is_sampled(made_up)
