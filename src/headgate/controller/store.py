"""What survives the controller: what is asked for, the verbs under way, and the results of those that are over.

SQLite in the state directory. Every method is one transaction, so a crash at any point leaves the state before or after
it. Definitions are kept once, under their hash, in parts (SQLite's values are limited), and never opened here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator

import msgspec

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.desired import Backend, Endpoint, State
from headgate.core.messages import VerbDone
from headgate.core.specs import Definition
from headgate.errors import HeadgateError, InstanceStartError

FORMAT = 1
KEPT_RESULTS = 1000
"""Results are for verbs that are sent again after a lost connection: soon, or never."""
_PART_BYTES = 64 * 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS definitions (hash TEXT, part INTEGER, data BLOB NOT NULL, PRIMARY KEY (hash, part));
CREATE TABLE IF NOT EXISTS backends (tag TEXT PRIMARY KEY, hash TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS endpoints (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pending (id TEXT PRIMARY KEY, hash TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deployments (id TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deployed (id TEXT, tag TEXT, hash TEXT NOT NULL, record BLOB NOT NULL, PRIMARY KEY (id, tag));
CREATE TABLE IF NOT EXISTS results (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, done BLOB NOT NULL);
"""
_IN_USE = "SELECT hash FROM backends UNION SELECT hash FROM pending UNION SELECT hash FROM deployed"
_PRUNE = f"DELETE FROM definitions WHERE hash NOT IN ({_IN_USE})"


class Pending(msgspec.Struct, frozen=True):
    """A verb that starts replicas before it is committed: `backend` is what it will put under its tag."""

    id: str
    kind: str  # "create", "update" or "configure"
    backend: Backend
    allow_gap: bool = False

    @property
    def backends(self) -> tuple[Backend, ...]:
        """What it puts into the state."""
        return (self.backend,)

    def __str__(self) -> str:
        return f"the {self.kind} of backend {self.backend.tag!r}"


class PendingDeployment(msgspec.Struct, frozen=True):
    """A deployment that starts replicas before it is committed: `state` is what will be asked for, unless that was changed meanwhile."""

    id: str
    state: State
    based_on: str  # as `Deploy` has it

    @property
    def backends(self) -> tuple[Backend, ...]:
        """What it puts into the state."""
        return tuple(self.state.backends.values())

    def __str__(self) -> str:
        return f"the deployment of {len(self.state.backends)} backends"


class _DeploymentRecord(msgspec.Struct, frozen=True):
    based_on: str
    endpoints: dict[str, Endpoint]
    next_generation: int


class _BackendRecord(msgspec.Struct, frozen=True):
    generation: int
    config: BackendConfig
    options: ReplicaOptions
    kind: str = ""
    allow_gap: bool = False


