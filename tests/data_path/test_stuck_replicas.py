"""What is found of a replica that answers, but whose user code hangs; and what becomes of the requests that wait in it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import pytest

from headgate.replica.links import ReplicaLink
from tests.data_path.rig import Asked, Rig
from tests.data_path.test_data_path import play
from tests.support import until


def look(rig: Rig) -> str:
    """Have the first replica look after its health, as a ping does; and what it has found until now."""
    replica = rig.replicas[0]
    replica.io_loop.call_soon_threadsafe(replica.runner.check_health)
    return replica.runner.unhealthy


def hold_loop(rig: Rig, let_go: threading.Event) -> None:
    """Something that isn't a call holds the event loop of the first replica."""
    loop = rig.replicas[0].user_loop
    assert loop is not None
    loop.call_soon_threadsafe(let_go.wait, 30)


async def is_checked(rig: Rig) -> None:
    """Wait for the end of what the last look has begun."""
    await rig.ask().done
    await until(lambda: rig.replicas[0].runner._checking_since is None)


async def check() -> None: ...


@pytest.mark.parametrize("checks", [False, True], ids=["without check_health", "with check_health"])
def test_an_event_loop_that_something_else_than_a_call_holds_is_told(tmp_path: Path, checks: bool) -> None:
    let_go = threading.Event()
    limit_s = 0.1

    async def answer() -> None: ...

    methods: dict[str, Callable[..., Any]] = {"": answer, "check_health": check} if checks else {"": answer}

    async def scene() -> None:
        async with Rig(tmp_path, methods, request_timeout=limit_s, health_check_timeout=limit_s) as rig:
            await rig.ask().done
            hold_loop(rig, let_go)
            started_at = time.monotonic()
            rig.ask()
            await until(lambda: "its event loop has stood still" in look(rig))
            assert time.monotonic() - started_at > (limit_s if checks else 2 * limit_s)
            let_go.set()
            await is_checked(rig)

    play(scene)


