"""Of which endpoints and backends is told what was counted? Of those that there are, and of the latest that have gone.

Who counts keeps the figures of what has gone, so that the last of them are still seen; but names are made up by programs, for each version
or each try, and what is kept for ever of all of them would have no bound. A name that comes back while it is remembered counts on.

Sums over processes must not go down while they are shown. So the controller, which shows them, forgets first: a process that counts
remembers twice as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

REMEMBERED: Final = 50
"""So many names of endpoints, and as many of backends, are told of after they have gone."""


class Names:
    """The names of one kind. An empty one stands for none, and is always told of."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._there: Mapping[str, object] = {}
        self._gone: dict[str, None] = {}  # the oldest first

    def __contains__(self, name: object) -> bool:
        return not name or name in self._there or name in self._gone

    def are(self, there: Mapping[str, object], others: Iterable[str] = ()) -> bool:
        """These are there now, and have been, for all that is known, those before and `others`. True where some are forgotten.

        `there` is kept, and must not change.
        """
        gone = self._gone
        for name in [name for name in gone if name in there]:
            del gone[name]
        # In an order that is the same in every process.
        for name in sorted({name for several in (self._there, others) for name in several if name not in there and name not in gone}):
            gone[name] = None
        self._there = there
        over = len(gone) - self._remembered
        for name in list(gone)[: max(over, 0)]:
            del gone[name]
        return over > 0


class Labels:
    """The names of both kinds."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self.endpoints = Names(remembered)
        self.backends = Names(remembered)

    def follow(self, endpoints: Mapping[str, object], backends: Mapping[str, object]) -> bool:
        """These are there now. True where some that have gone are forgotten."""
        return self.endpoints.are(endpoints) | self.backends.are(backends)

    def has(self, endpoint: str, backend: str) -> bool:
        """Whether both are told of."""
        return endpoint in self.endpoints and backend in self.backends
