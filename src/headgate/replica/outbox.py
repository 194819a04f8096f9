"""When and by whom is an answer written to a link?

By the thread that made it: frames are put into the link's outbox, and whoever flushes writes them in one call, without
blocking. What the socket doesn't take is left to the I/O thread. All writes of a link go through here, to a duplicate of
its descriptor, since the transport owns the original for reading.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time

_JOIN_BYTES = 64 * 1024


class Outbox:
    """The frames of one link that wait to be written. Any thread may put and flush; order is that of the puts."""

    def __init__(self, descriptor: int, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = os.dup(descriptor)
        self._loop = loop
        self._lock = threading.Lock()
        self._pending: list[bytes | bytearray | memoryview] = []
        self._blocked = False
        self._closed = False
        self.since = 0.0
        """When the oldest frame that waits was put (time.monotonic()); 0 where none waits."""

    def put(self, *parts: bytes | bytearray | memoryview) -> None:
        """Add one frame, in as many parts as it has; it leaves with the next flush."""
        with self._lock:
            self._pending += parts
            if not self.since:
                self.since = time.monotonic()

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        if not self._pending:
            return
        with self._lock:
            if not self._blocked and not self._closed:
                self._write()

    def _write(self) -> None:
        # The lock is held. Small parts are joined, large ones written as they are.
        pending = self._pending
        while pending:
            count, size = 0, 0
            for part in pending:
                if size and size + len(part) > _JOIN_BYTES:
                    break
                size += len(part)
                count += 1
            data = pending[0] if count == 1 else b"".join(pending[:count])
            try:
                sent = os.write(self._descriptor, data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the router is gone; the reading side finds out and closes
                pending.clear()
                break
            if sent == len(data):
                del pending[:count]
                continue
            pending[:count] = [memoryview(data)[sent:]]
            self._blocked = True
            self._loop.call_soon_threadsafe(self._watch)
            return
        self.since = 0.0

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_writer(self._descriptor, self._writable)

    def _writable(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._loop.remove_writer(self._descriptor)
            self._blocked = False
            self._write()

    @property
    def empty(self) -> bool:
        """Whether all frames were written."""
        return not self._pending

    def close(self) -> None:
        """Drop what waits; called by the I/O thread when the link is closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pending.clear()
            self.since = 0.0
            self._loop.remove_writer(self._descriptor)
            os.close(self._descriptor)
