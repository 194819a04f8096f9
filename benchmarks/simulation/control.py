"""What do changes of the cluster cost the controller and its connections, in messages, bytes and work?

Virtual time. Tables, changes, subsets, pace and encoding are the product's own; what a message costs besides, in system calls
and event loop, is a constant. Two ways are compared: `whole`, where every change sends everything to everybody, and `changes`.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from benchmarks.simulation.cluster import Cluster, Replica
from headgate.core import messages, tables
from headgate.core.messages import RoutingTable
from headgate.core.pace import Pace
from headgate.core.replica_life import READY
from headgate.core.subsets import TableSubsets

MESSAGE_S = 25e-6
"""What a message sent or received is taken to cost the controller's process besides the encoding."""
BYTE_S = 0.5e-9
"""What a byte is taken to cost it: the kernel copies it twice."""
_LOOK_S = 4e-6  # for each replica, to compare what runs or to build a table; and for each router …
_CUT_S = 20e-6  # … to cut and compare what it sees: both only for the pace, in virtual time
START_S = (2.0, 4.0)
DRAIN_S = (0.2, 1.0)
_DEATH_S = 0.05
"""The replicas of a node are seen dead within so long."""


@dataclass
class Costs:
    """Of one scenario, of one way."""

    changes: int = 0
    """Times that something had changed."""
    pushes: int = 0
    """Times that routers were told."""
    sent: int = 0
    """Messages to routers."""
    received: int = 0
    """Messages from routers."""
    bytes: int = 0
    """Sent to routers."""
    core_s: float = 0.0
    """Processor seconds in the pure core, measured."""
    longest_s: float = 0.0
    """The longest time from a change to its push, virtual."""
    span_s: float = 0.0
    """Virtual time from the first change to the last."""
    views_hold: bool = True
    """Whether every router followed exactly what it should."""

    @property
    def work_s(self) -> float:
        """Processor seconds of the controller, by measurement and constants."""
        return self.core_s + (self.sent + self.received) * MESSAGE_S + self.bytes * BYTE_S


@dataclass
class Router:
    """One ingress, as far as the controller sees it."""

    id: str
    table: RoutingTable | None = None  # that it was sent


