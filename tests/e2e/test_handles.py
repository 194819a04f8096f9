"""Do handles keep the contract: answers and errors in threads, event loops and replicas, streams, limits, cancellation?"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate import serve
from headgate.core import wire
from headgate.errors import (
    DeadlineExceededError,
    EndpointRemovedError,
    NotFoundError,
    QueueFullError,
    ReplicaDiedError,
    RequestCancelledError,
    UnavailableError,
    UserCodeError,
)
from headgate.serve import Handle, Instance
from tests.support import until, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*over HTTP:UserWarning")  # handlers for handles take what they like


def echo(*args: Any, **kwargs: Any) -> Any:
    return list(args), kwargs


@pytest.fixture
def deploy(shared_instance: Instance, request: pytest.FixtureRequest) -> Any:
    """Makes a backend of a function or class, with an endpoint of its own, and returns a handle."""
    count = 0

    def make(target: Any, *init_args: Any, **config: Any) -> Handle:
        nonlocal count
        count += 1
        name = f"{request.node.name}-{count}"
        shared_instance.create_backend(name, target, *init_args, config=config)
        shared_instance.create_endpoint(name, backend=name)
        return shared_instance.get_handle(name)

    return make


# Arguments and answers


def test_arguments_and_answers_go_both_ways_as_they_are(deploy: Any) -> None:
    handle = deploy(echo)
    value = {"a": (1, 2.5, None), b"b": {3}, "text": "\u00fc"}
    assert handle.remote(1, value, x=value, y=[]).result(10) == ([1, value], {"x": value, "y": []})
    assert handle.remote().result(10)[1] == {}


def test_names_of_a_class_of_their_own_travel_as_plain_strings(shared_instance: Instance, deploy: Any) -> None:
    class Name(str):
        __slots__ = ()

    handle = deploy(echo)
    named = shared_instance.get_handle(Name(handle._endpoint)).options(method_name=Name("__call__"))
    others = [handle.remote(number) for number in range(20)]
    assert named.remote(**{Name("x"): 1}).result(10) == ([], {"x": 1})
    assert [reply.result(10) for reply in others] == [([number], {}) for number in range(20)]


def test_an_answer_can_be_waited_for_longer_than_the_kernel_waits(deploy: Any) -> None:
    assert deploy(echo).remote().result(1e9)[1] == {}


def test_large_arrays_arrive_whole_and_can_be_written_to(deploy: Any) -> None:
    handle = deploy(lambda array: array * 2)
    array = np.arange(500_000, dtype=np.float64)
    doubled = handle.remote(array).result(20)
    np.testing.assert_array_equal(doubled, array * 2)
    doubled[0] = 1


class Methods:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: int = 0) -> tuple[str, int]:
        return "call", x

    def other(self, x: int = 0) -> tuple[str, int]:
        return "other", x

    def _private(self) -> str:
        return "private"

    @staticmethod
    def still(x: int) -> tuple[str, int]:
        return "still", x


def test_methods_are_called_by_name_and_unknown_or_private_ones_never(deploy: Any) -> None:
    handle = deploy(Methods)
    assert handle.remote(1).result(10) == ("call", 1)
    assert handle.options(method_name="other").remote(x=2).result(10) == ("other", 2)
    assert handle.options(method_name="still").remote(3).result(10) == ("still", 3)
    for wrong in ("missing", "_private", "__init__", "calls", "__class__"):
        with pytest.raises(NotFoundError, match=wrong):
            handle.options(method_name=wrong).remote().result(10)


def test_arguments_that_do_not_fit_fail_by_themselves_with_a_type_error(deploy: Any) -> None:
    handle = deploy(lambda a, b: (a, b))
    with pytest.raises(TypeError, match="c"):
        handle.remote(1, 2, c=3).result(10)
    with pytest.raises(TypeError) as caught:
        handle.remote(1, 2, 3).result(10)
    assert "headgate" not in str(caught.value)  # nothing of how the handler is called
    assert handle.remote(1, b=2).result(10) == (1, 2)


# Threads and loops


def test_many_threads_share_a_handle_and_each_gets_its_own_answers(deploy: Any) -> None:
    handle = deploy(lambda x: x, num_replicas=2)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda x: handle.remote(x).result(20), range(400))) == list(range(400))


def test_a_thousand_calls_in_flight_come_back_in_their_own_replies(deploy: Any) -> None:
    handle = deploy(lambda x: x, num_replicas=2, max_queued_queries=2000)
    replies = [handle.remote(x) for x in range(1000)]
    assert serve.get(replies, timeout_s=30) == list(range(1000))


def test_replies_are_awaited_on_any_event_loop(deploy: Any) -> None:
    handle = deploy(lambda x: x)
    from_here = handle.remote("made outside")

    async def ask(offset: int) -> list[int]:
        return list(await asyncio.gather(*[wait(handle.remote(offset + x)) for x in range(100)]))

    async def wait(reply: Any) -> Any:
        return await reply

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda offset: asyncio.run(ask(offset)), (0, 1000, 2000)))
    assert results == [list(range(offset, offset + 100)) for offset in (0, 1000, 2000)]
    assert asyncio.run(wait(from_here)) == "made outside"


# Errors


class RecipeError(Exception):
    """An error with a constructor of its own."""

    def __init__(self, dish: str, missing: list[str]) -> None:
        super().__init__(f"{dish} needs {', '.join(missing)}")
        self.dish, self.missing = dish, missing

    def __reduce__(self) -> Any:
        return RecipeError, (self.dish, self.missing)


def cook(dish: str) -> str:
    if dish == "soup":
        raise RecipeError("soup", ["salt", "water"])
    if dish == "cake":
        raise KeyError("flour")
    if dish == "exit":
        raise SystemExit(3)
    return dish


def test_what_user_code_raised_can_be_caught_as_its_own_class(deploy: Any) -> None:
    handle = deploy(cook)
    with pytest.raises(RecipeError, match="salt, water") as caught:
        handle.remote("soup").result(10)
    assert isinstance(caught.value, UserCodeError)
    assert (caught.value.dish, caught.value.missing) == ("soup", ["salt", "water"])
    assert "in cook" in caught.value.remote_traceback
    assert caught.value.status == 500
    with pytest.raises(KeyError):
        handle.remote("cake").result(10)
    assert handle.remote("rice").result(10) == "rice"


def test_user_code_that_exits_ends_its_replica_and_another_takes_its_place(deploy: Any) -> None:
    handle = deploy(cook)
    with pytest.raises(ReplicaDiedError):
        handle.remote("exit").result(10)
    assert wait_until(lambda: handle.remote("rice").result(10)) == "rice"


def test_an_error_is_raised_by_await_too_and_every_time(deploy: Any) -> None:
    handle = deploy(cook)
    reply = handle.remote("soup")

    async def wait() -> None:
        await reply

    for _ in range(2):
        with pytest.raises(RecipeError):
            asyncio.run(wait())
        with pytest.raises(RecipeError):
            reply.result(10)


def test_an_answer_that_cannot_be_pickled_names_its_type(deploy: Any) -> None:
    handle = deploy(make_lock)
    with pytest.raises(TypeError, match="lock"):
        handle.remote().result(10)


def test_what_no_frame_holds_is_an_error_of_that_call_and_ends_no_replica(deploy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_over_a_small_limit() -> bytes:
        wire.MAX_BODY_BYTES = 1000  # type: ignore[misc]  # in the replica; the real one is 4 GiB
        return b"x" * 2000

    handle = deploy(echo)
    with pytest.raises(TypeError, match="100000 arguments"):
        handle.remote(**{f"argument_{number}": 0 for number in range(100_000)})
    with monkeypatch.context() as patched:
        patched.setattr(wire, "MAX_BODY_BYTES", 1000)
        with pytest.raises(TypeError, match="bytes, over the limit"):
            handle.remote(b"x" * 2000)
    assert handle.remote(1, a=2).result(10) == ([1], {"a": 2})
    with pytest.raises(TypeError, match="bytes, over the limit"):
        deploy(answer_over_a_small_limit).remote().result(10)


def test_an_error_keeps_its_class_on_its_way_through_another_backend(deploy: Any) -> None:
    outer = deploy(asks_on)
    with pytest.raises(RecipeError, match="salt, water") as caught:
        outer.remote(deploy(cook), "soup").result(20)
    assert caught.value.missing == ["salt", "water"]
    assert isinstance(caught.value, UserCodeError)
    assert "in asks_on" in caught.value.remote_traceback
    assert "in cook" in str(caught.value)


def make_lock() -> Any:
    return threading.Lock()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_replica_that_dies_fails_what_it_ran(deploy: Any) -> None:
    handle = deploy(die)
    with pytest.raises(ReplicaDiedError) as caught:
        handle.remote().result(10)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.status == 502


def test_a_removed_endpoint_is_a_lookup_error(shared_instance: Instance, deploy: Any) -> None:
    handle = deploy(echo)
    name = next(name for name in shared_instance.list_endpoints() if name.startswith("test_a_removed"))
    shared_instance.delete_endpoint(name)
    with pytest.raises(EndpointRemovedError, match="test_a_removed") as caught:
        handle.remote().result(10)
    assert isinstance(caught.value, LookupError)


# Limits


class Holds:
    """Notes what it began, and goes on with what is `held` once the test lets it go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, held: bool = False) -> str:
        (self.folder / name).touch()
        if held:
            wait_until((self.folder / f"{name} may end").exists, 60)
        return name


