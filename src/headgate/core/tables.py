"""What has changed between two routing tables, and what does a router follow that is told only that?

`changes` and `follow` are each other's inverse. `kept` makes them quick: a new table shares with the one before whatever is
the same, so that one look tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from headgate.core.messages import BackendChange, BackendEntry, ReplicaEntry, RoutingChanges, RoutingTable, TableHead

Entry = TypeVar("Entry")


def kept(old: RoutingTable, new: RoutingTable) -> RoutingTable:
    """`new`, with the parts of `old` that are the same; `old` itself where they differ by no more than the version."""
    endpoints = _kept(old.endpoints, new.endpoints)
    backends = _kept(old.backends, {tag: _kept_entry(old.backends.get(tag), entry) for tag, entry in new.backends.items()})
    leaving = _kept(old.leaving, {tag: _kept_entry(old.leaving.get(tag), entry) for tag, entry in new.leaving.items()})
    if endpoints is old.endpoints and backends is old.backends and leaving is old.leaving and _head(old) == _head(new):
        return old
    return msgspec.structs.replace(new, endpoints=endpoints, backends=backends, leaving=leaving)


def alike(old: RoutingTable, new: RoutingTable) -> bool:
    """Whether two tables differ by no more than the version."""
    same = old.endpoints == new.endpoints and old.backends == new.backends and old.leaving == new.leaving
    return same and _head(old) == _head(new)


def changes(old: RoutingTable, new: RoutingTable) -> RoutingChanges:
    """What makes `new` of `old`."""
    endpoints = {name: entry for name, entry in new.endpoints.items() if _differs(old.endpoints.get(name), entry)}
    head = _head(new)
    return RoutingChanges(
        since=old.version,
        version=new.version,
        head=None if head == _head(old) else head,
        endpoints=endpoints,
        endpoints_gone=_gone(old.endpoints, new.endpoints),
        backends=_backend_changes(old.backends, new.backends),
        backends_gone=_gone(old.backends, new.backends),
        leaving=_backend_changes(old.leaving, new.leaving),
        leaving_gone=_gone(old.leaving, new.leaving),
    )


def follow(table: RoutingTable | None, message: RoutingTable | RoutingChanges) -> RoutingTable | None:
    """The table to follow now, by one that has followed `table`. None where these are not changes of it: it needs the whole.

    What has not changed is the very object that it was.
    """
    if isinstance(message, RoutingTable):
        return message
    if table is None or table.version != message.since:
        return None
    endpoints = table.endpoints
    if message.endpoints or message.endpoints_gone:
        endpoints = _without(endpoints, message.endpoints_gone) | message.endpoints
    backends = _changed_backends(table.backends, message.backends, message.backends_gone)
    leaving = _changed_backends(table.leaving, message.leaving, message.leaving_gone)
    if backends is None or leaving is None:
        return None
    head = message.head or _head(table)
    return RoutingTable(
        version=message.version,
        endpoints=endpoints,
        backends=backends,
        leaving=leaving,
        max_body_bytes=head.max_body_bytes,
        max_inflight_bytes=head.max_inflight_bytes,
        num_ingresses=head.num_ingresses,
        debug=head.debug,
        closing=head.closing,
    )


def _head(table: RoutingTable) -> TableHead:
    return TableHead(table.max_body_bytes, table.max_inflight_bytes, table.num_ingresses, table.debug, table.closing)


def _differs(old: object, new: object) -> bool:
    return old is not new and old != new


def _gone(old: Mapping[str, object], new: Mapping[str, object]) -> tuple[str, ...]:
    return () if old is new else tuple(name for name in old if name not in new)


def _without(entries: dict[str, Entry], gone: tuple[str, ...]) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if name not in gone} if gone else entries


def _kept(old: dict[str, Entry], new: dict[str, Entry]) -> dict[str, Entry]:
    merged = {name: old[name] if name in old and not _differs(old[name], entry) else entry for name, entry in new.items()}
    same = len(old) == len(merged) and all(old.get(name) is entry for name, entry in merged.items())
    return old if same else merged


def _kept_entry(old: BackendEntry | None, new: BackendEntry) -> BackendEntry:
    if old is None or old.replicas is new.replicas or old.replicas != new.replicas:
        return new
    return msgspec.structs.replace(new, replicas=old.replicas)


def _backend_changes(old: Mapping[str, BackendEntry], new: Mapping[str, BackendEntry]) -> dict[str, BackendChange]:
    if old is new:
        return {}
    return {tag: _backend_change(old.get(tag), entry) for tag, entry in new.items() if _differs(old.get(tag), entry)}


def _backend_change(old: BackendEntry | None, new: BackendEntry) -> BackendChange:
    if old is None:
        return BackendChange(entry=_bare(new), starting=new.starting, added=new.replicas)
    bare = _bare(new)
    added: tuple[ReplicaEntry, ...] = ()
    removed: tuple[str, ...] = ()
    if old.replicas is not new.replicas:
        before = {replica.id: replica for replica in old.replicas}
        added = tuple(replica for replica in new.replicas if before.get(replica.id) != replica)
        removed = tuple(before.keys() - {replica.id for replica in new.replicas})
    return BackendChange(entry=None if bare == _bare(old) else bare, starting=new.starting, added=added, removed=removed)


def _bare(entry: BackendEntry) -> BackendEntry:
    return msgspec.structs.replace(entry, replicas=(), starting=0)


def _changed_backends(
    entries: dict[str, BackendEntry], changed: Mapping[str, BackendChange], gone: tuple[str, ...]
) -> dict[str, BackendEntry] | None:
    if not changed and not gone:
        return entries
    entries = dict(_without(entries, gone))
    for tag, change in changed.items():
        old = entries.get(tag)
        entry = change.entry or old
        if entry is None:
            return None
        replicas = old.replicas if old is not None else ()
        if change.added or change.removed:
            by_id = {replica.id: replica for replica in replicas}
            for id in change.removed:
                by_id.pop(id, None)
            by_id |= {replica.id: replica for replica in change.added}
            replicas = tuple(sorted(by_id.values(), key=lambda replica: replica.id))
        entries[tag] = msgspec.structs.replace(entry, replicas=replicas, starting=change.starting)
    return entries
