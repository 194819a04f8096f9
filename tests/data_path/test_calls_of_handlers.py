"""What becomes of the calls that a handler makes through handles: when are they out of time, and who cancels them?"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headgate.errors import RequestCancelledError
from headgate.router import connections
from headgate.router.handle import Handle
from tests.data_path.rig import Rig
from tests.data_path.test_data_path import play
from tests.support import FakeConnection, until

inner = Handle("i", "inner")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    """Takes what handlers ask of others."""
    fake = FakeConnection()
    monkeypatch.setattr(connections, "of", lambda name: fake)
    monkeypatch.setattr(inner, "_connection", None)
    return fake


def limit_s() -> float | None:
    """How long a call may take that is made here."""
    return inner.remote()._call.caller_timeout_s


# Deadlines.


@pytest.mark.parametrize(("others_s", "at_least_s"), [(30.0, 25.0), (None, None)])
def test_one_members_deadline_does_not_limit_what_is_asked_for_the_whole_batch(
    tmp_path: Path, others_s: float | None, at_least_s: float | None
) -> None:
    limits: list[float | None] = []

    def handler(values: list[int]) -> list[int]:
        limits.append(limit_s())
        return values

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=2, batch_wait_timeout=10.0, request_timeout=None) as rig:
            calls = [rig.ask(1, timeout_s=5.0), rig.ask(2, timeout_s=others_s)]
            await asyncio.gather(*(call.done for call in calls))

    play(scene)
    assert len(limits) == 1
    if at_least_s is None:
        assert limits[0] is None
    else:
        assert limits[0] is not None
        assert limits[0] > at_least_s


def test_what_a_stream_asks_for_has_the_time_until_the_next_chunk_is_due(tmp_path: Path) -> None:
    limits: list[float | None] = []

    def handler() -> Iterator[str]:
        limits.append(limit_s())
        yield "one"
        limits.append(limit_s())

    async def scene() -> None:
        async with Rig(tmp_path, handler, request_timeout=50.0) as rig:
            await rig.ask(timeout_s=5.0).done

    play(scene)
    before, after = limits
    assert before is not None
    assert before <= 5
    assert after is not None
    assert 40 < after <= 50


def test_a_task_that_outlives_its_request_has_no_deadline_of_it_and_is_not_cancelled_with_it(tmp_path: Path) -> None:
    limits: list[float | None] = []
    tasks: list[asyncio.Task[None]] = []

    async def handler() -> str:
        async def go_on(event: asyncio.Event) -> None:
            await event.wait()
            limits.append(limit_s())

        event = asyncio.Event()
        tasks.append(asyncio.create_task(go_on(event)))
        asyncio.get_running_loop().call_later(0.02, event.set)
        return "done"

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.ask(timeout_s=5.0).done
            await until(lambda: limits)

    play(scene)
    assert limits == [None]


# Cancellation.


def test_a_sync_handler_that_waits_for_others_is_told_when_nobody_waits_for_it(
    tmp_path: Path, asked: FakeConnection, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def handler() -> None:
        forgotten, waited_for = inner.remote(), inner.remote()
        try:
            waited_for.result()
        except RequestCancelledError:
            seen.append(repr(forgotten))
            inner.remote().result()

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask()
            await until(lambda: len(asked.calls) == 2)
            rig.router.cancel(call)
            await until(lambda: not rig.replicas[0].runner._caller.running)

    with caplog.at_level(logging.ERROR):
        play(scene)
    assert len(seen) == 1
    assert "failed" in seen[0]
    assert len(asked.calls) == 2  # after that nothing more is asked
    assert not caplog.records  # nobody is to be told of a failure


def test_an_async_handler_is_cancelled_and_with_it_all_that_it_has_asked_for(tmp_path: Path, asked: FakeConnection) -> None:
    seen: list[BaseException] = []

    async def handler() -> None:
        inner.remote()
        try:
            await inner.remote()
        except BaseException as error:
            seen.append(error)
            raise

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask()
            await until(lambda: len(asked.calls) == 2)
            rig.router.cancel(call)
            await until(lambda: seen)
            await until(lambda: all(call.over for call in asked.calls))  # type: ignore[attr-defined]  # calls of handles

    play(scene)
    assert isinstance(seen[0], asyncio.CancelledError)


def test_what_a_batch_has_asked_for_is_cancelled_when_all_of_its_members_are_gone(tmp_path: Path, asked: FakeConnection) -> None:
    seen: list[BaseException] = []

    def handler(values: list[int]) -> list[int]:
        try:
            inner.remote(values).result()
        except RequestCancelledError as error:
            seen.append(error)
        return values

    async def scene() -> None:
        async with Rig(tmp_path, handler, batch=True, max_batch_size=2, batch_wait_timeout=10.0) as rig:
            calls = [rig.ask(1), rig.ask(2)]
            await until(lambda: asked.calls)
            rig.router.cancel(calls[0])
            link = next(iter(rig.replicas[0].links.all))
            await until(lambda: any(member.cancelled for member in link.members.values()))
            assert not asked.calls[0].over  # type: ignore[attr-defined]  # a call of a handle
            rig.router.cancel(calls[1])
            await until(lambda: seen)

    play(scene)


def test_what_a_handler_has_asked_for_and_not_waited_for_goes_on_after_its_answer(tmp_path: Path, asked: FakeConnection) -> None:
    def handler() -> None:
        inner.remote()

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask()
            await call.done
            rig.router.cancel(call)
            await rig.router.close(0)
            await until(lambda: not rig.replicas[0].links.all)

    play(scene)
    assert not asked.calls[0].over  # type: ignore[attr-defined]  # a call of a handle


def test_answered_calls_are_not_kept_by_the_call_that_made_them(tmp_path: Path, asked: FakeConnection) -> None:
    kept: list[Any] = []
    go_on = threading.Event()

    def handler() -> None:
        for _ in range(3):
            reply = inner.remote()
            reply.cancel()
        go_on.wait(10)

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            call = rig.ask()
            await until(lambda: len(asked.calls) == 3 and asked.calls[2].over)  # type: ignore[attr-defined]  # a call of a handle
            kept.extend(facts.asked for facts in rig.replicas[0].runner._caller.running.values())
            go_on.set()
            await call.done

    play(scene)
    assert kept == [set()]
