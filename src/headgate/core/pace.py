"""How soon may costly work be done again, so that a burst of reasons for it doesn't take all of the time?

The first time at once; then it rests for some times as long as it has just taken. So what is quick is done as often as it is
asked for, and what is slow for many reasons at a time.
"""

from __future__ import annotations

import math
from typing import Final

REST_TIMES: Final = 4
SHORTEST_REST_S: Final = 0.0005
LONGEST_REST_S: Final = 0.2


class Pace:
    """Of one kind of work. `now` is a monotonic time in seconds."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = -math.inf

    def delay_s(self, now: float) -> float:
        """In how many seconds the work may be done that is asked for now; 0 at first, and after a rest."""
        return max(self._free_at - now, 0.0)

    def done(self, took_s: float, now: float) -> None:
        """It was done just now, and took so much processor time: what else the machine did meanwhile is no reason to rest."""
        self._free_at = now + min(max(REST_TIMES * took_s, SHORTEST_REST_S), LONGEST_REST_S)
