"""Router, links and replica together: every call ends exactly once, as the contract says."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import uvloop
import werkzeug.exceptions

from headgate.config import BackendConfig
from headgate.core import wire
from headgate.core.messages import BrokenReplica, Idle, ReplicaEntry
from headgate.replica.links import Links, ReplicaLink
from headgate.router import payload
from headgate.router.channel import Channel
from headgate.router.context import context
from headgate.router.link import Link
from headgate.router.remote import Gate
from tests.data_path.rig import Asked, Replica, Rig
from tests.support import until

Scene = Callable[[], Coroutine[Any, Any, None]]


def play(scene: Scene) -> None:
    """Run a scene on a loop of its own, with a limit."""

    async def limited() -> None:
        await asyncio.wait_for(scene(), 20)

    uvloop.run(limited())


def test_a_python_call_gets_its_value(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda x, y=1: x + y) as rig:
            call = rig.ask(40, kwargs={"y": 2})
            await call.done
            assert call.value == 42

    play(scene)


def test_an_http_call_gets_status_header_lines_and_body(tmp_path: Path) -> None:
    def handler(request: Any) -> dict[str, str]:
        return {"got": request.data.decode(), "path": request.path}

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask(web=True, body=b"hello")
            await call.done
            assert call.frame is not None
            assert call.frame.code == 200
            assert call.frame.meta == b"content-type: application/json\r\n"
            assert call.frame.body == b'{"got":"hello","path":"/x"}'

    play(scene)


def test_a_thousand_calls_in_flight_get_their_own_answers(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda x: x * 2, replicas=3) as rig:
            calls = [rig.ask(number) for number in range(1000)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.value for call in calls] == [number * 2 for number in range(1000)]
            assert rig.router.active == 0

    play(scene)


def test_a_large_body_arrives_whole_both_ways(tmp_path: Path) -> None:
    body = bytes(range(256)) * 40_000

    async def scene() -> None:
        async with Rig(tmp_path, lambda request: request.data[::-1]) as rig:
            calls = [rig.ask(web=True, body=body), rig.ask(web=True, body=b"ab"), rig.ask(web=True, body=[body, b"end"])]
            await asyncio.gather(*(call.done for call in calls))
            assert [bytes(call.frame.body) for call in calls if call.frame] == [body[::-1], b"ba", b"dne" + body[::-1]]

    play(scene)


def test_what_user_code_raises_is_that_calls_failure_alone(tmp_path: Path) -> None:
    def handler(x: int) -> int:
        if x == 1:
            raise KeyError("one")
        return x

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            calls = [rig.ask(number) for number in range(3)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info is None for call in calls] == [True, False, True]
            info = calls[1].info
            assert info is not None
            assert info.kind == "UserCodeError"
            assert "KeyError" in info.message
            assert "raise KeyError" in info.traceback
            assert "headgate/replica" not in info.traceback

    play(scene)


class _NoTextError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class _NoPickleError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class _NoCauseError(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]  # that is the point
        raise RuntimeError("no cause")


class _NoHeaders(werkzeug.exceptions.HTTPException):
    code = 418

    def get_headers(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("mine")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_batch", [False, True])
def test_an_exception_that_can_not_be_told_is_that_calls_failure_alone(tmp_path: Path, is_async: bool, is_batch: bool) -> None:
    kinds: list[type[Exception]] = [_NoTextError, _NoPickleError, _NoCauseError, _NoHeaders]

    def handler(number: Any) -> Any:
        if is_batch:
            return [kinds[number[0]]()]
        raise kinds[number]

    async def handler_async(number: Any) -> Any:
        return handler(number)

    async def scene() -> None:
        async with Rig(tmp_path, handler_async if is_async else handler, batch=is_batch) as rig:
            calls = [rig.ask(number) for number in range(len(kinds))]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info.kind for call in calls if call.info] == ["UserCodeError"] * len(kinds)
            assert calls[0].info is not None
            assert "_NoTextError" in calls[0].info.message
            await until(lambda: rig.replicas[0].links.settled)

    play(scene)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_http_exception_whose_own_methods_raise_is_500(tmp_path: Path, is_async: bool) -> None:
    def handler() -> Any:
        raise _NoHeaders

    async def handler_async() -> Any:
        raise _NoHeaders

    async def scene() -> None:
        async with Rig(tmp_path, handler_async if is_async else handler) as rig:
            for _ in range(2):
                call = rig.ask(web=True)
                await call.done
                assert call.info is not None
                assert (call.info.kind, call.info.status) == ("UserCodeError", 500)

    play(scene)


@pytest.mark.parametrize("is_async", [False, True])
def test_what_can_not_be_logged_is_answered_all_the_same(tmp_path: Path, is_async: bool) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise AttributeError("a filter of user code")

    def handler() -> None:
        raise ValueError("no")

    async def handler_async() -> None:
        raise ValueError("no")

    async def scene() -> None:
        async with Rig(tmp_path, handler_async if is_async else handler) as rig:
            for _ in range(2):
                call = rig.ask()
                await call.done
                assert call.info is not None
                assert "ValueError" in call.info.message

    log = logging.getLogger("headgate.replica")
    log.addFilter(refuse)
    try:
        play(scene)
    finally:
        log.removeFilter(refuse)


class _Unreadable:
    """An argument that raises when it is opened."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def __reduce__(self) -> Any:
        return _raise, (self._kind,)


def _raise(kind: type[BaseException]) -> None:
    raise kind


class _Unsendable:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_async", [False, True])
def test_one_bad_item_fails_alone_whatever_it_raises_when_it_is_opened_or_encoded(tmp_path: Path, is_async: bool) -> None:
    def handler(x: list[Any]) -> list[Any]:
        return [_Unsendable() if value == 1 else value for value in x]

    async def handler_async(x: list[Any]) -> list[Any]:
        return handler(x)

    async def scene() -> None:
        async with Rig(tmp_path, handler_async if is_async else handler, batch=True, max_batch_size=4, batch_wait_timeout=5.0) as rig:
            calls = [rig.ask(value) for value in (0, 1, _Unreadable(KeyboardInterrupt), 3)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info is None for call in calls] == [True, False, False, True]

    play(scene)


def test_a_method_that_is_not_listed_is_never_called_over_http(tmp_path: Path) -> None:
    called: list[str] = []
    methods = {"": lambda: "call", "listed": lambda: "listed", "other": lambda: called.append("other")}

    async def scene() -> None:
        async with Rig(tmp_path, methods, http_methods=("listed",)) as rig:
            calls = [rig.ask(web=True, method=name) for name in ("", "listed", "other", "__init__", "__class__")]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info.status if call.info else 200 for call in calls] == [200, 200, 400, 400, 400]
            python = rig.ask(method="other")
            await python.done
            assert python.info is None

    play(scene)
    assert called == ["other"]


