"""Does every replica have equally many routers, every router enough replicas, and does little change when one comes or goes?"""

from __future__ import annotations

import statistics
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.core.messages import BackendEntry, ReplicaEntry, RoutingTable
from headgate.core.subsets import FEWEST_REPLICAS, FEWEST_ROUTERS, Subsets, TableSubsets, routers_each


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:05}" for number in range(count)]


def links(subsets: Subsets, replicas: list[str], routers: list[str], homes: dict[str, str] | None = None) -> set[tuple[str, str]]:
    """All pairs of router and replica."""
    places = subsets.of(replicas, routers, homes or {})
    if places is None:
        return {(router, replica) for router in routers for replica in replicas}
    return {(router, replicas[place]) for router, found in places.items() for place in found}


@given(replicas=st.integers(0, 3 * FEWEST_REPLICAS), routers=st.integers(0, 60))
@settings(max_examples=50, deadline=None)  # an example may be slow on a busy machine
def test_every_replica_has_the_same_number_of_routers_and_every_router_enough_replicas(replicas: int, routers: int) -> None:
    names, of = ids("r", replicas), ids("i", routers)
    found = links(Subsets(), names, of)
    each = routers_each(replicas, routers)
    of_router, of_replica = Counter(router for router, _ in found), Counter(replica for _, replica in found)
    for router in of:
        assert of_router[router] >= min(replicas, FEWEST_ROUTERS)
    if replicas <= FEWEST_REPLICAS or routers <= FEWEST_ROUTERS:
        assert len(found) == replicas * routers
    for name in names:
        assert of_replica[name] >= each


@given(
    steps=st.lists(
        st.tuples(st.sets(st.integers(0, 120), min_size=60), st.sets(st.integers(0, 40), min_size=10)),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)  # as above
def test_what_is_remembered_makes_no_difference(steps: list[tuple[set[int], set[int]]]) -> None:
    remembering = Subsets()
    for of_replicas, of_routers in steps:
        replicas, routers = [f"r{n:03}" for n in sorted(of_replicas)], [f"i{n:02}" for n in sorted(of_routers)]
        assert links(remembering, replicas, routers) == links(Subsets(), replicas, routers)


@given(
    homes=st.lists(st.integers(0, 39), min_size=FEWEST_REPLICAS + 1, max_size=120),
    steps=st.lists(st.sets(st.integers(0, 39), min_size=FEWEST_ROUTERS + 1), min_size=1, max_size=5),
)
@settings(max_examples=30, deadline=None)  # as above
def test_the_router_of_its_own_node_links_to_a_replica_before_all_others(homes: list[int], steps: list[set[int]]) -> None:
    replicas = ids("r", len(homes))
    nodes = {replica: f"i{home:02}" for replica, home in zip(replicas, homes, strict=True)}
    remembering = Subsets()
    for of_routers in steps:
        routers = [f"i{n:02}" for n in sorted(of_routers)]
        found = links(remembering, replicas, routers, nodes)
        assert found == links(Subsets(), replicas, routers, nodes)
        of_replica = Counter(replica for _, replica in found)
        for replica, node in nodes.items():
            assert node not in routers or (node, replica) in found
            assert of_replica[replica] >= routers_each(len(replicas), len(routers))


def test_a_table_is_cut_so_that_each_node_has_its_own_replicas() -> None:
    routers = [f"node{n:02}" for n in range(40)]
    replicas = tuple(ReplicaEntry(id, f"{routers[n % 40]} 10.0.0.1:{4000 + n} /tmp/{id}", "t") for n, id in enumerate(ids("r", 400)))
    table = RoutingTable(1, {}, {"b": BackendEntry("b", 1, 1, False, 0.0, None, 10, None, False, (), ("",), replicas, 0)})
    subsets = TableSubsets()
    subsets.follow(table, routers)
    for router in routers:
        mine = subsets.cut(table, router).backends["b"].replicas
        assert {replica for replica in replicas if replica.node == router} <= set(mine)
        assert len(mine) < 400


def test_the_load_is_even() -> None:
    replicas, routers = ids("r", 1000), ids("i", 100)
    found = Subsets().of(replicas, routers)
    assert found is not None
    sizes = [len(places) for places in found.values()]
    assert sum(sizes) == 1000 * 16
    assert min(sizes) > 160 / 1.3
    assert max(sizes) < 160 * 1.3
    load = [0.0] * len(replicas)
    for places in found.values():
        for place in places:
            load[place] += 1 / len(places)
    assert max(load) / statistics.mean(load) < 1.15


def test_a_replica_that_goes_concerns_its_own_routers_alone() -> None:
    subsets, replicas, routers = Subsets(), ids("r", 500), ids("i", 100)
    before = links(subsets, replicas, routers)
    assert links(subsets, replicas[1:], routers) == {link for link in before if link[1] != replicas[0]}


@pytest.mark.parametrize("at_home", [False, True])
def test_a_router_that_goes_or_comes_moves_its_share_alone(at_home: bool) -> None:
    subsets, replicas, routers = Subsets(), ids("r", 500), ids("i", 100)
    homes = {replica: routers[n % 100] for n, replica in enumerate(replicas)} if at_home else {}
    before = links(subsets, replicas, routers, homes)
    after = links(subsets, replicas, routers[1:], homes)
    lost = {link for link in before if link[0] == routers[0]}
    assert before - after == lost
    assert len(after - before) == len(lost)
    assert links(subsets, replicas, routers, homes) == before


@pytest.mark.parametrize(
    ("replicas", "routers", "expected"), [(64, 200, 200), (65, 200, 197), (250, 200, 52), (5000, 200, 16), (5000, 10, 10), (5000, 5000, 64)]
)
def test_how_many_routers_a_replica_has(replicas: int, routers: int, expected: int) -> None:
    assert routers_each(replicas, routers) == expected


def test_a_table_is_cut_only_where_it_is_large_and_only_for_those_who_share() -> None:
    def entry(tag: str, count: int) -> BackendEntry:
        replicas = tuple(ReplicaEntry(id, f"/{id}", "t") for id in ids(tag, count))
        return BackendEntry(tag, 1, 1, False, 0.0, None, 10, None, False, (), ("",), replicas, 0)

    routers = ids("i", 40)
    small, large = entry("small", 64), msgspec.structs.replace(entry("large", 400), starting=3)
    table = RoutingTable(1, {}, {"small": small, "large": large})
    subsets = TableSubsets()
    subsets.follow(table, routers)
    seen: set[ReplicaEntry] = set()
    for router in routers:
        cut = subsets.cut(table, router)
        assert cut.backends["small"] is small
        mine = cut.backends["large"].replicas
        assert list(mine) == sorted(mine, key=lambda replica: replica.id)
        assert FEWEST_ROUTERS <= len(mine) < 400
        assert cut.backends["large"].starting == 1
        assert msgspec.structs.replace(cut.backends["large"], replicas=large.replicas, starting=3) == large
        seen.update(mine)
    assert seen == set(large.replicas)
    assert subsets.cut(table, "stranger") is table
    only_small = RoutingTable(2, {}, {"small": small})
    subsets.follow(only_small, routers)
    assert subsets.cut(only_small, routers[0]) is only_small
