"""When does an instance end because the process that started it is gone?

On one machine the supervisor sees that process end. On a cluster it holds a connection with the controller: once that has been
closed for `AWAY_S`, and unless the instance is detached, it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from headgate.controller.tasks import Tasks

_log = logging.getLogger("headgate.controller")

AWAY_S: Final = 10.0


class Lease:
    """`end` is called when nobody has held it for `AWAY_S`, counted from `begin`."""

    def __init__(self, end: Callable[[], Coroutine[Any, Any, None]], tasks: Tasks) -> None:
        self._end = end
        self._tasks = tasks
        self._holders = 0
        self._timer: asyncio.TimerHandle | None = None
        self._counts = False

    def begin(self) -> None:
        """From now on it matters."""
        self._counts = True
        self._look()

    def taken(self) -> None:
        """The process that started the instance is there."""
        self._holders += 1
        self._look()

    def left(self) -> None:
        """Its connection was lost."""
        self._holders -= 1
        self._look()

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._counts and not self._holders:
            self._timer = asyncio.get_running_loop().call_later(AWAY_S, self._expire)

    def _expire(self) -> None:
        _log.warning("the process that started this instance has been away for %g s: it ends", AWAY_S)
        self._tasks.spawn(self._end(), "end of the lease")
