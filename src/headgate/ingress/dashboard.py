"""Who looks at the dashboard of an ingress, and what are they told, when?

Lookers follow a stream of server-sent events. While there are any, one task asks the controller once a second for all of them; while
there are none, nothing is done at all. Who takes what it is told slowly misses what lies between, and is told the newest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from headgate import __version__
from headgate.core.overview import Looked, declared_data, overview
from headgate.core.reports import SHUTTING_DOWN, Description, Measurement
from headgate.ingress.exchange import Exchange
from headgate.ingress.files import GUARDS
from headgate.ingress.problems import Refusal

_log = logging.getLogger("headgate.ingress")

PERIOD_S: Final = 1.0
WINDOW_S: Final = 5.0
"""Rates and times are those of so long."""
ANSWER_S: Final = 2.0
"""When the controller has not answered within that, lookers are told so."""
MOST_LOOKERS: Final = 64
_HEAD: Final = b"content-type: text/event-stream\r\ncache-control: no-store\r\nx-accel-buffering: no\r\n" + GUARDS
_TOO_MANY: Final = Refusal(
    503, f"{MOST_LOOKERS} look at the dashboard of this ingress already", reason="too many lookers", retry_after_s=10
)
_ENDING: Final = Refusal(503, "this ingress is ending", reason=SHUTTING_DOWN)
_DECLARED_HEAD: Final = (
    "# What is asked for, as `headgate config` prints it, which has also what isn't shown here:\n"
    "# arguments of constructors, runtime_env, and how HTTP is served.\n"
)
_AWAY: Final = b"event: away\ndata: null\n\n"
_encode: Final = msgspec.json.Encoder().encode


class _Looker:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.state_id = ""  # of the declared state that it was told


class Dashboard:
    """Made on the running loop. `describe` and `measure` ask the controller; `takes_changes` is told to who looks."""

    def __init__(
        self, describe: Callable[[], Awaitable[Description]], measure: Callable[[], Awaitable[Measurement]], *, takes_changes: bool = False
    ) -> None:
        self.debug = False
        self._takes_changes = takes_changes
        self._describe = describe
        self._measure = measure
        self._loop = asyncio.get_running_loop()
        self._lookers: list[_Looker] = []
        self._task: asyncio.Task[None] | None = None
        self._looked: deque[Looked] = deque()
        self._overview = b""  # as it was told last; empty where the controller was away
        self._declared = ("", b"")  # the state's id, and its event
        self._ended = False

    def show(self, exchange: Exchange) -> None:
        """Have this exchange told what there is to see, from now on until its client leaves."""
        if exchange.bare:
            exchange.tell(b"", _HEAD)
            return
        self._forget_who_left()
        if self._ended or len(self._lookers) >= MOST_LOOKERS:
            exchange.reply(_ENDING if self._ended else _TOO_MANY)
            return
        looker = _Looker(exchange)
        self._lookers.append(looker)
        exchange.tell(b"retry: 2000\n\n", _HEAD)
        if self._task is None:
            self._task = self._loop.create_task(self._keep_telling(), name="headgate dashboard")
        elif self._overview:
            self._tell(looker, self._overview)

    def end(self) -> None:
        """End all streams now, so that nothing waits for them; connections that take nothing are cut."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()
        lookers, self._lookers = self._lookers, []
        for looker in lookers:
            exchange = looker.exchange
            if exchange.complete:
                continue
            if exchange.connection.transport.get_write_buffer_size():
                exchange.connection.abort()
            else:
                exchange.ended()

    def _forget_who_left(self) -> None:
        self._lookers = [looker for looker in self._lookers if not looker.exchange.complete]

    async def _keep_telling(self) -> None:
        try:
            while self._lookers:
                due_at = self._loop.time() + PERIOD_S
                self._tell_all(await self._look())
                await asyncio.sleep(due_at - self._loop.time())
                self._forget_who_left()
        finally:
            self._task = None
            self._looked.clear()
            self._overview = b""

    async def _look(self) -> bytes:
        """Ask, and make the event to be told."""
        try:
            async with asyncio.timeout(ANSWER_S):
                description, measurement = await self._describe(), await self._measure()
            now = self._loop.time()
            self._looked.append(Looked(now, measurement))
            while len(self._looked) > 2 and self._looked[0].at_s < now - WINDOW_S - PERIOD_S / 2:
                self._looked.popleft()
            self._overview = await asyncio.to_thread(self._events, description, self._looked[0], self._looked[-1])
        except Exception as error:  # noqa: BLE001  # the root of a task: whatever it was, lookers must be told
            if self._overview:
                _log.warning("the dashboard can't be told what runs: %r", error)
            self._overview = b""
            return _AWAY
        return self._overview

    def _events(self, description: Description, before: Looked, after: Looked) -> bytes:
        """On a thread: the first time imports what writes YAML, and all of it takes longer for very large instances."""
        if self._declared[0] != description.state_id:
            from headgate import formats

            text = _DECLARED_HEAD + formats.write(declared_data(description), formats.YAML)
            self._declared = (description.state_id, _event("declared", text))
        shown = overview(
            description, before, after, version=__version__, takes_changes=self._takes_changes, debug=self.debug, now=time.time()
        )
        return _event("overview", shown)

    def _tell_all(self, event: bytes) -> None:
        for looker in self._lookers:
            if looker.exchange.caught_up:
                self._tell(looker, event)

    def _tell(self, looker: _Looker, event: bytes) -> None:
        state_id, declared = self._declared
        if state_id != looker.state_id:
            looker.state_id = state_id
            event += declared
        looker.exchange.tell(event)


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))
