"""How many bytes does this ingress hold, and may it take more?

What is counted: requests from the first byte of their body until their answer has left, answers that wait for a client
to take them, and input that was read and not parsed yet.
"""

from __future__ import annotations

from typing import Final

_LATELY_S: Final = 1.0
"""At least that far back goes what an estimate rests on."""


class Admission:
    """The books of one ingress. `held_bytes` is changed in place by its connections: this is on every request's path."""

    __slots__ = ("_mark", "_older", "held_bytes", "limit_bytes")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.limit_bytes = 0
        self._mark = self._older = (0.0, 0, 0.0)  # when, and what had been served by then

    def share(self, max_inflight_bytes: int, num_ingresses: int) -> None:
        """Take this ingress's equal share of the instance's limit; 0 is no limit."""
        self.limit_bytes = max_inflight_bytes // max(1, num_ingresses) if max_inflight_bytes > 0 else 1 << 62

    def wait_estimate_s(self, more_bytes: int, served: int, served_s: float, now: float) -> float | None:
        """How long until so many bytes more fit; None where nothing was served lately.

        `served` is how many requests were, and `served_s` how many seconds they took together. All that is held leaves
        within the mean of that (Little's law), so what is over the limit leaves in its share of it.
        """
        if now - self._mark[0] > _LATELY_S:
            self._older, self._mark = self._mark, (now, served, served_s)
        _, before, before_s = self._older
        over = self.held_bytes + more_bytes - self.limit_bytes
        if served <= before or over <= 0 or self.held_bytes <= 0:
            return None
        return (served_s - before_s) / (served - before) * min(over / self.held_bytes, 1.0)
