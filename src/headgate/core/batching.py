"""When does a batch leave, and who is in it?

Requests wait here in a replica until a slot is free; only then is a batch sealed, so that batches fill under load. One
leaves when it is full or when its oldest member has waited long enough. Only requests of one group (the same method,
source and set of parameters) can share a call; groups leave in the order of their oldest member.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Member = TypeVar("Member")
_Entry = tuple[float, int, Member]  # admitted_at, and a serial number so that members are never compared


class BatchQueue(Generic[Member]):
    """The requests that a replica has not started. Members are told apart by identity."""

    __slots__ = ("_count", "_groups", "_max_batch_size", "_serial", "_wait_s")

    def __init__(self, max_batch_size: int, wait_s: float) -> None:
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._serial = 0
        self._count = 0
        # For each group its members by age. No group is kept empty.
        self._groups: dict[Hashable, list[_Entry[Member]]] = {}

    def __len__(self) -> int:
        return self._count

    def configure(self, max_batch_size: int, wait_s: float) -> None:
        """Follow a changed size and wait (seconds) from the next batch on."""
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s

    def add(self, member: Member, group: Hashable, admitted_at: float) -> None:
        """A request came in. Its age counts from `admitted_at` (this process's monotonic clock), before it came here."""
        self._serial += 1
        self._count += 1
        members = self._groups.get(group)
        if members is None:
            self._groups[group] = [(admitted_at, self._serial, member)]
        elif members[-1][0] <= admitted_at:
            members.append((admitted_at, self._serial, member))
        else:
            bisect.insort(members, (admitted_at, self._serial, member))

    def withdraw(self, member: Member) -> bool:
        """Take a request out, cancelled or too late; False where it isn't waiting here."""
        for group, members in self._groups.items():
            for index, entry in enumerate(members):
                if entry[2] is member:
                    del members[index]
                    self._count -= 1
                    if not members:
                        del self._groups[group]
                    return True
        return False

    def seal(self, now: float) -> list[Member] | None:
        """The batch that leaves now, oldest first; None where none is full and none has waited long enough.

        Call it only with a free slot. Of several that may leave, the one with the oldest member does.
        """
        leaving = self._leaving(now)
        if not leaving:
            return None
        batch = [member for _, _, member in self._cut(self._oldest(leaving))]
        self._count -= len(batch)
        return batch

    def leaves_at(self, now: float) -> float | None:
        """When `seal` returns a batch, if nothing else comes: `now` where it would at once, None where nothing waits."""
        if not self._groups:
            return None
        if self._leaving(now):
            return now
        return min(members[0][0] for members in self._groups.values()) + self._wait_s

    def take_back(self, now: float) -> list[Member]:
        """Give up all but the next batch, oldest first: they run sooner elsewhere, since a slow call is in the way."""
        if not self._groups:
            return []
        group = self._oldest(self._leaving(now) or self._groups)
        kept = self._cut(group)
        given_up = sorted(entry for members in self._groups.values() for entry in members)
        self._groups.clear()
        self._groups[group] = kept
        self._count -= len(given_up)
        return [member for _, _, member in given_up]

    def _leaving(self, now: float) -> list[Hashable]:
        """The groups that may leave now."""
        size, wait_s = self._max_batch_size, self._wait_s
        return [group for group, members in self._groups.items() if len(members) >= size or now >= members[0][0] + wait_s]

    def _oldest(self, groups: Iterable[Hashable]) -> Hashable:
        return min(groups, key=lambda group: self._groups[group][0])

    def _cut(self, group: Hashable) -> list[_Entry[Member]]:
        """Take the oldest of a group, as many as a batch holds."""
        members = self._groups[group]
        batch = members[: self._max_batch_size]
        del members[: self._max_batch_size]
        if not members:
            del self._groups[group]
        return batch