class HoldsAsync:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __call__(self, name: str) -> str:
        (self.folder / name).touch()
        try:
            await until((self.folder / f"{name} may end").exists, timeout_s=60)
        except asyncio.CancelledError:
            (self.folder / f"{name} cancelled").touch()
            raise
        (self.folder / f"{name} ended").touch()
        return name


def let_go(folder: Path, name: str) -> None:
    (folder / f"{name} may end").touch()


def test_a_callers_limit_ends_a_call_that_runs_and_one_that_waits_and_the_latter_never_starts(deploy: Any, tmp_path: Path) -> None:
    handle = deploy(Holds, tmp_path)
    long = handle.remote("long", held=True)
    wait_until((tmp_path / "long").exists)
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        handle.options(timeout_s=0.2).remote("waiting").result(10)
    assert time.monotonic() - began > 0.15
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.status == 504
    let_go(tmp_path, "long")
    assert long.result(10) == "long"
    running = handle.options(timeout_s=1).remote("running", held=True)
    wait_until((tmp_path / "running").exists)
    with pytest.raises(TimeoutError):
        running.result(10)
    let_go(tmp_path, "running")
    assert handle.remote("last").result(10) == "last"
    assert not (tmp_path / "waiting").exists()


def test_a_callers_limit_can_only_shorten_the_backends(deploy: Any, tmp_path: Path) -> None:
    handle = deploy(Holds, tmp_path, request_timeout=0.2)
    with pytest.raises(DeadlineExceededError):
        handle.options(timeout_s=30).remote("one", held=True).result(10)
    let_go(tmp_path, "one")


