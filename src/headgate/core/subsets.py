"""Which of very many replicas does a router link to?

Each replica draws the routers that link to it, by rendezvous hashing: those that score highest with it. So every replica has
equally many, a replica that comes or goes concerns only these, and a router that comes or goes takes only its share. The other
way round, with routers that draw replicas, some replicas would have many and some none. A router on a replica's own node comes
before all others: it prefers that replica, as nothing between the two goes over the network.

Small backends, and all where routers are few, are linked to by every router.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from headgate.core.messages import BackendEntry, ReplicaEntry, RoutingTable

FEWEST_REPLICAS: Final = 64
"""A router has about as many of each backend at least, and all where there are no more."""
FEWEST_ROUTERS: Final = 16
"""A replica has as many at least, so that what one router has too much another has too little."""

NOWHERE: Final[Mapping[str, str]] = {}
_MASK: Final = (1 << 64) - 1
_ODD: Final = 0x9E3779B97F4A7C15  # of the golden ratio, as in Fibonacci hashing


def routers_each(replicas: int, routers: int) -> int:
    """How many of so many routers link to each of so many replicas."""
    if replicas <= FEWEST_REPLICAS:
        return routers
    return min(routers, max(FEWEST_ROUTERS, math.ceil(routers * FEWEST_REPLICAS / replicas)))


class Subsets:
    """Who links to which replica of one backend. What was drawn is remembered, and drawn anew only where it changes."""

    def __init__(self) -> None:
        self._seeds: dict[str, int] = {}  # by router
        self._each = 0
        self._drawn: dict[str, _Drawn] = {}  # by replica

    def of(self, replicas: Sequence[str], routers: Collection[str], homes: Mapping[str, str] = NOWHERE) -> dict[str, list[int]] | None:
        """By router the places in `replicas` of those that it links to, in order; None where it is all of them for every router.

        `homes` says for replicas which router is on their node, if it is there; that doesn't change while a replica lives.
        """
        each = routers_each(len(replicas), len(routers))
        if each >= len(routers):
            self._drawn.clear()
            return None
        self._follow(set(routers), each)
        seeds, drawn = self._seeds, self._drawn
        self._drawn = {replica: drawn.get(replica) or _Drawn(replica, seeds, each, homes.get(replica, "")) for replica in replicas}
        places: dict[str, list[int]] = {router: [] for router in seeds}
        for place, found in enumerate(self._drawn.values()):
            for router in found.routers:
                places[router].append(place)
        for router, of_router in places.items():
            if len(of_router) < FEWEST_ROUTERS:  # by chance; rather than with few, which may all die at once, it goes on with all
                places[router] = list(range(len(replicas)))
        return places

    def _follow(self, routers: set[str], each: int) -> None:
        """Forget what other routers, or another number of them, change."""
        gone, come = self._seeds.keys() - routers, sorted(routers - self._seeds.keys())
        if each != self._each:
            self._drawn.clear()
        elif gone or come:
            seeds = [_seed(router) for router in come]
            self._drawn = {
                replica: drawn
                for replica, drawn in self._drawn.items()
                if drawn.home not in come
                and gone.isdisjoint(drawn.routers)
                and not any(_score(drawn.seed ^ seed) >= drawn.lowest for seed in seeds)
            }
        if gone or come:
            self._seeds = {router: _seed(router) for router in sorted(routers)}
        self._each = each


class TableSubsets:
    """What each of some routers is to see of a routing table. Routers go by their places: on a cluster these are nodes."""

    def __init__(self) -> None:
        self._subsets: dict[str, Subsets] = {}  # by backend
        self._cut: dict[str, tuple[BackendEntry, frozenset[str], dict[str, tuple[ReplicaEntry, ...]] | None]] = {}

    def follow(self, table: RoutingTable, routers: Collection[str]) -> None:
        """This is the table from now on, and these are the routers."""
        routers = frozenset(routers)
        cut = {}
        for tag, entry in (table.leaving | table.backends).items():
            before = self._cut.get(tag)
            if before is not None and before[0].replicas is entry.replicas and before[1] == routers:
                cut[tag] = (entry, routers, before[2])
                continue
            ids, homes = [replica.id for replica in entry.replicas], {replica.id: replica.node for replica in entry.replicas}
            places = self._subsets.setdefault(tag, Subsets()).of(ids, routers, homes)
            shares = None
            if places is not None:
                shares = {router: tuple([entry.replicas[place] for place in of_router]) for router, of_router in places.items()}
            cut[tag] = (entry, routers, shares)
        self._cut = cut
        self._subsets = {tag: subsets for tag, subsets in self._subsets.items() if tag in cut}

    def cut(self, table: RoutingTable, router: str) -> RoutingTable:
        """The table as this router is to see it; the table itself where that is all of it, or the router is unknown."""
        backends, leaving = self._cut_backends(table.backends, router), self._cut_backends(table.leaving, router)
        if backends is table.backends and leaving is table.leaving:
            return table
        return msgspec.structs.replace(table, backends=backends, leaving=leaving)

    def _cut_backends(self, backends: dict[str, BackendEntry], router: str) -> dict[str, BackendEntry]:
        cut = {}
        for tag, entry in backends.items():
            known, _, shares = self._cut.get(tag, (None, None, None))
            if known is entry and shares is not None and router in shares:
                # How many are starting says no more than whether some are, and would be news for all each time.
                cut[tag] = msgspec.structs.replace(entry, replicas=shares[router], starting=min(entry.starting, 1))
        return backends | cut if cut else backends


class _Drawn:
    """What one replica has drawn."""

    __slots__ = ("home", "lowest", "routers", "seed")

    def __init__(self, replica: str, seeds: dict[str, int], count: int, home: str) -> None:
        self.home = home
        self.seed = seed = _seed(replica)
        # `_score`, without the call, which takes most of the time where routers are very many.
        by_score = {((x := (seed ^ other) * _ODD & _MASK) ^ x >> 32) * _ODD & _MASK: router for router, other in seeds.items()}
        if home in seeds:
            del by_score[_score(seed ^ seeds[home])]
            by_score[_MASK + 1] = home  # more than any other's
        best = sorted(by_score)[-count:]
        self.routers = tuple([by_score[score] for score in best])
        self.lowest = best[0]


def _seed(id: str) -> int:
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "big")


def _score(both: int) -> int:
    """The bits of a number in disorder, each number's in another: the product brings low bits up, the shift high ones down."""
    x = both * _ODD & _MASK
    return (x ^ x >> 32) * _ODD & _MASK