class Store:
    """The state in `folder`/state.sqlite. `durable`: it also survives the machine's crash.

    Raises `InstanceStartError` where the file is of another version or is no database.
    """

    def __init__(self, folder: str, *, durable: bool) -> None:
        self.path = os.path.join(folder, "state.sqlite")
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._keep_copy: Callable[[bytes], object] | None = None
        self._begin(durable=durable)

    @classmethod
    def in_memory(cls, kept: bytes | None, keep: Callable[[bytes], object]) -> Store:
        """The state as it was `kept`; after each change `keep` is given all of it, and may raise: then nothing has changed."""
        store = cls.__new__(cls)
        store.path = "the cluster's store"
        store._db = sqlite3.connect(":memory:", isolation_level=None)
        if kept is not None:
            store._db.deserialize(kept)
        store._keep_copy = keep
        store._begin(durable=False)
        return store

    def _begin(self, *, durable: bool) -> None:
        try:
            # EXTRA is FULL and one sync more: a commit is the removal of the journal, which only a sync of the folder makes last.
            self._db.execute(f"PRAGMA synchronous={'EXTRA' if durable else 'OFF'}")
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT OR IGNORE INTO facts VALUES ('format', ?), ('generation', 1), ('epoch', 0)", (FORMAT,))
            found = self._fact("format")
        except (sqlite3.DatabaseError, HeadgateError) as error:
            self._db.close()
            raise InstanceStartError(
                f"{self.path} can't be used as the state of an instance: {error}; move it away, or give another state_dir"
            ) from error
        if found != FORMAT:
            self._db.close()
            raise InstanceStartError(f"{self.path} was written by another version of Headgate (format {found}, this one has {FORMAT})")

    def close(self) -> None:
        """Close the file. The state stays."""
        self._db.close()

    def begin_epoch(self) -> int:
        """A number that is higher for each controller, so that tables of a later one are newer."""
        with self._transaction():
            self._db.execute("UPDATE facts SET value = value + 1 WHERE name = 'epoch'")
        return self._fact("epoch")

    def load(self) -> tuple[State, list[Pending | PendingDeployment]]:
        """What is asked for, and the verbs that were under way, in the order in which they began."""
        definitions: dict[str, Definition] = {}

        def backend(tag: str, hash: str, record: _BackendRecord) -> Backend:
            if hash not in definitions:
                definitions[hash] = self._definition(hash)
            return Backend(tag, record.generation, definitions[hash], record.config, record.options)

        backends = {}
        for tag, hash, data in self._db.execute("SELECT tag, hash, record FROM backends ORDER BY rowid"):
            backends[tag] = backend(tag, hash, msgspec.msgpack.decode(data, type=_BackendRecord))
        endpoints = {}
        for name, data in self._db.execute("SELECT name, record FROM endpoints ORDER BY rowid"):
            endpoints[name] = msgspec.msgpack.decode(data, type=Endpoint)
        pending: list[Pending | PendingDeployment] = []
        for id, hash, data in self._db.execute("SELECT id, hash, record FROM pending ORDER BY rowid"):
            tag, record = msgspec.msgpack.decode(data, type=tuple[str, _BackendRecord])
            pending.append(Pending(id, record.kind, backend(tag, hash, record), record.allow_gap))
        for id, data in self._db.execute("SELECT id, record FROM deployments ORDER BY rowid"):
            deployment = msgspec.msgpack.decode(data, type=_DeploymentRecord)
            rows = self._db.execute("SELECT tag, hash, record FROM deployed WHERE id = ? ORDER BY rowid", (id,))
            deployed = {tag: backend(tag, hash, msgspec.msgpack.decode(kept, type=_BackendRecord)) for tag, hash, kept in rows}
            state = State(deployed, deployment.endpoints, deployment.next_generation)
            pending.append(PendingDeployment(id, state, deployment.based_on))
        return State(backends, endpoints, self._fact("generation")), pending

    def result(self, id: str) -> VerbDone | None:
        """How the verb of this id ended, if it is over."""
        row = self._db.execute("SELECT done FROM results WHERE id = ?", (id,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=VerbDone)

    def begin(self, pending: Pending | PendingDeployment, next_generation: int) -> None:
        """Note that a verb is under way; nothing that is asked for changes."""
        with self._transaction():
            if isinstance(pending, PendingDeployment):
                self._begin_deployment(pending)
            else:
                backend = pending.backend
                record = _BackendRecord(backend.generation, backend.config, backend.options, pending.kind, pending.allow_gap)
                values = (pending.id, self._keep(backend.definition), msgspec.msgpack.encode((backend.tag, record)))
                self._db.execute("INSERT INTO pending VALUES (?, ?, ?)", values)
            self._db.execute("UPDATE facts SET value = ? WHERE name = 'generation'", (next_generation,))

    def finish(self, done: VerbDone, old: State, new: State) -> None:
        """Commit the new state and the verb's result together. With `old is new` only the result."""
        with self._transaction():
            self._end(done.id)
            self._db.execute("INSERT OR REPLACE INTO results (id, done) VALUES (?, ?)", (done.id, msgspec.msgpack.encode(done)))
            self._db.execute("DELETE FROM results WHERE number <= (SELECT max(number) FROM results) - ?", (KEPT_RESULTS,))
            self._write(old, new)
            self._db.execute(_PRUNE)

    def forget(self, id: str) -> None:
        """Undo a pending verb of which nothing runs: as if it had never been sent."""
        with self._transaction():
            self._end(id)
            self._db.execute(_PRUNE)

    def _begin_deployment(self, pending: PendingDeployment) -> None:
        record = _DeploymentRecord(pending.based_on, pending.state.endpoints, pending.state.next_generation)
        self._db.execute("INSERT INTO deployments VALUES (?, ?)", (pending.id, msgspec.msgpack.encode(record)))
        for tag, backend in pending.state.backends.items():
            kept = msgspec.msgpack.encode(_BackendRecord(backend.generation, backend.config, backend.options))
            self._db.execute("INSERT INTO deployed VALUES (?, ?, ?, ?)", (pending.id, tag, self._keep(backend.definition), kept))

    def _end(self, id: str) -> None:
        """No verb of this id is under way."""
        for table in ("pending", "deployments", "deployed"):
            self._db.execute(f"DELETE FROM {table} WHERE id = ?", (id,))

    def _write(self, old: State, new: State) -> None:
        for tag in old.backends.keys() - new.backends.keys():
            self._db.execute("DELETE FROM backends WHERE tag = ?", (tag,))
        for tag, backend in new.backends.items():
            if old.backends.get(tag) is not backend:
                record = msgspec.msgpack.encode(_BackendRecord(backend.generation, backend.config, backend.options))
                self._db.execute(
                    "INSERT INTO backends VALUES (?, ?, ?) ON CONFLICT (tag) DO UPDATE SET hash = excluded.hash, record = excluded.record",
                    (tag, self._keep(backend.definition), record),
                )
        for name in old.endpoints.keys() - new.endpoints.keys():
            self._db.execute("DELETE FROM endpoints WHERE name = ?", (name,))
        for name, endpoint in new.endpoints.items():
            if old.endpoints.get(name) is not endpoint:
                self._db.execute(
                    "INSERT INTO endpoints VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
                    (name, msgspec.msgpack.encode(endpoint)),
                )
        self._db.execute("UPDATE facts SET value = max(value, ?) WHERE name = 'generation'", (new.next_generation,))

    def _keep(self, definition: Definition) -> str:
        data = msgspec.msgpack.encode(definition)
        hash = hashlib.blake2b(data, digest_size=32).hexdigest()
        if self._db.execute("SELECT 1 FROM definitions WHERE hash = ? LIMIT 1", (hash,)).fetchone() is None:
            parts = ((hash, start, data[start : start + _PART_BYTES]) for start in range(0, len(data), _PART_BYTES))
            self._db.executemany("INSERT INTO definitions VALUES (?, ?, ?)", parts)
        return hash

    def _definition(self, hash: str) -> Definition:
        rows = self._db.execute("SELECT data FROM definitions WHERE hash = ? ORDER BY part", (hash,))
        return msgspec.msgpack.decode(b"".join(row[0] for row in rows), type=Definition)

    def _fact(self, name: str) -> int:
        (value,) = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return int(value)

    def _copy(self) -> bytes:
        """The whole database, where somebody keeps copies; nothing of an empty one."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        return self._db.serialize() if self._keep_copy is not None and pages else b""

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            before = self._copy()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
                if self._keep_copy is not None:
                    try:
                        self._keep_copy(self._copy())
                    except BaseException:
                        if before:
                            self._db.deserialize(before)
                        raise
            except BaseException:
                if self._db.in_transaction:  # some errors, such as a full disk, have ended it already
                    self._db.execute("ROLLBACK")
                raise
        except (sqlite3.OperationalError, OSError) as error:
            raise HeadgateError(f"the state could not be written to {self.path}: {error}; nothing has changed") from error
