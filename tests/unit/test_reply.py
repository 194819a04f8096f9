"""Does a reply reach whoever waits for it, in any thread and on any event loop, whenever it comes?"""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from headgate import serve
from headgate.core import wire
from headgate.errors import (
    DeadlineExceededError,
    EncodeError,
    ErrorInfo,
    InvalidTypeError,
    InvalidValueError,
    QueueFullError,
    ReplyTimeoutError,
    RequestCancelledError,
    UserCodeError,
    describe_user_error,
)
from headgate.router import connections, payload
from headgate.router.call import Call
from headgate.router.connection import Connection
from headgate.router.handle import Handle
from headgate.router.way import Way
from tests.support import FakeConnection, until, wait_until


def part(value: object) -> wire.Frame:
    return wire.Frame(wire.CHUNK, 0, 1, 0, 200, 0, 0, b"", payload.dump(value))


def entire(value: object) -> wire.Answer:
    return wire.Answer(1, 200, 0, 0, b"", payload.dump(value))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    fake = FakeConnection()
    monkeypatch.setattr(connections, "of", lambda name: fake)
    return fake


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs a function in a thread of its own; the threads have ended when the test has."""
    threads: list[threading.Thread] = []

    def run(function: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=function))
        threads[-1].start()

    yield run
    for thread in threads:
        thread.join(10)


def answer(call: Call, value: object) -> Callable[[], None]:
    return lambda: call.answered(entire(value))


def test_a_blocked_result_is_woken_by_the_answer_and_can_be_asked_again(fake: FakeConnection, elsewhere) -> None:
    reply = Handle("i", "e").remote(1)
    call = fake.calls[0]
    got: list[object] = []
    elsewhere(lambda: got.append(reply.result()))
    wait_until(lambda: call.waiters)  # type: ignore[attr-defined]  # a call of a handle
    answer(call, {"a": [1]})()
    wait_until(lambda: got)
    assert got == [{"a": [1]}]
    assert reply.result() is got[0]


def test_the_call_carries_arguments_keys_and_options_and_repeats_no_id(fake: FakeConnection) -> None:
    handle = Handle("i", "e").options(shard_key="k", method_name="m", timeout_s=3)
    handle.remote(1, 2, b=3, a=4)
    handle.options(shard_key="").remote()
    first, second = fake.calls
    assert (first.endpoint, first.method, first.shard_key, first.caller_timeout_s, first.http) == ("e", "m", "k", 3, b"")
    assert (first.positional, first.keywords) == (2, ("a", "b"))
    body = first.body
    assert isinstance(body, bytes)
    assert payload.load(body) == ((1, 2), {"b": 3, "a": 4})
    assert first.body_bytes == len(body)
    assert (second.shard_key, second.method, second.caller_timeout_s) == ("", "m", 3)
    assert first.request_id != second.request_id


def test_arguments_may_change_after_remote_has_returned(fake: FakeConnection) -> None:
    value = [1]
    Handle("i", "e").remote(value)
    value.append(2)
    assert payload.load(fake.calls[0].body) == (([1],), {})  # type: ignore[arg-type]  # bytes


def test_result_gives_up_after_its_time_and_the_call_runs_on(fake: FakeConnection) -> None:
    reply = Handle("i", "e").remote()
    began = time.monotonic()
    with pytest.raises(ReplyTimeoutError, match="runs on") as caught:
        reply.result(0.05)
    assert isinstance(caught.value, TimeoutError)
    assert 0.05 <= time.monotonic() - began < 5
    with pytest.raises(TimeoutError):
        reply.result(0)
    answer(fake.calls[0], "late")()
    assert reply.result(0) == "late"


def test_an_argument_that_cannot_be_pickled_is_refused_by_remote(fake: FakeConnection) -> None:
    with pytest.raises(EncodeError) as caught:
        Handle("i", "e").remote(threading.Lock())
    assert isinstance(caught.value, TypeError)
    assert not fake.calls


class OutOfCheeseError(Exception):
    pass


def test_errors_are_rebuilt_in_the_thread_that_asks(fake: FakeConnection) -> None:
    reply = Handle("i", "e").remote()
    fake.calls[0].failed(describe_user_error(OutOfCheeseError("no gouda")))
    with pytest.raises(OutOfCheeseError, match="no gouda") as caught:
        reply.result()
    assert isinstance(caught.value, UserCodeError)
    assert "OutOfCheeseError: no gouda" in caught.value.remote_traceback
    other = Handle("i", "e").remote()
    fake.calls[1].failed(ErrorInfo("QueueFullError", "full", reason="queue full", retry_after_s=2.0))
    with pytest.raises(QueueFullError) as full:
        other.result()
    assert (full.value.reason, full.value.retry_after_s) == ("queue full", 2.0)


def test_a_reply_can_be_awaited_on_any_loop_by_many_at_once(fake: FakeConnection, elsewhere) -> None:
    reply = Handle("i", "e").remote()
    call = fake.calls[0]
    got: list[object] = []

    async def wait_for_it() -> object:
        return await reply

    async def twice() -> None:
        got.extend(await asyncio.gather(wait_for_it(), wait_for_it()))

    elsewhere(lambda: asyncio.run(twice()))
    elsewhere(lambda: asyncio.run(twice()))
    elsewhere(lambda: got.append(reply.result()))
    wait_until(lambda: len(call.waiters) == 5)  # type: ignore[attr-defined]  # a call of a handle
    answer(call, 7)()
    wait_until(lambda: len(got) == 5)
    assert got == [7] * 5


def test_a_task_that_is_cancelled_takes_the_call_that_it_awaits_along_unless_that_is_shielded(fake: FakeConnection) -> None:
    handle = Handle("i", "e")
    reply, shielded, stream = handle.remote(), handle.remote(), handle.remote()

    async def main() -> object:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reply, 0.01)
        with pytest.raises(RequestCancelledError):
            await reply
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        with pytest.raises(RequestCancelledError):
            await anext(stream)
        waiting = asyncio.ensure_future(shielded)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.01)
        asyncio.get_running_loop().call_later(0.01, answer(fake.calls[1], "still"))
        return await waiting

    assert asyncio.run(main()) == "still"


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("task", [asyncio.Task, asyncio.tasks._PyTask])  # type: ignore[attr-defined]  # the one for debuggers
def test_tasks_of_every_kind_wait_are_cancelled_and_go_on(fake: FakeConnection, elsewhere, new_loop: Any, task: Any) -> None:
    handle = Handle("i", "e")
    told: list[object] = []

    async def wait_for_it(reply: Any) -> object:
        try:
            return await reply
        except asyncio.CancelledError as error:
            told.extend(error.args)
        try:
            return await reply
        except RequestCancelledError:
            return "cancelled"

    async def main() -> None:
        replies = [handle.remote() for _ in range(3)]
        tasks = [asyncio.ensure_future(wait_for_it(reply)) for reply in replies]
        stream = handle.remote()
        chunks = asyncio.ensure_future(read(stream))
        await until(lambda: len(fake.calls) == 4 and all(call.waiters for call in fake.calls))  # type: ignore[attr-defined]  # calls of handles
        assert all(isinstance(each, task) for each in tasks)
        elsewhere(answer(fake.calls[0], 0))
        elsewhere(lambda: fake.calls[3].chunk(part("a")))
        assert await tasks[0] == 0
        assert tasks[1].cancel("enough")
        fake.calls[2].answered(entire(2))
        assert tasks[2].cancel("late")  # in the same turn as its answer
        elsewhere(fake.calls[3].ended)
        assert await asyncio.gather(*tasks[1:]) == ["cancelled", 2]
        assert await asyncio.wait_for(replies[2], 1) == 2
        assert await chunks == ["a"]

    async def read(stream: Any) -> list[object]:
        return [chunk async for chunk in stream]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop().set_task_factory(lambda loop, coroutine, **names: task(coroutine, loop=loop, **names))
        runner.run(main())
    assert told == ["enough", "late"]


def test_a_call_that_waits_for_the_first_news_of_the_controller_waits_no_longer_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(Way(str(tmp_path)).control_path)
        silent.listen()
        connection = Connection("i", Way(str(tmp_path)))
        monkeypatch.setattr(connections, "of", lambda name: connection)
        handle = Handle("i", "e")
        try:
            waiting, cancelled = handle.remote(), handle.options(timeout_s=60).remote()
            cancelled.cancel()
            with pytest.raises(RequestCancelledError):
                cancelled.result(10)
            began = time.monotonic()
            with pytest.raises(DeadlineExceededError, match=r"within 0.02 s.*never started"):
                handle.options(timeout_s=0.02).remote().result(10)
            assert time.monotonic() - began < 5
            assert "waiting" in repr(waiting)
        finally:
            connection.close()


def test_a_task_that_ends_its_loop_keeps_no_other_from_its_answer(fake: FakeConnection) -> None:
    handle = Handle("i", "e")
    loop = asyncio.new_event_loop()

    async def wait_for_it(number: int) -> object:
        value = await handle.remote()
        if number == 1:
            raise SystemExit
        return value

    tasks = [loop.create_task(wait_for_it(number)) for number in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    for number, call in enumerate(fake.calls):
        answer(call, number)()
    with pytest.raises(SystemExit):
        loop.run_until_complete(tasks[2])
    assert loop.run_until_complete(tasks[2]) == 2
    assert loop.run_until_complete(tasks[0]) == 0
    assert isinstance(tasks[1].exception(), SystemExit)
    loop.close()


class Ends:
    """Can't be opened: that raises `StopIteration`."""

    def __reduce__(self) -> Any:
        return next, (iter(()),)


