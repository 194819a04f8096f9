"""Is a request one trace, from its client through every process, and does tracing hold up nothing?"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headgate import serve
from headgate.logs.entry import Entry
from headgate.logs.reading import Folder
from headgate.serve import Instance
from tests.otlp_receiver import Received, Receiver, receiver
from tests.recorder import Recorder, context
from tests.support import wait_until

pytestmark = [
    pytest.mark.local_engine("the variables are those of this process"),
    pytest.mark.filterwarnings("ignore:.*over HTTP:UserWarning"),  # handlers for handles take what they like
]

SERVER, CLIENT = 2, 3  # kinds of spans, as they travel
PARENT = f"00-{'11' * 16}-{'22' * 8}-01"
OTHER = f"00-{'33' * 16}-{'44' * 8}-01"


class Outer:
    def __init__(self) -> None:
        self._inner = serve.get_handle("inner")

    def __call__(self, request: serve.Request) -> Any:
        with trace.get_tracer("user").start_as_current_span("mine"):
            return self._inner.remote(int(request.args["value"])).result()


@serve.accept_batch
def inner(values: list[int]) -> list[int]:
    logging.getLogger("mine").warning("in the batch")
    with trace.get_tracer("user").start_as_current_span("deep"):
        return values


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch, taking: Receiver, *, soon: bool = True, **given: Any) -> Iterator[Instance]:
    """An instance whose spans go there: ten times a second, or at the end."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", taking.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100" if soon else "600000")
    with serve.init("traced", http_port=0, traces=True, **given) as instance:
        yield instance


def nested(instance: Instance, **config: Any) -> str:
    """A backend that asks another, which takes batches; returns its URL."""
    instance.create_backend("inner:v1", inner, config=config)
    instance.create_endpoint("inner", backend="inner:v1")
    instance.create_backend("outer:v1", Outer, config={"num_replicas": 2})
    instance.create_endpoint("outer", "/outer", backend="outer:v1")
    return f"{instance.http_url}/outer"


def above(span: Received, others: list[Received]) -> str:
    """The name of its parent."""
    found = [other.name for other in others if other.id == span.parent and other.trace == span.trace]
    return found[0] if found else ""


