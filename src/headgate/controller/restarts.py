"""When may a backend start its next replica, and why does it have fewer than it should?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from headgate.core.desired import Fault
from headgate.core.replica_life import STARTING, BackOff

_AFTER_S = 0.002
"""Timers of an event loop are exact to a millisecond; at one that came too early the backend would still be paused, for good."""

_KEPT = 64
"""Routers tell at once that a replica had answered: of a backend that crashes for days the oldest ends need not be kept."""


class _Trouble:
    """What is wrong with one backend."""

    def __init__(self) -> None:
        self.back_off = BackOff()
        self.counted: dict[str, None] = {}
        """The replicas whose ends the back-off has counted and may take back, oldest first; "" stands for all others."""
        self.fault = ""
        self.no_room = False
        self.timer: asyncio.TimerHandle | None = None


class Restarts:
    """The back-off of each backend whose replicas fail. `again` is called when one of them may try once more."""

    def __init__(self, again: Callable[[], None]) -> None:
        self._again = again
        self._troubles: dict[str, _Trouble] = {}

    def paused(self, now: float) -> list[str]:
        """The backends that must not start a replica now."""
        return [tag for tag, trouble in self._troubles.items() if not trouble.back_off.may_start(now)]

    def faults(self) -> dict[str, Fault]:
        """What is wrong with backends that have too few replicas, by tag."""
        return {tag: Fault(trouble.fault, trouble.back_off.delay_s) for tag, trouble in self._troubles.items() if trouble.fault}

    def failed(self, tag: str, replica: str, state: str, since: float, fault: str, *, no_room: bool, now: float) -> None:
        """A replica of this backend, in `state` since then, has failed; `no_room` says that it did not fit into what was free."""
        trouble = self._troubles.setdefault(tag, _Trouble())
        trouble.back_off = trouble.back_off.died(state, now, since)
        trouble.counted["" if state == STARTING else replica] = None  # what was never ready has answered nothing
        while len(trouble.counted) > _KEPT:
            trouble.counted[""] = None
            del trouble.counted[next(id for id in trouble.counted if id)]
        trouble.fault, trouble.no_room = fault, no_room
        if trouble.timer is not None:
            trouble.timer.cancel()
        trouble.timer = asyncio.get_running_loop().call_later(max(trouble.back_off.until - now, 0) + _AFTER_S, self._again)

    def replaced(self, tag: str, fault: str) -> None:
        """A replica that had served has ended: the next one starts at once, and until it is ready this is why it is missing."""
        self.forget(tag)
        self._troubles[tag] = _Trouble()
        self._troubles[tag].fault = fault

    def room_came_free(self) -> None:
        """Whoever waits for room may try at once."""
        for trouble in self._troubles.values():
            if trouble.no_room:
                trouble.back_off = BackOff()

    def take_back(self, replica: str) -> bool:
        """The end of this replica did not count after all; whether its backend may start the next one at once, therefore."""
        for tag, trouble in self._troubles.items():
            if replica in trouble.counted:
                del trouble.counted[replica]
                if not trouble.counted:
                    self.forget(tag)
                    return True
                return False
        return False

    def recovered(self, tag: str) -> None:
        """All its replicas are ready. Whether they stay isn't known, so the back-off stands until one has answered."""
        if tag in self._troubles:
            self._troubles[tag].fault = ""

    def forget(self, tag: str) -> None:
        """All is well with this backend, or it is another one now."""
        trouble = self._troubles.pop(tag, None)
        if trouble is not None and trouble.timer is not None:
            trouble.timer.cancel()

    def keep(self, tags: Collection[str]) -> None:
        """Forget all other backends."""
        for tag in self._troubles.keys() - tags:
            self.forget(tag)