class Controller:
    """One controller and its routers in virtual time. `way` is "whole" or "changes"."""

    def __init__(self, cluster: Cluster, ingresses: int, way: str, *, subsets: bool = True) -> None:
        self.cluster = cluster
        self.costs = Costs()
        self.now = 0.0
        self._way = way
        self._with_subsets = subsets and way == "changes"
        self.routers = [Router(f"i{number:08x}-{number:06x}") for number in range(ingresses)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._pace = Pace()
        self._matching = Pace()
        self._unmatched: random.Random | None = None  # replicas have ended since what is missing was looked for
        self._due = False
        self._asked_at = 0.0
        self._version = 0
        self._table: RoutingTable | None = None
        self._subsets = TableSubsets()
        self._push()
        self.whole_bytes = len(messages.encode(self.cluster.table(self._version, ingresses)))
        self.costs = Costs()
        self._pace = Pace()

    @property
    def links(self) -> int:
        """Links of all routers now."""
        return sum(len(entry.replicas) for router in self.routers if router.table for entry in router.table.backends.values())

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        """Have this happen that much later."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), act))

    def run(self) -> Costs:
        """Until nothing more happens."""
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.costs

    def changed(self) -> None:
        """What routers go by may have changed."""
        self.costs.changes += 1
        self.costs.span_s = self.now
        if self._way == "whole":
            self._asked_at = self.now
            self._push()
        elif not self._due:
            self._due, self._asked_at = True, self.now
            self.at(self._pace.delay_s(self.now), self._push)

    def _push(self) -> None:
        self._due = False
        self.costs.longest_s = max(self.costs.longest_s, self.now - self._asked_at)
        if self._unmatched is not None:
            self._match(self._unmatched)
        before, counted = time.process_time(), self.costs.sent
        built = self.cluster.table(self._version + 1, len(self.routers))
        if self._way == "whole":
            is_new = self._table is None or msgspec.structs.replace(built, version=self._version) != self._table
            table = built
        else:
            table = built if self._table is None else tables.kept(self._table, built)
            is_new = table is not self._table
        if is_new:
            self._table, self._version = table, self._version + 1
            self.costs.pushes += 1
            self._tell(table)
        core_s = time.process_time() - before
        self.costs.core_s += core_s
        # The pace goes by a cost of its own, so that every run has the same virtual times.
        replicas, sent = len(self.cluster.replicas), self.costs.sent - counted
        self._pace.done(replicas * _LOOK_S + sent * (MESSAGE_S + _CUT_S), self.now)

    def _tell(self, table: RoutingTable) -> None:
        if self._way == "whole":
            size = len(messages.encode(table))
            for router in self.routers:
                self._sent(router, table, size)
            return
        if self._with_subsets:
            self._subsets.follow(table, [router.id for router in self.routers])
        shared: dict[tuple[int, int], bytes] = {}
        for router in self.routers:
            view = self._subsets.cut(table, router.id) if self._with_subsets else table
            if router.table is not None and tables.alike(router.table, view):
                continue
            key = (id(router.table), id(view))
            if key not in shared:
                shared[key] = messages.encode(view if router.table is None else tables.changes(router.table, view))
            self._sent(router, view, len(shared[key]))
            if view is not table:
                del shared[key]  # nobody else's, and its id may come again

    def _sent(self, router: Router, view: RoutingTable, size: int) -> None:
        router.table = view
        self.costs.sent += 1
        self.costs.bytes += size
        self.costs.received += 2  # `Applied` and `Idle`

    # What happens to the cluster.

    def start(self, replica: Replica, random_: random.Random) -> None:
        """It is ready some seconds later."""

        def ready() -> None:
            if replica.id in self.cluster.replicas:
                self.cluster.ready(replica)
                self.changed()

        self.at(random_.uniform(*START_S), ready)

    def ended(self, replica: Replica, random_: random.Random) -> None:
        """A replica has ended: what is missing starts."""
        self.cluster.ended(replica)
        if self._way == "changes" and self._matching.delay_s(self.now):
            self._unmatched = random_
        else:
            self._match(random_)
            self._matching.done(len(self.cluster.replicas) * _LOOK_S, self.now)
        self.changed()

    def _match(self, random_: random.Random) -> None:
        self._unmatched = None
        before = time.process_time()
        fresh = self.cluster.match()
        self.costs.core_s += time.process_time() - before
        for new in fresh:
            self.start(new, random_)


def node_failure(controller: Controller, seed: int) -> Costs:
    """All replicas of a node die; every router that has lost a link to one says so."""
    random_ = random.Random(seed)
    cluster = controller.cluster
    dead = [replica for replica in cluster.replicas.values() if replica.node == 0]
    for replica in dead:
        linked = sum(
            any(entry.id == replica.id for entry in router.table.backends[replica.tag].replicas)
            for router in controller.routers
            if router.table is not None
        )
        controller.costs.received += linked
        controller.at(random_.uniform(0, _DEATH_S), functools.partial(controller.ended, replica, random_))
    return _checked(controller)


def update_beside(controller: Controller, seed: int) -> Costs:
    """New code for one backend, all of whose new replicas have room beside the old."""
    random_ = random.Random(seed)
    cluster = controller.cluster
    tag = cluster.tags[0]
    state = cluster.updated(tag)
    fresh = [cluster.make(tag, state.backends[tag].generation, held=True) for _ in range(state.backends[tag].config.num_replicas)]

    def commit() -> None:
        for replica in fresh:
            cluster.ready(replica)
            replica.held = False
        cluster.state = state
        before = time.process_time()
        cluster.match()
        controller.costs.core_s += time.process_time() - before
        controller.changed()
        for old in [replica for replica in cluster.replicas.values() if replica.tag == tag and replica.state != READY]:
            controller.changed()  # each waits by itself until no router uses it
            controller.at(random_.uniform(*DRAIN_S), functools.partial(controller.ended, old, random_))

    controller.at(START_S[1], commit)
    return _checked(controller)


def update_one_by_one(controller: Controller, seed: int, steps: int) -> Costs:
    """New code for all backends at once, whose replicas take each other's room one at a time: the first `steps` of each."""
    random_ = random.Random(seed)
    cluster = controller.cluster
    for tag in cluster.tags:
        new_state = cluster.updated(tag)
        generation = new_state.backends[tag].generation
        cluster.state = msgspec.structs.replace(cluster.state, next_generation=new_state.next_generation)
        _step(controller, random_, tag, generation, steps)
    return _checked(controller)


def _step(controller: Controller, random_: random.Random, tag: str, generation: int, left: int) -> None:
    cluster = controller.cluster
    wanted = cluster.state.backends[tag].config.num_replicas
    new = cluster.make(tag, generation, held=True)

    def ready() -> None:
        cluster.ready(new)
        new.held = False
        new.generation = cluster.state.backends[tag].generation  # counts among those that are to stay
        old = min((r for r in cluster.replicas.values() if r.tag == tag and r is not new), key=lambda r: r.number)
        cluster.replicas.pop(old.id)
        controller.changed()
        controller.at(random_.uniform(*DRAIN_S), over)

    def over() -> None:
        controller.changed()
        assert sum(r.tag == tag and not r.held for r in cluster.replicas.values()) == wanted
        if left > 1:
            _step(controller, random_, tag, generation, left - 1)

    controller.at(random_.uniform(*START_S), ready)


def _checked(controller: Controller) -> Costs:
    """Run it, and see by a model of its own whether every router ends with what it should."""
    costs = controller.run()
    ready: dict[str, set[str]] = {}
    for replica in controller.cluster.replicas.values():
        if replica.state == READY:
            ready.setdefault(replica.tag, set()).add(replica.id)
    linked: dict[str, set[str]] = {tag: set() for tag in ready}
    for router in controller.routers:
        assert router.table is not None
        for tag, entry in router.table.backends.items():
            ids = {replica.id for replica in entry.replicas}
            costs.views_hold &= bool(ids) and ids <= ready[tag]
            linked[tag] |= ids
    costs.views_hold &= linked == ready
    return costs
