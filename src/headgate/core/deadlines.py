"""Which requests are out of time now?

A wheel of 5 ms buckets: adding and discarding cost the same however many there are, and one look per bucket replaces a
timer for each request. An item is never reported early, and at most one bucket late.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

NEVER: Final = -1
"""The bucket of what has no deadline."""

_PER_S: Final = 200  # buckets; times are divided by it, which rounds so that no bucket ends before what is in it


class DeadlineWheel(Generic[Item]):
    """Items by their deadline. They are told apart by their hash, so by identity where they define none."""

    __slots__ = ("_buckets", "_order")

    def __init__(self) -> None:
        # Every number in the heap is a key, once; None where the bucket has been emptied, so that a set which had many
        # items doesn't keep its memory until its time has come.
        self._buckets: dict[int, set[Item] | None] = {}
        self._order: list[int] = []

    def add(self, item: Item, deadline: float) -> int:
        """Watch an item until `deadline` (monotonic seconds, infinity for none); return its bucket, for `discard`."""
        if deadline == math.inf:
            return NEVER
        bucket = int(deadline * _PER_S) + 1
        items = self._buckets.get(bucket)
        if items is not None:
            items.add(item)
            return bucket
        if bucket not in self._buckets:
            heapq.heappush(self._order, bucket)
        self._buckets[bucket] = {item}
        return bucket

    def discard(self, item: Item, bucket: int) -> None:
        """Stop watching an item. No effect where it was reported already."""
        items = self._buckets.get(bucket)
        if items is not None:
            items.discard(item)
            if not items:
                self._buckets[bucket] = None

    def expired(self, now: float) -> list[Item]:
        """The items whose deadline has passed, by bucket; they are watched no longer."""
        out: list[Item] = []
        order = self._order
        while order and order[0] / _PER_S <= now:
            items = self._buckets.pop(heapq.heappop(order))
            if items is not None:
                out.extend(items)
        return out

    def next_due(self) -> float | None:
        """When to ask `expired` next: not before this does any item expire. None: nothing is watched."""
        order = self._order
        while order:
            if self._buckets[order[0]] is not None:
                return order[0] / _PER_S
            del self._buckets[heapq.heappop(order)]
        return None
