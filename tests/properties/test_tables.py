"""Do the changes between two routing tables make the one of the other, whatever the two are?"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import messages
from headgate.core.messages import BackendEntry, EndpointEntry, ReplicaEntry, RoutingChanges, RoutingTable, SendTable
from headgate.core.tables import alike, changes, follow, kept

REPLICAS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["/1", "/2"]), max_size=8)


@st.composite
def backends(draw: st.DrawFn) -> dict[str, BackendEntry]:
    made = {}
    for tag in draw(st.sets(st.sampled_from(["v1", "v2", "v3"]))):
        replicas = tuple(ReplicaEntry(id, address, "t") for id, address in sorted(draw(REPLICAS).items()))
        fault, starting, limit = draw(st.sampled_from(["", "boom"])), draw(st.integers(0, 2)), draw(st.sampled_from([10, 20]))
        made[tag] = BackendEntry(tag, 1, 1, False, 0.0, None, limit, None, False, (), ("",), replicas, starting, fault)
    return made


@st.composite
def routing_tables(draw: st.DrawFn) -> RoutingTable:
    names = draw(st.sets(st.sampled_from(["a", "b", "c"])))
    endpoints = {name: EndpointEntry(name, None, ("GET",), draw(st.sampled_from([{}, {"v1": 1.0}]))) for name in names}
    return RoutingTable(
        0,
        endpoints,
        draw(backends()),
        draw(backends()),
        max_inflight_bytes=draw(st.integers(0, 1)),
        num_ingresses=draw(st.integers(1, 2)),
        closing=draw(st.booleans()),
    )


def sent(message: RoutingTable | RoutingChanges) -> RoutingTable | RoutingChanges:
    """What arrives at the other end."""
    (received,) = messages.MessageDecoder().received(messages.encode(message))
    assert isinstance(received, RoutingTable | RoutingChanges)
    return received


@given(several=st.lists(routing_tables(), min_size=1, max_size=6), skipped=st.sets(st.integers(1, 5)))
def test_who_is_told_changes_follows_the_same_tables_as_who_is_sent_them_whole(several: list[RoutingTable], skipped: set[int]) -> None:
    followed: RoutingTable | None = None
    last: RoutingTable | None = None
    for number, table in enumerate(several):
        if number in skipped:  # it did not read: the next changes span more
            continue
        table = msgspec.structs.replace(table, version=number)
        message = table if last is None else changes(last, table)
        followed = follow(followed, sent(message))
        assert followed == table
        last = table


@given(old=routing_tables(), new=routing_tables())
def test_what_is_kept_of_an_old_table_makes_no_difference(old: RoutingTable, new: RoutingTable) -> None:
    new = msgspec.structs.replace(new, version=1)
    merged = kept(old, new)
    assert msgspec.structs.replace(merged, version=1) == new
    assert (merged is old) == alike(old, new) == (msgspec.structs.replace(old, version=1) == new)
    assert follow(old, changes(old, msgspec.structs.replace(merged, version=1))) == new
    for tag, entry in merged.backends.items():
        assert (entry is old.backends.get(tag)) == (entry == old.backends.get(tag))


@given(old=routing_tables(), new=routing_tables(), other=routing_tables())
def test_changes_of_another_version_ask_for_the_whole(old: RoutingTable, new: RoutingTable, other: RoutingTable) -> None:
    change = changes(old, msgspec.structs.replace(new, version=1))
    assert follow(None, change) is None
    assert follow(msgspec.structs.replace(other, version=7), change) is None
    assert follow(msgspec.structs.replace(other, version=7), old) == old


@given(old=routing_tables())
def test_what_has_not_changed_stays_the_very_same_object(old: RoutingTable) -> None:
    new = msgspec.structs.replace(old, version=1, endpoints=old.endpoints | {"new": EndpointEntry("new", None, ("GET",))})
    followed = follow(old, sent(changes(old, new)))
    assert followed == new
    assert followed is not None
    assert followed.backends is old.backends
    assert followed.leaving is old.leaving


def test_one_replica_of_thousands_costs_a_hundred_bytes() -> None:
    replicas = tuple(ReplicaEntry(f"1-{number:08x}", f"n 10.0.0.1:40000 /tmp/headgate/{number}", "t" * 32) for number in range(5000))
    entry = BackendEntry("b", 1, 1, False, 0.0, None, 10, None, False, (), ("",), replicas, 0)
    old = RoutingTable(1, {}, {"b": entry})
    new = RoutingTable(2, {}, {"b": msgspec.structs.replace(entry, replicas=replicas[:77] + replicas[78:])})
    assert len(messages.encode(old)) > 300_000
    assert len(messages.encode(changes(old, new))) < 100


def test_a_router_that_needs_the_whole_says_so() -> None:
    assert messages.MessageDecoder().received(messages.encode(SendTable())) == [SendTable()]