def test_queued_work_that_is_out_of_time_never_starts(tmp_path: Path) -> None:
    started: list[int] = []
    let_go = threading.Event()

    def handler(x: int) -> None:
        started.append(x)
        let_go.wait(10)

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            first = rig.ask(0)
            await until(lambda: started)
            late = [rig.ask(number, timeout_s=0.05) for number in (1, 2)]
            await asyncio.gather(*(call.done for call in late))
            assert [call.info.kind for call in late if call.info] == ["DeadlineExceededError"] * 2
            assert "never started" in (late[1].info.message if late[1].info else "")
            let_go.set()
            await first.done
            last = rig.ask(3)
            await last.done
            assert last.info is None

    play(scene)
    assert started == [0, 3]


def test_a_running_call_that_is_out_of_time_gets_504_and_its_place_back_later(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda x: let_go.wait(10) if x else None) as rig:
            call = rig.ask(1, timeout_s=0.02)
            await call.done
            assert call.info is not None
            assert call.info.status == 504
            let_go.set()
            after = rig.ask(0)
            await after.done
            assert after.info is None

    play(scene)


def test_cancelled_work_that_has_not_started_never_does(tmp_path: Path) -> None:
    started: list[int] = []
    let_go = threading.Event()

    def handler(x: int) -> None:
        started.append(x)
        let_go.wait(10)

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            first = rig.ask(0)
            await until(lambda: started)
            second, third = rig.ask(1), rig.ask(2)
            rig.router.cancel(second)
            let_go.set()
            await asyncio.gather(first.done, third.done)
            assert not second.done.done()
            assert rig.router.active == 0

    play(scene)
    assert started == [0, 2]


def test_async_user_code_is_cancelled_when_nobody_waits(tmp_path: Path) -> None:
    events: list[str] = []

    async def handler() -> None:
        events.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask()
            await until(lambda: events == ["started"])
            rig.router.cancel(call)
            await until(lambda: events == ["started", "cancelled"])

    play(scene)


def test_sync_user_code_can_ask_whether_it_was_cancelled(tmp_path: Path) -> None:
    seen = threading.Event()
    started = threading.Event()

    def handler() -> None:
        started.set()
        until_s = time.monotonic() + 10
        while not context.cancelled() and time.monotonic() < until_s:
            time.sleep(0.001)
        if context.cancelled():
            seen.set()

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask()
            await until(started.is_set)
            rig.router.cancel(call)
            await until(seen.is_set)

    play(scene)


def test_async_calls_run_side_by_side_up_to_concurrency(tmp_path: Path) -> None:
    running, most = 0, 0
    gate = asyncio.Event()

    async def handler() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 7:
            gate.set()
        await gate.wait()
        running -= 1

    async def scene() -> None:
        async with Rig(tmp_path, handler, concurrency=7) as rig:
            calls = [rig.ask() for _ in range(20)]
            await asyncio.gather(*(call.done for call in calls))

    play(scene)
    assert most == 7


def test_a_changed_concurrency_is_followed_at_once_while_calls_run(tmp_path: Path) -> None:
    gates = [threading.Event() for _ in range(6)]
    started: list[int] = []
    running: set[int] = set()
    at_once: dict[int, int] = {}

    def handler(number: int) -> None:
        running.add(number)
        at_once[number] = len(running)
        started.append(number)
        gates[number].wait(10)
        running.discard(number)

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:

            async def follow(concurrency: int) -> None:
                rig.config = BackendConfig(concurrency=concurrency)
                replica, told = rig.replicas[0], threading.Event()
                replica.io_loop.call_soon_threadsafe(replica.runner.configure, rig.config)
                replica.io_loop.call_soon_threadsafe(told.set)
                rig.apply()
                await until(told.is_set)

            calls = [rig.ask(0)]
            await until(lambda: started == [0])
            await follow(3)
            calls += [rig.ask(number) for number in (1, 2, 3, 4, 5)]
            await until(lambda: sorted(started) == [0, 1, 2])
            await follow(1)
            gates[1].set()
            gates[2].set()
            await asyncio.gather(calls[1].done, calls[2].done)
            gates[0].set()
            await calls[0].done
            for place in (3, 4, 5):
                await until(lambda: len(started) > place)  # noqa: B023  # it is called here
                gates[started[place]].set()
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info for call in calls] == [None] * 6
            assert [at_once[number] for number in (3, 4, 5)] == [1, 1, 1]  # one at a time again

    play(scene)


def test_a_health_check_waits_for_a_free_thread_of_a_pool_and_holds_up_no_call(tmp_path: Path) -> None:
    let_go, entered = threading.Event(), threading.Event()
    checked = threading.Event()

    def handler(wait: bool) -> None:
        if wait:
            entered.set()
            assert let_go.wait(10)

    async def scene() -> None:
        async with Rig(tmp_path, {"": handler, "check_health": checked.set}, concurrency=2) as rig:
            replica = rig.replicas[0]
            long = rig.ask(True)
            await until(entered.is_set)
            replica.io_loop.call_soon_threadsafe(replica.runner.check_health)
            await until(checked.is_set)
            await asyncio.wait_for(rig.ask(False).done, 5)
            assert not long.done.done()
            let_go.set()
            await long.done

    play(scene)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_health_check_that_does_not_return_is_told(tmp_path: Path, is_async: bool) -> None:
    let_go = threading.Event()

    def check() -> None:
        let_go.wait(10)

    async def check_async() -> None:
        while not let_go.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.001)

    async def answer_async() -> None: ...

    def answer() -> None: ...

    methods: dict[str, Callable[..., Any]] = {"": answer, "check_health": check}
    if is_async:
        methods = {"": answer_async, "check_health": check_async}

    async def scene() -> None:
        async with Rig(tmp_path, methods, health_check_timeout=0.05) as rig:
            replica = rig.replicas[0]

            def told() -> bool:
                replica.io_loop.call_soon_threadsafe(replica.runner.check_health)
                return "has not returned" in replica.runner.unhealthy

            await until(told)
            let_go.set()

    play(scene)


