"""What is one request inside a replica?

A member of a batch, or alone: what came over the link, and what has become of it. It is made by the thread that reads, run by a
user thread, and answered once, by whoever takes it out of its link's `members`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from headgate.core import wire

_NEVER = float("inf")


class Member(wire.Call, eq=False):
    """One request: the fields of `wire.Call` as they came, and what has become of it here. Times are on `time.monotonic()`."""

    link: Any = None  # the `ReplicaLink` that it came over
    received_at: float = 0.0
    cancelled: bool = False
    shadow: bool = False  # cancelled, and a copy whose answer nobody has ever waited for
    started_at: float = 0.0
    withdrawn: bool = False
    """Given back though it has a task already, which must not begin."""
    task: Any = None  # the `asyncio.Task` that runs it
    stream: Any = None  # its `Stream`
    binding: Any = None  # its `Binding`, where it shares a call

    @property
    def web(self) -> bool:
        """Whether it came over HTTP."""
        return bool(self.http)

    @property
    def admitted_at(self) -> float:
        """When its router admitted it."""
        return self.received_at - self.micros / 1e6

    @property
    def deadline(self) -> float:
        """When its time is over; infinity for no limit. Once its stream has begun the limit counts from each chunk to the next."""
        if self.millis == wire.NO_LIMIT:
            return _NEVER
        stream = self.stream
        if stream is not None and stream.begun:
            limit_s = self.link.stream_limit_s
            return _NEVER if limit_s is None else stream.last_chunk_at + limit_s
        return self.received_at + self.millis / 1e3

    def mark_started(self, now: float) -> bool:
        """Record where the dead can't take it that user code is entered. False where it must not be: see `ReplicaLink.tell_started`."""
        self.started_at = now
        page = self.link.page
        if page is None:
            return bool(self.link.tell_started(self))
        page[self.place] = 1
        return True


class Stream:
    """How much of a streamed answer may still be sent: its credit. Waits end when the member is cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None, *, coded: bool) -> None:
        self.begun = False  # its head has left
        self.coded = coded
        """Whether its reader takes HTTP's chunked coding."""
        self.last_chunk_at = time.monotonic()
        self.granted_bytes = wire.STREAM_CREDIT
        """In all."""
        self.spent_bytes = 0
        """Changed by nobody but who makes the stream; it waits while this isn't below what is granted."""
        self._loop = loop  # where async user code waits, if it is async
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None

    def add(self, count_bytes: int) -> None:
        """The reader took that much. With 0: look again whether the member was cancelled."""
        with self._changed:
            self.granted_bytes += count_bytes
            self._changed.notify_all()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wait(self, member: Member) -> None:
        """Block until there is credit, or nobody reads any more."""
        with self._changed:
            while self.spent_bytes >= self.granted_bytes and not member.cancelled:
                self._changed.wait()

    async def wait_async(self, member: Member) -> None:
        """The same on the event loop."""
        assert self._loop is not None
        while self.spent_bytes >= self.granted_bytes and not member.cancelled:
            self._waiter = self._loop.create_future()
            if self._may_go_on(member):
                break
            await self._waiter

    def _may_go_on(self, member: Member) -> bool:
        return self.spent_bytes < self.granted_bytes or member.cancelled
