"""Is the state before or after a verb, at whichever write its process is killed, or the power goes?"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.controller import store as store_module
from headgate.controller.store import Pending, PendingDeployment, Store
from headgate.core.desired import Backend, Endpoint, State
from headgate.core.messages import VerbDone
from headgate.errors import ErrorInfo
from tests.chaos import tracing
from tests.chaos.conftest import Figures
from tests.chaos.disks import Disk
from tests.controller.rig import definition
from tests.support import leave_out

replace = msgspec.structs.replace

LARGE = random.Random(1).randbytes(20_000)
"""Code of several parts and many pages, which no compression makes small."""
PART_BYTES = 8_000
UNUSED_CODE = f"SELECT count(*) FROM definitions WHERE hash NOT IN ({store_module._IN_USE})"


def backend(tag: str, generation: int, payload: bytes = b"code", **config: int) -> Backend:
    return Backend(tag, generation, definition(payload=payload), BackendConfig(**config), ReplicaOptions(num_cpus=1))  # type: ignore[arg-type]  # keys that are numbers


ONE, TWO, UNUSED = backend("one", 1), backend("two", 2, LARGE[:9_000]), backend("unused", 3, LARGE[9_000:])
E = Endpoint("e", "/e", ("GET",), "one", {"one": 1.0})
F = Endpoint("f", None, ("POST", "GET"), "two", {"two": 1.0, "unused": 0.0}, {"one": 0.1})
BEFORE = State({"one": ONE, "two": TWO, "unused": UNUSED}, {"e": E, "f": F}, 4)
EARLIER = VerbDone("earlier")
DONE = VerbDone("id")
FAILED = VerbDone("id", error=ErrorInfo("ReplicaStartError", "backend 'new' could not be started: " + "no model " * 1000))


def with_backends(next_generation: int = 4, **changes: Backend) -> State:
    return replace(BEFORE, backends=BEFORE.backends | changes, next_generation=next_generation)


def with_endpoints(*changes: Endpoint) -> State:
    return replace(BEFORE, endpoints=BEFORE.endpoints | {endpoint.name: endpoint for endpoint in changes})


class Found(NamedTuple):
    """What a store holds."""

    state: State
    pending: list[Pending | PendingDeployment]
    result: VerbDone | None = None
    epoch: int = 0


class Deed(NamedTuple):
    """What a controller does with its store for one kind of verb, and what the store holds on the way, each after one transaction."""

    act: Callable[[Store], object]
    stages: list[Found]
    in_the_middle: bool = False
    """It begins where another one was killed just before its commit, so that its half-done writes have to be undone."""


def at_once(new: State) -> Deed:
    """A verb that is committed in one transaction."""
    return Deed(lambda store: store.finish(DONE, BEFORE, new), [Found(BEFORE, []), Found(new, [], DONE)])


def after_starts(kind: str, new: State, tag: str, done: VerbDone = DONE) -> Deed:
    """A verb that is pending while its replicas start."""
    return pending_meanwhile(Pending("id", kind, new.backends[tag], allow_gap=kind == "update"), new, done)


def pending_meanwhile(pending: Pending | PendingDeployment, new: State, done: VerbDone = DONE) -> Deed:
    meanwhile = replace(BEFORE, next_generation=new.next_generation)
    after = new if done.error is None else meanwhile

    def act(store: Store) -> None:
        store.begin(pending, new.next_generation)
        store.finish(done, meanwhile, after)

    return Deed(act, [Found(BEFORE, []), Found(meanwhile, [pending]), Found(after, [], done)])


DEPLOYED = State(
    {"one": replace(ONE, config=BackendConfig(num_replicas=3)), "two": backend("two", 4, LARGE), "new": backend("new", 5, LARGE[:12_000])},
    {"e": replace(E, weights={"new": 1.0}), "g": Endpoint("g", "/g", ("GET",), "new", {"new": 0.5, "two": 0.5}, {"one": 0.1})},
    6,
)
DEPLOYMENT = PendingDeployment("id", DEPLOYED, "what it was")

FORGOTTEN = Pending("forgotten", "create", backend("new", 3, LARGE))

DEEDS = {
    "create_endpoint": at_once(with_endpoints(Endpoint("g", "/g/", ("GET", "POST"), "one", {"one": 1.0}))),
    "delete_endpoint": at_once(replace(BEFORE, endpoints={"f": F})),
    "set_traffic": at_once(with_endpoints(replace(E, weights={"one": 0.25, "two": 0.75}))),
    "shadow_traffic": at_once(with_endpoints(replace(E, shadows={"two": 0.5}))),
    "delete_backend": at_once(
        replace(BEFORE, backends={"one": ONE, "two": TWO}, endpoints={"e": E, "f": replace(F, weights={"two": 1.0})})
    ),
    "update_backend_config": at_once(with_backends(one=backend("one", 1, request_timeout=7))),
    "create_backend": after_starts("create", with_backends(5, new=backend("new", 4, LARGE)), "new"),
    "create_backend that fails": after_starts("create", with_backends(5, new=backend("new", 4, LARGE)), "new", FAILED),
    "update_backend": after_starts("update", with_backends(5, two=backend("two", 4, LARGE)), "two"),
    "update_backend_config that scales": after_starts("configure", with_backends(one=backend("one", 1, num_replicas=3)), "one"),
    "deploy that starts nothing": at_once(
        replace(BEFORE, backends={"two": TWO}, endpoints={"f": replace(F, weights={"two": 1.0}, shadows={})})
    ),
    "deploy": pending_meanwhile(DEPLOYMENT, DEPLOYED),
    "deploy that fails": pending_meanwhile(DEPLOYMENT, DEPLOYED, FAILED),
    "a verb of which nothing runs": Deed(lambda store: store.forget("forgotten"), [Found(BEFORE, [FORGOTTEN]), Found(BEFORE, [])]),
    "a new controller": Deed(lambda store: store.begin_epoch(), [Found(BEFORE, []), Found(BEFORE, [], None, 1)]),
    "the first verb in a new state directory": Deed(
        lambda store: store.finish(DONE, State(), BEFORE), [Found(State(), []), Found(BEFORE, [], DONE)]
    ),
    "the recovery from a kill": Deed(lambda store: None, [Found(BEFORE, [])], in_the_middle=True),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PART_BYTES", PART_BYTES)


@pytest.fixture(scope="module", autouse=True)
def _traceable() -> None:
    why_not = tracing.why_not()
    if why_not:
        leave_out(why_not)


class Scene:
    """One deed, again and again from its beginning."""

    def __init__(self, deed: Deed, folder: Path) -> None:
        self.deed = deed
        self._folder = folder
        self._template = folder / "template"
        self._answer = folder / "answer"
        self._answer.touch()
        self._template.mkdir()
        first = deed.stages[0]
        if first.state == State():
            return
        with closing(Store(str(self._template), durable=False)) as store:
            store.finish(EARLIER, State(), first.state)
            for pending in first.pending:
                store.begin(pending, first.state.next_generation)
        if deed.in_the_middle:
            begun = DEEDS["update_backend_config"].act
            with self.beginning() as place:
                calls = self.trace(place, begun).calls
            (commit,) = [number for number, call in enumerate(calls) if call.name == "unlink"]
            self.trace(self._template, begun, commit)
            assert (self._template / "state.sqlite-journal").exists()

    @contextmanager
    def beginning(self) -> Iterator[Path]:
        """A folder in which nothing of it has happened."""
        place = Path(tempfile.mkdtemp(dir=self._folder))
        shutil.copytree(self._template, place, dirs_exist_ok=True)
        try:
            yield place
        finally:
            shutil.rmtree(place)

    def trace(self, place: Path, act: Callable[[Store], object], kill_at: int | None = None, *, after: bool = False) -> tracing.Traced:
        """Open the store there, act, and then give the answer: a write outside."""

        def verb() -> None:
            answer = os.open(self._answer, os.O_WRONLY | os.O_APPEND)
            with closing(Store(str(place), durable=True)) as store:
                act(store)
                os.write(answer, b"done")

        return tracing.trace(verb, kill_at=kill_at, after=after)

    def is_answer(self, call: tracing.Call) -> bool:
        return call.path == str(self._answer)

    def stage(self, place: Path) -> int:
        """How many of its transactions the store there has seen; it goes on to take verbs."""
        with closing(Store(str(place), durable=False)) as store:
            ((health,),) = store._db.execute("PRAGMA integrity_check").fetchall()
            assert health == "ok"
            assert store._db.execute(UNUSED_CODE).fetchall() == [(0,)]
            state, pending = store.load()
            found = Found(state, pending, store.result("id"), store.begin_epoch() - 1)
            assert store.result("earlier") == (None if self.deed.stages[0].state == State() else EARLIER)
            assert found in self.deed.stages, f"neither before nor after: {found}"
            after = replace(state, endpoints={})
            store.finish(VerbDone("later"), state, after)
            assert store.load() == (after, pending)
        return self.deed.stages.index(found)


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(DEEDS[request.param], tmp_path)


pytestmark = pytest.mark.timeout(1200)  # the long form

each_deed = pytest.mark.parametrize("scene", DEEDS, indirect=True)


def kill_at_writes(scene: Scene, *, every: int = 1, after: bool = False) -> Counter[int]:
    """How many kills left the state at which stage; they never go back."""
    found: Counter[int] = Counter()
    stage = number = 0
    while True:
        with scene.beginning() as place:
            calls, killed = scene.trace(place, scene.deed.act, number, after=after)
            found_here = scene.stage(place)
            answered = scene.is_answer(calls[-1]) and (after or not killed)
            assert found_here >= stage, f"killed at {calls[-1].name}, later than before, and yet it is the earlier state"
            assert not answered or found_here == len(scene.deed.stages) - 1, "it was answered, and is not there"
            stage = found_here
            if not killed:
                return found
            found[stage] += 1
            number += every


@each_deed
def test_a_kill_at_any_write_of_a_verb_leaves_the_state_before_or_after_it(scene: Scene, figure: Figures, long: bool):
    found = kill_at_writes(scene, every=1 if long else 2)  # what lies between, power cuts at each of them tell
    if long:
        found += kill_at_writes(scene, after=True)
    last = len(scene.deed.stages) - 1
    assert set(found) == set(range(last + 1))
    _tell(figure, "kills", found, last)


@each_deed
def test_a_power_cut_at_any_write_of_a_verb_leaves_the_state_before_or_after_it_and_after_it_once_it_was_answered(
    scene: Scene, tmp_path: Path, figure: Figures, long: bool
):
    chance = random.Random(7)
    found: Counter[int] = Counter()
    seen: set[tuple[bool, tuple[tuple[str, bytes], ...]]] = set()
    cuts = 0
    place = tmp_path / "after the cut"
    with scene.beginning() as folder:
        disk = Disk(folder)
        calls = scene.trace(folder, scene.deed.act).calls
        answered = False
        for call in [None, *calls]:
            if call is not None:
                disk.do(call)
                answered = answered or scene.is_answer(call)
            for image in disk.after_a_cut(chance, 100 if long else 5):
                cuts += 1
                key = (answered, tuple(sorted(image.items())))
                if key in seen:
                    continue
                seen.add(key)
                place.mkdir()
                for name, data in image.items():
                    (place / name).write_bytes(data)
                stage = scene.stage(place)
                shutil.rmtree(place)
                assert not answered or stage == len(scene.deed.stages) - 1, "it was answered, and is not there"
                found[stage] += 1
        assert answered
        assert disk.now() == {entry.name: entry.read_bytes() for entry in folder.iterdir()}, "the disk and the model of it differ"
    last = len(scene.deed.stages) - 1
    assert set(found) == set(range(last + 1))
    figure("power cuts", cuts)
    _tell(figure, "different disks", found, last)


def _tell(figure: Figures, what: str, found: Counter[int], last: int) -> None:
    figure(f"{what} with the state before", found[0])
    if last > 1:
        figure(f"{what} with the verb pending", found[1])
    if last:
        figure(f"{what} with the state after", found[last])