def test_a_health_check_that_waits_behind_a_long_call_on_the_event_loop_is_not_taken_for_stuck(tmp_path: Path) -> None:
    checks: list[str] = []

    async def check() -> None:
        checks.append("begun")
        await asyncio.sleep(0.02)
        checks.append("ended")

    async def handler() -> None:
        time.sleep(0.5)  # noqa: ASYNC251 - user code that holds its loop is what this is about

    async def scene() -> None:
        async with Rig(tmp_path, {"": handler, "check_health": check}, health_check_timeout=0.2) as rig:
            replica = rig.replicas[0]
            replica.io_loop.call_soon_threadsafe(replica.runner.check_health)
            await until(lambda: checks)
            await rig.ask().done
            await until(lambda: "ended" in checks and replica.runner._checking_since is None)
            assert replica.runner.unhealthy == ""

    play(scene)


def test_a_full_queue_refuses_with_a_time_to_retry(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda x: let_go.wait(10), max_queued_queries=2) as rig:
            await rig.linked()
            calls = [rig.ask(number) for number in range(4)]
            await calls[3].done
            info = calls[3].info
            assert info is not None
            assert (info.kind, info.status, info.reason) == ("QueueFullError", 503, "queue full")
            assert info.retry_after_s is not None
            assert info.retry_after_s > 0
            let_go.set()
            await asyncio.gather(*(call.done for call in calls[:3]))
            assert [call.info for call in calls[:3]] == [None] * 3

    play(scene)


def test_the_first_that_would_wait_too_long_is_refused_on_arrival_and_the_first_that_would_not_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, real, took_s = threading.Event(), time.monotonic, 0.0
    monkeypatch.setattr("headgate.replica.calls.monotonic", lambda: real() + took_s)

    def handler(first: bool) -> None:
        nonlocal took_s
        if first:
            took_s = 2.0
        else:
            let_go.wait(10)

    async def scene() -> None:
        nonlocal took_s
        async with Rig(tmp_path, handler) as rig:
            await rig.ask(True).done
            took_s = 0.0
            running = rig.ask(False)
            late = rig.ask(False, timeout_s=0.5)
            assert late.info is not None
            assert (late.info.kind, late.info.reason) == ("UnavailableError", "deadline")
            assert 1.9 < (late.info.retry_after_s or 0.0) <= 2.1
            rig.router.now = lambda: real() + 1.8
            in_time = rig.ask(False, timeout_s=1.8 + 0.5)
            let_go.set()
            await asyncio.gather(running.done, in_time.done)
            assert (running.info, in_time.info) == (None, None)

    play(scene)


def test_unknown_endpoints_and_endpoints_without_traffic_are_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda: None) as rig:
            unknown = rig.ask(endpoint="nobody")
            rig.apply(endpoints={"e": msgspec.structs.replace(rig.router.table.endpoints["e"], weights={})})
            idle = rig.ask()
            assert [call.info.status for call in (unknown, idle) if call.info] == [404, 503]

    play(scene)


def test_calls_wait_for_a_replica_that_is_starting_and_are_refused_when_none_is(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda: "ready") as rig:
            entry = rig.entry()
            rig.apply(backends={"b": msgspec.structs.replace(entry, replicas=(), starting=1)})
            waiting = rig.ask()
            assert not waiting.done.done()
            rig.apply()
            await waiting.done
            assert waiting.value == "ready"
            rig.apply(backends={"b": msgspec.structs.replace(entry, replicas=(), starting=0, pause_s=20.0)})
            refused = rig.ask()
            assert refused.info is not None
            assert refused.info.reason == "no replica"
            assert 15.0 < (refused.info.retry_after_s or 0.0) <= 20.0

    play(scene)


def test_a_request_that_comes_too_late_for_the_replicas_that_are_there_waits_where_another_is_on_its_way(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda x: time.sleep(0.3)) as rig:
            await rig.ask(0).done  # so that it is known how long a call takes
            runs = rig.ask(1)
            refused = rig.ask(2, timeout_s=0.1)
            assert refused.info is not None
            assert refused.info.reason == "deadline"
            rig.apply(backends={"b": msgspec.structs.replace(rig.entry(), starting=1)})
            waits = rig.ask(3, timeout_s=0.1)
            assert waits.info is None
            await asyncio.gather(runs.done, waits.done)

    play(scene)


def test_calls_to_a_backend_that_leaves_are_counted_until_they_have_ended(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: let_go.wait(10)) as rig:
            await rig.linked()
            call = rig.ask()
            rig.apply(endpoints={}, backends={}, leaving={"b": rig.entry()})
            assert [(depth.backend, depth.in_flight) for depth in rig.router.counters().queues] == [("b", 1)]
            rig.apply(endpoints={}, backends={})
            assert [(depth.backend, depth.in_flight) for depth in rig.router.counters().queues] == [("b", 1)]
            let_go.set()
            await call.done
            await until(lambda: not rig.router.counters().queues, "it is forgotten")

    play(scene)


def test_a_removed_replica_answers_what_it_has_and_gets_nothing_new(tmp_path: Path) -> None:
    let_go = threading.Event()
    ran: list[str] = []

    def handler(name: str) -> None:
        ran.append(name)
        if name == "first":
            let_go.wait(10)

    async def scene() -> None:
        async with Rig(tmp_path, handler, replicas=2) as rig:
            await rig.linked()
            first = rig.ask("first")
            await until(lambda: ran)
            busy = next(replica for replica in rig.replicas if first.link is not None and replica.id == first.link.replica)
            entry = rig.entry()
            rest = tuple(replica for replica in entry.replicas if replica.id != busy.id)
            rig.apply(backends={"b": msgspec.structs.replace(entry, replicas=rest)})
            second = rig.ask("second")
            await second.done
            let_go.set()
            await first.done
            assert (first.info, second.info) == (None, None)
            await until(lambda: not busy.links.all)  # its link is closed once it has nothing left

    play(scene)


