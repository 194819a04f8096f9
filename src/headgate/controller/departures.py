"""How does a deleted backend leave?

It is kept going, as if it were still asked for, until no router has requests for it, at the latest for its
`graceful_shutdown_timeout`: what has been accepted is served, also where a replica has yet to start, or to take the place of
a dead one. Then its replicas end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from headgate.controller.fleet import Fleet
from headgate.controller.routers import Routers
from headgate.controller.tasks import Changes, Tasks
from headgate.core.desired import Backend

_log = logging.getLogger("headgate.controller")


class Departures:
    """All that are under way. `publish` returns the version of the routing table that shows them."""

    def __init__(self, fleet: Fleet, routers: Routers, tasks: Tasks, changes: Changes, *, publish: Callable[[], int]) -> None:
        self.backends: dict[str, Backend] = {}
        """Those that are kept going. None of them is asked for: a new one of the same tag waits until it has left."""
        self._fleet = fleet
        self._routers = routers
        self._tasks = tasks
        self._changes = changes
        self._publish = publish

    def begin(self, backend: Backend) -> None:
        """It was deleted just now."""
        self.backends[backend.tag] = backend
        self._tasks.spawn(self._see_off(backend), f"departure of {backend.tag!r}")

    async def _see_off(self, backend: Backend) -> None:
        tag, grace_s = backend.tag, backend.config.graceful_shutdown_timeout
        deadline = self._now() + grace_s
        try:
            async with asyncio.timeout_at(deadline):
                version = self._publish()
                await self._routers.in_force(version)
                await self._routers.idle(version, backend=tag)
        except TimeoutError:
            _log.warning("backend %r was deleted: some router still has requests for it after %g s", tag, grace_s)
        del self.backends[tag]
        replicas = [replica for replica in self._fleet.of(tag) if replica.live and not replica.held]  # those are of a new one
        for replica in replicas:
            self._fleet.dismiss(replica)
        self._publish()
        self._routers.push()  # before the replicas end
        self._changes.tell()
        grace_s = max(deadline - self._now(), 0.0)
        await asyncio.gather(*(self._fleet.drain(replica, grace_s) for replica in replicas))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