def test_a_full_queue_refuses_and_says_which_rule_it_was(deploy: Any, tmp_path: Path) -> None:
    handle = deploy(Holds, tmp_path, max_queued_queries=2)
    first = handle.remote("first", held=True)
    wait_until((tmp_path / "first").exists)
    others = [handle.remote(f"other {number}") for number in range(12)]
    with pytest.raises(QueueFullError) as caught:
        others[-1].result(10)
    assert isinstance(caught.value, UnavailableError)
    assert (caught.value.status, caught.value.reason) == (503, "queue full")
    assert caught.value.retry_after_s is not None
    let_go(tmp_path, "first")
    answered = []
    for number, reply in enumerate(others):
        try:
            answered.append(reply.result(10) == f"other {number}")
        except QueueFullError:
            pass
    assert first.result(10) == "first"
    assert 2 <= len(answered) <= 4
    assert all(answered)


def asks_on(handle: Handle, *args: Any) -> Any:
    return handle.remote(*args).result(20)


def time_left() -> float | None:
    return serve.context.deadline_s


class Composed:
    """Calls another endpoint, by a handle that it was constructed with."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __call__(self) -> Any:
        return self.handle.remote().result(20)

    async def asynchronously(self) -> Any:
        return await self.handle.remote()


def test_a_handle_goes_into_a_backend_and_the_callers_deadline_goes_along(deploy: Any) -> None:
    inner = deploy(time_left)
    outer = deploy(Composed, inner)
    assert 50 < outer.remote().result(20) <= 60
    left = outer.options(timeout_s=7).remote().result(20)
    assert 5 < left <= 7
    assert 5 < outer.options(timeout_s=7, method_name="asynchronously").remote().result(20) <= 7
    by_argument = deploy(asks_on)
    assert 5 < by_argument.options(timeout_s=7).remote(inner).result(20) <= 7
    assert inner.remote().result(20) > 50


def test_a_pickled_handle_works_where_it_is_opened(deploy: Any) -> None:
    handle = deploy(lambda x: x).options(shard_key="k")
    data = pickle.dumps(handle)
    again = pickle.loads(data)
    assert again == handle
    assert again.remote(3).result(10) == 3


# Cancellation


def test_a_cancelled_call_that_waits_never_starts(deploy: Any, tmp_path: Path) -> None:
    handle = deploy(Holds, tmp_path)
    first = handle.remote("first", held=True)
    wait_until((tmp_path / "first").exists)
    waiting = handle.remote("waiting")
    waiting.cancel()
    with pytest.raises(RequestCancelledError):
        waiting.result(10)
    let_go(tmp_path, "first")
    assert first.result(10) == "first"
    assert handle.remote("last").result(10) == "last"
    assert not (tmp_path / "waiting").exists()


def test_a_cancelled_async_call_is_cancelled_where_it_runs(deploy: Any, tmp_path: Path) -> None:
    handle = deploy(HoldsAsync, tmp_path)
    reply = handle.remote("long")
    wait_until((tmp_path / "long").exists)
    reply.cancel()
    with pytest.raises(RequestCancelledError):
        reply.result(10)
    wait_until((tmp_path / "long cancelled").exists)


def test_a_dropped_reply_does_not_cancel_and_a_cancelled_await_does(deploy: Any, tmp_path: Path) -> None:
    handle = deploy(HoldsAsync, tmp_path)
    handle.remote("dropped")
    awaited = handle.remote("awaited")
    wait_until((tmp_path / "awaited").exists)

    async def stop_waiting() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited, 0.01)

    asyncio.run(stop_waiting())
    wait_until((tmp_path / "awaited cancelled").exists)
    wait_until((tmp_path / "dropped").exists)
    let_go(tmp_path, "dropped")
    wait_until((tmp_path / "dropped ended").exists)
    assert not (tmp_path / "dropped cancelled").exists()


class Passes:
    def __init__(self, inner: Handle) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.remote(*args, **kwargs).result()


class PassesAsync:
    def __init__(self, inner: Handle) -> None:
        self.inner = inner

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.inner.remote(*args, **kwargs)


def test_who_leaves_cancels_what_was_asked_of_others_for_it_through_all_levels(deploy: Any, tmp_path: Path) -> None:
    middle = deploy(Passes, deploy(HoldsAsync, tmp_path))
    reply = deploy(PassesAsync, middle).remote("long")
    wait_until((tmp_path / "long").exists)
    reply.cancel()
    wait_until((tmp_path / "long cancelled").exists)
    let_go(tmp_path, "next")
    assert middle.remote("next").result(10) == "next"  # its one thread waits no longer


def test_who_leaves_frees_the_place_of_what_was_asked_of_others_for_it(deploy: Any, tmp_path: Path) -> None:
    inner = deploy(Holds, tmp_path, max_queued_queries=1)
    outer = deploy(Passes, inner)
    assert outer.remote("begin").result(10) == "begin"
    first = inner.remote("first", held=True)
    wait_until((tmp_path / "first").exists)
    reply = outer.remote("waiting")
    in_flight = lambda: sum(queue.in_flight for queue in serve.stat().counters.queues)  # noqa: E731
    wait_until(lambda: in_flight() == 3)
    reply.cancel()
    wait_until(lambda: in_flight() == 1)
    let_go(tmp_path, "first")
    assert first.result(10) == "first"
    assert inner.remote("last").result(10) == "last"
    assert not (tmp_path / "waiting").exists()


# Streams


def count(to: int, fail_at: int = -1) -> Iterator[int]:
    for number in range(to):
        if number == fail_at:
            raise RecipeError("stream", [str(number)])
        yield number


async def count_async(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number
        await asyncio.sleep(0)


@pytest.mark.parametrize("target", [count, count_async])
def test_a_generator_is_read_by_for_and_by_async_for(deploy: Any, target: Any) -> None:
    handle = deploy(target)
    assert list(handle.remote(100)) == list(range(100))
    assert list(handle.remote(0)) == []

    async def read() -> list[int]:
        return [number async for number in handle.remote(100)]

    assert asyncio.run(read()) == list(range(100))


def test_chunks_arrive_while_the_generator_still_runs(deploy: Any, tmp_path: Path) -> None:
    def held() -> Iterator[str]:
        yield "first"
        wait_until((tmp_path / "go").exists, 30)
        yield "second"

    stream = deploy(held).remote()
    assert next(stream) == "first"
    (tmp_path / "go").touch()
    assert list(stream) == ["second"]


def test_a_stream_that_fails_in_the_middle_raises_after_what_had_come(deploy: Any) -> None:
    handle = deploy(count)
    stream = handle.remote(10, fail_at=3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RecipeError, match="3"):
        next(stream)
    with pytest.raises(RecipeError):
        list(handle.remote(10, fail_at=0))


class Produces:
    """Yields big chunks, and says how many it has made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, chunks: int) -> Iterator[bytes]:
        for _ in range(chunks):
            self.made += 1
            yield b"x" * 65536

    def how_many(self) -> int:
        return self.made


