"""What `serve.context` says, in which threads and tasks, and how batches see it."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from headgate.errors import NoCallError
from headgate.router.context import CallFacts, Member, context, current_call, enter


@dataclass
class Request:
    request_id: str = "id-1"
    web: bool = False
    deadline: float = math.inf
    cancelled: bool = False
    endpoint: str = "the endpoint"
    trace: bytes = b""


def facts(*members: Request, is_batch: bool = False) -> CallFacts[Member]:
    return CallFacts(members or (Request(),), is_batch, "the backend", "the replica")


@pytest.fixture(autouse=True)
def _no_call():
    yield
    enter(None)


def test_a_call_sees_its_own_facts() -> None:
    enter(facts(Request(request_id="abc", web=True)))
    assert (context.web, context.batch_size, context.request_id) == (True, 1, "abc")
    assert (context.endpoint, context.backend, context.replica) == ("the endpoint", "the backend", "the replica")
    assert context.deadline_s is None
    assert context.cancelled() is False


def test_a_batch_sees_lists_in_batch_order_and_the_earliest_deadline() -> None:
    now = time.monotonic()
    enter(facts(Request("a", deadline=now + 100), Request("b", cancelled=True), Request("c", deadline=now + 50), is_batch=True))
    assert context.batch_size == 3
    assert context.request_id == ["a", "b", "c"]
    assert context.cancelled() == [False, True, False]
    assert context.deadline_s is not None
    assert 49 < context.deadline_s <= 50


def test_what_a_batch_asks_of_others_is_limited_by_the_latest_deadline_that_somebody_waits_for() -> None:
    first, second, third = Request(deadline=10.0), Request(deadline=30.0), Request()
    batch = facts(first, second, third, is_batch=True)
    assert batch.deadline == math.inf
    third.cancelled = True
    assert batch.deadline == 30.0
    second.cancelled = True
    assert batch.deadline == 10.0


def test_a_call_is_gone_once_nobody_waits_for_any_of_its_members() -> None:
    assert not facts(Request(cancelled=True), Request(), is_batch=True).gone
    assert facts(Request(cancelled=True), Request(cancelled=True), is_batch=True).gone


def test_a_call_that_has_ended_limits_nothing_any_more_but_can_still_be_named() -> None:
    call = facts(Request("abc", deadline=0.0))
    enter(call)
    assert (current_call(), context.deadline_s) == (call, 0.0)
    call.over = True
    assert (current_call(), context.deadline_s, context.request_id) == (None, None, "abc")


def test_a_batch_of_one_still_sees_lists() -> None:
    enter(facts(Request("a"), is_batch=True))
    assert (context.batch_size, context.request_id, context.cancelled()) == (1, ["a"], [False])


def test_time_that_is_over_is_zero_and_not_negative() -> None:
    enter(facts(Request(deadline=time.monotonic() - 5)))
    assert context.deadline_s == 0.0


def test_what_changes_during_a_call_is_seen() -> None:
    request = Request()
    enter(facts(request))
    request.cancelled = True
    assert context.cancelled() is True


@pytest.mark.parametrize("name", ["web", "batch_size", "request_id", "endpoint", "backend", "replica", "deadline_s"])
def test_outside_a_call_every_attribute_says_so(name: str) -> None:
    with pytest.raises(NoCallError, match=rf"serve\.context\.{name} was read outside a call"):
        getattr(context, name)
    assert issubclass(NoCallError, RuntimeError)


def test_outside_a_call_there_is_no_deadline_to_inherit_and_it_can_be_printed() -> None:
    assert current_call() is None
    assert "outside a call" in repr(context)
    with pytest.raises(NoCallError):
        context.cancelled()


def test_threads_of_a_pool_see_their_own_calls() -> None:
    together = threading.Barrier(8)

    def answer(number: int) -> str | list[str]:
        enter(facts(Request(f"id-{number}")))
        together.wait(10)
        return context.request_id

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, range(8))) == [f"id-{number}" for number in range(8)]


def test_tasks_see_their_own_calls_and_hand_them_to_what_they_start() -> None:
    async def answer(number: int) -> list[object]:
        enter(facts(Request(f"id-{number}")))
        await asyncio.sleep(0)
        child = asyncio.create_task(ask())
        return [context.request_id, await child, await asyncio.to_thread(lambda: context.request_id)]

    async def ask() -> object:
        return context.request_id

    async def main() -> list[list[object]]:
        return await asyncio.gather(*(answer(number) for number in range(5)))

    assert asyncio.run(main()) == [[f"id-{number}"] * 3 for number in range(5)]


def test_a_generator_that_is_iterated_in_a_copy_of_its_context_sees_its_own_call() -> None:
    def stream():
        yield context.request_id
        yield context.request_id

    enter(facts(Request("the stream's")))
    copy, chunks = contextvars.copy_context(), stream()
    enter(facts(Request("another")))
    assert copy.run(next, chunks) == "the stream's"
    assert copy.run(next, chunks) == "the stream's"
    assert context.request_id == "another"