def test_an_error_that_ends_iterations_does_not_pass_for_an_answer(fake: FakeConnection) -> None:
    reply = Handle("i", "e").remote()
    answer(fake.calls[0], Ends())()

    async def main() -> object:
        return await reply

    with pytest.raises(StopIteration):
        reply.result()
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(main())


def test_a_loop_that_was_closed_keeps_nobody_else_from_the_answer(fake: FakeConnection) -> None:
    reply = Handle("i", "e").remote()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reply, 0.001)

    asyncio.run(give_up())
    answer(fake.calls[0], 1)()
    assert reply.result() == 1


def test_a_stream_is_read_as_it_comes_and_its_reader_gives_credit(fake: FakeConnection, elsewhere) -> None:
    reply = Handle("i", "e").remote()
    call = fake.calls[0]
    call.chunk(part("one"))
    call.chunk(part("two"))
    assert next(reply) == "one"
    assert fake.credited == 0  # a credit for each little part would cost more than the part
    large = part("x" * (wire.STREAM_CREDIT // 4))
    call.chunk(large)
    assert next(reply) == "two"
    assert len(next(reply)) == wire.STREAM_CREDIT // 4
    assert fake.credited == len(part("one").body) + len(part("two").body) + len(large.body)
    got: list[object] = []
    elsewhere(lambda: got.extend(reply))
    wait_until(lambda: call.waiters)  # type: ignore[attr-defined]  # a call of a handle
    call.chunk(part("three"))
    call.ended()
    wait_until(lambda: len(got) == 1)
    assert got == ["three"]
    assert list(reply) == []


def test_a_stream_is_read_by_async_for_and_raises_after_the_chunks_that_came(fake: FakeConnection) -> None:
    reply = Handle("i", "e").remote()
    call = fake.calls[0]
    got: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.005, call.chunk, part(1))
        loop.call_later(0.010, call.chunk, part(2))
        loop.call_later(0.010, call.failed, ErrorInfo("ReplicaDiedError", "died"))
        async for chunk in reply:
            got.append(chunk)  # noqa: PERF401 - a comprehension would lose what came before the error

    with pytest.raises(ConnectionError, match="died"):
        asyncio.run(main())
    assert got == [1, 2]


def test_an_empty_stream_has_no_chunks_and_no_result(fake: FakeConnection) -> None:
    reply = Handle("i", "e").remote()
    fake.calls[0].ended()
    assert list(reply) == []
    with pytest.raises(InvalidTypeError, match="stream"):
        reply.result()


def test_streams_and_answers_are_not_taken_for_each_other(fake: FakeConnection) -> None:
    stream, whole = Handle("i", "e").remote(), Handle("i", "e").remote()
    fake.calls[0].chunk(part(1))
    fake.calls[1].answered(entire([1, 2]))
    with pytest.raises(TypeError, match="for"):
        stream.result()
    with pytest.raises(TypeError, match="one piece"):
        list(whole)


def test_cancelling_ends_the_call_once_and_an_answered_one_stays_answered(fake: FakeConnection) -> None:
    first, second = Handle("i", "e").remote(), Handle("i", "e").remote()
    first.cancel()
    answer(fake.calls[1], "done")()
    second.cancel()
    with pytest.raises(RequestCancelledError):
        first.result()
    assert second.result() == "done"


def test_get_waits_for_one_or_many_within_one_time_limit(fake: FakeConnection) -> None:
    replies = [Handle("i", "e").remote() for _ in range(3)]
    for number, call in enumerate(fake.calls):
        answer(call, number)()
    assert serve.get(replies) == [0, 1, 2]
    assert serve.get(iter(replies), timeout_s=1) == [0, 1, 2]
    assert serve.get(replies[1]) == 1
    late = [Handle("i", "e").remote() for _ in range(100)]
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        serve.get(late, timeout_s=0.2)
    assert time.monotonic() - began < 10  # each for itself: 20 s


@pytest.mark.parametrize("wrong", [3, None, "ab", [1], {"a": 1}])
def test_get_takes_nothing_but_replies(wrong: object) -> None:
    with pytest.raises(TypeError):
        serve.get(wrong)  # type: ignore[call-overload]  # that is the point


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"shard_key": 3}, InvalidTypeError),
        ({"shard_key": b"k"}, InvalidTypeError),
        ({"shard_key": "\ud800"}, InvalidValueError),
        ({"method_name": 3}, InvalidTypeError),
        ({"timeout_s": "1"}, InvalidTypeError),
        ({"timeout_s": True}, InvalidTypeError),
        ({"timeout_s": 0}, InvalidValueError),
        ({"timeout_s": -1.0}, InvalidValueError),
        ({"timeout_s": float("nan")}, InvalidValueError),
        ({"timeout_s": float("inf")}, InvalidValueError),
    ],
)
def test_wrong_options_are_refused_there_and_then(wrong: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        Handle("i", "e").options(**wrong)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("wrong", ["1", True, -1, float("nan")])
def test_a_wrong_time_limit_is_refused(fake: FakeConnection, wrong: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Handle("i", "e").remote().result(wrong)  # type: ignore[arg-type]  # that is the point


def test_a_handle_is_pickled_by_its_names_and_options_alone() -> None:
    handle = Handle("i", "e").options(shard_key="k", timeout_s=2)
    data = pickle.dumps(handle)
    assert pickle.loads(data) == handle
    assert hash(pickle.loads(data)) == hash(handle)
    assert pickle.loads(data) != Handle("i", "e")
    assert b"headgate.serve" in data
    assert len(data) < 200
    assert "'e'" in repr(handle)
    assert "shard_key='k'" in repr(handle)


def test_no_wake_up_is_lost_between_threads(fake: FakeConnection, elsewhere) -> None:
    # Answers race with the moment at which their readers begin to wait; a lost wake-up would block for ever.
    count = 2000
    handle = Handle("i", "e")

    def answer_all() -> None:
        for number in range(count):
            while len(fake.calls) <= number:
                pass
            answer(fake.calls[number], number)()

    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(usual_s / 10)  # both threads are busy, and each turn takes so long
    try:
        elsewhere(answer_all)
        assert [handle.remote().result(10) for _ in range(count)] == list(range(count))
    finally:
        sys.setswitchinterval(usual_s)


def test_names_that_are_no_text_are_refused_before_anything_is_sent(fake: FakeConnection) -> None:
    with pytest.raises(EncodeError, match="UTF-8"):
        Handle("i", "e").remote(**{"half a pair \ud800": 1})
    assert not fake.calls