def test_a_removed_replica_that_is_listed_again_while_it_has_calls_takes_new_ones(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def handler(x: int) -> int:
        began.set()
        assert x == 0 or go.wait(10)
        return x

    async def scenario() -> None:
        async with Rig(tmp_path, handler, request_timeout=None) as rig:
            await rig.linked()
            first = rig.ask(1)
            await asyncio.to_thread(began.wait, 10)
            rig.apply(backends={"b": msgspec.structs.replace(rig.entry(), replicas=(), starting=1)})
            second = rig.ask(0)
            rig.apply()
            go.set()
            await first.done
            await second.done
            assert (first.value, second.value) == (1, 0)

    play(scenario)


def test_a_removed_endpoint_is_idle_once_its_calls_are_answered(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: let_go.wait(10)) as rig:
            call = rig.ask()
            rig.apply(endpoints={})
            idle = [message for message in rig.reported if isinstance(message, Idle)]
            assert idle[-1].except_endpoints == ("e",)
            let_go.set()
            await call.done
            assert call.info is None
            await until(lambda: [m for m in rig.reported if isinstance(m, Idle)][-1] == Idle(rig.version))

    play(scene)


@pytest.mark.parametrize("what", ["the endpoint", "the backend", "the replica", "everything", "the router"])
def test_nothing_that_leaves_waits_for_a_copy_for_a_shadow(tmp_path: Path, what: str) -> None:
    began, let_go = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        let_go.wait(10)

    async def scene() -> None:
        async with Rig(tmp_path, lambda: None) as rig:
            shadow = Replica(tmp_path, slow, rig.config, False)
            backends = {"b": rig.entry(), "s": msgspec.structs.replace(rig.entry(), tag="s", replicas=(shadow.entry,))}
            endpoints = {"e": msgspec.structs.replace(rig.router.table.endpoints["e"], shadows={"s": 1.0})}
            rig.apply(endpoints=endpoints, backends=backends)
            await until(lambda: rig.router._backends["s"].dispatcher.window(shadow.id))
            await rig.ask().done
            await until(began.is_set)
            assert rig.router.active == 0
            assert [queue.in_flight for queue in rig.router.counters().queues] == [0, 0]
            if what == "the endpoint":
                rig.apply(endpoints={}, backends=backends)
            elif what == "the backend":
                rig.apply()
            elif what == "the replica":
                backends["s"] = msgspec.structs.replace(backends["s"], replicas=(), starting=1)
                rig.apply(endpoints=endpoints, backends=backends)
            elif what == "everything":
                rig.apply(endpoints=endpoints, backends=backends, closing=True)
            else:
                await rig.router.close(10)
            if what != "the router":
                assert [message for message in rig.reported if isinstance(message, Idle)][-1] == Idle(rig.version)
            await until(lambda: shadow.links.settled and shadow.runner.only_shadows)
            let_go.set()
            await asyncio.to_thread(shadow.close)

    play(scene)


# Streams.


def test_calls_wait_for_the_replica_of_a_deleted_backend_and_are_refused_once_none_will_come(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Rig(tmp_path, lambda x: x, request_timeout=None) as rig:
            entry = rig.entry()
            nobody = msgspec.structs.replace(entry, replicas=(), starting=1)
            rig.apply(backends={"b": nobody})
            waiting = rig.ask(1)
            rig.apply(endpoints={}, backends={}, leaving={"b": nobody})
            assert rig.reported[-1] == Idle(rig.version, ("e",), ("b",))
            rig.apply(endpoints={}, backends={}, leaving={"b": entry})
            await waiting.done
            assert waiting.value == 1
            await until(lambda: rig.reported[-1] == Idle(rig.version), "the router says that it has nothing left")
            rig.apply(backends={"b": nobody})
            waiting = rig.ask(2)
            rig.apply(endpoints={}, backends={}, leaving={"b": nobody})
            rig.apply(endpoints={}, backends={})
            assert waiting.info is not None
            assert (waiting.info.kind, waiting.info.reason) == ("UnavailableError", "no replica")
            assert rig.router.active == 0

    play(scenario)


def test_what_the_last_replica_of_a_deleted_backend_gives_back_is_refused(tmp_path: Path) -> None:
    go = threading.Event()

    def handler(x: int) -> int:
        assert x == 0 or go.wait(10)
        return x

    async def scenario() -> None:
        async with Rig(tmp_path, handler, request_timeout=None) as rig:
            await rig.linked()
            for _ in range(20):  # until the window has room for one that waits behind another
                await rig.ask(0).done
            first, second = rig.ask(1), rig.ask(2)
            assert second.link is not None
            rig.apply(endpoints={}, backends={})
            await second.done  # it is given back, since the first one is slow
            assert second.info is not None
            assert (second.info.kind, second.info.reason) == ("UnavailableError", "no replica")
            go.set()
            await first.done
            assert first.value == 1

    play(scenario)


def test_a_generator_streams_and_ends(tmp_path: Path) -> None:
    def handler() -> Iterator[str]:
        yield from ("a", "bc", "d")

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            web, python = rig.ask(web=True), rig.ask()
            await asyncio.gather(web.done, python.done)
            assert web.chunks == [b"a", b"bc", b"d"]
            assert web.frame is not None
            assert web.frame.meta == b"content-type: text/plain; charset=utf-8\r\n"
            assert [payload.load(chunk) for chunk in python.chunks] == ["a", "bc", "d"]

    play(scene)


def test_an_async_generator_streams_and_fails_in_the_middle(tmp_path: Path) -> None:
    async def handler() -> AsyncIterator[bytes]:
        yield b"one"
        raise RuntimeError("enough")

    async def scene() -> None:
        async with Rig(tmp_path, handler, idempotent=True) as rig:
            call = rig.ask(web=True)
            await call.done
            assert call.chunks == [b"one"]
            assert call.info is not None
            assert call.info.kind == "UserCodeError"

    play(scene)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_waits_for_its_reader(tmp_path: Path, is_async: bool) -> None:
    size, count = 64 * 1024, 40
    made = 0

    def chunks() -> Iterator[bytes]:
        nonlocal made
        for _ in range(count):
            made += 1
            yield b"x" * size

    async def chunks_async() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield chunk

    async def scene() -> None:
        async with Rig(tmp_path, chunks_async if is_async else chunks) as rig:
            call = rig.ask(web=True)
            allowed = wire.STREAM_CREDIT // size
            await until(lambda: len(call.chunks) == allowed)
            assert made <= allowed + 1
            while not call.done.done():
                rig.router.credit(call, size)
                await asyncio.sleep(0)
            assert len(call.chunks) == count

    play(scene)


def two_parts(go_on: threading.Event) -> Iterator[bytes]:
    """User code that sends one part, the next when it may go on, and then no more until it may again."""
    yield b"one"
    assert go_on.wait(10)
    go_on.clear()  # before that part leaves: whoever has it may say at once that there may be more
    yield b"two"
    go_on.wait(10)


def test_the_time_limit_of_a_stream_counts_from_each_chunk_to_the_next(tmp_path: Path) -> None:
    go_on = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, partial(two_parts, go_on), request_timeout=50.0) as rig:
            router, real, ahead_s = rig.router, time.monotonic, 0.0
            router.now = lambda: real() + ahead_s
            call = rig.ask(web=True)
            await until(lambda: call.chunks == [b"one"])
            ahead_s = 40.0
            go_on.set()
            await until(lambda: call.chunks == [b"one", b"two"])
            for ahead_s, over in ((60.0, False), (80.0, False), (91.0, True)):
                router._ring()
                assert call.done.done() == over, ahead_s
            assert call.info is not None
            assert call.info.kind == "DeadlineExceededError"
            go_on.set()

    play(scene)


def test_a_lowered_time_limit_holds_for_streams_that_run(tmp_path: Path) -> None:
    go_on = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, partial(two_parts, go_on), request_timeout=50.0) as rig:
            router, real, ahead_s = rig.router, time.monotonic, 0.0
            router.now = lambda: real() + ahead_s
            call = rig.ask(web=True)
            await until(lambda: call.chunks == [b"one"])
            rig.config = msgspec.structs.replace(rig.config, request_timeout=5.0)
            rig.apply()
            go_on.set()
            await until(lambda: call.chunks == [b"one", b"two"])
            ahead_s = 6.0
            router._ring()
            assert call.info is not None
            assert "within 5 s" in call.info.message
            go_on.set()

    play(scene)


