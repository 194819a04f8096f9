"""What do tests share?

Waiting with a deadline, in a thread and on an event loop; how exact times are; leaving out a test; what is under way at a backend;
and what stands for an instance where handles are tested.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

from headgate.errors import ErrorInfo
from headgate.router.call import Call
from headgate.serve import Instance

T = TypeVar("T")

TIME_FACTOR = 3 if os.environ.get("CI") else 1
"""Shared machines are given three times the figure, where a time is promised."""

GONE_WITHIN_S = 2.0 * TIME_FACTOR
"""Nothing of an instance is left after its driver was killed."""


def wait_until(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """Call `condition` until it returns something true, and return that; fail the test after `timeout_s`.

    An AssertionError that it raises counts as "not yet", so that it can be written with asserts; the last one is shown.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while True:
        failure: AssertionError | None = None
        try:
            value = condition()
            if value:
                return value
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__name__", "condition")
            raise AssertionError(f"{name}: not within {timeout_s:g} s") from failure
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def under_way(instance: Instance, tag: str) -> int:
    """How many requests a backend has, queued or running."""
    return sum(depth.in_flight for depth in instance.stat().counters.queues if depth.backend == tag)


async def until(condition: Callable[[], object], what: str = "", timeout_s: float = 10.0) -> None:
    """As `wait_until`, for conditions on the running loop, or in other threads: the loop goes on meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"{what or getattr(condition, '__name__', 'condition')}: not within {timeout_s:g} s")
        await asyncio.sleep(0.001)


def leave_out(why: str, *, proved_where: str = "CI") -> NoReturn:
    """Skip the test, for want of something on this machine. With that variable set it fails: there no promise may go unproved unseen."""
    if os.environ.get(proved_where):
        pytest.fail(f"this can't be left out where {proved_where} is set: {why}", pytrace=False)
    pytest.skip(why)


class FakeConnection:
    """Keeps calls, for the test to end them on whichever thread it likes."""

    over = ""
    forked = False
    objects = None
    new_call = None

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.credited = 0

    def submit(self, call: Call) -> None:
        self.calls.append(call)

    def cancel(self, call: Call) -> None:
        call.failed(ErrorInfo("RequestCancelledError", "cancelled"))

    def credit(self, call: Call, count_bytes: int) -> None:
        self.credited += count_bytes

    def forbid_waiting(self) -> None:
        pass

    def read_for(self, ready: object, add_waiter: object, until: float) -> bool:
        return False  # another thread reads
