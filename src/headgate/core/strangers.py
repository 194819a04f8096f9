"""How many of those who have proved nothing yet are listened to at once, and how soon may one try again?

Each has a place from when it connects. Who proves to belong here gives it back at once; all others, also those who only leave, keep
it for `HOLD_S` more. So whoever guesses has `MOST_OF_ONE` tries in that time, and all together cost the processor little,
however many connect. An address that has used up its own places takes none of the others'.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Final

MOST: Final = 64
MOST_OF_ONE: Final = 8
HOLD_S: Final = 1.0
_NETWORK_GROUPS: Final = 4
"""So many groups of an address of IPv6 are one network's, which has all addresses that begin with them."""


def source_of(host: str) -> str:
    """Who counts as one: an address, or a network where each has as many addresses as it likes."""
    if ":" not in host or "." in host:
        return host
    head, _, tail = host.partition("%")[0].partition("::")
    groups = head.split(":") if head else []
    rest = tail.split(":") if tail else []
    return ":".join([*groups, *["0"] * (8 - len(groups) - len(rest)), *rest][:_NETWORK_GROUPS])


class Strangers:
    """The places of one listener. `now` is a monotonic time in seconds; a source is as by `source_of`."""

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE, hold_s: float = HOLD_S) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._hold_s = hold_s
        self._places: Counter[str] = Counter()
        self._held: list[tuple[float, str]] = []  # until when, of those who have gone

    def __len__(self) -> int:
        """How many places are taken, as of the last look."""
        return self._places.total()

    def enter(self, source: str, now: float) -> bool:
        """Take a place; False where none is left, or none for this source."""
        while self._held and self._held[0][0] <= now:
            self._free(heapq.heappop(self._held)[1])
        if self._places.total() >= self._most or self._places[source] >= self._most_of_one:
            return False
        self._places[source] += 1
        return True

    def leave(self, source: str, now: float, *, proved: bool) -> None:
        """Give the place back that was taken: now, or where nothing was proved after a while."""
        if proved:
            self._free(source)
        else:
            heapq.heappush(self._held, (now + self._hold_s, source))

    def _free(self, source: str) -> None:
        self._places[source] -= 1
        if not self._places[source]:
            del self._places[source]
