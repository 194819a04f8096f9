"""Which routers are there, which routing table does each follow, and what have they counted?

Tables are pushed a moment after something has changed, with all that has changed by then: as a whole to a router that has
connected, and then as changes of what it was sent before. Of backends with very many replicas each ingress is shown its
own subset. Versions grow, also over controllers: the upper bits are the controller's number, kept in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from headgate.controller.counting import Counting
from headgate.controller.server import Connection
from headgate.controller.tasks import Changes
from headgate.core import counters, messages, tables
from headgate.core.labels import Labels
from headgate.core.messages import Applied, Counted, Hello, Idle, Message, RoutingTable, SendTable
from headgate.core.pace import Pace
from headgate.core.reports import Counters
from headgate.core.subsets import TableSubsets
from headgate.router.control import LONGEST_DELAY_S

CLIENT_PATIENCE_S = 2.0
"""How long a verb waits for processes with handles to follow; ingresses are waited for."""
_BACK_WITHIN_S = LONGEST_DELAY_S + 0.2
"""Who has lost the controller tries again at least as often as that, and then needs a moment."""
_VERSION_BITS = 32


class _Follower:
    """One router's connection."""

    __slots__ = ("applied", "behind", "connection", "idle", "in_replica", "sent", "view")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.in_replica = False  # as far as is known; it stays so when that replica has ended
        self.view: RoutingTable | None = None  # the table that it should follow, as far as it concerns this router, and …
        self.sent: RoutingTable | None = None  # … the one that it was sent last
        self.applied = -1
        self.idle = Idle(-1)
        self.behind: tuple[bool, int] | None = None  # while it doesn't follow its view: its kind, and how far it has come

    @property
    def is_ingress(self) -> bool:
        return self.connection.hello.role == "ingress"

    @property
    def latest(self) -> int:
        """The version of its view: what has changed since does not concern it."""
        return self.view.version if self.view is not None else -1

    def follows(self, version: int) -> bool:
        """Whether it follows the table of this version, which was pushed already."""
        return version < 0 or (self.view is not None and self.applied >= min(version, self.latest))

    def is_idle(self, version: int, endpoint: str | None, backend: str | None) -> bool:
        idle = self.idle
        return idle.version >= min(version, self.latest) and endpoint not in idle.except_endpoints and backend not in idle.except_backends