def test_a_request_is_one_trace_through_all_processes_and_a_batch_is_linked_with_every_members(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as taking, traced(monkeypatch, taking) as instance:
        url = nested(instance, max_batch_size=2, batch_wait_timeout=10.0)
        with ThreadPoolExecutor(2) as pool:
            answers = pool.map(
                lambda given: requests.get(f"{url}?value={given[0]}", headers={"traceparent": given[1]}, timeout=20).text,
                [(1, PARENT), (2, OTHER)],
            )
            assert sorted(answers) == ["1", "2"]
        servers = taking.named("GET /outer", 2)
        runs = taking.named("run inner:v1")
        taking.named("run outer:v1", 2)  # what was in it has ended before
        taking.named("batch inner:v1", 2)
        spans = taking.spans()
    assert {(span.parent, span.trace) for span in servers} == {("22" * 8, "11" * 16), ("44" * 8, "33" * 16)}
    (run,) = runs
    for of in ("11" * 16, "33" * 16):
        found = {span.name: above(span, spans) for span in spans if span.trace == of}
        is_first = run.trace == of
        assert found == {
            "GET /outer": "",
            "queue outer:v1": "GET /outer",
            "run outer:v1": "GET /outer",
            "mine": "run outer:v1",
            "call inner": "mine",
            "queue inner:v1": "call inner",
            "batch inner:v1": "call inner",
            **({"run inner:v1": "batch inner:v1", "deep": "run inner:v1"} if is_first else {}),
        }
    batches = [span for span in spans if span.name == "batch inner:v1"]
    assert sorted(run.links) == sorted(span.id for span in batches)
    assert [span.links for span in batches if span.trace != run.trace] == [[run.id]]
    assert {span.kind for span in servers} == {SERVER}
    assert {span.kind for span in spans if span.name == "call inner"} == {CLIENT}
    assert {span.process["headgate.role"] for span in servers} == {"ingress"}
    assert (run.process["headgate.role"], run.process["headgate.backend"], run.process["service.name"]) == (
        "replica",
        "inner:v1",
        "headgate",
    )
    assert all(span.begin_ns <= span.end_ns for span in spans)


def test_a_call_by_a_handle_is_a_part_of_what_its_program_is_at(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    with receiver() as taking, traced(monkeypatch, taking) as instance:
        nested(instance)
        handle = instance.get_handle("inner")
        with recorder.tracer.start_as_current_span("mine"):
            assert handle.remote(1).result() == 1
        reply = handle.options(method_name="missing").remote(1)
        with pytest.raises(LookupError):
            reply.result()
        (run,) = taking.named("run inner:v1")
        (batch,) = taking.named("batch inner:v1")
    called, failed = recorder.named("call inner")
    mine = context(recorder.one("mine"))
    assert called.parent is not None
    assert called.parent.span_id == mine.span_id
    assert (batch.parent, run.parent) == (f"{context(called).span_id:016x}", batch.id)
    assert run.trace == f"{mine.trace_id:032x}"
    assert not failed.status.is_unset
    assert (failed.attributes or {})["error.type"] == "NotFoundError"


def test_what_is_not_sampled_where_it_begins_is_sampled_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with receiver() as taking:
        with traced(monkeypatch, taking, soon=False) as instance:
            url = nested(instance)
            assert [requests.get(f"{url}?value={number}", timeout=20).text for number in range(5)] == list("01234")
            assert requests.get(f"{url}?value=7", headers={"traceparent": PARENT}, timeout=20).text == "7"  # decided elsewhere
        spans = taking.spans()
    assert {span.trace for span in spans} == {"11" * 16}
    assert sorted(span.name for span in spans) == sorted(
        ["GET /outer", "queue outer:v1", "run outer:v1", "mine", "call inner", "queue inner:v1", "batch inner:v1", "run inner:v1", "deep"]
    )
    assert {(span.process["service.name"], span.process["deployment.environment.name"]) for span in spans} == {("digits", "test")}


class Killed:
    def __call__(self, request: serve.Request) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_where_a_replica_is_killed_the_span_of_the_request_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as taking:
        with traced(monkeypatch, taking, soon=False) as instance:
            instance.create_backend("killed:v1", Killed)
            instance.create_endpoint("killed", "/killed", backend="killed:v1")
            assert requests.get(f"{instance.http_url}/killed", timeout=20).status_code == 502
        (span,) = taking.spans()
    assert span.name == "GET /killed"
    assert span.failed
    assert span.attributes["error.type"] == "ReplicaDiedError"
    assert [event["exception.type"] for event in span.events] == ["ReplicaDiedError"]
    assert span.attributes["http.response.status_code"] == 502


class KilledOnce:
    def __init__(self, mark: str) -> None:
        self._mark = Path(mark)

    def __call__(self, request: serve.Request) -> str:
        if not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"


def test_what_runs_again_after_a_death_runs_in_the_same_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with receiver() as taking:
        with traced(monkeypatch, taking, soon=False) as instance:
            instance.create_backend("again:v1", KilledOnce, str(tmp_path / "mark"), config={"idempotent": True, "num_replicas": 2})
            instance.create_endpoint("again", "/again", backend="again:v1")
            assert requests.get(f"{instance.http_url}/again", timeout=20).text == "done"
        spans = taking.spans()
    assert {span.name: (above(span, spans), span.failed) for span in spans} == {
        "GET /again": ("", False),
        "queue again:v1": ("GET /again", False),
        "run again:v1": ("GET /again", False),
    }


def test_a_replica_that_ends_around_a_copy_for_a_shadow_has_sent_its_spans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def held(value: int) -> int:
        if value:
            (tmp_path / "began").touch()
            wait_until((tmp_path / "go").exists, 60)
        return value

    with receiver() as taking:
        with traced(monkeypatch, taking, soon=False) as instance:
            instance.create_backend("held:v1", held)
            instance.create_backend("other:v1", lambda value: value)
            instance.create_endpoint("held", backend="held:v1")
            instance.create_endpoint("copied", backend="other:v1")
            instance.shadow_traffic("copied", "held:v1", 1.0)
            assert instance.get_handle("held").remote(0).result(10) == 0
            assert instance.get_handle("copied").remote(1).result(10) == 1
            wait_until((tmp_path / "began").exists)
        assert len(taking.named("run held:v1")) == 1


def test_what_streams_and_what_is_cancelled_ends_its_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as taking, traced(monkeypatch, taking) as instance:
        instance.create_backend("waits:v1", Waits)
        instance.create_endpoint("waits", "/waits", backend="waits:v1")
        with requests.get(f"{instance.http_url}/waits", stream=True, timeout=20) as got:
            assert next(got.iter_content(3)) == b"one"
            assert not [span for span in taking.spans() if span.name != "queue waits:v1"]
        (run,) = taking.named("run waits:v1")
        (span,) = taking.named("GET /waits")
    assert span.attributes["http.response.status_code"] == 499
    assert run.attributes["error.type"] == "CancelledError"


class Waits:
    async def __call__(self, request: serve.Request) -> Any:
        import asyncio

        yield "one"
        await asyncio.sleep(60)


def test_a_receiver_that_is_slow_or_dead_holds_up_neither_requests_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "32")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and doesn't listen
        dead = Receiver(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with receiver(lambda: go_on.wait(60)) as slow:
            for taking in (slow, dead):
                with traced(monkeypatch, taking) as instance:
                    url = nested(instance)
                    with requests.Session() as session:
                        assert {session.get(f"{url}?value=3", timeout=20).text for _ in range(100)} == {"3"}
                    began = time.monotonic()
                assert time.monotonic() - began < 15  # not the 30 s that the SDK would wait in each process
                assert taking.spans() == []
            go_on.set()


class WithItsOwn:
    """Has configured OpenTelemetry for itself."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        trace.set_tracer_provider(provider)

    def __call__(self, request: serve.Request) -> list[str]:
        return [span.name for span in self._kept.get_finished_spans()]


def test_user_code_keeps_the_tracer_provider_that_it_has_set_and_its_replicas_spans_go_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as taking, traced(monkeypatch, taking) as instance:
        instance.create_backend("own:v1", WithItsOwn)
        instance.create_endpoint("own", "/own", backend="own:v1")
        found = [requests.get(f"{instance.http_url}/own", timeout=20).json() for _ in range(2)]
        taking.named("GET /own", 2)
        names = {span.name for span in taking.spans()}
    assert found == [["queue own:v1"], ["queue own:v1", "run own:v1", "queue own:v1"]]
    assert names == {"GET /own"}


def test_without_a_receiver_spans_can_be_read_in_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with serve.init("traced", http_port=0, traces=True, log_dir=tmp_path) as instance:
        url = nested(instance)
        assert requests.get(f"{url}?value=1", headers={"traceparent": PARENT}, timeout=20).text == "1"
    folder = Folder(str(tmp_path))
    found = [json.loads(entry.text) for entry in folder.read() if entry.stream == "stdout"]
    folder.close()
    assert {span["name"] for span in found} >= {"run outer:v1", "mine", "call inner", "run inner:v1"}
    assert {span["context"]["trace_id"] for span in found} == {f"0x{'11' * 16}"}
    assert '"name": "GET /outer"' in "".join(path.read_text() for path in tmp_path.glob("ingress-*.log"))


def test_opentelemetrys_own_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with receiver() as taking:
        with traced(monkeypatch, taking) as instance:
            url = nested(instance)
            for headers in ({}, {"traceparent": PARENT}):
                assert requests.get(f"{url}?value=1", headers=headers, timeout=20).text == "1"
            assert instance.get_handle("inner").remote(2).result() == 2
        assert taking.requests == 0


def test_lines_of_the_log_name_the_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with receiver() as taking, traced(monkeypatch, taking, log_dir=tmp_path, access_log=True) as instance:
        requests.get(f"{nested(instance)}?value=1", headers={"traceparent": PARENT}, timeout=20)
        (span,) = taking.named("GET /outer")
        folder = Folder(str(tmp_path))
        entries: list[Entry] = []

        def all_there() -> bool:
            entries.extend(folder.read())
            return len(entries) >= 2

        wait_until(all_there)
        folder.close()
    said, access = sorted(entries, key=lambda entry: entry.http is not None)
    assert (said.text, said.trace_ids) == ("in the batch", ("11" * 16,))
    assert (access.request_ids, access.trace_ids) == ((span.attributes["headgate.request_id"],), ("11" * 16,))
    assert f'"trace_id":"{"11" * 16}"' in "".join(path.read_text() for path in tmp_path.glob("replica-*.log"))
