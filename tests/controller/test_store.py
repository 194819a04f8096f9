"""Is the state before or after a verb, whenever the controller dies?"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.controller import store as store_module
from headgate.controller.store import Pending, PendingDeployment, Store
from headgate.core.desired import Backend, Endpoint, State
from headgate.core.messages import VerbDone
from headgate.errors import HeadgateError, InstanceStartError
from tests.controller.rig import definition


def backend(tag: str, generation: int, payload: bytes = b"code") -> Backend:
    return Backend(tag, generation, definition(payload=payload), BackendConfig(num_replicas=2), ReplicaOptions(num_cpus=1))


ONE = State({"v1": backend("v1", 1)}, {"e": Endpoint("e", "/e", ("GET",), "v1", {"v1": 1.0})}, 2)
TWO = State(
    {"v1": backend("v1", 2, b"newer"), "v2": backend("v2", 3)},
    {"f": Endpoint("f", None, ("POST", "GET"), None, {"v1": 0.5, "v2": 0.5}, {"v2": 0.1})},
    4,
)


class CrashError(Exception):
    pass


class Dying:
    """A connection that dies before its statement number `left`, and does nothing ever after."""

    def __init__(self, db: sqlite3.Connection, left: int) -> None:
        self.db = db
        self.left = left

    def execute(self, *given: Any) -> sqlite3.Cursor:
        self._count()
        return self.db.execute(*given)

    def executemany(self, *given: Any) -> sqlite3.Cursor:
        self._count()
        return self.db.executemany(*given)

    @property
    def in_transaction(self) -> bool:
        return False  # to the dead nothing matters

    def close(self) -> None:
        self.db.close()

    def _count(self) -> None:
        if self.left <= 0:
            raise CrashError
        self.left -= 1


@contextmanager
def opened(folder: Path, *, durable: bool = False) -> Iterator[Store]:
    with closing(Store(str(folder), durable=durable)) as store:
        yield store


def crash_everywhere(folder: Path, before: Callable[[Store], None], act: Callable[[Store], None]) -> Iterator[Store]:
    """Run `act` on a store that `before` has prepared; crash before its first statement, its second, …; yields what is found each time."""
    number = 0
    while True:
        place = folder / str(number)
        place.mkdir()
        with opened(place) as store:
            before(store)
            dying = Dying(store._db, number)
            store._db = dying  # type: ignore[assignment]  # it stands in for a connection
            try:
                act(store)
                crashed = False
            except CrashError:
                crashed = True
        with opened(place) as store:
            yield store
        if not crashed:
            return
        number += 1


def test_what_is_committed_is_loaded_again_in_order(tmp_path: Path):
    with opened(tmp_path, durable=True) as store:
        assert store.load() == (State(), [])
        store.finish(VerbDone("a"), State(), TWO)
    with opened(tmp_path, durable=True) as store:
        state, pending = store.load()
        assert state == TWO
        assert list(state.backends) == ["v1", "v2"]
        assert pending == []


def test_a_state_that_is_kept_elsewhere_is_loaded_again_and_nothing_changes_where_it_can_not_be_kept():
    kept: list[bytes] = []
    store = Store.in_memory(None, kept.append)
    with closing(store):
        assert store.load() == (State(), [])
        store.finish(VerbDone("a"), State(), TWO)
    with closing(Store.in_memory(kept[-1], kept.append)) as store:
        assert store.load() == (TWO, [])
        assert store.result("a") == VerbDone("a")

    def refuse(state: bytes) -> None:
        raise OSError("the head is gone")

    last = kept[-1]
    with closing(Store.in_memory(last, kept.append)) as store:
        store._keep_copy = refuse
        with pytest.raises(HeadgateError, match="the head is gone; nothing has changed"):
            store.finish(VerbDone("b"), TWO, ONE)
        assert store.load() == (TWO, [])
        assert store.result("b") is None
        store._keep_copy = kept.append
        store.finish(VerbDone("c"), TWO, ONE)
        assert store.load()[0].backends == ONE.backends


def test_a_crash_at_any_point_of_a_commit_leaves_the_state_and_the_result_before_or_after_it(tmp_path: Path):
    outcomes = []
    for store in crash_everywhere(
        tmp_path, lambda store: store.finish(VerbDone("a"), State(), ONE), lambda store: store.finish(VerbDone("b"), ONE, TWO)
    ):
        state, result = store.load()[0], store.result("b")
        assert store.result("a") == VerbDone("a")
        assert (state, result) in ((ONE, None), (TWO, VerbDone("b")))
        outcomes.append(result is not None)
    assert outcomes[0] is False
    assert outcomes[-1] is True


UPDATED = msgspec.structs.replace(ONE, backends={"v1": TWO.backends["v1"]}, next_generation=4)


@pytest.mark.parametrize(
    ("pending", "after"),
    [(Pending("b", "update", TWO.backends["v1"], allow_gap=True), UPDATED), (PendingDeployment("b", TWO, "as it was"), TWO)],
)
def test_a_crash_at_any_point_of_a_pending_verb_leaves_it_pending_or_unknown_then_committed(
    tmp_path: Path, pending: Pending | PendingDeployment, after: State
):

    def act(store: Store) -> None:
        store.begin(pending, 4)
        store.finish(VerbDone("b"), ONE, after)

    seen = set()
    for store in crash_everywhere(tmp_path, lambda store: store.finish(VerbDone("a"), State(), ONE), act):
        state, found = store.load()
        if store.result("b") is not None:
            assert (state, found) == (after, [])
            seen.add("done")
        elif found:
            assert found == [pending]
            assert (state.backends, state.next_generation) == (ONE.backends, 4)
            seen.add("pending")
        else:
            assert state == ONE
            seen.add("before")
    assert seen == {"before", "pending", "done"}


def test_a_forgotten_verb_is_as_if_it_had_never_been_sent(tmp_path: Path):
    with opened(tmp_path) as store:
        store.begin(Pending("b", "create", backend("v1", 1)), 2)
        store.forget("b")
        assert store.load()[1] == []
        assert store.result("b") is None
        store.begin(Pending("b", "create", backend("v1", 2)), 3)  # the same verb, sent again
        store.begin(PendingDeployment("c", TWO, ""), 4)
        store.forget("b")
        store.forget("c")
        assert store.load() == (State(next_generation=4), [])
        assert store._db.execute("SELECT count(*) FROM definitions").fetchone() == (0,)


def test_definitions_are_kept_once_in_parts_and_only_while_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "_PART_BYTES", 10)
    large = bytes(range(256))
    state = State({tag: backend(tag, number, large) for number, tag in enumerate(("v1", "v2"))}, {}, 2)
    with opened(tmp_path) as store:
        store.finish(VerbDone("a"), State(), state)
        assert store.load()[0] == state
        (count,) = store._db.execute("SELECT count(DISTINCT hash) FROM definitions").fetchone()
        assert count == 1
        store.finish(VerbDone("b"), state, State())
        (count,) = store._db.execute("SELECT count(*) FROM definitions").fetchone()
        assert count == 0


def test_old_results_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "KEPT_RESULTS", 3)
    with opened(tmp_path) as store:
        for number in range(10):
            store.finish(VerbDone(str(number)), State(), State())
        assert [number for number in range(10) if store.result(str(number)) is not None] == [7, 8, 9]


def test_each_controller_has_a_higher_number(tmp_path: Path):
    numbers = []
    for _ in range(3):
        with opened(tmp_path) as store:
            numbers.append(store.begin_epoch())
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 0


def test_a_file_that_is_no_state_is_refused_by_name(tmp_path: Path):
    (tmp_path / "state.sqlite").write_bytes(b"something else entirely, and long enough to be read as a header" * 10)
    with pytest.raises(InstanceStartError, match=r"state\.sqlite"):
        Store(str(tmp_path), durable=True)


def test_a_state_of_another_version_is_refused_and_left_alone(tmp_path: Path):
    with opened(tmp_path) as store:
        store._db.execute("UPDATE facts SET value = 99 WHERE name = 'format'")
    with pytest.raises(InstanceStartError, match="format 99"):
        Store(str(tmp_path), durable=True)


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path):
    with opened(tmp_path) as store:
        store.finish(VerbDone("a"), State(), ONE)
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        large = State({"v1": backend("v1", 1, b"x" * 1_000_000)}, {}, 2)
        with pytest.raises(HeadgateError, match=r"full.*nothing has changed"):
            store.finish(VerbDone("b"), ONE, large)
        assert store.load()[0] == ONE
        assert store.result("b") is None