class Routers:
    """All routers that are connected. `changes` is told whenever one has come, gone, or followed a table.

    `build` says what there is to route by now; it is asked only when a table is about to be pushed. Those that are `in_replica`
    aren't told that the instance is closing: what a replica has admitted may need to call another endpoint before it is answered,
    however late it does so for the first time. What they have counted is told of `labels`.
    """

    def __init__(self, changes: Changes, labels: Labels, *, build: Callable[[], RoutingTable], in_replica: Callable[[Hello], bool]) -> None:
        self.ingresses: dict[str, str] = {}
        """The places of the ingresses that run, connected or not, by id: a verb is in force only when each of them follows."""
        self.places: frozenset[str] = frozenset()
        """Where ingresses are to run."""
        self.table: RoutingTable | None = None
        self._changes = changes
        self._build = build
        self._in_replica = in_replica
        self._pace = Pace()
        self._due: asyncio.TimerHandle | asyncio.Handle | None = None  # while something has changed that was not pushed
        self._reached = self._promised = -1  # versions: of what was pushed, also where it said nothing new; and of what is next
        self._open = RoutingTable(version=0)  # the table for those in replicas, while the instance closes
        self._subsets = TableSubsets()
        self._cut_for: set[str] = set()  # the places whose ingresses share replicas
        self._encoded: dict[tuple[int, int], tuple[RoutingTable | None, RoutingTable, bytes]] = {}  # by what was sent, and is to be
        self._followers: dict[Connection, _Follower] = {}
        self._behind: Counter[tuple[bool, int]] = Counter()
        self._waiting_for_idle = 0
        self.counting: Counting[Counters] = Counting(
            lambda id: "", counters.add_up, lambda said: counters.only(counters.lasting(said), labels)
        )
        """What they have counted."""
        self._back_at = 0.0

    def begin(self, epoch: int) -> None:
        """Versions are those of this controller from now on."""
        self._reached = self._promised = (epoch << _VERSION_BITS) - 1

    @property
    def version(self) -> int:
        """The version of what routers were told last."""
        return self._reached

    def changed(self) -> int:
        """What routers go by may have changed: they will be told in a moment. Returns the version to wait for.

        At once where that was not done just now; else with what else will have changed by then.
        """
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._promised = self._reached + 1
            delay_s = self._pace.delay_s(loop.time())
            self._due = loop.call_later(delay_s, self.push) if delay_s else loop.call_soon(self.push)
        return self._promised

    def push(self) -> None:
        """Tell routers now what has changed, if anything has."""
        if self._due is None:
            return
        began_at = time.thread_time()
        self._due.cancel()
        self._due = None
        self._reached = version = self._promised
        built = msgspec.structs.replace(self._build(), version=version)
        before, table = self.table, built if self.table is None else tables.kept(self.table, built)
        places = self._places()
        if table is not before or places != self._cut_for:
            self.table = table = msgspec.structs.replace(table, version=version)  # also where only the places are others
            self._cut_for = places
            self._open = msgspec.structs.replace(self.table, closing=False)
            self._subsets.follow(self.table, places)
            self._encoded.clear()
            for follower in self._followers.values():
                self._show(follower)
        self._pace.done(time.thread_time() - began_at, asyncio.get_running_loop().time())
        self._changes.tell()

    def close(self) -> None:
        """Nothing is pushed any more."""
        if self._due is not None:
            self._due.cancel()

    def add(self, connection: Connection) -> None:
        """A router has connected; it gets the table, once there is one."""
        follower = self._followers[connection] = _Follower(connection)
        follower.in_replica = self._in_replica(connection.hello)
        self.counting.came(connection)
        if self.table is None:  # nor can one be built yet
            pass
        elif follower.is_ingress and connection.hello.place not in self._cut_for:  # one more to share with
            self.changed()
        else:
            self._show(follower)
        self._changes.tell()

    def _places(self) -> set[str]:
        """Where ingresses are. The successor of one that died has its place, and so the same subsets: nobody else's change."""
        connected = {follower.connection.hello.place for follower in self._followers.values() if follower.is_ingress}
        return connected.union(self.ingresses.values())

    def _show(self, follower: _Follower) -> None:
        """Send a router what is new for it."""
        table = self.table
        if table is None:
            return
        if table.closing and (follower.in_replica or self._in_replica(follower.connection.hello)):
            follower.in_replica = True
            table = self._open
        elif follower.is_ingress:
            table = self._subsets.cut(table, follower.connection.hello.place)
        before = follower.view
        if before is None or not tables.alike(before, table):
            follower.view = table
            self._note(follower)
            follower.connection.send_latest(lambda: self._news(follower))

    def _news(self, follower: _Follower) -> bytes:
        """What makes its view of what a router was sent before; encoded once for all that are alike."""
        sent, view = follower.sent, follower.view
        if view is None or view is sent:
            return b""
        follower.sent = view
        if view is not self.table and view is not self._open:  # a subset, or out of date: nobody else's
            return messages.encode(view if sent is None else tables.changes(sent, view))
        key = (id(sent), id(view))
        if key not in self._encoded:
            self._encoded[key] = (sent, view, messages.encode(view if sent is None else tables.changes(sent, view)))
        return self._encoded[key][2]

    def _note(self, follower: _Follower) -> bool:
        """Note how far it has come, or that it has gone. True where it is the last of its kind that had come no further."""
        before = follower.behind
        there = follower.connection in self._followers
        now = follower.behind = (follower.is_ingress, follower.applied) if there and not follower.follows(follower.latest) else None
        if now == before:
            return False
        if now is not None:
            self._behind[now] += 1
        if before is None:
            return False
        self._behind[before] -= 1
        if self._behind[before]:
            return False
        del self._behind[before]
        return True

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        follower = self._followers.pop(connection, None)
        if follower is None:
            return
        self._note(follower)
        if self.table is not None and follower.is_ingress and connection.hello.place not in self.places:
            self.changed()  # no successor comes: the others take its share
        self.counting.left(connection)
        self._changes.tell()

    def received(self, connection: Connection, message: Message) -> bool:
        """Take a message of a router; False if it is not about routing."""
        # Who waits is told when it may matter, and not by every router: those who wait may be as many.
        follower = self._followers.get(connection)
        if isinstance(message, Applied):
            if follower is not None:
                follower.applied = max(follower.applied, message.version)
                if self._note(follower):
                    self._changes.tell()
        elif isinstance(message, SendTable):
            if follower is not None:
                follower.sent = None
                connection.send_latest(lambda: self._news(follower))
        elif isinstance(message, Idle):
            if follower is not None and message.version >= follower.idle.version:
                follower.idle = message
                if self._waiting_for_idle:
                    self._changes.tell()
        elif isinstance(message, Counted):
            self.counting.said(connection, message.number, message.counters)
        else:
            return False
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
            return self._ingresses_follow(version) and all(
                follower.is_idle(version, endpoint, backend) for follower in self._followers.values() if follower.follows(version)
            )

        self._waiting_for_idle += 1
        try:
            return await self._changes.until(done, timeout_s)
        finally:
            self._waiting_for_idle -= 1

    async def under_way(self) -> int:
        """How many requests the routers that answer have, queued or running."""
        return sum(depth.in_flight for said in (await self.counting.ask()).values() for depth in said.queues)

    def still_serving(self) -> bool:
        """Whether a router has something left of what is no longer in the table."""
        return any(follower.idle.except_endpoints or follower.idle.except_backends for follower in self._followers.values())

    def _ingresses_follow(self, version: int) -> bool:
        if version > self._reached:
            return False
        following = {follower.connection.hello.id for follower in self._followers.values() if follower.follows(version)}
        return self.ingresses.keys() <= following

    def _late(self, version: int) -> list[_Follower]:
        return [follower for follower in self._followers.values() if not (follower.is_ingress or follower.follows(version))]
