"""Which replica gets a request, and when? The decisions of one router for one backend.

A request goes to a replica while the router's window there has room, else into a bounded queue that is served in order.
The window is what a replica runs at once; where calls are quick, as many more as take about 2 ms, so that frames travel
together; for batch handlers the running batches and a full one more. Slow calls go to the least loaded replica, so that
nothing waits behind a busy one while another is free; quick ones fill one replica before they open the next, since
waking a process costs more than they do.

A replica that is near, as on the router's own node, goes before others while it has a slot free.

A replica that is held, or has gone silent, gets only what no other has room for: it is silent when nothing has come from it, and
something there has waited to begin, for longer than that takes. This orders replicas; it refuses nothing.

Whatever makes room (`add_replica`, `set_limits`, `answered`, `returned`, `released`) is followed by `next` until it
returns None. Between such loops nothing is queued while a replica has room.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from headgate.core import wire

Item = TypeVar("Item")
Id = TypeVar("Id")

AHEAD_S: Final = 0.002
"""Work that is sent ahead to a replica whose calls are quicker than this."""
QUICK_S: Final = 0.001
"""Work that one replica is given before the next is opened."""
SLOW_S: Final = 0.005
"""What a call is taken to last, at least, once a replica has given work back because of it."""
SCANNED: Final = 16
"""Up to this many replicas are all compared; of more, a drawn few."""

_DRAWN = 4
_SHORTEST_S = 1e-5  # what a request costs a replica besides user code, so what the quickest call is taken to last
_GAIN = 0.125  # weight of the newest measurement
_BAND = 1.25  # the window is computed anew when the mean has moved by this factor
# What others had at a replica is believed for that many times as long as it takes to run: longer than it may last, since
# more of theirs will have come. Two routers wait 1.31 times as long as one queue; with 1 instead 1.35, without end 1.30.
_BELIEVED = 10.0
_HELD = 1 << 20  # over any load
# A replica that has begun nothing for longer than the greater of these may be frozen. Only another is preferred to it, so that it does
# no harm where it is but slow.
_SILENT_S = 0.02
_SILENT_CALLS = 10.0
_RATE_ANSWERS = 8  # fewer don't say how fast the queue moves
_RATE_S = 5.0  # the rate is that of the last one or two such periods
_RATE_STANDS_S = 0.001  # it is computed once in so long, not for every request of a burst


class Limits(msgspec.Struct, frozen=True):
    """What the backend's config says about dispatch; the names are those of `BackendConfig`."""

    concurrency: int
    max_batch_size: int = 1
    is_batch: bool = False
    batch_wait_timeout: float = 0.0
    max_concurrent_queries: int | None = None
    max_queued_queries: int = 1000


class _Replica(Generic[Id]):
    """What the router knows of one replica."""

    __slots__ = (
        "draining",
        "fill",
        "held_until",
        "high_s",
        "id",
        "low_s",
        "mean_s",
        "near",
        "others",
        "others_until",
        "outstanding",
        "patience_s",
        "silent_at",
        "window",
    )

    def __init__(self, id: Id, *, near: bool) -> None:
        self.id = id
        self.near = near
        self.outstanding = 0  # of this router
        self.window = 0
        self.fill = 0  # up to this load it is filled before the next is opened; 0 where calls aren't quick
        self.mean_s = 0.0  # of recent calls; 0 until the first
        self.low_s = math.inf  # the window stands while the mean is between the two: never before the first call
        self.high_s = 0.0  # until the first answer
        self.others = 0  # what other routers had there by its last report …
        self.others_until = 0.0  # … which is believed until then
        self.held_until = 0.0  # it gets what no other has room for until then, or until it answers
        self.patience_s = math.inf  # so long it may take to begin a call; unknown at first
        self.silent_at = math.inf  # where it has calls: when to ask whether it is silent, if nothing comes from it
        self.draining = False


