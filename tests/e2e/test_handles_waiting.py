"""Do calls of handles keep the contract when the threads that make them do the work: sending, reading, waiting?"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from headgate import serve
from headgate.errors import DeadlineExceededError, HeadgateError, ReplicaDiedError, ReplyTimeoutError, RequestCancelledError
from headgate.router import connections
from headgate.router.borrowing import Shield
from headgate.router.reading import CAN_SHARE
from headgate.serve import Handle, Instance
from tests.support import TIME_FACTOR, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*over HTTP:UserWarning")  # handlers for handles take what they like


class Backend:
    """Answers at once, or when it is let go."""

    def __call__(self, value: Any = None) -> Any:
        return value

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)


class AsyncOuter:
    def __init__(self, inner: Handle) -> None:
        self.inner = inner

    async def __call__(self, value: int) -> Any:
        return await self.inner.remote(value)


class Outer:
    def __init__(self, inner: Handle) -> None:
        self.inner = inner

    def __call__(self, value: int) -> Any:
        return self.inner.remote(value).result(10)


@pytest.fixture(scope="module")
def handle(shared_instance: Instance) -> Handle:
    shared_instance.create_backend("one", Backend, config={"concurrency": 4})
    shared_instance.create_endpoint("one", backend="one")
    return shared_instance.get_handle("one")


@pytest.fixture(scope="module")
def slow(shared_instance: Instance) -> Handle:
    shared_instance.create_backend("slow", Backend, config={"concurrency": 4})
    shared_instance.create_endpoint("slow", backend="slow")
    return shared_instance.get_handle("slow").options(method_name="sleep")


def someone_reads(handle: Handle) -> bool:
    """Whether a thread that waits reads the links, where this system has what it takes."""
    return not CAN_SHARE or connections.of(handle._instance)._reader.locked()


def test_many_threads_and_loops_call_and_wait_at_once(handle: Handle) -> None:
    def one_after_the_other(thread: int) -> None:
        for number in range(300):
            assert handle.remote((thread, number)).result(20) == (thread, number)

    def many(thread: int) -> None:
        for _ in range(5):
            replies = [handle.remote((thread, number)) for number in range(100)]
            assert serve.get(replies, 20) == [(thread, number) for number in range(100)]

    def on_a_loop(thread: int) -> None:
        async def main() -> None:
            for _ in range(5):
                assert await asyncio.gather(*[handle.remote(number) for number in range(100)]) == list(range(100))
            for number in range(100):
                assert await handle.remote(number) == number

        asyncio.run(main())

    def streams(thread: int) -> None:
        for _ in range(30):
            assert list(handle.options(method_name="count").remote(20)) == list(range(20))

    kinds = [one_after_the_other, many, on_a_loop, streams]
    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(kinds[thread % 4], thread) for thread in range(12)]:
            done.result(60)
    assert not connections.of(handle._instance)._reader.locked()


def test_a_backend_calls_another_by_threads_and_by_an_event_loop(shared_instance: Instance, handle: Handle) -> None:
    for outer in (Outer, AsyncOuter):
        name = outer.__name__
        shared_instance.create_backend(name, outer, handle)
        shared_instance.create_endpoint(name, backend=name)
        through = shared_instance.get_handle(name)
        for number in range(50):
            assert through.remote(number).result(20) == number
        assert serve.get([through.remote(number) for number in range(200)], 20) == list(range(200))


def test_a_time_limit_ends_the_wait_of_the_thread_that_reads(slow: Handle) -> None:
    for limit in (0.0, 0.001, 0.05):
        reply = slow.remote(0.5)
        began = time.monotonic()
        with pytest.raises(ReplyTimeoutError):
            reply.result(limit)
        assert limit <= time.monotonic() - began < limit + 0.1 * TIME_FACTOR
    assert reply.result(10) == 0.5


def test_a_deadline_ends_a_call_while_only_the_thread_that_waits_for_it_is_awake(slow: Handle) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        slow.options(timeout_s=0.1).remote(1.0).result()
    assert 0.1 <= time.monotonic() - began < 0.1 + 0.3 * TIME_FACTOR


def test_a_call_that_is_cancelled_by_another_thread_ends_the_wait_of_the_one_that_reads(slow: Handle) -> None:
    reply = slow.remote(1.0)

    def cancel() -> None:
        wait_until(lambda: someone_reads(slow))
        reply.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    began = time.monotonic()
    with pytest.raises(RequestCancelledError):
        reply.result(10)
    assert time.monotonic() - began < 0.9 * TIME_FACTOR
    thread.join(10)


def test_a_thread_that_reads_hands_others_their_answers_and_leaves_when_it_has_its_own(slow: Handle, handle: Handle) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow.remote(0.3).result)
        wait_until(lambda: someone_reads(slow))
        second = pool.submit(slow.remote(0.6).result)
        began = time.monotonic()
        for number in range(50):
            assert handle.remote(number).result(10) == number
        assert time.monotonic() - began < 0.3 * TIME_FACTOR
        assert (first.result(10), second.result(10)) == (0.3, 0.6)


def test_a_replica_that_is_killed_fails_the_call_of_the_thread_that_reads(handle: Handle) -> None:
    with pytest.raises(ReplicaDiedError):
        handle.options(method_name="die").remote().result(20)
    assert handle.remote(1).result(20) == 1


def test_a_signal_handler_may_call_while_the_thread_that_it_interrupts_reads(slow: Handle, handle: Handle) -> None:
    got: list[object] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(handle.remote("handled").result(10)))
    try:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        assert slow.remote(0.4).result(10) == 0.4
        assert got == ["handled"]
        timer.join(10)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_who_is_at_work_for_all_calls_is_told_not_to_wait_for_one(handle: Handle) -> None:
    connection = connections.of(handle._instance)
    reply = handle.remote(1)
    loop = connection._loop
    assert loop is not None
    loop.borrow(wait=True)
    try:
        late = handle.remote(2)
        with pytest.raises(HeadgateError, match="never end"):
            late.result()
    finally:
        loop.give_back()
    assert (reply.result(10), late.result(10)) == (1, 2)


def test_shutdown_ends_the_wait_of_the_thread_that_reads() -> None:
    with ThreadPoolExecutor(1) as pool:
        with serve.init("ends", http_port=0) as instance:
            instance.create_backend("one", Backend, config={"graceful_shutdown_timeout": 0.1})
            instance.create_endpoint("one", backend="one")
            handle = instance.get_handle("one").options(method_name="sleep")
            waits = pool.submit(handle.remote(30).result)
            wait_until(lambda: someone_reads(handle))
        with pytest.raises(HeadgateError):
            waits.result(10)


def interrupted_at(point: int, call: Callable[[], object]) -> bool:
    """Have Ctrl-C come where the call enters or leaves a function for the n-th time. False where it has fewer such points."""
    passed = 0

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal passed
        if event != "c_call":
            passed += 1
            if passed == point:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    try:
        sys.setprofile(look)
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return passed >= point


def test_an_interruption_at_any_point_of_a_call_leaves_nothing_behind(handle: Handle) -> None:
    handle.remote(0).result(10)
    router = connections.of(handle._instance)._router
    assert router is not None
    point = 1
    while interrupted_at(point, lambda: handle.remote(1).result(10)):
        wait_until(lambda: not router.in_flight("one"))  # nobody waits for it, so the loop reads its answer
        assert handle.remote(2).result(10) == 2
        assert not Shield.is_up()  # else SIGTERM would be put off for ever
        point += 1
    assert point > 100


INTERRUPTED = """
import signal, sys, threading, time
from headgate import serve