def test_parts_that_follow_each_other_leave_also_where_no_tick_went_on(tmp_path: Path) -> None:
    begin, end = threading.Event(), threading.Event()

    def handler() -> Iterator[bytes]:
        assert begin.wait(10)

        def parts() -> Iterator[bytes]:
            yield b"one"
            yield b"two"
            assert end.wait(10)

        return parts()

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask(web=True)
            runner = rig.replicas[0].runner
            await until(lambda: runner._submitted and not runner._ticking, "ticks have ended")
            begin.set()
            await until(lambda: call.chunks == [b"one", b"two"])
            end.set()
            await call.done

    play(scene)


def test_calls_of_one_read_are_handed_over_together() -> None:
    handed: list[list[int]] = []

    class Takes:
        def submit(self, members: list[Any]) -> None:
            handed.append([member.number for member in members])

    def record(number: int) -> tuple[object, ...]:
        return (number, 0, 0, wire.NO_LIMIT, "e", "", "id", b"", 0, ())

    link = ReplicaLink.__new__(ReplicaLink)
    link.members, link._welcomed = {}, True
    link._links = types.SimpleNamespace(runner=Takes())  # type: ignore[assignment]  # it has all that is asked of it
    encode = msgspec.msgpack.encode
    decoder = wire.Decoder()
    data = b"".join(
        (
            wire.encode(wire.CALL, 0, meta=encode(record(1)), body=b"x" * 20_000),
            wire.encode(wire.CALLS, 0, body=encode([(*record(2), b""), (*record(3), b"")])),
            wire.encode(wire.CALL, 0, meta=encode(record(4)), body=b"x" * 20_000),
            wire.encode(wire.CANCEL, 9),
            wire.encode(wire.CALLS, 0, body=encode([(*record(5), b"")])),
        )
    )
    decoder.buffer()[: len(data)] = data
    link._receive_all(decoder.received(len(data)))
    assert handed == [[1, 2, 3, 4], [5]]


class InterruptedChannel(Channel):
    """A channel in which a signal's handler raises just behind a put, where `interrupt` is set."""

    interrupt = False

    def put(self, frame: Any, now: float) -> int:
        waiting = super().put(frame, now)
        if self.interrupt:
            raise InterruptedError
        return waiting


def test_what_is_sent_in_one_turn_leaves_together_or_by_32(tmp_path: Path) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            theirs.setblocking(False)
            turn: list[Callable[[], object]] = []  # what is called at its end
            link = Link(cast(Any, None), ReplicaEntry("r", "/r", ""), "router", str(tmp_path / "page"))
            link._channel = channel = InterruptedChannel(ours, asyncio.get_running_loop(), wire.Decoder(), wire.CALLS)
            link._finally_call = turn.append
            decoder = wire.Decoder()

            def send(count: int) -> None:
                for _ in range(count):
                    call = Asked()
                    call.deadline = math.inf
                    link.send(call, time.monotonic())

            def end_turn() -> None:
                while turn:
                    turn.pop()()

            def arrived() -> list[int]:
                try:
                    frames = decoder.received(theirs.recv_into(decoder.buffer()))
                except BlockingIOError:
                    return []
                return [call.number for frame in frames for call in msgspec.msgpack.decode(frame.body, type=list[wire.Call])]

            send(31)
            assert arrived() == []
            end_turn()
            assert arrived() == list(range(1, 32))
            send(33)
            assert arrived() == list(range(32, 64))
            end_turn()
            assert arrived() == [64]
            channel.interrupt = True
            with pytest.raises(InterruptedError):
                send(1)
            channel.interrupt = False
            end_turn()
            assert arrived() == [65]
            link.close()

    play(scene)


def test_a_router_that_is_closed_ends_what_still_waits_for_a_replica_to_be_seen_dead(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: let_go.wait(10)) as rig:
            await rig.linked()
            link = rig.router._backends["b"].links[rig.replicas[0].id]
            running = rig.ask()
            await until(lambda: any(link._page[: wire.PLACES]), "one has started")
            behind = Asked()
            rig.router.submit(behind)
            rig.router._backends["b"].dispatcher.drain()
            link.send(behind, time.monotonic())
            link._lost()  # its process, which is this one, lives
            assert running.info is not None
            await rig.router.close(0)
            assert behind.info is not None
            assert behind.info.kind == "UnavailableError"
            let_go.set()

    play(scene)


def test_a_cancelled_stream_closes_its_generator(tmp_path: Path) -> None:
    closed = threading.Event()

    def handler() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.set()

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask(web=True)
            await until(lambda: call.chunks)
            rig.router.cancel(call)
            await until(closed.is_set)

    play(scene)


# Batches.


def test_a_batch_fills_while_the_slot_is_busy(tmp_path: Path) -> None:
    sizes: list[int] = []
    let_go = threading.Event()

    def handler(x: list[int]) -> list[int]:
        sizes.append(len(x))
        if len(sizes) == 1:
            let_go.wait(10)
        return [value + context.batch_size for value in x]

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=8) as rig:
            first = rig.ask(0)
            await until(lambda: sizes == [1])
            rest = [rig.ask(number) for number in range(12)]
            # The next batch is there; what is beyond it may have been given back.
            await until(lambda: len(rig.replicas[0].runner._inbox._batches) >= 8)
            let_go.set()
            await asyncio.gather(first.done, *(call.done for call in rest))
            assert sizes == [1, 8, 4]
            assert [call.value for call in rest] == [number + 8 for number in range(8)] + [number + 4 for number in range(8, 12)]

    play(scene)