class Dispatcher(Generic[Item, Id]):
    """One router's queue, windows and choice of replica for one backend.

    Items are told apart by their hash, so by identity where they define none; a replica's id is any hashable object.
    `draw` is uniform in [0, 1), `now` a monotonic time in seconds. `unbegun_since` says when the oldest of the requests at a replica
    that have not begun was sent there, infinity where all have; it is asked only of one from which nothing has come for a while.
    """

    __slots__ = (
        "_again",
        "_again_heap",
        "_answers",
        "_at_once",
        "_earlier_quickest_s",
        "_filling",
        "_first_at",
        "_limits",
        "_mark_answers",
        "_mark_at",
        "_near",
        "_older_answers",
        "_older_at",
        "_only",
        "_queue",
        "_quickest_answers",
        "_quickest_s",
        "_ready",
        "_replicas",
        "_request_s",
        "_request_s_until",
        "_serial",
        "_unbegun_since",
        "queued",
    )

    def __init__(self, limits: Limits, unbegun_since: Callable[[Id], float] = lambda id: math.inf) -> None:
        self._limits = limits
        self._unbegun_since = unbegun_since
        self._at_once = _at_once(limits)
        self._replicas: dict[Id, _Replica[Id]] = {}
        self._ready: list[_Replica[Id]] = []
        self._near: list[_Replica[Id]] = []  # those of `_ready` that are near, unless all are
        # No other replica than this has room (it may be full itself). None: not known, look at all of them.
        self._only: _Replica[Id] | None = None
        self._filling: _Replica[Id] | None = None
        self._queue: OrderedDict[Item, None] = OrderedDict()
        # Requests that were sent before and go first now, oldest on top; what was withdrawn stays in the heap.
        self._again: set[Item] = set()
        self._again_heap: list[tuple[float, int, Item]] = []
        self._serial = 0
        self.queued = 0
        """Requests that wait here."""
        # Answers in all, and at two moments since which requests have always waited: the rate at which the queue moves.
        self._answers = 0
        self._mark_at = self._older_at = 0.0
        self._mark_answers = self._older_answers = 0
        # How long the queue takes to move by one request, where known; and until when that stands.
        self._request_s: float | None = None
        self._request_s_until = -math.inf
        self._first_at = -math.inf  # as long as that stands: when a replica has room again, at the earliest
        # The quickest of the latest calls, and of some before them; and how many answers there had been before the former.
        self._quickest_s = self._earlier_quickest_s = math.inf
        self._quickest_answers = 0

    def set_limits(self, limits: Limits) -> None:
        """Follow changed limits from now on. What is queued beyond a smaller bound stays queued."""
        self._limits, self._at_once = limits, _at_once(limits)
        for replica in self._ready:
            self._resize(replica)
        self._forget_room()

    @property
    def full(self) -> bool:
        """Whether the queue is at its bound, so that a request that can't be sent at once must be refused."""
        return self.queued >= self._limits.max_queued_queries

    @property
    def half_full(self) -> bool:
        """Whether shadows must not be offered any more."""
        return self.queued * 2 >= self._limits.max_queued_queries

    def in_flight(self, id: Id) -> int:
        """Requests that are at one replica, which may be draining; 0 where it is unknown."""
        replica = self._replicas.get(id)
        return replica.outstanding if replica is not None else 0

    def has_answered(self, id: Id) -> bool:
        """Whether a replica has ever answered a request of this router; False where it is unknown."""
        replica = self._replicas.get(id)
        return replica is not None and replica.high_s > 0.0

    def window(self, id: Id) -> int:
        """How many requests this router may have at one replica; 0 where it is draining or unknown."""
        replica = self._replicas.get(id)
        return replica.window if replica is not None else 0

    def add_replica(self, id: Id, *, near: bool = False) -> None:
        """A replica takes requests; a draining one does so again. No effect where it does already. `near` goes before others."""
        replica = self._replicas.get(id)
        if replica is None:
            replica = self._replicas[id] = _Replica(id, near=near)
        elif not replica.draining:
            return
        replica.draining = False
        self._ready.append(replica)
        self._resize(replica)
        self._forget_room()

    def remove_replica(self, id: Id) -> None:
        """Nothing new goes to this replica; what is there counts until it is answered. Unknown ids are ignored."""
        replica = self._replicas.get(id)
        if replica is None or replica.draining:
            return
        replica.draining = True
        replica.window = replica.fill = 0
        self._ready.remove(replica)
        self._forget_room()

    def forget(self, id: Id) -> None:
        """A replica is gone, with all that was there; `requeue` what it had not started. Unknown ids are ignored."""
        self.remove_replica(id)
        self._replicas.pop(id, None)

    def offer(self, item: Item, now: float, draw: float) -> Id | None:
        """Take a new request: return the replica to send it to now, or None where it was queued, also beyond the bound."""
        id = self.place(now, draw)
        if id is None:
            self.enqueue(item, now)
        return id

    def place(self, now: float, draw: float) -> Id | None:
        """The replica to send a new request to now, or None: then `enqueue` it, or refuse it where it is `full` or would wait too long."""
        if self.queued:
            return None
        replica = self._only
        if replica is None:
            replica = self._choose(now, draw)
        if replica is None or replica.outstanding >= replica.window:
            return None
        if not replica.outstanding:
            replica.silent_at = now + replica.patience_s
        replica.outstanding += 1
        return replica.id

    def enqueue(self, item: Item, now: float) -> None:
        """Have a new request wait that found no place; also beyond the bound."""
        if not self.queued:
            self._mark_at = self._older_at = now
            self._mark_answers = self._older_answers = self._answers
        self.queued += 1
        self._queue[item] = None

    def next(self, now: float, draw: float) -> tuple[Item, Id] | None:
        """The request that leaves the queue now, and the replica to send it to; None where nothing waits or all are full."""
        if not self.queued:
            return None
        replica = self._only
        if replica is None:
            replica = self._choose(now, draw)
        if replica is None or replica.outstanding >= replica.window:
            return None
        if not replica.outstanding:
            replica.silent_at = now + replica.patience_s
        replica.outstanding += 1
        self.queued -= 1
        if self._again:
            return self._pop_again(), replica.id
        return self._queue.popitem(last=False)[0], replica.id

    def answered(self, id: Id, elapsed_s: float, load: int, now: float) -> None:
        """A replica has answered a request of this router.

        `elapsed_s` is the run time of the call of user code (a batch's for each of its members), `load` what the replica
        has left, over all routers.
        """
        replica = self._replicas[id]
        own = replica.outstanding = replica.outstanding - 1
        mean_s = replica.mean_s
        mean_s += (elapsed_s - mean_s) * _GAIN
        if replica.low_s < mean_s < replica.high_s:
            replica.mean_s = mean_s
        else:
            replica.mean_s = max(mean_s if replica.high_s else elapsed_s, _SHORTEST_S)
            self._resize(replica)
        if load > own:
            others = replica.others = load - own
            replica.others_until = now + _BELIEVED * -(-others // self._at_once) * mean_s
        else:
            replica.others = 0
        replica.held_until = 0.0
        replica.silent_at = now + replica.patience_s
        self._answers += 1
        if elapsed_s < self._quickest_s:
            self._quickest_s = elapsed_s
        only = self._only
        if only is not replica and only is not None:
            self._note_room(replica, only)

    def returned(self, id: Id, load: int, now: float, held_s: float = 0.0) -> None:
        """A replica has given a request back unstarted, because it can't run soon there; `requeue` it, then ask `next`.

        The window there falls to what the replica runs at once. So that requests don't go back and forth, a replica that is busy
        with slow calls gives back once, and again when they have lasted twice as long. One whose event loop is held keeps what arrives
        for `held_s`, and gives it back after that. So until then only what no other replica has room for goes there; after
        that it is tried again, as what it can't run returns at once.
        """
        replica = self._replicas[id]
        measured = replica.high_s > 0.0
        replica.mean_s = max(replica.mean_s, SLOW_S)
        replica.held_until = max(replica.held_until, now + held_s)
        self.released(id, load, now)
        self._resize(replica)
        replica.low_s = math.inf  # so that the next answer sets the window anew …
        if not measured:
            replica.high_s = 0.0  # … and, where it is the first, the mean
        limits = self._limits
        if limits.is_batch:
            # What the replica kept is its next batch, and may be all that fits into it.
            replica.window = min(replica.window, max(replica.outstanding, limits.max_batch_size))

    def released(self, id: Id, load: int, now: float) -> None:
        """A request is off a replica without having run: cancelled, too late, or refused there. Nothing was measured."""
        replica = self._replicas[id]
        replica.outstanding -= 1
        replica.others = max(0, load - replica.outstanding)
        replica.others_until = now + _BELIEVED * -(-replica.others // self._at_once) * replica.mean_s
        replica.silent_at = now + replica.patience_s
        only = self._only
        if only is not replica and only is not None:
            self._note_room(replica, only)

    def requeue(self, item: Item, admitted_at: float, now: float) -> None:
        """Queue a request that a replica had but did not start: before all new ones, in order of age, also beyond the bound."""
        if not self.queued:
            self._mark_at = self._older_at = now
            self._mark_answers = self._older_answers = self._answers
        self.queued += 1
        self._serial += 1
        self._again.add(item)
        heapq.heappush(self._again_heap, (admitted_at, self._serial, item))

    def withdraw(self, item: Item) -> bool:
        """Take a request out of the queue, since it was cancelled or its time is up; False where it isn't queued."""
        if item in self._queue:
            del self._queue[item]
        elif item in self._again:
            self._again.remove(item)
        else:
            return False
        self.queued -= 1
        return True

    def drain(self) -> list[Item]:
        """Take all that waits out of the queue, in the order in which it would have left."""
        waiting = [self._pop_again() for _ in range(len(self._again))]
        waiting += self._queue
        self._queue.clear()
        self.queued = 0
        return waiting

    def wait_estimate_s(self, now: float, oldest_at: Callable[[Id], float]) -> float | None:
        """How long a request that is queued now would wait, from the queue and the recent rate; None: not known yet.

        The rate is the measured one where requests have waited for a while; else what the replicas can do at best, so
        that nothing is refused for want of recent traffic. The first of the queue leaves when the first of the requests that
        are at replicas is answered: at best when it has run as long as the quickest of late. `oldest_at` says when the oldest
        of those at a replica was sent there, infinity where there is none.
        """
        if now >= self._request_s_until:
            self._request_s = self._measured_request_s(now)
            self._request_s_until = now + _RATE_STANDS_S
            first_at = min([oldest_at(replica.id) for replica in self._ready], default=math.inf) + self._recent_quickest_s()
            self._first_at = first_at if first_at < math.inf else now
        request_s = self._request_s
        if request_s is None:
            return None
        first_s = max(self._first_at - now, 0.0)
        return self.queued * request_s + min(first_s, request_s) if self.queued else first_s

    def _recent_quickest_s(self) -> float:
        if self._answers - self._quickest_answers >= _RATE_ANSWERS:  # so that one that was quick once doesn't count for ever
            self._earlier_quickest_s, self._quickest_s = self._quickest_s, math.inf
            self._quickest_answers = self._answers
        return min(self._quickest_s, self._earlier_quickest_s)

    def _measured_request_s(self, now: float) -> float | None:
        if now - self._mark_at > _RATE_S:
            self._older_at, self._older_answers = self._mark_at, self._mark_answers
            self._mark_at, self._mark_answers = now, self._answers
        answers, span_s = self._answers - self._older_answers, now - self._older_at
        if self.queued and answers >= _RATE_ANSWERS and span_s > 0:
            return span_s / answers
        rate = sum(self._at_once / replica.mean_s for replica in self._ready if replica.mean_s)
        return 1 / rate if rate else None

    def _choose(self, now: float, draw: float) -> _Replica[Id] | None:
        """A replica with room, or None."""
        filling = self._filling
        if (
            filling is not None
            and filling.outstanding + filling.others < filling.fill
            and (filling.silent_at >= now or not filling.outstanding or not self._is_silent(filling, now))
            and (filling.near or not self._near)
        ):
            return filling
        if self._near:
            best = self._best(_some(self._near, draw), now)
            if best is not None and self._has_slot(best, now):
                return best
        ready = self._ready
        if len(ready) > SCANNED:
            best = self._best(_some(ready, draw), now)
            if best is not None and best.held_until <= now and not self._is_silent(best, now):
                return best
        best = self._best(_rotated(ready, draw), now)
        if best is None and ready:
            self._only = ready[0]
        return best

    def _best(self, replicas: list[_Replica[Id]], now: float) -> _Replica[Id] | None:
        """Of quick replicas that aren't filled yet the fullest; of others that have room the least loaded; held and silent ones last."""
        best: _Replica[Id] | None = None
        best_load = 0
        quick: _Replica[Id] | None = None
        quick_load = -1
        for replica in replicas:
            load = replica.outstanding
            if load < replica.window:
                if replica.others and replica.others_until > now:
                    load += replica.others
                if replica.held_until > now or (load and replica.silent_at < now and self._is_silent(replica, now)):
                    load += _HELD
                if load < replica.fill:
                    if load > quick_load:
                        quick, quick_load = replica, load
                elif best is None or load < best_load:
                    best, best_load = replica, load
        if quick is not None:
            self._filling = quick
            return quick
        return best

    def _has_slot(self, replica: _Replica[Id], now: float) -> bool:
        """Whether it would run a request at once, or is quick and not filled, as far as this router knows."""
        load = replica.outstanding
        if replica.others and replica.others_until > now:
            load += replica.others
        return load < max(self._at_once, replica.fill) and replica.held_until <= now and not self._is_silent(replica, now)

    def _is_silent(self, replica: _Replica[Id], now: float) -> bool:
        """Whether nothing has come from a replica, nor begun there, for longer than it should."""
        if replica.silent_at >= now or not replica.outstanding:
            return False
        if replica.others and replica.others_until > now:  # it may be these that run there now
            return False
        unbegun_since = self._unbegun_since(replica.id)
        if unbegun_since + replica.patience_s < now:
            return True
        replica.silent_at = min(unbegun_since, now) + replica.patience_s  # so that it isn't asked again for each request
        return False

    def _resize(self, replica: _Replica[Id]) -> None:
        """Compute window and fill from the limits and the mean run time."""
        if replica.draining:
            return
        limits = self._limits
        mean_s = replica.mean_s
        window = limits.concurrency
        fill = 0
        if limits.is_batch:
            window = limits.max_batch_size * (limits.concurrency + 1)
        elif mean_s:
            window += int(AHEAD_S / mean_s)
            if mean_s < QUICK_S:
                fill = 1 + int(QUICK_S / mean_s)
        if mean_s:
            replica.low_s = mean_s / _BAND if mean_s > _SHORTEST_S else -1.0
            replica.high_s = mean_s * _BAND
            replica.patience_s = max(_SILENT_S, _SILENT_CALLS * mean_s) + (limits.batch_wait_timeout if limits.is_batch else 0.0)
        replica.window = min(window, limits.max_concurrent_queries or wire.PLACES, wire.PLACES)
        replica.fill = min(fill, replica.window)

    def _note_room(self, replica: _Replica[Id], only: _Replica[Id]) -> None:
        """`replica` may have room now, besides `only`."""
        if only.outstanding >= only.window:
            self._only = replica
        elif replica.outstanding < replica.window:
            self._only = None

    def _forget_room(self) -> None:
        near = [replica for replica in self._ready if replica.near]
        self._near = near if len(near) < len(self._ready) else []
        self._only = self._ready[0] if len(self._ready) == 1 else None
        self._filling = None
        self._request_s_until = -math.inf

    def _pop_again(self) -> Item:
        while True:
            item = heapq.heappop(self._again_heap)[2]
            if item in self._again:
                self._again.remove(item)
                return item


def _some(replicas: list[_Replica[Id]], draw: float) -> list[_Replica[Id]]:
    """All of them, or of many a drawn few, of which one may be there twice."""
    count = len(replicas)
    if count <= SCANNED:
        return _rotated(replicas, draw)
    few = []
    for _ in range(_DRAWN):
        start = int(draw * count)
        few.append(replicas[start])
        draw = draw * count - start  # the digits that have not been used
    return few


def _rotated(replicas: list[_Replica[Id]], draw: float) -> list[_Replica[Id]]:
    """All of them from a drawn start, so that among equals each has its turn."""
    start = int(draw * len(replicas))
    return replicas[start:] + replicas[:start]


def _at_once(limits: Limits) -> int:
    """How many requests a replica runs at the same time, where its batches are full."""
    return limits.concurrency * (limits.max_batch_size if limits.is_batch else 1)
