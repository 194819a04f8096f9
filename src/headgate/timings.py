"""How are times counted on the hot path, at hardly any cost?

They are appended to a list, and go into their histogram many at once. Where each request counts, that is written out, since a call costs
more than all of it:

    times.append(seconds)
    if len(times) >= MANY:
        times.settle()
"""

from __future__ import annotations

import threading
from typing import Final

from headgate.core import histograms
from headgate.core.histograms import SUM, Histogram

MANY: Final = 128
"""So many go in at once; until then each takes 32 bytes."""


class Timings(list[float]):
    """Times in seconds that one thread appends. What was told of them stays counted; the list has what hasn't gone in yet."""

    __slots__ = ("_lock", "_tally")

    def __init__(self) -> None:
        self._tally = histograms.tally()
        self._lock = threading.Lock()  # between who appends and who asks

    def take(self, seconds: float) -> None:
        """Count one, where it isn't written out."""
        self.append(seconds)
        if len(self) >= MANY:
            self.settle()

    def settle(self) -> None:
        """Have what there is go in; from any thread."""
        with self._lock:
            self._settle()

    def told(self) -> Histogram:
        """All of them so far; from any thread."""
        with self._lock:
            self._settle()
            return histograms.of(self._tally)

    def total(self) -> tuple[int, float]:
        """How many they are so far, and their sum; from any thread."""
        with self._lock:
            self._settle()
            return int(sum(self._tally[:SUM])), self._tally[SUM]

    def _settle(self) -> None:
        fresh = self[:]
        del self[: len(fresh)]  # what is appended meanwhile is behind them
        histograms.observe_all(self._tally, fresh)