def test_a_slow_reader_holds_up_the_generator_and_gets_everything(deploy: Any) -> None:
    handle = deploy(Produces, concurrency=2)
    stream = handle.remote(100)
    assert len(next(stream)) == 65536
    # The generator may be ahead by the credit of a stream and by what is on its way, and no more.
    wait_until(lambda: sum(map(len, stream._call.chunks)) >= wire.STREAM_CREDIT // 2)
    assert handle.options(method_name="how_many").remote().result(10) * 65536 < 600_000
    assert sum(map(len, stream)) == 99 * 65536


def test_a_cancelled_stream_ends(deploy: Any) -> None:
    handle = deploy(count)
    stream = handle.remote(10**9)
    assert next(stream) == 0
    stream.cancel()
    with pytest.raises(RequestCancelledError):
        list(stream)
    assert list(handle.remote(3)) == [0, 1, 2]


MAIN = """
from headgate import serve

class SpiceError(Exception):
    def __init__(self, grams):
        super().__init__(f"{grams} g is too much")
        self.grams = grams

class Portion:
    def __init__(self, grams):
        self.grams = grams

def season(portion):
    if portion.grams > 5:
        raise SpiceError(portion.grams)
    return Portion(portion.grams * 2)

if __name__ == "__main__":
    import warnings
    with serve.init("main", http_port=0):
        serve.create_backend("season", season)
        serve.create_endpoint("season", backend="season")
        handle = serve.get_handle("season")
        answer = handle.remote(Portion(2)).result(10)
        print(isinstance(answer, Portion), answer.grams)
        try:
            handle.remote(Portion(9)).result(10)
        except SpiceError as error:
            print(type(error).__mro__[1].__name__, str(error).splitlines()[0], error.grams if hasattr(error, "grams") else None)
"""


def test_classes_of_the_main_script_travel_as_arguments_answers_and_errors(tmp_path: Path) -> None:
    from tests.e2e.test_verbs_instance import Script

    said = Script(tmp_path / "main.py", MAIN).end().splitlines()
    assert said == ["True 4", "UserCodeError SpiceError: 9 g is too much 9"]
