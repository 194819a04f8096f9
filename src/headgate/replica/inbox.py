"""What waits in this replica, and what runs next?

Whoever reads the links adds requests; user threads, or the event loop of async code, take them when a slot is free. Requests for
batch handlers leave by the rules of `core/batching.py`, under a lock; the others in order, without one: each operation on their
queue is atomic by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from headgate.core.batching import BatchQueue
from headgate.replica.member import Member
from headgate.router.reading import Reading

if TYPE_CHECKING:
    from headgate.replica.links import ReplicaLink

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
        self._reading: Reading | None = None  # where the one user thread waits when there is nothing at all
        self._batched = False  # a request for a batch handler has ever come
        self._batches_first = True
        self._shape = 0
        self._check_due = False

    def configure(self, max_batch_size: int, batch_wait_s: float) -> None:
        """Follow changed limits, and have every waiting thread look again."""
        with self._lock:
            self._batches.configure(max_batch_size, batch_wait_s)
        self._wake_all()

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
        self._plain.extend(members)
        self._wake(len(members))

    def add_to_batches(self, members: list[tuple[Member, object]]) -> None:
        """Add requests that may share a call with others of their group; together, so that none leaves without the rest."""
        with self._lock:
            self._batched = True
            for member, group in members:
                self._batches.add(member, group, _in_order(member))
        self._wake(len(members))

    def _wake(self, count: int) -> None:
        # After what was added, and a thread counts itself as sleeping before it looks: so it sees it, or is seen here.
        if self._sleeping:
            with self._lock:
                self._changed.notify(count)
        if self._reading is not None:
            self._reading.wake()

    def _wake_all(self) -> None:
        with self._lock:
            self._changed.notify_all()
        if self._reading is not None:
            self._reading.wake()

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
        """Take out all that can't run soon: everything beyond the next batch. In order."""
        surplus: list[Member] = []
        while self._plain:
            try:
                surplus.append(self._plain.pop())  # the newest first, as a user thread may take the oldest meanwhile, …
            except IndexError:  # … and was first
                break
        surplus.reverse()
        with self._lock:
            surplus += self._batches.take_back(time.monotonic())
        return surplus

    def take(self, now: float) -> list[Member] | None:
        """What runs next: one request, or a batch; None where nothing is due."""
        with self._lock:
            return self._take(now)

    def _take(self, now: float) -> list[Member] | None:
        if not len(self._batches):
            return self._take_plain()
        # Both kinds wait (a class may have both kinds of methods): each has its turn.
        self._batches_first = not self._batches_first
        if not self._batches_first and (plain := self._take_plain()):
            return plain
        return self._batches.seal(now) or self._take_plain()

    def _take_plain(self) -> list[Member] | None:
        try:
            return [self._plain.popleft()]
        except IndexError:
            return None

    def add_check(self) -> None:
        """Have the next thread that is free look after its health, before the next request."""
        with self._lock:
            self._check_due = True
            self._changed.notify()
        if self._reading is not None:
            self._reading.wake()

    def wait(self, shape: int, reading: Reading | None) -> list[Member] | None:
        """Block until something can run: no request at all is a health check. None as soon as the shape is no longer this one.

        The one user thread of a replica that has but one waits by `reading`, so that it finds what arrives by itself.
        """
        if reading is not None:
            self._reading = reading  # for good: whoever is to wake the user thread can't know whether it waits there
        while self._shape == shape:
            if self._batched or self._check_due:
                with self._lock:
                    if self._check_due:
                        self._check_due = False
                        return []
                    taken = self._take(time.monotonic())
            else:
                taken = self._take_plain()
            if taken is not None:
                return taken
            if reading is not None and self.empty:
                reading.wait(lambda: self.empty and not self._check_due and self._shape == shape)
            else:
                self._sleep(shape)
        return None

    def _sleep(self, shape: int) -> None:
        """Until a batch leaves, or something has changed."""
        with self._lock:
            self._sleeping += 1
            try:
                now = time.monotonic()
                leaves_at = self._batches.leaves_at(now)
                if self._plain or self._check_due or self._shape != shape or (leaves_at is not None and leaves_at <= now):
                    return
                if self._reading is not None:
                    self._reading.leave()  # the one user thread tells a batch's time more exactly here
                self._changed.wait(None if leaves_at is None else leaves_at - now)
            finally:
                self._sleeping -= 1

    def leaves_at(self, now: float) -> float | None:
        """When the next batch leaves that isn't due yet."""
        with self._lock:
            return self._batches.leaves_at(now)

    def change_shape(self) -> None:
        """Have every waiting thread look again."""
        with self._lock:
            self._shape += 1
        self._wake_all()


def _in_order(member: Member) -> float:
    """When a request was admitted; or when the one before it on its link was, where it seems to be only a little older.

    Each age is measured when its request is sent, and counts from when all of them arrive, so it is off by a moment.
    """
    admitted_at = member.admitted_at
    link: ReplicaLink = member.link
    ahead_s = link.newest_at - admitted_at
    if ahead_s < 0:
        link.newest_at = admitted_at
    elif ahead_s < _SAME_AGE_S:
        return link.newest_at
    return admitted_at
