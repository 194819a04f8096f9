"""What waits in this replica, and what runs next?

The I/O thread adds requests; user threads, or the event loop of async code, take them when a slot is free. Requests for
batch handlers leave by the rules of `core/batching.py`, the others in order. One lock guards it all.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from headgate.core.batching import BatchQueue
from headgate.replica.member import Member

_SAME_AGE_S = 0.001
"""Ages that differ by less than this don't say which request was first."""


class Inbox:
    """The requests that were received and have not started."""

    def __init__(self, max_batch_size: int, batch_wait_s: float) -> None:
        self._plain: deque[Member] = deque()
        self._batches: BatchQueue[Member] = BatchQueue(max_batch_size, batch_wait_s)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sleeping = 0
        self._batched = False  # a request for a batch handler has ever come
        self._batches_first = True
        self._shape = 0
        self._check_due = False

    def configure(self, max_batch_size: int, batch_wait_s: float) -> None:
        """Follow changed limits, and have every waiting thread look again."""
        with self._lock:
            self._batches.configure(max_batch_size, batch_wait_s)
            self._changed.notify_all()

    @property
    def shape(self) -> int:
        """Changes whenever threads must look at how they are to work."""
        return self._shape

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._plain and not len(self._batches)

    def add(self, members: list[Member]) -> None:
        """Add requests that run one by one."""
        with self._lock:
            self._plain.extend(members)
            if self._sleeping:
                self._changed.notify(len(members))

    def add_to_batches(self, members: list[tuple[Member, object]]) -> None:
        """Add requests that may share a call with others of their group; together, so that none leaves without the rest."""
        with self._lock:
            self._batched = True
            for member, group in members:
                self._batches.add(member, group, _in_order(member))
            if self._sleeping:
                self._changed.notify(len(members))

    def withdraw(self, member: Member) -> bool:
        """Take a request out again; False where it has been taken to run already."""
        with self._lock:
            if self._batches.withdraw(member):
                return True
            try:
                self._plain.remove(member)
            except ValueError:
                return False
            return True

    def withdraw_surplus(self) -> list[Member]:
        """Take out all that can't run soon: everything beyond the next batch."""
        with self._lock:
            surplus = [*self._plain, *self._batches.take_back(time.monotonic())]
            self._plain.clear()
            return surplus

    def take(self, now: float) -> list[Member] | None:
        """What runs next: one request, or a batch; None where nothing is due."""
        with self._lock:
            return self._take(now)

    def _take(self, now: float) -> list[Member] | None:
        if not len(self._batches):
            return [self._plain.popleft()] if self._plain else None
        # Both kinds wait (a class may have both kinds of methods): each has its turn.
        self._batches_first = not self._batches_first
        if self._plain and not self._batches_first:
            return [self._plain.popleft()]
        batch = self._batches.seal(now)
        if batch is None and self._plain:
            return [self._plain.popleft()]
        return batch

    def add_check(self) -> None:
        """Have the next thread that is free look after its health, before the next request."""
        with self._lock:
            self._check_due = True
            self._changed.notify()

    def wait(self, shape: int) -> list[Member] | None:
        """Block until something can run: no request at all is a health check. None as soon as the shape is no longer this one."""
        with self._lock:
            while self._shape == shape:
                if self._check_due:
                    self._check_due = False
                    return []
                if self._plain and not self._batched:
                    return [self._plain.popleft()]
                now = time.monotonic()
                taken = self._take(now)
                if taken is not None:
                    return taken
                leaves_at = self._batches.leaves_at(now)
                self._sleeping += 1
                try:
                    self._changed.wait(None if leaves_at is None else max(0.0, leaves_at - now))
                finally:
                    self._sleeping -= 1
            return None

    def leaves_at(self, now: float) -> float | None:
        """When the next batch leaves that isn't due yet."""
        with self._lock:
            return self._batches.leaves_at(now)

    def change_shape(self) -> None:
        """Have every waiting thread look again."""
        with self._lock:
            self._shape += 1
            self._changed.notify_all()


def _in_order(member: Member) -> float:
    """When a request was admitted; or when the one before it on its link was, where it seems to be only a little older.

    Each age is measured when its request is sent, and counts from when all of them arrive, so it is off by a moment.
    """
    link, admitted_at = member.link, member.admitted_at
    ahead_s = link.newest_at - admitted_at
    if ahead_s < 0:
        link.newest_at = admitted_at
    elif ahead_s < _SAME_AGE_S:
        return link.newest_at
    return admitted_at