def test_a_health_check_that_holds_its_event_loop_is_told(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def holds() -> None:
        let_go.wait(30)

    async def answer() -> None: ...

    async def scene() -> None:
        async with Rig(tmp_path, {"": answer, "check_health": holds}, health_check_timeout=0.1) as rig:
            await until(lambda: "its event loop has stood still" in look(rig))
            let_go.set()
            await is_checked(rig)

    play(scene)


def test_an_event_loop_that_was_held_is_not_told_for_ever(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def answer() -> None: ...

    async def scene() -> None:
        async with Rig(tmp_path, answer, request_timeout=0.1, health_check_timeout=0.1) as rig:
            await rig.ask().done
            hold_loop(rig, let_go)
            rig.ask()
            await until(lambda: "its event loop has stood still" in look(rig))
            let_go.set()
            await rig.ask().done
            await until(lambda: look(rig) == "", "it is well again", 2.0)

    play(scene)


def test_a_health_check_that_holds_its_event_loop_while_a_call_awaits_something_is_found_by_that_call(tmp_path: Path) -> None:
    let_go = threading.Event()
    limit_s = 0.1

    async def holds() -> None:
        let_go.wait(30)

    async def waits() -> None:
        await asyncio.Event().wait()

    async def scene() -> None:
        async with Rig(tmp_path, {"": waits, "check_health": holds}, request_timeout=limit_s, health_check_timeout=limit_s) as rig:
            runner = rig.replicas[0].runner
            rig.ask()
            await until(lambda: runner._caller.running)
            await until(lambda: look(rig) or runner.overdue_s() > 2 * limit_s)
            assert runner.unhealthy == ""
            let_go.set()
            await is_checked(rig)
            await until(lambda: not runner._async_running)

    play(scene)


def test_an_event_loop_that_calls_hold_one_after_the_other_is_not_taken_for_stuck(tmp_path: Path) -> None:
    async def handler() -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - user code that holds its loop is what this is about

    async def scene() -> None:
        async with Rig(tmp_path, {"": handler, "check_health": check}, health_check_timeout=0.1) as rig:
            await rig.linked()
            calls = [rig.ask() for _ in range(20)]  # all begin in one turn of the loop
            while not all(call.done.done() for call in calls):
                assert look(rig) == ""
                await asyncio.sleep(0.001)
            assert [call.info for call in calls] == [None] * 20
            await is_checked(rig)

    play(scene)


def _cancelled() -> NoReturn:
    raise asyncio.CancelledError


def _lost() -> NoReturn:
    raise SystemExit("lost")


def _interrupted() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("raises", "said"), [(_cancelled, "CancelledError: "), (_lost, "SystemExit: lost"), (_interrupted, "KeyboardInterrupt: ")]
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_health_check_that_raises_is_told_whatever_it_is(
    tmp_path: Path, raises: Callable[[], NoReturn], said: str, is_async: bool
) -> None:
    async def answer_async() -> str:
        return "fine"

    async def check_async() -> None:
        raises()

    methods: dict[str, Callable[..., Any]] = {"": lambda: "fine", "check_health": raises}
    if is_async:
        methods = {"": answer_async, "check_health": check_async}

    async def scene() -> None:
        async with Rig(tmp_path, methods) as rig:
            await until(lambda: look(rig) == f"check_health() raised: {said}")
            call = rig.ask()
            await call.done
            assert call.value == "fine"
            await is_checked(rig)

    play(scene)


@pytest.mark.parametrize("held_by", ["something else", "a call", "a call that came with the others"])
def test_work_behind_an_event_loop_that_is_held_is_given_back_and_runs_elsewhere(tmp_path: Path, held_by: str) -> None:
    let_go = threading.Event()
    ran: list[int] = []

    async def handler(number: int) -> int:
        if number < 0:
            let_go.wait(30)
        ran.append(number)
        return number

    async def scene() -> None:
        async with Rig(tmp_path, handler, replicas=2) as rig:
            await rig.linked()
            if held_by == "something else":
                hold_loop(rig, let_go)
            else:
                rig.ask(-1)
            if held_by == "a call":
                await until(lambda: any(replica.runner._caller.running for replica in rig.replicas))
            for first in range(0, 90, 30):  # more each time than the other one has
                calls = [rig.ask(number) for number in range(first, first + 30)]
                await asyncio.gather(*(call.done for call in calls))
                assert [call.value for call in calls] == list(range(first, first + 30))
            assert not let_go.is_set()
            let_go.set()

    play(scene)
    assert sorted(number for number in ran if number >= 0) == list(range(90))


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When replicas gave requests back."""
    moments: list[float] = []
    give_back = ReplicaLink.give_back

    def noted(self: ReplicaLink, *args: Any, **kwargs: Any) -> None:
        moments.append(time.monotonic())
        give_back(self, *args, **kwargs)

    monkeypatch.setattr(ReplicaLink, "give_back", noted)
    return moments


def test_work_behind_an_event_loop_that_is_held_goes_back_seldom_where_there_is_no_other(tmp_path: Path, given_back: list[float]) -> None:
    let_go = threading.Event()

    async def handler() -> str:
        return "fine"

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.linked()
            hold_loop(rig, let_go)
            call = rig.ask()
            await until(lambda: len(given_back) == 5)
            held_s = time.monotonic() - call.admitted_at
            assert held_s > 0.005 * 2**4
            let_go.set()
            await call.done
            assert call.value == "fine"

    play(scene)


def test_an_event_loop_that_is_held_again_is_found_as_soon_as_the_first_time(tmp_path: Path, given_back: list[float]) -> None:
    async def handler() -> str:
        return "fine"

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.linked()
            for _ in range(2):
                given_back.clear()
                let_go = threading.Event()
                hold_loop(rig, let_go)
                call = rig.ask()
                await until(lambda: len(given_back) == 7)
                assert given_back[0] - call.admitted_at < 0.005 * 2**6
                let_go.set()
                await call.done
                await rig.ask().done
                await until(lambda: not rig.replicas[0].runner._ticking)

    play(scene)


def test_a_replica_whose_event_loop_was_held_gets_requests_again_soon(tmp_path: Path) -> None:
    let_go = threading.Event()

    async def handler() -> int:
        await asyncio.sleep(0.05)
        return threading.get_ident()

    async def scene() -> None:
        async with Rig(tmp_path, handler, replicas=2) as rig:
            await rig.linked()
            await asyncio.gather(*(rig.ask().done for _ in range(20)))
            hold_loop(rig, let_go)
            calls = [rig.ask() for _ in range(2)]  # one for each
            backend = rig.router._backends["b"]
            await until(lambda: not backend.links[rig.replicas[0].id].calls, "it has nothing that could be answered")
            let_go.set()
            began_at = time.monotonic()
            while len({(await call.done).value for call in calls}) < 2:
                calls = [rig.ask() for _ in range(20)]
            assert time.monotonic() - began_at < 2.0

    play(scene)


def test_what_is_tried_with_a_replica_that_is_still_held_returns_at_once(tmp_path: Path) -> None:
    let_go = threading.Event()
    waits_s: list[float] = []

    async def handler() -> None:
        await asyncio.sleep(0.01)  # quick ones would all go to the other

    async def scene() -> None:
        async with Rig(tmp_path, handler, replicas=2) as rig:
            await rig.linked()
            hold_loop(rig, let_go)
            began_at = time.monotonic()
            while time.monotonic() - began_at < 1.9:
                call = rig.ask()
                await call.done
                waits_s.append(time.monotonic() - call.admitted_at)
            let_go.set()

    play(scene)
    assert sum(wait_s > 0.1 for wait_s in waits_s) < 2  # but for a moment in which this machine does something else


def test_a_call_that_was_given_back_marks_no_other_as_started(tmp_path: Path) -> None:
    begun: set[int] = set()
    wrong: list[set[int]] = []

    async def scene() -> None:
        calls: list[Asked] = []

        async def handler(number: int) -> None:
            begun.add(number)
            (link,) = rig.router._backends["b"].links.values()
            waiting = {call: link._page[call.place] for call in list(link.calls.values())}
            wrong.append({at for at, call in enumerate(calls) if waiting.get(call)} - begun)
            time.sleep(0.01)  # noqa: ASYNC251 - user code that holds its loop is what this is about

        async with Rig(tmp_path, handler) as rig:
            await rig.linked()
            calls += [rig.ask(number) for number in range(20)]
            for call in calls:
                await call.done
                assert call.info is None
        assert wrong == [set()] * 20

    play(scene)


def test_a_busy_event_loop_sends_what_waits_away_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    give_back = ReplicaLink.give_back

    def counted(link: ReplicaLink, member: Any, **how: Any) -> None:
        given_back.append(member.number)
        give_back(link, member, **how)

    monkeypatch.setattr(ReplicaLink, "give_back", counted)

    async def handler() -> None:
        time.sleep(0.01)  # noqa: ASYNC251 - user code that holds its loop is what this is about

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.linked()
            calls = [rig.ask() for _ in range(30)]
            for call in calls:
                await call.done
                assert call.info is None
        assert len(given_back) < 4 * 30  # for each call all behind it would be 435

    play(scene)


def test_no_request_sees_what_another_has_set_in_its_context(tmp_path: Path) -> None:
    user: ContextVar[int | None] = ContextVar("user", default=None)
    seen: list[int | None] = []

    async def handler(number: int) -> None:
        seen.append(user.get())
        user.set(number)
        await asyncio.sleep(0)

    async def scene() -> None:
        async with Rig(tmp_path, handler, concurrency=1) as rig:
            for call in [rig.ask(number) for number in range(300)]:
                await call.done
        assert seen == [None] * 300

    play(scene)