def test_batches_are_in_the_order_of_sending_unless_a_request_is_clearly_older(tmp_path: Path) -> None:
    batches: list[list[int]] = []
    let_go = threading.Event()

    def handler(x: list[int]) -> list[int]:
        batches.append(x)
        if x == [0]:
            let_go.wait(10)
        return x

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=4) as rig:
            calls = [rig.ask(0)]
            await until(lambda: batches)
            for number, older_s in ((1, 0.0), (2, 0.0002), (3, 0.0004), (4, 0.0001), (5, 0.0006), (6, 1.0)):
                call = Asked((number,))
                call.admitted_at -= older_s
                rig.router.submit(call)
                calls.append(call)
            await until(lambda: len(rig.replicas[0].runner._inbox._batches) >= 4)
            let_go.set()
            await asyncio.gather(*(call.done for call in calls))

    play(scene)
    assert batches == [[0], [6, 1, 2, 3], [4, 5]]


def test_one_bad_item_of_eight_fails_alone_where_it_is_returned(tmp_path: Path) -> None:
    def handler(x: list[int]) -> list[Any]:
        return [ValueError("bad") if value == 3 else value for value in x]

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=8, batch_wait_timeout=5.0) as rig:
            calls = [rig.ask(number) for number in range(8)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info is None for call in calls] == [number != 3 for number in range(8)]

    play(scene)


@pytest.mark.parametrize("is_async", [False, True])
def test_one_bad_item_of_eight_fails_alone_where_the_handler_raises_and_is_idempotent(tmp_path: Path, is_async: bool) -> None:
    def handler(x: list[int]) -> list[int]:
        if 5 in x:
            raise ValueError("five")
        return x

    async def handler_async(x: list[int]) -> list[int]:
        return handler(x)

    async def scene() -> None:
        chosen = handler_async if is_async else handler
        async with Rig(tmp_path, chosen, batch=True, max_batch_size=8, batch_wait_timeout=5.0, idempotent=True) as rig:
            calls = [rig.ask(number) for number in range(8)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info is None for call in calls] == [number != 5 for number in range(8)]
            assert [call.value for call in calls if call.info is None] == [0, 1, 2, 3, 4, 6, 7]

    play(scene)


def test_a_batch_is_cancelled_when_its_last_member_leaves_though_another_failed_before(tmp_path: Path) -> None:
    events: list[str] = []

    async def handler(x: list[int]) -> list[int]:
        events.append(f"{len(x)} started")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")
        return x

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=3, batch_wait_timeout=5.0) as rig:
            calls = [rig.ask(1), rig.ask(_Unreadable(ValueError)), rig.ask(3)]
            await calls[1].done
            rig.router.cancel(calls[0])
            await until(lambda: events == ["2 started"])
            rig.router.cancel(calls[2])
            await until(lambda: events == ["2 started", "cancelled"])

    play(scene)


def test_of_a_batch_that_is_split_nothing_runs_on_for_members_that_are_all_gone_or_answered(tmp_path: Path) -> None:
    runs: list[list[int]] = []
    let_go = asyncio.Event()

    async def handler(x: list[int]) -> list[int]:
        runs.append(x)
        if len(x) > 2:
            await let_go.wait()
            raise ValueError("too many")
        if x != [0, 1]:
            await asyncio.Event().wait()
        return x

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=6, batch_wait_timeout=5.0, idempotent=True) as rig:
            replica = rig.replicas[0]
            calls = [rig.ask(number) for number in range(6)]
            await until(lambda: runs)
            for call in calls[4:]:
                rig.router.cancel(call)
            assert replica.user_loop is not None
            replica.user_loop.call_soon_threadsafe(let_go.set)
            await calls[0].done
            for call in calls[2:4]:
                rig.router.cancel(call)
            await until(lambda: replica.links.settled and not replica.runner._caller.running)
            assert runs[1:3] == [[0, 1, 2], [0, 1]]
            assert runs[3:] in ([], [[2]])  # which was cancelled, unless it was before it began

    play(scene)


def test_a_batch_that_raises_fails_whole_where_it_may_not_run_again(tmp_path: Path) -> None:
    runs: list[int] = []

    def handler(x: list[int]) -> list[int]:
        runs.append(len(x))
        raise ValueError("no")

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=4, batch_wait_timeout=5.0) as rig:
            calls = [rig.ask(number) for number in range(4)]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.info.kind for call in calls if call.info] == ["UserCodeError"] * 4

    play(scene)
    assert runs == [4]


def test_a_batch_answer_of_the_wrong_length_says_what_came_back(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda x: "abc", batch=True, max_batch_size=3, batch_wait_timeout=5.0) as rig:
            calls = [rig.ask(number) for number in range(3)]
            await asyncio.gather(*(call.done for call in calls))
            assert {call.info.kind for call in calls if call.info} == {"BatchResultError"}
            assert "str" in (calls[0].info.message if calls[0].info else "")

    play(scene)


def test_calls_of_different_shape_share_a_batch_only_where_they_bind_the_same_parameters(tmp_path: Path) -> None:
    batches: list[tuple[list[int], Any]] = []

    def handler(x: list[int], y: Any = None) -> list[int]:
        batches.append((x, y))
        return x

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=2, batch_wait_timeout=0.05) as rig:
            calls = [rig.ask(1), rig.ask(kwargs={"x": 2}), rig.ask(3, 30), rig.ask(4, kwargs={"y": 40}), rig.ask(5, kwargs={"z": 1})]
            await asyncio.gather(*(call.done for call in calls))
            assert [call.value for call in calls[:4]] == [1, 2, 3, 4]
            misfit = calls[4].info
            assert misfit is not None
            assert "TypeError" in misfit.message
            assert "'z'" in misfit.message

    play(scene)
    assert sorted(batches, key=lambda batch: batch[0]) == [([1, 2], None), ([3, 4], [30, 40])]


# What goes wrong.


def test_work_behind_a_slow_call_is_given_back_and_runs_elsewhere(tmp_path: Path) -> None:
    let_go = threading.Event()
    ran: list[str] = []

    def handler(name: str) -> str:
        ran.append(name)
        if name == "slow":
            let_go.wait(10)
        return name

    async def scene() -> None:
        async with Rig(tmp_path, handler, replicas=2) as rig:
            await rig.linked()
            # Quick calls first, so that one replica is filled before the other is opened.
            for _ in range(30):
                await rig.ask("quick").done
            calls = [rig.ask("slow"), *(rig.ask(f"after {number}") for number in range(50))]
            await asyncio.gather(*(call.done for call in calls[1:]))
            assert not calls[0].done.done()
            let_go.set()
            await calls[0].done
            assert [call.value for call in calls] == ["slow", *(f"after {number}" for number in range(50))]

    play(scene)
    assert len(ran) == 81


