"""Which members of a batch make its handler raise?

Halves of the batch are run again, and halves of those that raise, down to single members: one that raises alone is bad.
A batch that fails only now and then may turn out to have no bad member at all. With one bad member of `n` this takes at
most `2 * log2(n)` runs, rounded up; with all bad, `2 * n - 2`.
"""

from __future__ import annotations


class Bisection:
    """The runs that are left to do, after a batch of `count` members has raised.

    Take a range of indices from `next`, run those members, and call `failed` if that raised; else they have their answers.
    Several ranges may be under way at once. When none is, and `next` returns None, `bad` is complete.
    """

    __slots__ = ("_left", "bad")

    def __init__(self, count: int) -> None:
        self.bad: list[int] = []
        """Indices of the members that raised alone."""
        self._left: list[range] = []
        self.failed(range(count))

    def next(self) -> range | None:
        """The indices to run together next, older ones first; None where nothing is left."""
        return self._left.pop() if self._left else None

    def failed(self, indices: range) -> None:
        """The call with these members raised."""
        if len(indices) == 1:
            self.bad.append(indices[0])
        elif indices:
            middle = (len(indices) + 1) // 2
            self._left += (indices[middle:], indices[:middle])
