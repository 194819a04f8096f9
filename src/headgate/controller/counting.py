"""What have the processes of one kind counted, also those that have ended?

Each is asked, and says all that it has counted since it started. What it said last is kept under its id, in case it comes back after
it had lost its connection; of many that have gone, and for long, only the sum is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from headgate.controller.kept_counts import KeptCounting
from headgate.controller.server import Connection
from headgate.controller.tasks import Changes
from headgate.core.messages import Count

_PATIENCE_S = 0.5
_KEPT_ENDED = 256
"""So many that have gone are kept by their ids, however long ago that was; …"""
_COMES_BACK_WITHIN_S = 600.0
"""… and those that have gone no longer ago than this, such as those behind a network that has failed, or when a controller has died, …"""
_MOST_ENDED = 4096
"""… unless they are more than this: each look adds all of them up."""

C = TypeVar("C")


class Counting(Generic[C]):
    """The counters of all processes of one kind. They are added up by a key of each, such as a replica's backend.

    `key` gives that for an id, or None where nobody knows it, whose counters are dropped. `add_up` makes one of several; `lasting` says
    what stays of one that has ended, and `is_told` of which keys: what there was of others is dropped. `clock` is a monotonic time in
    seconds.
    """

    def __init__(
        self,
        key: Callable[[str], str | None],
        add_up: Callable[[Iterable[C]], C],
        lasting: Callable[[C], C],
        is_told: Callable[[str], bool] = lambda key: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = key
        self._add_up = add_up
        self._lasting = lasting
        self._is_told = is_told
        self._clock = clock
        self._connections: dict[Connection, str] = {}  # and the id of each
        self._said: dict[str, tuple[int, str, C]] = {}  # by id: the number that it answered, its key, and what it said
        self._ended: dict[str, float] = {}  # ids in _said that have gone, and since when, oldest first
        self._forgotten: dict[str, C] = {}  # what those had counted of whom nothing else is kept
        self._number = 0
        self._news = Changes()

    def __len__(self) -> int:
        return len(self._connections)

    def came(self, connection: Connection) -> None:
        """A process has connected, maybe again."""
        self._connections[connection] = connection.hello.id
        self._ended.pop(connection.hello.id, None)

    def left(self, connection: Connection) -> None:
        """A connection has ended, and mostly its process."""
        id = self._connections.pop(connection, None)
        if id in self._said and id not in self._connections.values():
            now = self._ended[id] = self._clock()
            while len(self._ended) > _KEPT_ENDED:
                oldest, since = next(iter(self._ended.items()))
                if len(self._ended) <= _MOST_ENDED and now - since <= _COMES_BACK_WITHIN_S:
                    break
                self._forget(oldest)
        self._news.tell()

    def _forget(self, id: str) -> None:
        del self._ended[id]
        _, key, counters = self._said.pop(id)
        before = [self._forgotten[key]] if key in self._forgotten else []
        self._forgotten[key] = self._lasting(self._add_up([*before, counters]))
        self._forgotten = {key: counters for key, counters in self._forgotten.items() if self._is_told(key)}

    def said(self, connection: Connection, number: int, counters: C) -> None:
        """A process has answered, or says unasked what it had counted when it ended."""
        id = connection.hello.id
        before = self._said.get(id)
        if before is not None:
            self._said[id] = (max(number, before[0]), before[1], counters)
        elif (key := self._key(id)) is not None:
            self._said[id] = (number, key, counters)
        self._news.tell()

    async def ask(self) -> dict[str, C]:
        """Ask all, and wait briefly; returns what those said that have answered, by id."""
        self._number = number = self._number + 1
        asked: dict[str, Connection] = {}
        for connection, id in self._connections.items():
            if not connection.slow:
                connection.send(Count(number))
                asked[id] = connection

        def answered(id: str) -> bool:
            return id in self._said and self._said[id][0] >= number

        await self._news.until(
            lambda: all(answered(id) or connection not in self._connections for id, connection in asked.items()), _PATIENCE_S
        )
        return {id: self._said[id][2] for id in asked if answered(id)}

    def totals(self) -> dict[str, C]:
        """What all have counted as far as is known, by key; also those that have ended."""
        found: dict[str, list[C]] = {key: [counters] for key, counters in self._forgotten.items()}
        for id, (_, key, counters) in self._said.items():
            found.setdefault(key, []).append(self._lasting(counters) if id in self._ended else counters)
        return {key: self._add_up(several) for key, several in found.items() if self._is_told(key)}

    def living(self) -> dict[str, tuple[str, C]]:
        """Of those that are connected the key and what they said last, by id."""
        return {id: self._said[id][1:] for id in self._connections.values() if id in self._said}

    def kept(self) -> KeptCounting[C]:
        """What the next controller is to begin with."""
        # First those that have ended: they are forgotten in this order, and the others may come back.
        ids = [*self._ended, *(id for id in self._said if id not in self._ended)]
        said = {id: (key, self._lasting(counters)) for id, (_, key, counters) in ((id, self._said[id]) for id in ids) if self._is_told(key)}
        return KeptCounting(said, {key: self._lasting(counters) for key, counters in self._forgotten.items() if self._is_told(key)})

    def begin_with(self, kept: KeptCounting[C]) -> None:
        """What a controller before this one was told. Who still runs says more; the others have ended."""
        self._forgotten = dict(kept.forgotten)
        now = self._clock()
        for id, (key, counters) in kept.said.items():
            self._said[id] = (0, key, counters)
            self._ended[id] = now
