"""What does the span of an HTTP request say, whose is it, and when does it end?"""

from __future__ import annotations

import pytest
from opentelemetry.trace import SpanKind

from headgate.core import wire
from headgate.ingress.traced import TracedExchange
from headgate.router.call import Call
from headgate.traces import travel
from tests.ingress_server import FakeRouter, answer, chunk, echo, error_info, hold, ingress
from tests.recorder import SAMPLED, Recorder, context, is_under
from tests.support import wait_until

PARENT = f"00-{'11' * 16}-{'22' * 8}-01"


def request(line: str, *headers: str, body: str = "") -> bytes:
    length = [f"content-length: {len(body)}"] if body else []
    return "\r\n".join([f"{line} HTTP/1.1", "host: models:8000", *headers, *length, "", body]).encode()


def test_it_is_named_by_method_and_route_and_says_what_the_conventions_for_http_ask_for(recorder: Recorder) -> None:
    def answer_it(router: FakeRouter, call: Call) -> None:
        call.backend = "b"
        call.answered(answer(b"hello", code=201))

    with ingress(answer_it, exchange=TracedExchange) as server, server.client() as client:
        got = client.ask(request("GET /tree/leaf?a=1&sig=secret&b=2", "user-agent: me/1", "x-request-id: mine"))
        assert got.status == 201
    span = recorder.one("GET /tree/")
    assert span.kind == SpanKind.SERVER
    assert span.parent is None
    assert span.status.is_unset
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/tree/",
        "http.response.status_code": 201,
        "url.path": "/tree/leaf",
        "url.query": "a=1&sig=REDACTED&b=2",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "models",
        "server.port": 8000,
        "client.address": "127.0.0.1",
        "user_agent.original": "me/1",
        "headgate.endpoint": "tree",
        "headgate.backend": "b",
        "headgate.request_id": "mine",
    }


def test_a_request_goes_on_with_the_trace_that_it_brings(recorder: Recorder) -> None:
    traces: list[bytes] = []

    def note(router: FakeRouter, call: Call) -> None:
        traces.append(call.trace)
        echo(router, call)

    with ingress(note, exchange=TracedExchange) as server, server.client() as client:
        for _ in range(3):  # the same head again is not parsed again
            client.ask(request("GET /echo", f"traceparent: {PARENT}", "tracestate: a=1", "tracestate: b=2"))
    spans = recorder.named("GET /echo")
    assert len(spans) == 3
    for span, trace in zip(spans, traces, strict=True):
        assert is_under(span, SAMPLED)
        assert dict(context(span).trace_state) == {"a": "1", "b": "2"}
        assert trace[:16] == SAMPLED[:16]
        assert trace[16:24] == context(span).span_id.to_bytes(8)
        assert travel.is_sampled(trace)
        assert trace[25:] == b"a=1,b=2"


def test_of_a_request_that_is_not_recorded_by_who_sent_it_there_is_no_span_and_its_trace_goes_on(recorder: Recorder) -> None:
    traces: list[bytes] = []

    def note(router: FakeRouter, call: Call) -> None:
        traces.append(call.trace)
        echo(router, call)

    with ingress(note, exchange=TracedExchange) as server, server.client() as client:
        client.ask(request("GET /echo", f"traceparent: {PARENT[:-2]}00", "tracestate: a=1"))
    assert recorder.names() == []
    assert traces == [travel.unsampled(SAMPLED) + b"a=1"]


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{'22' * 8}-01",
        f"00-{'11' * 16}-{'0' * 16}-01",
        PARENT.upper().replace("11", "AA"),
        f"ff{PARENT[2:]}",
        f"{PARENT}-x",
    ],
)
def test_a_trace_that_is_none_is_not_followed(recorder: Recorder, parent: str) -> None:
    with ingress(exchange=TracedExchange) as server, server.client() as client:
        client.ask(request("GET /echo", f"traceparent: {parent}"))
    assert recorder.one("GET /echo").parent is None


@pytest.mark.parametrize("state", ["a=1=2", "A=1", "a", f"a={'x' * 600}", "a=é"])
def test_a_state_that_is_none_is_left_out(recorder: Recorder, state: str) -> None:
    with ingress(exchange=TracedExchange) as server, server.client() as client:
        client.ask(request("GET /echo", f"traceparent: {PARENT}", f"tracestate: {state}"))
    span = recorder.one("GET /echo")
    assert is_under(span, SAMPLED)
    assert not context(span).trace_state


