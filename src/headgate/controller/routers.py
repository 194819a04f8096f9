"""Which routers are there, which routing table does each follow, and what have they counted?

Tables are pushed when they have changed. Their versions grow, also over controllers: the upper bits are the controller's
number, kept in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from headgate.controller.server import Connection
from headgate.controller.tasks import Changes
from headgate.core import messages
from headgate.core.messages import Applied, Count, Counted, Hello, Idle, Message, RoutingTable
from headgate.core.reports import Counters, QueueDepth, RequestCount
from headgate.router.control import LONGEST_DELAY_S

CLIENT_PATIENCE_S = 2.0
"""How long a verb waits for processes with handles to follow; ingresses are waited for."""
_COUNT_PATIENCE_S = 0.5
_BACK_WITHIN_S = LONGEST_DELAY_S + 0.2
"""Who has lost the controller tries again at least as often as that, and then needs a moment."""
_KEPT_ENDED = 256
_VERSION_BITS = 32


class _Follower:
    """One router's connection."""

    __slots__ = ("applied", "connection", "idle")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.applied = -1
        self.idle = Idle(-1)

    @property
    def is_ingress(self) -> bool:
        return self.connection.hello.role == "ingress"


class Routers:
    """All routers that are connected. `changes` is told whenever one has come, gone, or followed a table.

    Those that are `in_replica` aren't told that the instance is closing: what a replica has admitted may need to call another
    endpoint before it is answered, however late it does so for the first time.
    """

    def __init__(self, changes: Changes, *, in_replica: Callable[[Hello], bool]) -> None:
        self.ingresses: set[str] = set()
        """The ids of the ingresses that run, connected or not: a verb is in force only when each of them follows."""
        self.table: RoutingTable | None = None
        self._changes = changes
        self._in_replica = in_replica
        self._encoded = b""
        self._open = (RoutingTable(version=0), b"")  # the table for those in replicas, and its encoding
        self._followers: dict[Connection, _Follower] = {}
        self._counts: dict[str, tuple[int, Counters]] = {}  # by the router's id: the number it answered, and what it said
        self._ended: dict[str, None] = {}  # ids in _counts whose routers have gone, oldest first
        self._total = Counters()  # of routers that are forgotten
        self._number = 0
        self._back_at = 0.0

    @property
    def version(self) -> int:
        """The version of the table that routers should follow now."""
        return self.table.version if self.table is not None else -1

    def publish(self, table: RoutingTable, epoch: int) -> int:
        """Push this table if it says something new; its version is set here. Returns the version to wait for."""
        if self.table is not None and msgspec.structs.replace(table, version=self.table.version) == self.table:
            return self.table.version
        version = self.table.version + 1 if self.table is not None else epoch << _VERSION_BITS
        self.table = msgspec.structs.replace(table, version=version)
        self._encoded = messages.encode(self.table)
        if table.closing:
            still_open = msgspec.structs.replace(self.table, closing=False)
            self._open = (still_open, messages.encode(still_open))
        for connection in self._followers:
            self._send(self.table, connection)
        return version

    def add(self, connection: Connection) -> None:
        """A router has connected; it gets the table, once there is one."""
        self._followers[connection] = _Follower(connection)
        self._ended.pop(connection.hello.id, None)
        if self.table is not None:
            self._send(self.table, connection)
        self._changes.tell()

    def _send(self, table: RoutingTable, connection: Connection) -> None:
        if table.closing and self._in_replica(connection.hello):
            connection.send_table(*self._open)
        else:
            connection.send_table(table, self._encoded)

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        if self._followers.pop(connection, None) is None:
            return
        id = connection.hello.id
        if id in self._counts and all(follower.connection.hello.id != id for follower in self._followers.values()):
            self._ended[id] = None
            if len(self._ended) > _KEPT_ENDED:
                oldest = next(iter(self._ended))
                del self._ended[oldest]
                self._total = add_up([self._total, _lasting(self._counts.pop(oldest)[1])])
        self._changes.tell()

    def received(self, connection: Connection, message: Message) -> bool:
        """Take a message of a router; False if it is not about routing."""
        follower = self._followers.get(connection)
        if isinstance(message, Applied):
            if follower is not None:
                follower.applied = max(follower.applied, message.version)
        elif isinstance(message, Idle):
            if follower is not None and message.version >= follower.idle.version:
                follower.idle = message
        elif isinstance(message, Counted):
            self._counts[connection.hello.id] = (message.number, message.counters)
        else:
            return False
        self._changes.tell()
        return True

    def expect_back(self) -> None:
        """An earlier controller has died: routers in processes with handles are about to connect again, and are waited for."""
        self._back_at = asyncio.get_running_loop().time() + _BACK_WITHIN_S

    async def all_back(self) -> None:
        """Wait until all that run have had the time to connect again."""
        await asyncio.sleep(max(self._back_at - asyncio.get_running_loop().time(), 0.0))

    async def in_force(self, version: int) -> tuple[str, ...]:
        """Wait until every ingress follows this version, and every client or 2 s have passed. Returns a warning for each that is late."""
        await self.all_back()
        deadline = asyncio.get_running_loop().time() + CLIENT_PATIENCE_S
        await self._changes.until(lambda: self._ingresses_follow(version))
        await self._changes.until(lambda: not self._late(version), deadline - asyncio.get_running_loop().time())
        return tuple(
            f"process {follower.connection.hello.pid} (handles of {follower.connection.hello.id}) did not answer "
            f"within {CLIENT_PATIENCE_S:g} s; it follows when it runs again"
            for follower in self._late(version)
        )

    async def idle(self, version: int, *, endpoint: str | None = None, backend: str | None = None, timeout_s: float | None = None) -> bool:
        """Wait until no router has anything left of what the table of this version no longer has.

        A client that does not even follow that version is not waited for: it does not run.
        """

        def done() -> bool:
            return self._ingresses_follow(version) and not any(
                follower.applied >= version
                and (
                    follower.idle.version < version
                    or endpoint in follower.idle.except_endpoints
                    or backend in follower.idle.except_backends
                )
                for follower in self._followers.values()
            )

        return await self._changes.until(done, timeout_s)

    async def measure(self) -> tuple[Counters, int]:
        """Ask all routers for their counters, wait briefly, and add up what is known; also how many answered."""
        answered = await self._ask()
        known = [_lasting(counters) if id in self._ended else counters for id, (_, counters) in self._counts.items()]
        return add_up([self._total, *known]), len(answered)

    async def under_way(self) -> int:
        """How many requests the routers that answer have, queued or running."""
        return sum(depth.in_flight for id in await self._ask() for depth in self._counts[id][1].queues)

    async def _ask(self) -> list[str]:
        """Ask all routers for their counters; returns the ids of those that answered within a moment."""
        self._number = number = self._number + 1
        asked = {}
        for connection in self._followers:
            if not connection.slow:
                connection.send(Count(number))
                asked[connection.hello.id] = connection

        def answered(id: str) -> bool:
            return id in self._counts and self._counts[id][0] >= number

        await self._changes.until(
            lambda: all(answered(id) or connection not in self._followers for id, connection in asked.items()), _COUNT_PATIENCE_S
        )
        return [id for id in asked if answered(id)]

    def still_serving(self) -> bool:
        """Whether a router has something left of what is no longer in the table."""
        return any(follower.idle.except_endpoints or follower.idle.except_backends for follower in self._followers.values())

    def _ingresses_follow(self, version: int) -> bool:
        following = {follower.connection.hello.id for follower in self._followers.values() if follower.applied >= version}
        return self.ingresses <= following

    def _late(self, version: int) -> list[_Follower]:
        return [follower for follower in self._followers.values() if not follower.is_ingress and follower.applied < version]


def add_up(several: Iterable[Counters]) -> Counters:
    """The sum of the counters of several routers."""
    requests: dict[tuple[str, str, int], tuple[int, float]] = {}
    queues: dict[str, tuple[int, int]] = {}
    dropped = retried = 0
    for counters in several:
        for request in counters.requests:
            key = (request.endpoint, request.backend, request.status)
            count, seconds = requests.get(key, (0, 0.0))
            requests[key] = (count + request.count, seconds + request.seconds)
        for depth in counters.queues:
            queued, in_flight = queues.get(depth.backend, (0, 0))
            queues[depth.backend] = (queued + depth.queued, in_flight + depth.in_flight)
        dropped += counters.shadows_dropped
        retried += counters.retried
    return Counters(
        tuple(RequestCount(*key, *sums) for key, sums in sorted(requests.items())),
        tuple(QueueDepth(tag, *depths) for tag, depths in sorted(queues.items())),
        dropped,
        retried,
    )


def _lasting(counters: Counters) -> Counters:
    """What stays of a router that has ended: its queues are gone."""
    return msgspec.structs.replace(counters, queues=())
