"""Which spans come of a call on its way from a router through a replica, and what is the current one while user code runs?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import werkzeug.exceptions
from opentelemetry import trace

from headgate.core.messages import EndpointEntry
from headgate.replica.calls import Caller
from headgate.replica.traced import TracedCaller
from headgate.router.context import current_call
from headgate.router.traced import TracedRouter
from tests.data_path import rig as rigs
from tests.data_path.rig import Replica, Rig
from tests.data_path.test_data_path import play
from tests.recorder import OTHER, SAMPLED, UNSAMPLED, Recorder, context, is_under, linked
from tests.support import until


@pytest.fixture(autouse=True)
def _traced(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rigs, "CALLER", TracedCaller)
    monkeypatch.setattr(rigs, "ROUTER", TracedRouter)


def test_a_call_has_a_span_for_its_wait_and_one_for_its_run_which_is_the_current_one_meanwhile(tmp_path: Path, recorder: Recorder) -> None:
    def handler(value: int) -> int:
        with recorder.tracer.start_as_current_span("mine"):
            return value

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask(1, trace=SAMPLED, request_id="the id")
            await call.done
            assert call.value == 1

    play(scene)
    queue, run, mine = recorder.one("queue b"), recorder.one("run b"), recorder.one("mine")
    assert is_under(queue, SAMPLED)
    assert is_under(run, SAMPLED)
    assert is_under(mine, run)
    assert queue.end_time == run.start_time
    assert run.attributes is not None
    assert {name: value for name, value in run.attributes.items() if name != "headgate.replica"} == {
        "headgate.endpoint": "e",
        "headgate.backend": "b",
        "headgate.request_id": "the id",
    }
    assert run.status.is_unset


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_trace_travels_with_its_state_however_large_its_call_is(tmp_path: Path, recorder: Recorder, size: int) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, len) as rig:
            call = rig.ask(b"x" * size, trace=SAMPLED + b"vendor=1")
            await call.done
            assert call.value == size

    play(scene)
    run = recorder.one("run b")
    assert is_under(run, SAMPLED)
    assert dict(context(run).trace_state) == {"vendor": "1"}


def test_calls_that_run_at_the_same_time_have_each_its_own_current_span(tmp_path: Path, recorder: Recorder) -> None:
    everybody = threading.Barrier(3)
    gate = asyncio.Barrier(3)

    def in_threads(value: int) -> int:
        everybody.wait(10)
        with recorder.tracer.start_as_current_span(f"mine {value}"):
            everybody.wait(10)
        return value

    async def in_tasks(value: int) -> int:
        await gate.wait()
        with recorder.tracer.start_as_current_span(f"mine {value}"):
            await gate.wait()
        return value

    async def scene() -> None:
        for handler in (in_threads, in_tasks):
            async with Rig(tmp_path, handler, concurrency=3) as rig:
                calls = [rig.ask(number, trace=SAMPLED, request_id=f"{handler.__name__} {number}") for number in range(3)]
                await asyncio.gather(*(call.done for call in calls))

    play(scene)
    for number in range(3):
        runs = {
            context(run).span_id
            for run in recorder.named("run b")
            if run.attributes and str(run.attributes["headgate.request_id"]).endswith(f" {number}")
        }
        assert {span.parent.span_id for span in recorder.named(f"mine {number}") if span.parent} == runs
        assert len(runs) == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batch_runs_in_the_trace_of_its_first_and_is_linked_with_every_one(tmp_path: Path, recorder: Recorder, is_async: bool) -> None:
    def work(values: list[int]) -> list[int]:
        with recorder.tracer.start_as_current_span("mine"):
            return values

    async def work_async(values: list[int]) -> list[int]:
        return work(values)

    async def scene() -> None:
        async with Rig(tmp_path, work_async if is_async else work, batch=True, max_batch_size=4, batch_wait_timeout=10.0) as rig:
            await rig.linked()
            calls = [rig.ask(number, trace=trace) for number, trace in enumerate((UNSAMPLED, SAMPLED, OTHER, SAMPLED))]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.value for call in calls] == [0, 1, 2, 3]

    play(scene)
    run, batches = recorder.one("run b"), recorder.named("batch b")
    assert sorted(recorder.names()) == ["batch b"] * 3 + ["mine"] + ["queue b"] * 3 + ["run b"]
    assert [is_under(batch, SAMPLED) for batch in batches].count(True) == 2
    assert [is_under(batch, OTHER) for batch in batches].count(True) == 1
    first = next(batch for batch in batches if is_under(run, batch))
    assert is_under(first, SAMPLED)
    assert is_under(recorder.one("mine"), run)
    assert linked(run) == {context(batch).span_id for batch in batches}
    assert [linked(batch) for batch in batches if batch is not first] == [{context(run).span_id}] * 2
    for span in (run, *batches):
        assert span.attributes is not None
        assert span.attributes["headgate.batch.size"] == 4


def test_each_part_of_a_batch_that_is_split_has_a_run_and_only_the_bad_member_has_failed(tmp_path: Path, recorder: Recorder) -> None:
    def work(values: list[int]) -> list[int]:
        if 2 in values:
            raise ValueError("not 2")
        return values

    async def scene() -> None:
        async with Rig(tmp_path, work, batch=True, max_batch_size=4, batch_wait_timeout=10.0, idempotent=True) as rig:
            await rig.linked()
            calls = [rig.ask(number, trace=SAMPLED, request_id=f"id {number}") for number in range(4)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info is None for call in calls] == [True, True, False, True]

    play(scene)
    assert {
        batch.attributes["headgate.request_id"]: batch.status.is_ok or batch.status.is_unset
        for batch in recorder.named("batch b")
        if batch.attributes
    } == {
        "id 0": True,
        "id 1": True,
        "id 2": False,
        "id 3": True,
    }
    runs = recorder.named("run b")
    ids = {str((batch.attributes or {})["headgate.request_id"])[3:]: context(batch).span_id for batch in recorder.named("batch b")}
    of_runs = [sorted(number for number, id in ids.items() if id in linked(run)) for run in runs]
    assert of_runs[0] == ["0", "1", "2", "3"]
    assert ["2"] in of_runs
    for run, members in zip(runs, of_runs, strict=True):
        assert run.status.is_unset is ("2" not in members)


@pytest.mark.parametrize("batch", [False, True])
def test_of_an_unsampled_call_there_are_no_spans_and_its_trace_goes_on(tmp_path: Path, recorder: Recorder, batch: bool) -> None:
    seen: list[bytes] = []

    def handler(value: Any) -> Any:
        found = trace.get_current_span().get_span_context()
        seen.append(found.trace_id.to_bytes(16) + found.span_id.to_bytes(8) + bytes((found.trace_flags,)))
        with recorder.tracer.start_as_current_span("mine"):
            return value

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=batch) as rig:
            await rig.ask(1, trace=UNSAMPLED).done

    play(scene)
    assert seen == [UNSAMPLED]
    assert recorder.names() == []


@pytest.mark.parametrize("batch", [False, True])
def test_where_a_call_has_no_trace_one_begins_with_it_and_logs_know_it(tmp_path: Path, recorder: Recorder, batch: bool) -> None:
    ids: list[tuple[str, ...]] = []

    def handler(value: Any) -> Any:
        call = current_call()
        assert call is not None
        ids.append(call.trace_ids)
        return value

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=batch) as rig:
            await rig.ask(1).done

    play(scene)
    root = recorder.all()[0]
    assert root.parent is None
    assert recorder.names() == (["batch b", "run b"] if batch else ["run b"])
    assert ids == [(f"{context(root).trace_id:032x}",)]


def test_what_user_code_raises_is_on_its_span_and_an_answer_that_it_raises_is_no_failure(tmp_path: Path, recorder: Recorder) -> None:
    def handler(request: Any) -> Any:
        raise werkzeug.exceptions.NotFound if request.args["y"] == "1" else AssertionError

    def broken(value: int) -> int:
        raise LookupError("nothing there")

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask(web=True, trace=SAMPLED)
            await call.done
        async with Rig(tmp_path, broken) as rig:
            call = rig.ask(1, trace=OTHER)
            await call.done
            assert call.info is not None

    play(scene)
    missing, failed = (next(run for run in recorder.named("run b") if is_under(run, above)) for above in (SAMPLED, OTHER))
    assert missing.status.is_unset
    assert [event.attributes["exception.type"] for event in missing.events if event.attributes] == ["werkzeug.exceptions.NotFound"]
    assert not failed.status.is_unset
    assert failed.status.description == "LookupError: nothing there"
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "LookupError"
    (event,) = failed.events
    assert event.attributes is not None
    assert "in broken" in str(event.attributes["exception.stacktrace"])


@pytest.mark.parametrize("is_async", [False, True])
def test_the_run_of_a_stream_ends_with_the_stream(tmp_path: Path, recorder: Recorder, is_async: bool) -> None:
    began: list[int] = []

    def parts() -> Iterator[int]:
        with recorder.tracer.start_as_current_span("mine"):
            yield 1
        began.append(len(recorder.named("run b")))
        yield 2

    async def parts_async() -> AsyncIterator[int]:
        for part in parts():
            yield part

    async def scene() -> None:
        async with Rig(tmp_path, parts_async if is_async else parts) as rig:
            call = rig.ask(trace=SAMPLED)
            await call.done
            assert len(call.chunks) == 2

    play(scene)
    assert began == [0]
    assert is_under(recorder.one("mine"), recorder.one("run b"))


def test_a_run_that_is_cancelled_says_so_and_what_never_starts_has_none(tmp_path: Path, recorder: Recorder) -> None:
    running = threading.Event()

    async def handler(value: int) -> None:
        running.set()
        await asyncio.sleep(60)

    async def scene() -> None:
        async with Rig(tmp_path, handler, concurrency=1) as rig:
            first, second = rig.ask(1, trace=SAMPLED), rig.ask(2, trace=OTHER)
            await until(running.is_set)
            rig.router.cancel(second)
            rig.router.cancel(first)
            await until(lambda: recorder.named("run b"))

    play(scene)
    run = recorder.one("run b")
    assert is_under(run, SAMPLED)
    assert run.attributes is not None
    assert run.attributes["error.type"] == "CancelledError"


def test_nothing_is_recorded_of_copies_for_shadows_nor_of_what_they_ask_for(tmp_path: Path, recorder: Recorder) -> None:
    seen: list[bool] = []

    def handler(value: int) -> int:
        found = trace.get_current_span().get_span_context()
        seen.append(found.is_valid and bool(found.trace_flags.sampled))
        return value

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.linked()
            copies = Replica(tmp_path, handler, rig.config, False)
            entry = msgspec.structs.replace(rig.entry(), tag="copies", replicas=(copies.entry,))
            rig.apply(
                endpoints={"e": EndpointEntry("e", "/e", ("GET",), {"b": 1.0}, {"copies": 1.0})},
                backends={"b": rig.entry(), "copies": entry},
            )
            await until(lambda: rig.router._backends["copies"].dispatcher.window(copies.id), "the copy's replica takes requests")
            for given in (SAMPLED, b""):
                seen.clear()
                await rig.ask(1, trace=given).done
                await until(lambda: len(seen) == 2)
                assert sorted(seen) == [False, True]
            await asyncio.to_thread(copies.close)

    play(scene)
    assert len(recorder.named("run b")) == 2


def test_a_tracer_provider_of_user_code_that_raises_costs_spans_and_no_request(
    tmp_path: Path, broken: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def one_async(value: int) -> int:
        return value

    async def scene() -> None:
        for handler, batch in ((lambda value: value, False), (one_async, False), (lambda values: values, True)):
            async with Rig(tmp_path, handler, batch=batch) as rig:
                for number, given in enumerate((SAMPLED, b"", SAMPLED)):  # what it has raised in goes on
                    call = rig.ask(number, trace=given)
                    await asyncio.wait_for(call.done, 10)
                    assert call.value == number

    play(scene)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "headgate.traces"]
    assert said.startswith("the tracer provider, or a part of it, raises; spans are lost, and this is said once:\nTraceback")
    assert said.endswith("ZeroDivisionError\n")


def test_a_replica_that_does_not_trace_takes_what_a_router_sends_that_does(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rigs, "CALLER", Caller)

    async def scene() -> None:
        async with Rig(tmp_path, lambda value: value) as rig:
            call = rig.ask(7, trace=SAMPLED)
            await call.done
            assert call.value == 7

    play(scene)
    assert recorder.names() == []
