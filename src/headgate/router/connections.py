"""Which instances is this process connected with, and which of its connections does a handle or a verb use?

One connection for each instance, shared by all who `init` it and by its handles. A replica has one more, with the instance
that it belongs to.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from headgate.errors import NotRunningError
from headgate.router import way as ways
from headgate.router.borrowing import Shield
from headgate.router.connection import FORKED, REPLICA_VARIABLE, Connection
from headgate.router.way import Way

_guard = threading.Lock()
_all: set[Connection] = set()
_connections: dict[str, Connection] = {}  # the latest of each name
_disconnected: set[str] = set()  # names that this process has left on purpose: a handle doesn't bring them back
_adopted: Connection | None = None
_child_of: set[str] = set()  # names whose connections stayed with the parent process


def open_to(name: str, way: Way, *, new: bool, owner: bool = False) -> Connection:
    """The connection of this process with the instance of that name; one user more of it. Pair it with `release`.

    `new` says that the instance was started just now, so that an older connection is with one that has died; `owner` that it is to
    end with this process.
    """
    with _guard:
        connection = _connections.get(name)
        if new or connection is None or connection.over or connection.way.id != way.id:
            connection = _add(name, way, owner=owner)
        _disconnected.discard(name)
        _child_of.discard(name)
        connection.users += 1
        return connection


def release(connection: Connection) -> None:
    """One user less; the last one closes it."""
    with _guard:
        connection.users -= 1
        last = connection.users <= 0
        if last:
            _disconnected.add(connection.name)
    if last:
        connection.close()


def of(name: str) -> Connection:
    """The connection that handles of that instance use; made where there is none yet, as after unpickling.

    Raises `NotRunningError` where no such instance runs, or where this process has disconnected from it.
    """
    connection = _connections.get(name)
    if connection is not None and not connection.over:
        return connection
    if _adopted is not None and _adopted.name == name:
        return _adopted
    if name in _child_of:
        raise NotRunningError(FORKED)
    found = None if name in _disconnected else ways.find(name)
    if found is None:
        why = "is not running, or this process has disconnected from it"
        raise NotRunningError(f"instance {name!r} {why}; call serve.init({name!r}) first")
    with _guard:
        connection = _connections.get(name)
        if connection is None or connection.over:
            connection = _add(name, found)
        return connection


def _kind(way: Way) -> type[Connection]:
    """Where OpenTelemetry isn't installed in this process, its calls aren't traced, though the instance traces."""
    if way.traces:
        with contextlib.suppress(ImportError):
            from headgate.router.traced import TracedConnection

            return TracedConnection
    return Connection


def _add(name: str, to: Way, *, owner: bool = False) -> Connection:
    connection = _connections[name] = _kind(to)(name, to, owner=owner, forget=_forget)
    _all.add(connection)
    return connection


def adopt_process(way: Way, name: str, replica: str, backend: str) -> Connection:
    """This process is a replica of that instance: verbs and handles in it act on the instance. Connects on first use.

    `constructing` of the connection is True from here on, until `constructed` is called.
    """
    global _adopted
    os.environ[REPLICA_VARIABLE] = replica
    _adopted = _kind(way)(name, way, replica=replica, backend=backend)
    _adopted.constructing = True
    return _adopted


def constructed() -> None:
    """The replica's definition has been constructed: verbs that change state are allowed from now on."""
    if _adopted is not None:
        _adopted.constructing = False


def adopted() -> Connection | None:
    """The connection of the replica that this process is; None elsewhere."""
    return _adopted


def _forget(connection: Connection) -> None:
    with _guard:
        _all.discard(connection)
        if _connections.get(connection.name) is connection:
            del _connections[connection.name]


def _after_fork() -> None:
    global _guard, _adopted
    _guard = threading.Lock()
    Shield.forked()
    for connection in [*_all, *([_adopted] if _adopted is not None else [])]:
        _child_of.add(connection.name)
        connection.disown()
    _all.clear()
    _connections.clear()
    _adopted = None


def _close_all() -> None:
    for connection in list(_all):
        connection.close()
    if _adopted is not None:
        _adopted.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
