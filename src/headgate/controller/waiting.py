"""Which starting replicas wait for room, since when, and when is that said on the log?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from headgate.controller.fleet import Fleet
from headgate.core.desired import Fault
from headgate.core.reports import Waiting
from headgate.engines.base import Engine

_log = logging.getLogger("headgate.controller")

LOOK_S = 1.0
"""How often it is looked who waits, and who waits no longer."""
TELL_AFTER_S = 10.0
"""Who waits so long is told of; again after twice that, and so on, …"""
_TELL_AT_LEAST_EVERY_S: Final = 600.0
"""… but at least every 10 minutes."""
_RETRY_AFTER_S: Final = 5.0
"""What clients are told, since nobody knows when there will be room."""


class WaitsForRoom:
    """The replicas that have no room yet. `changed` is called when they are others than before, `look_again` at every look."""

    def __init__(self, engine: Engine, fleet: Fleet, *, changed: Callable[[], object], look_again: Callable[[], object]) -> None:
        self._engine = engine
        self._fleet = fleet
        self._changed = changed
        self._look_again = look_again
        self._known: frozenset[str] = frozenset()
        self._told_after: dict[str, float] = {}  # seconds of waiting, by backend

    async def keep_looking(self) -> None:
        """For as long as the controller lives."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._look_again()
            known = frozenset(self._engine.waiting())
            if known != self._known:
                self._known = known
                self._changed()
            self._tell()

    def found(self) -> dict[str, Waiting]:
        """What waits now, by backend."""
        now = asyncio.get_running_loop().time()
        found: dict[str, Waiting] = {}
        for id, why in self._engine.waiting().items():
            replica = self._fleet.get(id)
            if replica is not None:
                before = found.get(replica.tag)
                since_s = now - replica.since
                if before is None:
                    found[replica.tag] = Waiting(replica.tag, 1, why, since_s)
                else:
                    found[replica.tag] = Waiting(replica.tag, before.replicas + 1, before.reason, max(before.since_s, since_s))
        return found

    def faults(self) -> dict[str, Fault]:
        """Why backends have too few replicas, for their routers."""
        return {tag: Fault(waiting.lasting_text, _RETRY_AFTER_S) for tag, waiting in self.found().items()}

    def _tell(self) -> None:
        found = self.found()
        for tag in self._told_after.keys() - found.keys():
            del self._told_after[tag]
        for tag, waiting in found.items():
            told = self._told_after.get(tag)
            next_s = TELL_AFTER_S if told is None else told + min(told, _TELL_AT_LEAST_EVERY_S)
            if waiting.since_s >= next_s:
                self._told_after[tag] = waiting.since_s
                _log.warning("backend %r: %s", tag, waiting.text)
