"""Can another thread stand in for an event loop's own while that sleeps, so that nothing is late and nothing is interrupted?"""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from headgate.router.borrowing import SharedLoop, Shield
from headgate.router.reading import CAN_SHARE
from tests.support import TIME_FACTOR, wait_until


@pytest.fixture
def loop() -> Iterator[SharedLoop]:
    """A loop that runs in a thread of its own, with nothing to do."""
    loop = SharedLoop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    wait_until(lambda: loop.asleep)
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_a_sleeping_loop_is_borrowed_by_one_thread_and_goes_on_afterwards(loop: SharedLoop) -> None:
    assert loop.borrow(wait=False)
    assert loop.borrower == threading.get_ident()
    assert not loop.borrow(wait=False)
    ran = threading.Event()
    assert not loop.has_work()
    loop.call_soon_threadsafe(ran.set)
    assert loop.has_work() or not CAN_SHARE
    assert not ran.wait(0.05)
    loop.give_back()
    assert ran.wait(10)
    assert not loop.borrower


def test_a_busy_loop_is_not_borrowed(loop: SharedLoop) -> None:
    begun, end = threading.Event(), threading.Event()
    loop.call_soon_threadsafe(lambda: (begun.set(), end.wait(10)))
    assert begun.wait(10)
    assert not loop.asleep
    assert not loop.borrow(wait=False)
    end.set()
    assert loop.borrow(wait=True)
    loop.give_back()


def test_timers_and_callbacks_of_a_borrower_are_not_late(loop: SharedLoop) -> None:
    ran: list[tuple[str, int]] = []
    began = time.monotonic()

    def note(what: str) -> None:
        ran.append((what, threading.get_ident()))

    loop.borrow(wait=True)
    loop.call_later(60, note, "never")
    loop.call_later(0.05, note, "timer")
    loop.call_soon(note, "soon")
    loop.finally_call(lambda: note("last"))
    assert ran == []
    loop.give_back()
    assert ran[0] == ("last", threading.get_ident())
    wait_until(lambda: len(ran) == 3)
    assert [what for what, _ in ran] == ["last", "soon", "timer"]
    assert threading.get_ident() not in [thread for _, thread in ran[1:]]
    assert time.monotonic() - began < 0.05 + 0.5 * TIME_FACTOR


def test_a_loop_that_is_not_borrowed_calls_what_is_to_be_last_in_its_own_thread(loop: SharedLoop) -> None:
    ran: list[int] = []
    loop.call_soon_threadsafe(lambda: loop.finally_call(lambda: ran.append(threading.get_ident())))
    wait_until(lambda: ran)
    assert ran != [threading.get_ident()]


def test_what_is_to_be_last_is_not_lost_where_a_signal_handler_raises_in_it(loop: SharedLoop) -> None:
    ran: list[int] = []

    def raises_once() -> None:
        ran.append(len(ran))
        if len(ran) == 1:
            raise InterruptedError

    loop.borrow(wait=True)
    loop.finally_call(raises_once)
    loop.finally_call(lambda: ran.append(-1))
    with pytest.raises(InterruptedError):
        loop.give_back()
    assert ran == [0]
    assert loop.borrow(wait=True)
    loop.give_back()
    assert ran == [0, 1, -1]


def test_a_loop_that_has_ended_can_be_given_back(loop: SharedLoop) -> None:
    loop.borrow(wait=True)
    loop.call_soon(math.floor, 1)
    loop.call_soon_threadsafe(loop.stop)
    loop.give_back()
    wait_until(lambda: not loop.is_running())
    assert loop.borrow(wait=True)
    loop.call_soon(math.floor, 1)
    loop.give_back()


@pytest.mark.skipif(not CAN_SHARE, reason="without epoll the loop always reads")
def test_a_socket_is_read_by_the_loop_but_while_another_thread_waits_for_it(loop: SharedLoop) -> None:
    ours, theirs = socket.socketpair()
    read: list[int] = []

    def reader() -> None:
        ours.recv(100)
        read.append(threading.get_ident())

    reading = loop.reading
    assert reading is not None
    loop.borrow(wait=True)
    loop.watch(ours.fileno(), reader)
    loop.give_back()
    try:
        theirs.send(b"1")
        wait_until(lambda: len(read) == 1)
        assert reading.poll(lambda: True, 0.001) == []
        theirs.send(b"2")
        assert select.select([ours], [], [], 10)[0]
        assert not loop.has_work()
        assert len(read) == 1
        loop.borrow(wait=True)
        reading.read(reading.poll(lambda: True))
        loop.give_back()
        assert read[1] == threading.get_ident()
        theirs.send(b"3")
        reading.leave()
        wait_until(lambda: len(read) == 3)
        assert read[2] != threading.get_ident()
    finally:
        loop.borrow(wait=True)
        loop.unwatch(ours.fileno())
        loop.give_back()
        ours.close()
        theirs.close()


def interrupt() -> None:
    """Ctrl-C; its handler has run when this returns, unless it is shielded from it."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


def test_an_interruption_waits_for_the_end_of_a_shielded_block() -> None:
    steps = []

    def work() -> None:
        with Shield():
            interrupt()
            steps.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        interrupt()


@pytest.mark.parametrize("before", [True, False])
def test_an_interruption_comes_at_once_where_the_shield_is_lifted(before: bool) -> None:
    steps = []

    def work() -> None:
        with Shield() as shield:
            if before:
                interrupt()
            steps.append(1)
            shield.lifted = True
            shield.check()
            steps.append(2)
            interrupt()
            steps.append(3)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ([1] if before else [1, 2])


def test_a_shield_is_up_only_in_its_block_and_while_it_is_not_lifted() -> None:
    assert not Shield.is_up()
    with Shield() as outer:
        assert Shield.is_up()
        outer.lifted = True
        assert not Shield.is_up()
        with Shield() as inner:  # a handler that calls
            assert Shield.is_up()
            inner.lifted = True
            assert not Shield.is_up()
            outer.lifted = False  # a handler that has interrupted the outer one in a shielded place
            assert Shield.is_up()
        assert Shield.is_up()
    assert not Shield.is_up()
    with pytest.raises(KeyboardInterrupt), Shield():
        interrupt()
    assert not Shield.is_up()


def test_other_threads_and_ignored_interruptions_need_no_shield() -> None:
    handlers: list[object] = []

    def look() -> None:
        with Shield():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert handlers == [signal.default_int_handler]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        look()
        interrupt()
        assert handlers[1] == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_still_cancels_the_main_task_of_asyncio_run() -> None:
    async def main() -> None:
        with Shield():
            interrupt()
        await asyncio.sleep(10)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert time.monotonic() - began < 5


def test_a_handler_of_ctrl_c_that_sets_another_is_followed() -> None:
    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    before = signal.signal(signal.SIGINT, first)
    try:
        with Shield() as shield:
            shield.lifted = True
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_child_that_was_forked_while_the_parent_was_shielded_has_the_handler_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Shield():
        assert signal.getsignal(signal.SIGINT) != before
        Shield.forked()
        assert signal.getsignal(signal.SIGINT) == before
