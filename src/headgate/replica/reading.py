"""Which thread reads the links?

The one thread that runs user code, whenever it has nothing to run: a request that it reads itself needs no hand-over. While it
runs a call nobody reads; when that takes longer than a moment, the I/O thread reads in its place, so that what arrives can be
cancelled or given back. Where several threads or an event loop run user code, the I/O thread always reads.

Both wait for the same set of sockets, an epoll. The I/O thread watches it through a second one, in which it can be switched off
from any thread; so nobody is woken for what another reads.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable
from typing import Final

CAN_SHARE: Final = hasattr(select, "epoll") and hasattr(os, "eventfd")
"""Elsewhere the I/O thread always reads."""


class Reading:
    """The sockets of a replica, and who waits for them. Made and closed on the I/O loop, which reads until `wait` is called."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting = False
        """The user thread waits here."""
        self._loop = loop
        self._readers: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()  # over switching
        self._io_reads = True
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
        """Have the user thread return from `wait`, if it is there."""
        if self.waiting:
            os.eventfd_write(self._bell, 1)

    # The user thread.

    def wait(self, idle: Callable[[], bool]) -> None:
        """Wait for what arrives and read it; or until `wake`, or unless `idle()`. From now on the I/O thread doesn't read."""
        if self._io_reads:
            with self._lock:
                self._io_reads = False
                self._switch.modify(self._sockets.fileno(), 0)
        self.waiting = True
        try:
            if not idle():  # asked after `waiting` is set: whoever adds something then sees it and wakes this thread
                return
            events = self._sockets.poll()
        finally:
            self.waiting = False
        for descriptor, _ in events:
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
            elif descriptor == self._bell:
                self._clear_bell()

    def leave(self) -> None:
        """The user thread won't wait here for a while: the I/O thread reads."""
        with self._lock:
            if not self._io_reads and not self.waiting:
                self._io_reads = True
                self._switch.modify(self._sockets.fileno(), select.EPOLLIN)

    # The I/O thread.

    def add(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Call `reader`, in the thread that reads, whenever this socket has something, or is closed by its peer."""
        self._readers[descriptor] = reader
        if CAN_SHARE:
            self._sockets.register(descriptor, select.EPOLLIN)
        else:
            self._loop.add_reader(descriptor, reader)

    def _read_here(self) -> None:
        for descriptor, _ in self._sockets.poll(0):
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
            elif descriptor == self._bell and not self.waiting:
                self._clear_bell()  # it rang too late, and would ring here for as long as the user thread doesn't wait

    def _clear_bell(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close what belongs to this; the sockets have been removed."""
        if CAN_SHARE:
            self._loop.remove_reader(self._switch.fileno())
            self._switch.close()
            self._sockets.close()
            os.close(self._bell)
