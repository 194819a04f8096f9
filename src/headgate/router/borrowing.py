"""How does a thread use what lives on an event loop, without a switch to the loop's thread?

It borrows the loop while that sleeps. A lock, the baton, is held by the loop's thread whenever it does anything, and given up only
while it waits in `select()`. Who has the baton is in its place: router and links may be used as in a callback of the loop. What
the borrower leaves to be done, a timer or a callback, wakes the loop only where it would else be late.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums, which would cost more than the call
import asyncio
import contextlib
import math
import os
import select
import selectors
import threading
import time
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any, Final, Self

from headgate.router.channel import let_go
from headgate.router.reading import CAN_SHARE, Reading

_AWAKE: Final = -math.inf


class _Sleep(selectors.DefaultSelector):
    """Gives the baton up while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.baton = threading.Lock()
        self.until = _AWAKE
        """When the loop will wake by itself (time.monotonic()), where it sleeps now."""
        self._look = select.epoll.fromfd(os.dup(self.fileno())) if CAN_SHARE else None

    def has_events(self) -> bool:
        """Whether it is about to wake; not known everywhere, and then False."""
        return self._look is not None and bool(self._look.poll(0, 1))

    def close(self) -> None:
        super().close()
        if self._look is not None:
            self._look.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        self.until = math.inf if timeout is None else time.monotonic() + timeout
        self.baton.release()
        try:
            return super().select(timeout)
        finally:
            self.baton.acquire()
            self.until = _AWAKE


class SharedLoop(asyncio.SelectorEventLoop):
    """An event loop that other threads may borrow. Its own thread runs it with `run`."""

    def __init__(self) -> None:
        self._sleep = _Sleep()
        super().__init__(self._sleep)
        self.set_debug(False)  # it would forbid what borrowers do
        self.borrower = 0
        """The identity of the thread that has borrowed it."""
        self.reading = Reading(self) if CAN_SHARE else None
        """The sockets of links, which other threads may read too."""
        self._must_wake = False
        self._last: list[Callable[[], object]] = []

    def run(self) -> None:
        """Run until `stop`; it can be borrowed while it sleeps, and once more after that: then nothing wakes it again."""
        with self._sleep.baton:
            self.run_forever()

    def close(self) -> None:
        """Close it for good, in its thread: nobody reads or borrows any more, and nobody will."""
        if self.is_closed():
            return
        self._sleep.baton.acquire()
        if self.reading is not None:
            self.reading.close()
        super().close()

    def forked(self) -> None:
        """In a forked child: let go of its copies of the sockets by which the loop wakes itself."""
        for sock in (self._ssock, self._csock):  # type: ignore[attr-defined]  # asyncio has no public name for them
            let_go(sock.fileno())

    # Any thread.

    @property
    def asleep(self) -> bool:
        """Whether it could be borrowed just now."""
        return self._sleep.until != _AWAKE

    def borrow(self, *, wait: bool) -> bool:
        """Be in the place of its thread until `give_back`. False where that is busy, unless `wait`."""
        if not self._sleep.baton.acquire(wait):
            return False
        self.borrower = threading.get_ident()
        return True

    def has_work(self) -> bool:
        """Whether something has come for the loop that it has not seen yet; for the borrower to ask."""
        return self._sleep.has_events()

    def give_back(self) -> None:
        """Do what `finally_call` was told, and let the loop go on."""
        try:
            last = self._last
            while last:
                last[0]()  # where a signal's handler raises in it, it is called once more the next time
                del last[0]
        finally:
            self.borrower = 0
            must_wake, self._must_wake = self._must_wake, False
            self._sleep.baton.release()
            if must_wake:
                with contextlib.suppress(RuntimeError):  # it was closed just now
                    self.call_soon_threadsafe(_nothing)

    # Its own thread, or the borrower.

    def finally_call(self, callback: Callable[[], object]) -> None:
        """Call this at the end of this turn of the loop, or before it is given back."""
        if self.borrower:
            self._last.append(callback)
        else:
            super().call_soon(callback)

    def watch(self, descriptor: int, reader: Callable[[], None]) -> None:
        """As `add_reader`, for the socket of a link: other threads may read it, too."""
        if self.reading is None:
            self.add_reader(descriptor, reader)
        else:
            self.reading.add(descriptor, reader)

    def unwatch(self, descriptor: int) -> None:
        """As `remove_reader`, for what `watch` was told."""
        if self.reading is None:
            self.remove_reader(descriptor)
        else:
            self.reading.remove(descriptor)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]  # typeshed ties the arguments to the callback's
        """As ever; where the loop is borrowed, it will be woken for it."""
        if self.borrower:
            self._must_wake = True
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]  # as above
        """As ever; where the loop is borrowed and sleeps for longer, it will be woken to see it."""
        if self.borrower and when < self._sleep.until:
            self._must_wake = True
        return super().call_at(when, callback, *args, context=context)


def _nothing() -> None:
    """Wakes a loop."""


_up: list[Shield] = []
"""Those of the main thread, the innermost last: there are several where a signal's handler calls, too."""


class Shield:
    """Keeps Ctrl-C out of a `with` block in the main thread: its handler is called at the end of it, or while `lifted`.

    Interrupted in the middle, a borrower would leave a half-sent call behind. Other threads are never interrupted.
    """

    __slots__ = ("_handler", "_noted", "lifted")

    def __enter__(self) -> Self:
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._noted = False
        self.lifted = False
        """Whether an interruption may come at once. Look at `check` after setting it."""
        if threading.get_ident() == threading.main_thread().ident:
            try:
                _up.append(self)
                handler = _signal.getsignal(_signal.SIGINT)
                if callable(handler):
                    self._handler = handler
                    _signal.signal(_signal.SIGINT, self._note)
            except ValueError:  # signals are another thread's affair in this process
                self._handler = None
            except BaseException:  # an interruption, just before
                if _up and _up[-1] is self:
                    del _up[-1]
                raise
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.lifted and self._handler is not None:
            self._handler(number, frame)
        else:
            self._noted = True

    def check(self) -> None:
        """Make up for an interruption that came before the shield was lifted."""
        if self._noted and self._handler is not None:
            self._noted = False
            self._handler(_signal.SIGINT, None)

    def __exit__(self, *error: object) -> None:
        try:
            if self._handler is not None:
                before = _signal.signal(_signal.SIGINT, self._handler)
                if before != self._note:  # the handler has set another meanwhile
                    _signal.signal(_signal.SIGINT, before)
                self.check()
        finally:
            if _up and _up[-1] is self:
                del _up[-1]

    @staticmethod
    def is_up() -> bool:
        """In the main thread: whether it is in such a block and must not be interrupted, be it by another signal."""
        return not all(shield.lifted for shield in _up)

    @staticmethod
    def forked() -> None:
        """In a forked child: if another thread of the parent was shielded, its handler is put back, since nobody else will."""
        _up.clear()
        shield = getattr(_signal.getsignal(_signal.SIGINT), "__self__", None)
        if isinstance(shield, Shield):
            _signal.signal(_signal.SIGINT, shield._handler)
