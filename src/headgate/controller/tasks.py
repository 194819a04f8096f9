"""How does the controller wait until something has come or become true, and who ends what it has begun?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from headgate.errors import HeadgateError

_log = logging.getLogger("headgate.controller")

T = TypeVar("T")


_LATE_S: Final = 0.05
_TURNS_S: Final = 0.005
"""Some turns of the loop: what has arrived goes through a few hands before it is seen."""


async def in_time(coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What the coroutine returns; `TimeoutError` if that takes longer than `timeout_s`.

    What has arrived while this very process was busy, or suspended, counts as in time; and since what has kept this process
    from running has likely kept others, it waits as much longer as it woke too late, up to 0.05 s.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(coroutine)
    until = loop.time() + timeout_s
    try:
        done, _ = await asyncio.wait([task], timeout=timeout_s)
        if not done:
            late_s = loop.time() - until
            done, _ = await asyncio.wait([task], timeout=min(_TURNS_S + late_s, _LATE_S))
        if not done:
            raise TimeoutError
    finally:
        task.cancel()
    return task.result()


class Changes:
    """Whoever waits looks again after each change; so nobody polls, and nobody must know who waits for what."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """Something has changed."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, test: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `test()`; False if it is not true after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while not test():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return False
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait([future], timeout=left)
            finally:
                self._waiting.discard(future)
        return True


class Tasks:
    """Tasks with an owner: a failure that is no error of Headgate's own kinds is logged as a mistake, and `close` ends all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a coroutine by itself."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def settle(self) -> None:
        """Wait until all that run have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what runs, and wait for its end."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), HeadgateError):
            _log.error("%s failed: this is a mistake in Headgate", task.get_name(), exc_info=task.exception())
