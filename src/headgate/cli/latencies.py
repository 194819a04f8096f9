"""How long did requests take: which percentiles, and how are they spread?

Durations are counted in buckets that are 1 % wide, so that a run of hours takes no more memory than one of seconds. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_WIDTH: Final = math.log(1.01)
_SHORTEST_S: Final = 1e-7
_ROWS: Final = 16


class Bar(NamedTuple):
    """So many took at least `from_s` and less than `to_s`."""

    from_s: float
    to_s: float
    requests: int


class Latencies:
    """Durations, within 1 %."""

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self.min_s = math.inf
        self._total_s = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self._total_s += seconds
        self.max_s = max(self.max_s, seconds)
        self.min_s = min(self.min_s, seconds)
        self._buckets[math.floor(math.log(max(seconds, _SHORTEST_S)) / _WIDTH)] += 1

    @property
    def mean_s(self) -> float:
        """Of all; 0 where there are none."""
        return self._total_s / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """So many percent took at most this long, in seconds; 0 where there are none."""
        rank, seen = math.ceil(self.count * percent / 100), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(max(math.exp((bucket + 1) * _WIDTH), self.min_s), self.max_s)
        return 0.0

    def bars(self, rows: int = _ROWS) -> Sequence[Bar]:
        """All of them from the shortest to the longest, in at most that many bars, each as much longer than the one before it."""
        if not self.count:
            return []
        first, last = min(self._buckets), max(self._buckets)
        step = math.ceil((last - first + 1) / rows)
        counted: Counter[int] = Counter()
        for bucket, count in self._buckets.items():
            counted[(bucket - first) // step] += count
        return [
            Bar(math.exp((first + row * step) * _WIDTH), math.exp((first + (row + 1) * step) * _WIDTH), counted[row])
            for row in range(max(counted) + 1)
        ]
