"""Is each call counted once, by what has become of it, and is its time counted where it was spent?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from headgate.core import wire
from headgate.core.labels import REMEMBERED
from headgate.core.messages import EndpointEntry
from headgate.core.reports import CANCELLED, EXPIRED, SHED, EventCount, ReplicaCounters
from tests.data_path.rig import Asked, Rig
from tests.support import until


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scene(), 20)

    uvloop.run(limited())


async def counted(rig: Rig, calls: int) -> ReplicaCounters:
    """What the first replica has counted, once that many calls of user code have been."""
    told = rig.replicas[0].runner.counters
    await until(lambda: told().execution.count >= calls, "the calls are counted")
    return told()


def add(x: Any = None) -> Any:
    return x


async def add_async(x: Any = None) -> Any:
    return x


def stream(x: Any = None) -> Any:
    yield x


def fail(x: Any = None) -> Any:
    raise ValueError(x)


@pytest.mark.parametrize("handler", [add, add_async, stream, fail])
def test_every_call_has_one_time_in_the_queue_and_one_of_execution_however_it_ends(tmp_path: Path, handler: Any):
    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await asyncio.gather(*(rig.ask(1).done for _ in range(5)))
            found = await counted(rig, 5)
            assert (found.queue.count, found.execution.count) == (5, 5)
            assert found.serialisation.count == (5 if handler in (add, add_async) else 0)
            assert (found.batch_wait.count, found.batch_sizes.count) == (0, 0)
            (requests,) = rig.router.counters().requests
            assert (requests.endpoint, requests.backend, requests.status) == ("e", "b", 500 if handler is fail else 200)
            assert requests.count == sum(requests.buckets) == 5

    play(scene)


@pytest.mark.parametrize("handler", [fail, add])
def test_calls_that_fail_are_told_once_with_the_latest_request_and_others_are_not(tmp_path: Path, handler: Any):
    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            for _ in range(3):
                await rig.ask(1).done
            await counted(rig, 3)
            runner = rig.replicas[0].runner
            told = runner.take_failures()
            if handler is add:
                assert told == ()
                return
            (failure,) = told
            assert (failure.kind, failure.error, failure.message, failure.count) == ("UserCodeError", "ValueError", "ValueError: 1", 3)
            assert (failure.backend, failure.endpoint, failure.replica) == ("b", "e", rig.replicas[0].id)
            assert "in fail" in failure.traceback
            assert runner.take_failures() == ()

    play(scene)


def test_an_answer_of_bytes_over_http_has_nothing_to_encode_and_a_record_has(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, lambda request: b"raw" if not request.data else {"json": True}) as rig:
            await rig.ask(web=True).done
            assert (await counted(rig, 1)).serialisation.count == 0
            await rig.ask(web=True, body=b"x").done
            assert (await counted(rig, 2)).serialisation.count == 1

    play(scene)


def test_threads_of_one_replica_lose_no_count(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, add, concurrency=4) as rig:
            await asyncio.gather(*(rig.ask(1).done for _ in range(200)))
            found = await counted(rig, 200)
            assert (found.queue.count, found.execution.count, found.serialisation.count) == (200, 200, 200)

    play(scene)


def test_a_batch_is_one_call_and_each_of_its_members_has_waited_for_it(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, lambda xs: xs, batch=True, max_batch_size=4, batch_wait_timeout=60.0) as rig:
            await rig.linked()
            await asyncio.gather(*(rig.ask(n).done for n in range(8)))
            found = await counted(rig, 2)
            assert (found.batch_sizes.count, found.batch_sizes.sum, found.execution.count) == (2, 8, 2)
            assert (found.queue.count, found.batch_wait.count) == (8, 8)

    play(scene)


def test_a_batch_that_is_split_to_find_its_bad_member_counts_each_call(tmp_path: Path):
    def handler(xs: list[int]) -> list[int]:
        if 2 in xs:
            raise ValueError("bad")
        return xs

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=4, batch_wait_timeout=60.0, idempotent=True) as rig:
            await rig.linked()
            await asyncio.gather(*(rig.ask(n).done for n in range(4)))
            found = await counted(rig, 3)
            assert found.execution.count == found.batch_sizes.count > 2
            assert found.batch_wait.count == 4

    play(scene)


def test_what_is_shed_expired_or_cancelled_is_counted_by_why(tmp_path: Path):
    go_on = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: go_on.wait(10), max_concurrent_queries=1, max_queued_queries=2) as rig:
            await rig.linked()
            late = rig.ask(timeout_s=0.05)
            await until(lambda: late.link is not None and late.link.has_begun(late), "it runs")
            waiting, given_up = rig.ask(), rig.ask()
            await rig.ask().done  # there is no room for it
            rig.router.cancel(given_up)
            await late.done
            go_on.set()
            await waiting.done
            counters = rig.router.counters()
            assert set(counters.events) == {
                EventCount(SHED, "e", "b", "queue full", 1),
                EventCount(CANCELLED, "e", "b", "", 1),
                EventCount(EXPIRED, "e", "b", "running", 1),
            }
            assert {count.status: count.count for count in counters.requests} == {200: 1, 499: 1, 503: 1, 504: 1}

    try:
        play(scene)
    finally:
        go_on.set()


def test_copies_for_shadows_are_counted_apart_by_how_they_end(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, fail) as rig:
            await rig.linked()
            shadowed = EndpointEntry("e", "/e", ("GET",), {"b": 1.0}, {"b": 1.0})
            rig.apply(endpoints={"e": shadowed})
            await rig.ask(1).done
            await until(lambda: rig.router.counters().shadows, "the copy has ended")
            counters = rig.router.counters()
            assert [(count.backend, count.status, count.count) for count in counters.shadows] == [("b", 500, 1)]
            assert [(count.status, count.count) for count in counters.requests] == [(500, 1)]

    play(scene)


def test_a_call_over_http_that_asks_where_its_time_went_is_told(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, lambda request: b"raw") as rig:
            plain, asking = Asked(web=True), Asked(web=True)
            asking.positional = 1
            for call in (plain, asking):
                rig.router.submit(call)
                await call.done
            assert isinstance(plain.frame, wire.Answer)
            assert isinstance(asking.frame, wire.Answer)
            assert asking.frame.meta.startswith(plain.frame.meta + b"server-timing: queue;dur=")
            assert b", execution;dur=" in asking.frame.meta

    play(scene)


def test_what_is_told_can_be_sent(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, add) as rig:
            await rig.ask(1).done
            found = await counted(rig, 1)
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ReplicaCounters) == found

    play(scene)


def test_a_router_that_sees_very_many_endpoints_and_backends_go_keeps_counts_of_the_latest_alone(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, add) as rig:
            await rig.ask(1).done
            shown = 0
            for number in range(1000):
                name, backend = f"e{number}", msgspec.structs.replace(rig.entry(), tag=f"b{number}", replicas=())
                endpoints = {each: EndpointEntry(each, None, (), {tag: 1.0}) for each, tag in (("e", "b"), (name, backend.tag))}
                rig.apply(endpoints=endpoints, backends={"b": rig.entry(), backend.tag: backend})
                await rig.ask(endpoint=name).done  # 503: it has no replica
                counters, before = rig.router.counters(), shown
                shown = sum(count.count for count in counters.requests if count.endpoint in ("e", name, f"e{number - REMEMBERED}"))
                assert shown == min(2 + (number >= REMEMBERED), 3) >= before
                assert len(counters.requests) == len(counters.events) + 1 <= 2 * REMEMBERED + 2
            assert {count.endpoint for count in counters.requests} == {"e", *(f"e{number}" for number in range(999 - 2 * REMEMBERED, 1000))}
            assert rig.router.served()[0] == 1
            rig.apply()
            assert sum(count.count for count in rig.router.counters().requests) == 2 * REMEMBERED + 1

    play(scene)


def test_served_counts_on_when_what_it_was_served_by_is_forgotten(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, add) as rig:
            await asyncio.gather(*(rig.ask(1).done for _ in range(3)))
            before = rig.router.served()
            many = {f"e{number}": EndpointEntry(f"e{number}", None, (), {}) for number in range(2 * REMEMBERED + 1)}
            rig.apply(endpoints=many)
            assert rig.router.counters().requests != ()
            rig.apply(endpoints={})
            assert rig.router.counters().requests == ()
            assert rig.router.served() == (3, pytest.approx(before[1]))

    play(scene)


def test_names_that_callers_make_up_are_counted_under_none(tmp_path: Path):
    async def scene() -> None:
        async with Rig(tmp_path, add) as rig:
            for number in range(20):
                refused = await rig.ask(endpoint=f"made up {number}").done
                assert refused.info.kind == "EndpointRemovedError"
                assert f"made up {number}" in refused.info.message
            (requests,) = rig.router.counters().requests
            assert (requests.endpoint, requests.backend, requests.status, requests.count, sum(requests.buckets)) == ("", "", 404, 20, 20)

    play(scene)