def test_work_behind_a_stream_is_given_back_however_often_it_sends(tmp_path: Path) -> None:
    over = threading.Event()

    def stream() -> Iterator[str]:
        while not over.wait(0.0002):  # more often than calls are looked at, and slow enough for its credit to last
            yield ""

    def handler(name: str) -> Any:
        return stream() if name == "stream" else name

    async def scene() -> None:
        async with Rig(tmp_path, handler, replicas=2) as rig:
            await rig.linked()
            for _ in range(30):
                await rig.ask("quick").done
            calls = [rig.ask("stream"), *(rig.ask(f"after {number}") for number in range(20))]
            await asyncio.gather(*(call.done for call in calls[1:]))
            assert not calls[0].done.done()
            over.set()
            await calls[0].done
            assert calls[0].chunks

    play(scene)


def test_each_slow_call_gives_back_what_is_behind_it_also_beside_one_that_has_done_so_before(tmp_path: Path) -> None:
    let_go = {"first": threading.Event(), "second": threading.Event(), "third": threading.Event()}

    def handler(name: str) -> str:
        if name in let_go:
            let_go[name].wait(10)
        return name

    async def scene() -> None:
        async with Rig(tmp_path, handler, concurrency=2) as rig:
            dispatcher = rig.router._backends["b"].dispatcher
            await rig.linked()
            calls = []

            async def quick_until_the_window_is_wide() -> None:
                while dispatcher.window(rig.replicas[0].id) < 10:
                    await rig.ask("quick").done

            await quick_until_the_window_is_wide()
            calls += [rig.ask(name) for name in ("first", "second", "behind", "behind")]
            assert dispatcher.queued == 0
            await until(lambda: dispatcher.queued == 2)
            let_go["second"].set()
            await calls[1].done
            await quick_until_the_window_is_wide()
            calls += [rig.ask(name) for name in ("third", "behind", "behind")]
            assert dispatcher.queued == 0
            await until(lambda: dispatcher.queued == 2)
            assert not calls[0].done.done()
            let_go["first"].set()
            let_go["third"].set()
            await asyncio.gather(*(call.done for call in calls))

    play(scene)


class _Scarce:
    """Stands for something with a method that finds no descriptor at first."""

    def __init__(self, real: Any, method: str, times: int = 2) -> None:
        self._real, self._method, self.left = real, method, times

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "no descriptor is left")
        return getattr(self._real, name)


def test_a_router_without_a_free_descriptor_connects_once_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = _Scarce(socket, "socket")

    async def scene() -> None:
        rig = Rig(tmp_path, lambda: "fine")
        for module in ("link", "remote"):
            monkeypatch.setattr(f"headgate.router.{module}.socket", scarce)
        async with rig:
            call = rig.ask()
            await call.done
            assert call.value == "fine"
            assert not scarce.left

    play(scene)


def make_scarce(listens: Links | Gate, times: int) -> _Scarce:
    """There is no descriptor for what it takes next."""
    assert listens._listening is not None
    scarce = _Scarce(listens._listening._sock, "accept", times)
    listens._listening._sock = scarce  # type: ignore[assignment]  # it has all that is asked of it
    return scarce


def test_a_replica_without_a_free_descriptor_takes_a_link_once_there_is_one(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, lambda: "fine")
        links = rig.replicas[0].links
        scarce = make_scarce(links._gate or links, 2)
        async with rig:
            call = rig.ask()
            await call.done
            assert call.value == "fine"
            assert not scarce.left

    play(scene)


def test_a_replica_that_takes_links_no_more_for_want_of_a_descriptor_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda: "fine", health_check_timeout=0.05) as rig:
            await rig.ask().done
            replica = rig.replicas[0]
            make_scarce(replica.links, 1_000_000)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(replica.links.path)

                def told() -> bool:
                    replica.io_loop.call_soon_threadsafe(replica.runner.check_health)
                    return "no descriptor left" in replica.runner.unhealthy

                await until(told)

    play(scene)


def reports(rig: Rig) -> list[BrokenReplica]:
    return [message for message in rig.reported if isinstance(message, BrokenReplica)]


@pytest.mark.parametrize("transport", ["unix"], indirect=True)  # over TCP there is no page to open
def test_a_link_that_closes_before_it_is_taken_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = _Scarce(os, "open")  # for the page

    async def scene() -> None:
        rig = Rig(tmp_path, lambda: "fine")
        monkeypatch.setattr("headgate.replica.links.os", scarce)
        async with rig:
            call = rig.ask()
            await call.done
            assert call.value == "fine"
            assert not scarce.left
            assert not reports(rig)

    play(scene)


@pytest.mark.parametrize("transport", ["unix"], indirect=True)  # over TCP there is no page to open
def test_a_replica_that_goes_on_closing_links_before_it_takes_them_is_reported_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, lambda: "fine")
        monkeypatch.setattr("headgate.replica.links.os", _Scarce(os, "open", 1_000_000))
        monkeypatch.setattr("headgate.router.link._REFUSED_S", 0.1)
        async with rig:
            call = rig.ask()
            await until(lambda: len(reports(rig)) >= 2)
            assert {(report.replica, "has not taken a router's link" in report.reason) for report in reports(rig)} == {
                (rig.replicas[0].id, True)
            }
            rig.apply(backends={"b": msgspec.structs.replace(rig.entry(), replicas=(), starting=1)})
            assert not rig.router._backends["b"].links
            count = len(reports(rig))
            monkeypatch.undo()
            rig.apply()  # the next one
            await call.done
            assert call.value == "fine"
            assert len(reports(rig)) == count

    play(scene)


def test_garbage_on_a_link_closes_that_link_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, lambda: "fine") as rig:
            await rig.ask().done
            for garbage in (b"\xff" * 100, wire.encode(wire.CALL, 1), _hello("wrong"), wire.encode(wire.HELLO, 1, meta=b"\xc1")):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(rig.replicas[0].links.path)
                    client.sendall(garbage)
                    assert await asyncio.to_thread(client.recv, 1) == b""
            call = rig.ask()
            await call.done
            assert call.value == "fine"
            assert not [message for message in rig.reported if isinstance(message, BrokenReplica)]

    play(scene)


