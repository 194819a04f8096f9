"""How many bytes does this ingress hold, and may it take more?

What is counted: requests from the first byte of their body until their answer has left, answers that wait for a client
to take them, and input that was read and not parsed yet.
"""

from __future__ import annotations


class Admission:
    """The books of one ingress. `held_bytes` is changed in place by its connections: this is on every request's path."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.limit_bytes = 0

    def share(self, max_inflight_bytes: int, num_ingresses: int) -> None:
        """Take this ingress's equal share of the instance's limit; 0 is no limit."""
        self.limit_bytes = max_inflight_bytes // max(1, num_ingresses) if max_inflight_bytes > 0 else 1 << 62
