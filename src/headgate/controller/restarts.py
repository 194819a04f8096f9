"""When may a backend start its next replica, and why does it have fewer than it should?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from headgate.core.replica_life import BackOff


class _Trouble:
    """What is wrong with one backend."""

    def __init__(self) -> None:
        self.back_off = BackOff()
        self.reason = ""
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

    def reasons(self) -> dict[str, str]:
        """Why backends have too few replicas, by tag: what their last failure said."""
        return {tag: trouble.reason for tag, trouble in self._troubles.items()}

    def failed(self, tag: str, state: str, reason: str, *, no_room: bool, now: float) -> None:
        """A replica of this backend that was in `state` has failed; `no_room` says that it did not fit into what was free."""
        trouble = self._troubles.setdefault(tag, _Trouble())
        trouble.back_off = trouble.back_off.died(state, now)
        trouble.reason, trouble.no_room = reason, no_room
        if trouble.timer is not None:
            trouble.timer.cancel()
        trouble.timer = asyncio.get_running_loop().call_later(max(trouble.back_off.until - now, 0), self._again)

    def room_came_free(self) -> None:
        """Whoever waits for room may try at once."""
        for trouble in self._troubles.values():
            if trouble.no_room:
                trouble.back_off = BackOff()

    def forget(self, tag: str) -> None:
        """All is well with this backend, or it is another one now."""
        trouble = self._troubles.pop(tag, None)
        if trouble is not None and trouble.timer is not None:
            trouble.timer.cancel()

    def keep(self, tags: Collection[str]) -> None:
        """Forget all other backends."""
        for tag in self._troubles.keys() - tags:
            self.forget(tag)
