"""Does a deployment change everything at once or nothing, wherever it fails, is interrupted, or the controller dies?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.controller import routers
from headgate.controller.store import Store
from headgate.core.messages import (
    Configure,
    CreateEndpoint,
    DeleteBackend,
    DeleteEndpoint,
    Deploy,
    DeployedBackend,
    EndpointEntry,
    Pong,
    SetTraffic,
    UpdateBackendConfig,
    VerbDone,
)
from headgate.core.reports import Coming, Description
from headgate.core.specs import Definition
from headgate.errors import (
    AlreadyExistsError,
    ChangedMeanwhileError,
    ConfigError,
    InsufficientResourcesError,
    NotFoundError,
    ReplicaStartError,
)
from tests.controller.rig import PATIENCE_S, Rig, create, definition, play
from tests.support import until

ONE_CPU = ReplicaOptions(num_cpus=1)


@pytest.fixture(autouse=True)
def _everybody_is_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers, "_BACK_WITHIN_S", 0.01)


def wanted(tag: str, code: bytes | None = None, *, options: ReplicaOptions | None = None, **config: Any) -> DeployedBackend:
    """A backend of a deployment; without `code` it stays as it is."""
    new: Definition | None = None if code is None else definition(payload=code)
    return DeployedBackend(tag, new, BackendConfig(**config), options or ReplicaOptions())


def entry(name: str, **weights: float) -> EndpointEntry:
    return EndpointEntry(name, f"/{name}", ("GET",), weights)


async def deployment(rig: Rig, *parts: DeployedBackend | EndpointEntry) -> Deploy:
    backends = tuple(part for part in parts if isinstance(part, DeployedBackend))
    endpoints = tuple(part for part in parts if isinstance(part, EndpointEntry))
    return Deploy(backends, endpoints, (await rig.describe()).state_id)


async def asked_for(rig: Rig) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """Replicas by backend, and weights by endpoint."""
    found = await rig.describe()
    return (
        {tag: backend.config.num_replicas for tag, backend in found.backends.items()},
        {name: endpoint.traffic for name, endpoint in found.endpoints.items()},
    )


async def set_up(rig: Rig) -> None:
    """Backends `keep` (two replicas), `change` and `go`, endpoints `e` and `old`."""
    await rig.create("keep", num_replicas=2)
    await rig.create("change")
    await rig.create("go")
    await rig.endpoint("e", "change")
    await rig.endpoint("old", "go")


NEW = (wanted("keep", num_replicas=3), wanted("change", b"newer"), wanted("new", b"new", num_replicas=2), entry("e", change=0.5, new=0.5))
BEFORE = ({"keep": 2, "change": 1, "go": 1}, {"e": {"change": 1.0}, "old": {"go": 1.0}})
AFTER = ({"keep": 3, "change": 1, "new": 2}, {"e": {"change": 0.5, "new": 0.5}})


def test_a_deployment_creates_replaces_changes_and_deletes_in_one_table():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        kept, (replaced,), seen = rig.replicas("keep"), rig.replicas("change"), len(rig.ingress.tables)
        await rig.verb(await deployment(rig, *NEW))
        assert await asked_for(rig) == AFTER
        assert set(kept) < set(rig.replicas("keep"))
        assert replaced not in rig.replicas("change")
        assert rig.replicas("go") == []
        assert {tag: len(rig.replicas(tag)) for tag in ("keep", "change", "new")} == {"keep": 3, "change": 1, "new": 2}
        for table in rig.ingress.tables[seen:]:  # each has all of the old or all of the new
            shape = {name: endpoint.weights for name, endpoint in table.endpoints.items()}
            assert (set(table.backends), shape) in ((set(BEFORE[0]), BEFORE[1]), (set(AFTER[0]), AFTER[1]))
            is_new = "new" in table.backends
            assert len(table.backends["keep"].replicas) == (3 if is_new else 2)
            assert (table.backends["change"].replicas[0].id == replaced) is not is_new
            assert all(backend.replicas for backend in table.backends.values())

    play(scene)


def test_the_same_again_starts_nothing_and_changes_nothing():
    async def scene(rig: Rig) -> None:
        await rig.verb(await deployment(rig, wanted("a", b"code", num_replicas=2), entry("e", a=1.0)))
        before, described = rig.replicas("a"), await rig.describe()
        await rig.verb(await deployment(rig, wanted("a", num_replicas=2), entry("e", a=1.0)))
        assert rig.replicas("a") == before
        assert (await rig.describe()).state_id == described.state_id

    play(scene)


def test_config_is_changed_on_live_replicas_and_scaling_down_drains():
    async def scene(rig: Rig) -> None:
        await rig.create("a", num_replicas=3)
        before = rig.replicas("a")
        verb = await deployment(rig, wanted("a", num_replicas=1, request_timeout=7.0))
        await rig.finishing(asyncio.create_task(rig.verb(verb)))
        (left,) = rig.replicas("a")
        assert left in before
        assert [message.config.request_timeout for message in rig.engine.sent[left] if isinstance(message, Configure)] == [7.0]

    play(scene)


def test_other_options_replace_the_replicas_of_the_same_code():
    async def scene(rig: Rig) -> None:
        await rig.create("a")
        (before,) = rig.replicas("a")
        await rig.verb(await deployment(rig, wanted("a", options=ONE_CPU)))
        (after,) = rig.replicas("a")
        assert after != before
        assert (await rig.describe()).backends["a"].options == ONE_CPU

    play(scene)


def test_routes_can_change_places():
    async def scene(rig: Rig) -> None:
        await rig.endpoint("a")
        await rig.endpoint("b")
        swapped = (EndpointEntry("a", "/b", ("GET",)), EndpointEntry("b", "/a", ("GET",)))
        await rig.verb(await deployment(rig, *swapped))
        assert {name: endpoint.route for name, endpoint in rig.ingress.table.endpoints.items()} == {"a": "/b", "b": "/a"}

    play(scene)


def test_a_deleted_backend_serves_what_it_has_before_the_deployment_is_over():
    async def scene(rig: Rig) -> None:
        await rig.create("go")
        await rig.endpoint("e", "go")
        rig.ingress.busy_endpoints, rig.ingress.busy_backends = ("e",), ("go",)
        work = asyncio.create_task(rig.verb(await deployment(rig)))
        await until(lambda: not rig.ingress.table.endpoints, "it is deleted")
        assert rig.replicas("go")
        assert not work.done()
        rig.ingress.is_idle()
        await work
        assert rig.replicas("go") == []

    play(scene)


@pytest.mark.parametrize("failing", ["new", "change", "keep"])
def test_where_one_replica_does_not_start_everything_stays_as_it_was(failing: str):
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        before, version, others = set(rig.engine.running()), rig.ingress.table, {"new", "change", "keep"} - {failing}
        for other in others:
            rig.engine.hold(other)  # they are in their constructors when it fails
        rig.engine.fail_next(failing, ReplicaStartError("no model", remote_traceback="Traceback: here"))
        with pytest.raises(ReplicaStartError, match=f"backend '{failing}' could not be started: no model") as caught:
            await rig.verb(await deployment(rig, *NEW))
        assert caught.value.remote_traceback == "Traceback: here"
        assert await asked_for(rig) == BEFORE
        assert set(rig.engine.running()) == before
        assert (rig.ingress.table.backends, rig.ingress.table.endpoints) == (version.backends, version.endpoints)
        for other in others:
            rig.engine.release(other)
        await rig.verb(await deployment(rig, *NEW))
        assert await asked_for(rig) == AFTER

    play(scene)


def test_a_new_replica_that_is_not_well_fails_it():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.engine.hold("new")
        work = asyncio.create_task(rig.try_verb(await deployment(rig, *NEW)))
        await until(lambda: len(rig.replicas("new")) == 2, "they start")
        for id in rig.replicas("new"):
            rig.say(id, Pong(0, unhealthy="check_health() raised"))
        rig.engine.release("new")
        done = await work
        assert done.error is not None
        assert "is not well: check_health() raised" in done.error.message
        assert await asked_for(rig) == BEFORE

    play(scene)


def test_what_does_not_fit_beside_what_runs_is_refused_and_the_error_says_what_to_do():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("a", options=ONE_CPU, num_replicas=3))
        started = len(rig.engine.ended)
        with pytest.raises(
            InsufficientResourcesError,
            match=r"backend 'a': 3 replicas do not fit: asked for .*; .* make room first, by delete_backend .* allow_gap=True",
        ):
            await rig.verb(await deployment(rig, wanted("a", b"newer", options=ONE_CPU, num_replicas=3)))
        assert len(rig.engine.ended) == started
        # Each by itself would fit, both don't.
        with pytest.raises(InsufficientResourcesError, match="make room first"):
            await rig.verb(
                await deployment(
                    rig,
                    wanted("a", options=ONE_CPU, num_replicas=3),
                    wanted("b", b"b", options=ONE_CPU),
                    wanted("c", b"c", options=ONE_CPU),
                )
            )
        assert {tag: len(rig.replicas(tag)) for tag in "abc"} == {"a": 3, "b": 0, "c": 0}

    play(scene, resources={"CPU": 4.0})


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((wanted("new"),), NotFoundError),
        ((wanted("a", max_batch_size=4),), ConfigError),
        ((wanted("a"), entry("e", a=0.5)), ValueError),
        ((wanted("a"), entry("e", b=1.0)), NotFoundError),
        ((EndpointEntry("e", "/x", ("GET",)), EndpointEntry("f", "/x", ("GET",))), AlreadyExistsError),
        ((EndpointEntry("e", "x", ("GET",)),), ValueError),
        ((wanted("", b"code"),), ValueError),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(parts: tuple[DeployedBackend | EndpointEntry, ...], error: type[Exception]):
    async def scene(rig: Rig) -> None:
        await rig.create("a")
        before = set(rig.engine.running())
        with pytest.raises(error):
            await rig.verb(await deployment(rig, wanted("fine", b"fine"), *parts))
        assert set(rig.engine.running()) == before
        assert rig.engine.ended == []

    play(scene)


CHANGES: list[Callable[[], Any]] = [
    lambda: create("other"),
    lambda: CreateEndpoint("f", None, ("GET",), None),
    lambda: SetTraffic("e", {"keep": 1.0}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_change_meanwhile_is_kept_and_ends_the_deployment(change: Callable[[], Any]):
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        stale = await deployment(rig, *NEW)
        rig.engine.hold("new")
        work = asyncio.create_task(rig.try_verb(stale))
        await until(lambda: len(rig.replicas("new")) == 2, "it starts its replicas")
        await rig.verb(change())
        expected = await asked_for(rig)
        assert expected != BEFORE
        rig.engine.release("new")
        done = await rig.finishing(work)
        assert done.error is not None
        assert done.error.kind == "ChangedMeanwhileError"
        assert await asked_for(rig) == expected
        await until(lambda: not rig.replicas("new") and len(rig.replicas("keep")) == 2, "nothing of it is left")
        with pytest.raises(ChangedMeanwhileError):
            await rig.verb(stale)

    play(scene)


def test_of_two_deployments_at_once_the_one_that_comes_first_is_done():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        first, second = await deployment(rig, *NEW), await deployment(rig, wanted("keep", b"other", num_replicas=2))
        rig.engine.hold("new")
        works = [asyncio.create_task(rig.try_verb(verb)) for verb in (first, second)]
        await until(lambda: len(rig.replicas("new")) == 2, "the first starts its replicas")
        rig.engine.release("new")
        await rig.finishing(works[0])
        refused = await rig.finishing(works[1])
        assert refused.error is not None
        assert refused.error.kind == "ChangedMeanwhileError"
        assert await asked_for(rig) == AFTER

    play(scene)


def test_verbs_on_its_backends_wait_for_their_turn():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.engine.hold("new")
        work = asyncio.create_task(rig.verb(await deployment(rig, *NEW)))
        await until(lambda: len(rig.replicas("new")) == 2, "it starts its replicas")
        scaling = asyncio.create_task(rig.try_verb(UpdateBackendConfig("keep", {"num_replicas": 4}, None)))
        deleting = asyncio.create_task(rig.try_verb(DeleteBackend("go")))
        await rig.describe()
        assert not scaling.done()
        rig.engine.release("new")
        await rig.finishing(work)
        assert (await scaling).error is None
        assert (await deleting).error is not None  # it was deleted
        assert len(rig.replicas("keep")) == 4

    play(scene)


def test_how_many_replicas_are_ready_is_told_while_it_starts_them():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.engine.hold("new")
        work = asyncio.create_task(rig.verb(await deployment(rig, *NEW)))

        async def told() -> dict[str, Coming]:
            return (await rig.describe()).coming

        await until(
            lambda: len(rig.replicas("new")) == 2 and len(rig.replicas("keep")) == 3 and len(rig.replicas("change")) == 2, "all start"
        )
        assert await told() == {"keep": Coming(1, 1), "change": Coming(1, 1), "new": Coming(2, 0)}
        rig.engine.release("new")
        await rig.finishing(work)
        assert await told() == {}

    play(scene)


def test_who_leaves_while_replicas_start_leaves_everything_as_it_was():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        before = set(rig.engine.running())
        rig.engine.hold("new")
        work = asyncio.create_task(rig.driver.link.call(await deployment(rig, *NEW)))
        await until(lambda: len(rig.replicas("new")) == 2, "it starts its replicas")
        work.cancel()
        await until(lambda: set(rig.engine.running()) == before, "they are ended")
        assert await asked_for(rig) == BEFORE
        rig.engine.release("new")
        await rig.verb(await deployment(rig, *NEW))

    play(scene)


def test_a_shutdown_on_the_way_leaves_the_old_state_for_the_next_start(tmp_path: Path):
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.engine.hold("new")
        work = asyncio.create_task(rig.try_verb(await deployment(rig, *NEW)))
        await until(lambda: len(rig.replicas("new")) == 2, "it starts its replicas")
        await rig.shut_down()
        done = await work
        assert done.error is not None
        assert done.error.kind == "NotRunningError"
        await rig.start()  # on what was kept
        assert await asked_for(rig) == BEFORE
        assert rig._controller._store.load()[1] == []
        assert rig.replicas("new") == []

    play(scene, state_dir=tmp_path)


# Deaths of the controller.


async def crash_during(rig: Rig, work: asyncio.Task[VerbDone]) -> None:
    await rig.crash()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
        await work


@pytest.mark.parametrize("repeated", [True, False])
def test_a_new_controller_finishes_a_deployment_whether_or_not_it_is_sent_again(repeated: bool):
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.engine.hold("new")
        verb = await deployment(rig, *NEW)
        work = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.replicas("new")) == 2 and len(rig.replicas("keep")) == 3, "it starts its replicas")
        started = {tag: set(rig.replicas(tag)) for tag in ("new", "keep")}
        await crash_during(rig, work)
        await rig.start()
        assert await asked_for(rig) == BEFORE
        again = asyncio.create_task(rig.repeat("id-1", verb)) if repeated else None
        rig.engine.release("new")
        await until(lambda: "new" in rig.ingress.table.backends, "it counts")
        if again is not None:
            assert (await rig.finishing(again)).error is None
        await until(lambda: not rig.replicas("go"), "what goes has gone")
        assert await asked_for(rig) == AFTER
        assert {tag: set(rig.replicas(tag)) for tag in ("new", "keep")} == started
        assert (await rig.repeat("id-1", verb)).error is None  # it is known, and not done again

    play(scene)


@pytest.mark.parametrize("ready", [False, True])
def test_who_leaves_while_there_is_no_controller_leaves_everything_as_it_was_under_the_next_one(
    ready: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(routers, "_BACK_WITHIN_S", 1.0)

    async def scene(rig: Rig) -> None:
        await set_up(rig)
        before = len(rig.engine.running())
        rig.engine.hold("new")
        work = asyncio.create_task(rig.driver.link.call(await deployment(rig, *NEW)))
        await until(lambda: len(rig.replicas("new")) == 2 and len(rig.replicas("keep")) == 3, "it starts its replicas")
        await rig.crash()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if ready:  # nothing but the word of who left keeps it from counting
            rig.engine.release("new")
        await rig.start()
        await until(lambda: len(rig.engine.running()) == before and not rig.replicas("new"), "what it started is ended")
        assert await asked_for(rig) == BEFORE
        assert rig._controller._store.load()[1] == []
        await until(lambda: not rig.driver.link._left, "it is known that nothing comes of it")
        rig.engine.release("new")
        await rig.verb(await deployment(rig, *NEW))

    play(scene)


def test_who_leaves_before_a_controller_has_heard_of_it_is_answered_and_nothing_begins():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        verb = await deployment(rig, *NEW)
        await rig.crash()
        work = asyncio.create_task(rig.driver.link.call(verb))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await rig.start()
        await until(lambda: not rig.driver.link._left, "it is known that nothing comes of it")
        assert await asked_for(rig) == BEFORE
        assert not (await rig.describe()).coming

    play(scene)


@pytest.mark.parametrize("committed", [False, True])
def test_a_deployment_that_a_new_controller_answers_waits_for_deleted_endpoints_as_well(committed: bool):
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.ingress.busy_endpoints = ("old",)
        rig.engine.hold("new")
        verb = await deployment(rig, *NEW)
        work = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.replicas("new")) == 2, "it starts its replicas")
        if committed:
            rig.engine.release("new")
            await until(lambda: "old" not in rig.ingress.table.endpoints, "it counts")
        await crash_during(rig, work)
        await rig.start()
        rig.engine.release("new")
        again = asyncio.create_task(rig.repeat("id-1", verb))
        finished = asyncio.create_task(rig.finishing(again))
        await until(lambda: "old" not in rig.ingress.table.endpoints and not rig.replicas("go"), "backends that go have gone")
        done, _ = await asyncio.wait([again], timeout=0.2)
        assert not done
        rig.ingress.is_idle()
        assert (await finished).error is None

    play(scene)


def test_a_deployment_does_not_wait_for_what_others_have_deleted():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.ingress.busy_endpoints = ("old",)
        deletion = asyncio.create_task(rig.verb(DeleteEndpoint("old")))
        await until(lambda: "old" not in rig.ingress.table.endpoints, "it is deleted")
        same = (wanted("keep", num_replicas=2), wanted("change"), wanted("go"), EndpointEntry("e", "/other", ("GET",), {"change": 1.0}))
        await rig.verb(await deployment(rig, *same))
        assert rig.ingress.table.endpoints["e"].route == "/other"
        assert not deletion.done()
        rig.ingress.is_idle()
        await deletion

    play(scene)


def test_a_deployment_that_fails_under_a_new_controller_leaves_the_old_state():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        rig.engine.hold("new")
        work = asyncio.create_task(rig.repeat("id-1", await deployment(rig, *NEW)))
        await until(lambda: len(rig.replicas("new")) == 2, "it starts its replicas")
        await crash_during(rig, work)
        await rig.start()
        rig.engine.end(rig.replicas("new")[0], "killed by signal 9")
        await until(lambda: not rig.replicas("new") and len(rig.replicas("keep")) == 2, "nothing of it is left")
        assert await asked_for(rig) == BEFORE
        rig.engine.release("new")
        await rig.verb(await deployment(rig, *NEW))

    play(scene)


def test_a_deployment_of_which_nothing_runs_yet_is_undone():
    async def scene(rig: Rig) -> None:
        await set_up(rig)
        for tag in ("new", "change", "keep"):
            rig.engine.hold(tag)
        work = asyncio.create_task(rig.repeat("id-1", await deployment(rig, *NEW)))
        before = 4
        await until(lambda: len(rig.engine.running()) == before + 1 + 4, "it starts its replicas")
        started = (
            {id for tag in ("new", "change", "keep") for id in rig.replicas(tag)}
            - set(rig.ingress.replicas("keep"))
            - set(rig.ingress.replicas("change"))
        )
        await crash_during(rig, work)
        for id in started:
            rig.engine._running.pop(id)
        await rig.start()
        assert await asked_for(rig) == BEFORE
        assert rig._controller._store.load()[1] == []

    play(scene)


class DeathError(Exception):
    """Nobody hears it."""


@pytest.mark.parametrize("write", range(4))
def test_a_controller_that_dies_at_a_write_leaves_all_of_the_old_or_all_of_the_new(write: int, monkeypatch: pytest.MonkeyPatch):
    """The writes: what is pending begins, …; then all that is new is committed, …: before each, and after it."""

    async def scene(rig: Rig) -> None:
        await set_up(rig)
        method, after = ("begin", "finish")[write // 2], bool(write % 2)
        original, died = getattr(Store, method), asyncio.Event()

        def dying(self: Store, *given: Any) -> None:
            if died.is_set():
                original(self, *given)
                return
            if after:
                original(self, *given)
            died.set()
            rig.cut_off()
            raise DeathError

        monkeypatch.setattr(Store, method, dying)
        verb = await deployment(rig, *NEW)
        work = asyncio.create_task(rig.repeat("id-1", verb))
        await asyncio.wait_for(died.wait(), PATIENCE_S)
        await crash_during(rig, work)
        await rig.start()
        found: Description = await rig.describe()
        state = await asked_for(rig)
        assert state in (BEFORE, AFTER)
        if method == "begin":  # nothing of it runs
            assert state == BEFORE
        elif after:
            assert state == AFTER
        assert all(backend.state in ("ready", "starting") for backend in found.backends.values())
        done = await rig.finishing(asyncio.create_task(rig.repeat("id-1", verb)))
        assert done.error is None
        assert await asked_for(rig) == AFTER

    play(scene)