def echo(value):
    if value == "slow":
        time.sleep(0.3)
    return value

if __name__ == "__main__":
    with serve.init("interrupted", http_port=0):
        serve.create_backend("echo", echo)
        serve.create_endpoint("echo", backend="echo")
        handle = serve.get_handle("echo")
        handle.remote(0).result()
        ok = True
        def others():
            global ok
            for number in range(2000):
                ok = ok and handle.remote(-number).result(10) == -number
        print("ready", flush=True)
        interrupted, until, number = 0, time.monotonic() + 3, 0
        thread = threading.Thread(target=others)
        thread.start()
        while time.monotonic() < until:
            try:
                while time.monotonic() < until:
                    number += 1
                    value = "slow" if number % 500 == 0 else number
                    ok = ok and handle.remote(value).result(10) == value
            except KeyboardInterrupt:
                interrupted += 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        thread.join()
        print(ok, interrupted, handle.remote("end").result(10), flush=True)
"""


def test_ctrl_c_comes_through_and_breaks_no_call(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(INTERRUPTED)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until, sent = time.monotonic() + 2, 0
        while time.monotonic() < until:
            time.sleep(0.0101)
            process.send_signal(signal.SIGINT)
            sent += 1
        said, complaints = process.communicate(timeout=40)
    ok, interrupted, end = said.split()
    assert (ok, end, process.returncode) == ("True", "end", 0), complaints
    assert int(interrupted) > sent / 2