def test_a_part_of_a_stream_in_the_place_of_an_answer_is_garbage(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: let_go.wait(10)) as rig:
            call = rig.ask()
            await until(lambda: rig.replicas[0].links.load() == 1)
            (link,) = rig.replicas[0].links.all
            (number,) = link.members
            meta = msgspec.msgpack.encode((number, wire.PART, 0, 0, b""))
            link.channel.put(wire.encode(wire.ANSWER, 0, meta=meta, body=b"x"), time.monotonic())
            link.channel.flush()
            await until(lambda: [message for message in rig.reported if isinstance(message, BrokenReplica)])
            let_go.set()
            rig.router.cancel(call)

    play(scene)


def _garbage_for(number: int) -> dict[str, list[bytes]]:
    """Frames that a replica must not send, each list of them about a call over HTTP with that number."""
    first = wire.encode(wire.CHUNK, number, flags=wire.FIRST, code=200, body=b"x")
    part = msgspec.msgpack.encode([(number, wire.PART, 0, 0, b"", b"1\r\nx\r\n")])
    return {
        "an error that is none": [wire.encode(wire.FAIL, number, meta=b"\xc1")],
        "an error whose text is none": [wire.encode(wire.FAIL, number, meta=b"\x82\xa4kind\xa1a\xa7message\xa1\xff")],
        "a part before the first": [wire.encode(wire.ANSWERS, 0, body=part)],
        "a chunk before the first": [wire.encode(wire.CHUNK, number, body=b"x")],
        "two first chunks": [first, first],
        "an end without a beginning": [wire.encode(wire.END, number, code=200)],
        "a stream that has begun, given back": [first, wire.encode(wire.GIVE_BACK, number)],
    }


@pytest.mark.parametrize("what", list(_garbage_for(0)))
def test_garbage_in_place_of_an_answer_ends_the_link_and_no_call_is_forgotten(tmp_path: Path, what: str) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda request: let_go.wait(10)) as rig:
            call = rig.ask(web=True)
            await until(
                lambda: any(member.started_at for link in rig.replicas[0].links.all for member in list(link.members.values())),
                "it has started",
            )
            (link,) = rig.replicas[0].links.all
            (number,) = link.members
            for frame in _garbage_for(number)[what]:
                link.channel.put(frame, time.monotonic())
            link.channel.flush()
            await asyncio.wait_for(call.done, 5)
            assert call.info is not None
            assert call.info.kind == "ReplicaDiedError"
            assert [message for message in rig.reported if isinstance(message, BrokenReplica)]
            let_go.set()

    play(scene)


def test_a_call_that_its_replica_dropped_as_too_late_ends_also_where_the_replica_has_left_meanwhile(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: let_go.wait(10), replicas=2) as rig:
            await rig.linked()
            calls = [rig.ask(timeout_s=0.3), rig.ask(timeout_s=0.3)]
            left = rig.replicas.pop()
            await until(lambda: left.links.load() == 1)
            (link,) = left.links.all
            (number,) = link.members
            link.channel.put(wire.encode(wire.GIVE_BACK, number, flags=wire.DROPPED), time.monotonic())
            link.channel.flush()
            rig.apply()
            await until(lambda: left.id not in rig.router._backends["b"].links, "the link has been closed")
            for call in calls:
                await asyncio.wait_for(call.done, 5)
                assert call.info is not None
                assert call.info.kind == "DeadlineExceededError"
            let_go.set()
            await asyncio.to_thread(left.close)

    play(scene)


def _hello(token: str) -> bytes:
    return wire.encode(wire.HELLO, 0, meta=msgspec.msgpack.encode(wire.Hello(wire.VERSION, "x", token, "/nowhere")))


def test_a_closed_router_fails_what_is_left_and_refuses_the_rest(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def scene() -> None:
        async with Rig(tmp_path, lambda: let_go.wait(10)) as rig:
            calls: list[Asked] = [rig.ask() for _ in range(3)]
            await rig.router.close(0.01)
            assert [call.info.status for call in calls if call.info] == [503] * 3
            refused = rig.ask()
            assert refused.info is not None
            assert refused.info.reason == "shutting down"
            let_go.set()

    play(scene)


@pytest.mark.parametrize("is_async", [False, True])
def test_no_task_stays_of_links_and_calls_that_have_come_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    monkeypatch.delattr(os, "pidfd_open")  # these replicas die without their process: their sockets tell
    monkeypatch.setattr("headgate.router.remote.DROPPED_AFTER_S", 0.02)

    def handler(x: int) -> int:
        return x

    async def handler_async(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def play_round(rig: Rig, number: int) -> None:
        """One replica comes, one goes, and one is listed that never listens, while calls are under way."""
        await rig.linked()
        old, links = rig.replicas[1], rig.router._backends["b"].links
        rig.replicas.append(Replica(tmp_path, rig.handler, rig.config, batch=False))
        never = ReplicaEntry(f"never-{number}", str(tmp_path / "never"), "secret")
        rig.apply(backends={"b": msgspec.structs.replace(rig.entry(), replicas=(*rig.entry().replicas, never))})
        calls = [rig.ask(place) for place in range(100)]
        for call in calls[::10]:
            rig.router.cancel(call)
        if number % 2:  # its link breaks, and is made anew
            (link,) = old.links.all
            before = links[old.id]
            old.io_loop.call_soon_threadsafe(link.close)
            await until(lambda: links.get(old.id) is not before)
            rig.apply()
            await rig.linked()
        rig.replicas.remove(old)
        rig.apply()  # what it still has it may finish
        await asyncio.gather(*(call.done for place, call in enumerate(calls) if place % 10))
        assert {call.info.kind for call in calls if call.info} <= {"ReplicaDiedError"}
        await until(lambda: old.id not in links and not old.runner._async_running)
        await asyncio.to_thread(old.close)

    async def scene() -> None:
        async with Rig(tmp_path, handler_async if is_async else handler, replicas=2) as rig:
            lasting = rig.replicas[0]
            loops = [loop for loop in (asyncio.get_running_loop(), lasting.io_loop, lasting.user_loop) if loop is not None]

            def tasks() -> list[int]:
                return [len(asyncio.all_tasks(loop)) for loop in loops]

            await rig.linked()
            before = tasks()
            for number in range(40):
                await play_round(rig, number)
            await until(lambda: tasks() == before, "there are as many tasks as before")
            assert rig.router.active == 0

    play(scene)
