"""Which thread reads the links?

The one that has a use for what comes, and else the thread of the event loop that they belong to. In a replica that is the thread
that runs user code, whenever it has nothing to run: a request that it reads itself needs no hand-over. While it runs a call nobody
reads; when that takes longer than a moment, the I/O thread reads in its place, so that what arrives can be cancelled or given
back. Where several threads or an event loop run user code, the I/O thread always reads. Where handles are called, it is a thread
that waits for an answer (`router/connection.py`).

All wait for the same set of sockets, an epoll. The loop watches it through a second one, in which it can be switched off from any
thread; so nobody is woken for what another reads.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable
from typing import Final

CAN_SHARE: Final = hasattr(select, "epoll") and hasattr(os, "eventfd")
"""Elsewhere the loop's thread always reads."""
_AGAIN_S: Final = 0.01


class Reading:
    """The sockets of links, and who waits for them. The loop's thread reads until another calls `wait`, and closes this."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting = False
        """A thread other than the loop's waits here."""
        self._loop = loop
        self._readers: dict[int, Callable[[], None]] = {}
        self._lock = threading.RLock()  # over switching and the bell; a signal's handler may come back for it
        self._loop_reads = True
        if CAN_SHARE:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._sockets = select.epoll()
            self._sockets.register(self._bell, select.EPOLLIN)
            self._switch = select.epoll()
            self._switch.register(self._sockets.fileno(), select.EPOLLIN)
            loop.add_reader(self._switch.fileno(), self._read_here)

    # Any thread.

    def remove(self, descriptor: int) -> None:
        """Watch this socket no longer."""
        if self._readers.pop(descriptor, None) is None:
            return
        if CAN_SHARE:
            self._sockets.unregister(descriptor)
        else:
            self._loop.call_soon_threadsafe(self._loop.remove_reader, descriptor)

    def wake(self) -> None:
        """Have the thread that waits return from there, if one does."""
        if self.waiting:
            with self._lock:
                if self._bell >= 0:
                    os.eventfd_write(self._bell, 1)

    @property
    def pending(self) -> bool:
        """Whether a socket has something that nobody has read."""
        return CAN_SHARE and any(descriptor != self._bell for descriptor, _ in self._sockets.poll(0))

    # The one thread that reads in the loop's place.

    def wait(self, idle: Callable[[], bool]) -> None:
        """Wait for what arrives and read it; or until `wake`, or unless `idle()`. From now on the loop doesn't read."""
        self.read(self.poll(idle))

    def poll(self, idle: Callable[[], bool], timeout_s: float | None = None) -> list[tuple[int, int]]:
        """As `wait`, for at most so long, and without reading: what `read` is to be given. Exact to a millisecond."""
        if self._loop_reads:
            with self._lock:
                self._loop_reads = False  # first: interrupted by a signal's handler before it is true, `leave` mends it
                self._switch.modify(self._sockets.fileno(), 0)
        self.waiting = True
        try:
            if not idle():  # asked after `waiting` is set: whoever changes the answer then sees it and wakes this thread
                return []
            return self._sockets.poll(timeout_s)
        finally:
            self.waiting = False

    def read(self, events: list[tuple[int, int]]) -> None:
        """Read what has arrived; nothing happens where it was read in the meantime."""
        for descriptor, _ in events:
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
            elif descriptor == self._bell:
                try:
                    os.eventfd_read(self._bell)
                except BlockingIOError:
                    pass
                if self._loop_reads and self.waiting:  # a signal's handler has interrupted who waits: again soon, but not at once
                    self._loop.call_later(_AGAIN_S, self.wake)
                else:
                    self.wake()  # it may have rung for one who waits only now

    def leave(self, *, while_waiting: bool = False) -> None:
        """No other thread will wait here for a while: the loop reads, even `while_waiting` where that is asked for."""
        with self._lock:
            if while_waiting or not (self._loop_reads or self.waiting):
                self._loop_reads = True
                self._switch.modify(self._sockets.fileno(), select.EPOLLIN)

    # The loop's thread.

    def add(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Call `reader`, in the thread that reads, whenever this socket has something, or is closed by its peer."""
        self._readers[descriptor] = reader
        if CAN_SHARE:
            self._sockets.register(descriptor, select.EPOLLIN)
        else:
            self._loop.add_reader(descriptor, reader)

    def _read_here(self) -> None:
        self.read(self._sockets.poll(0))  # a bell that rang too late, too, else it would ring here until somebody waits again

    def close(self) -> None:
        """Close what belongs to this; the sockets have been removed."""
        if CAN_SHARE:
            self._loop.remove_reader(self._switch.fileno())
            self._switch.close()
            self._sockets.close()
            with self._lock:
                bell, self._bell = self._bell, -1
                os.close(bell)
