"""Which way of drawing subsets spreads load evenly and moves little? Three of them, on one backend, without time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from headgate.core.subsets import Subsets, routers_each

Links = dict[str, list[str]]
"""By router the replicas that it links to."""
Way = Callable[[list[str], list[str]], Links]


def everything(replicas: list[str], routers: list[str]) -> Links:
    """Every router links to every replica."""
    return dict.fromkeys(routers, replicas)


def replicas_draw(replicas: list[str], routers: list[str]) -> Links:
    """Each replica draws its routers: what the product does."""
    places = Subsets().of(replicas, routers)
    return everything(replicas, routers) if places is None else {router: [replicas[place] for place in of] for router, of in places.items()}


def routers_draw(replicas: list[str], routers: list[str]) -> Links:
    """Each router draws its replicas, by rendezvous hashing; as many as in the other ways."""
    size = _size(replicas, routers)
    return {router: sorted(replicas, key=lambda replica: _hash(router, replica))[:size] for router in routers}


def rounds(replicas: list[str], routers: list[str]) -> Links:
    """Deterministic subsetting as in the book Site Reliability Engineering (Beyer and others 2016, chapter 20): in rounds, each with an
    order of its own of the replicas, each router takes the next slice of it."""
    size = _size(replicas, routers)
    slices = max(len(replicas) // size, 1)
    links: Links = {}
    for number, router in enumerate(routers):
        turn, place = divmod(number, slices)
        order = replicas[:]
        random.Random(turn).shuffle(order)
        links[router] = order[place * size : (place + 1) * size]
    return links


@dataclass
class Spread:
    """How one way does."""

    links: int
    replicas_least: int
    """Of the router that has the fewest."""
    routers_least: int
    """Of the replica that has the fewest; and …"""
    routers_most: int
    """… the most."""
    load_p99: float
    """Of replicas, over the mean, where every router has the same load and spreads it evenly; and …"""
    load_most: float
    """… of the replica that has most."""
    moved_by_replica: float
    """Links that open or close when a replica goes, besides its own, over the links of a replica."""
    moved_by_router: float
    """The same for a router, over the links of a router."""


def spread(way: Way, replicas: list[str], routers: list[str]) -> Spread:
    """Measure one way."""
    links = way(replicas, routers)
    load, of = dict.fromkeys(replicas, 0.0), dict.fromkeys(replicas, 0)
    for mine in links.values():
        for replica in mine:
            load[replica] += 1 / len(mine)
            of[replica] += 1
    loads = sorted(load.values())
    mean = sum(loads) / len(loads)
    count = sum(of.values())
    without_replica = _pairs(way(replicas[1:], routers))
    without_router = _pairs(way(replicas, routers[1:]))
    pairs = _pairs(links)
    moved_replica = {pair for pair in pairs ^ without_replica if pair[1] != replicas[0]}
    moved_router = {pair for pair in pairs ^ without_router if pair[0] != routers[0]}
    return Spread(
        links=count,
        replicas_least=min(map(len, links.values())),
        routers_least=min(of.values()),
        routers_most=max(of.values()),
        load_p99=loads[int(0.99 * (len(loads) - 1))] / mean,
        load_most=loads[-1] / mean,
        moved_by_replica=len(moved_replica) / (count / len(replicas)),
        moved_by_router=len(moved_router) / (count / len(routers)),
    )


def _pairs(links: Links) -> set[tuple[str, str]]:
    return {(router, replica) for router, mine in links.items() for replica in mine}


def _size(replicas: list[str], routers: list[str]) -> int:
    return max(round(len(replicas) * routers_each(len(replicas), len(routers)) / len(routers)), 1)


def _hash(router: str, replica: str) -> bytes:
    return blake2b(f"{router} {replica}".encode(), digest_size=8).digest()