def test_what_the_ingress_refuses_has_a_span_and_its_own_pages_have_none(recorder: Recorder) -> None:
    with ingress(exchange=TracedExchange) as server:
        with server.client() as client:
            assert client.ask(request("GET /-/healthz")).status == 200
            assert client.ask(request("GET /nowhere", f"traceparent: {PARENT}")).status == 404
            assert client.ask(request("DELETE /echo")).status == 405
            assert client.ask(request("BREW /echo")).status in (400, 405)
        with server.client() as client:
            assert client.ask(b"GET /echo HTTP/1.1\r\n\r\n").status == 400  # without a host
    found = [(span.name, (span.attributes or {})["http.response.status_code"]) for span in recorder.all()]
    assert ("GET", 404) in found
    assert ("DELETE", 405) in found
    assert ("HTTP", 400) in found
    assert len(found) == 4
    assert is_under(recorder.named("GET")[0], SAMPLED)
    assert all(span.status.is_unset for span in recorder.all())


def test_an_error_is_recorded_on_it_and_fails_it_from_500_on(recorder: Recorder) -> None:
    kinds = iter(["UserCodeError", "BadRequestError"])

    def fail(router: FakeRouter, call: Call) -> None:
        call.failed(error_info(next(kinds), "what happened"))

    with ingress(fail, exchange=TracedExchange) as server, server.client() as client:
        assert [client.ask(request("GET /echo")).status for _ in range(2)] == [500, 400]
    failed, refused = recorder.named("GET /echo")
    assert not failed.status.is_unset
    assert (failed.attributes or {})["error.type"] == "UserCodeError"
    assert refused.status.is_unset
    for span, kind in ((failed, "UserCodeError"), (refused, "BadRequestError")):
        (event,) = span.events
        assert event.attributes is not None
        assert (event.attributes["exception.type"], event.attributes["exception.message"]) == (kind, "what happened")


def test_it_ends_when_the_stream_ends_and_fails_where_that_breaks_off(recorder: Recorder) -> None:
    with ingress(hold, exchange=TracedExchange) as server:
        for is_whole in (True, False):
            with server.client() as client:
                client.send(request("GET /echo"))
                call = server.calls(1 if is_whole else 2)[-1]
                server.call(lambda call=call: call.chunk(chunk(b"one", first=True)))  # type: ignore[misc]
                assert len(recorder.named("GET /echo")) == (0 if is_whole else 1)
                if is_whole:
                    server.call(call.ended)
                else:
                    server.call(lambda call=call: call.failed(error_info("ReplicaDiedError")))  # type: ignore[misc]
                assert client.answer().whole is is_whole
    whole, broken = recorder.named("GET /echo")
    assert whole.status.is_unset
    assert not broken.status.is_unset
    assert (broken.attributes or {})["error.type"] == "ReplicaDiedError"
    assert {(span.attributes or {})["http.response.status_code"] for span in (whole, broken)} == {200}


def test_a_client_that_leaves_ends_it_with_499(recorder: Recorder) -> None:
    with ingress(hold, exchange=TracedExchange) as server:
        with server.client() as client:
            client.send(request("GET /echo"))
            server.calls(1)
        wait_until(lambda: recorder.named("GET /echo"))
    assert (recorder.one("GET /echo").attributes or {})["http.response.status_code"] == 499


def test_a_part_of_the_tracer_provider_that_raises_costs_spans_and_no_answer(broken: None) -> None:
    with ingress(exchange=TracedExchange) as server, server.client() as client:
        got = [client.ask(request(line, f"traceparent: {PARENT}")) for line in ("GET /echo", "GET /nowhere", "GET /echo")]
    assert [answer.status for answer in got] == [200, 404, 200]
    assert {trace[: travel.TRACE_BYTES] for trace in (call.trace for call in server.router.calls)} == {SAMPLED[: travel.TRACE_BYTES]}


def test_where_nothing_is_traced_a_request_is_a_plain_exchange_without_a_trace() -> None:
    calls: list[Call] = []

    def note(router: FakeRouter, call: Call) -> None:
        calls.append(call)
        echo(router, call)

    with ingress(note) as server, server.client() as client:
        client.ask(request("GET /echo", f"traceparent: {PARENT}"))
    assert [call.trace for call in calls] == [b""]
    assert not hasattr(calls[0], "_trace")
    assert wire.Call.__struct_fields__[-1] == "trace"  # so that it can be left out
