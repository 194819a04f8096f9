"""Does a new controller go on where the old one died, and does a new instance restore what was kept?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from headgate.config import ReplicaOptions
from headgate.controller import routers
from headgate.core import replica_life
from headgate.core.messages import (
    BackendEntry,
    Configure,
    CreateEndpoint,
    DeleteBackend,
    SetTraffic,
    ShadowTraffic,
    UpdateBackend,
    UpdateBackendConfig,
    Verb,
    VerbDone,
)
from headgate.core.reports import Counters, Description, QueueDepth
from headgate.engines.base import ReplicaSpec
from headgate.errors import AlreadyExistsError, ReplicaStartError
from tests.controller.rig import PATIENCE_S, Engine, Rig, create, definition, play
from tests.support import until

ONE_CPU = ReplicaOptions(num_cpus=1)


@pytest.fixture(autouse=True)
def _everybody_is_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers, "_BACK_WITHIN_S", 0.01)


async def crash_during(rig: Rig, verb: asyncio.Task[VerbDone]) -> None:
    """Kill the controller; whoever waits for the verb has lost the connection, and will send it again."""
    await rig.crash()
    verb.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
        await verb


def test_a_new_controller_adopts_what_runs_and_no_router_ever_sees_less():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=3)
        await rig.endpoint("e", "v1")
        before, table, ingress = rig.replicas("v1"), rig.ingress.table, rig.ingress
        seen = len(ingress.tables)
        await rig.crash()
        await rig.start()
        await until(lambda: len(ingress.tables) > seen, "the new controller sends a table")
        assert rig.replicas("v1") == before
        for newer in ingress.tables[seen:]:
            assert newer.version > table.version
            assert (newer.endpoints, newer.backends) == (table.endpoints, table.backends)
        assert rig.ingress is ingress
        await rig.create("v2")

    play(scene)


def test_a_new_controller_replaces_what_died_while_there_was_none():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        dead, other = rig.replicas("v1")
        await rig.crash()
        rig.engine._running.pop(dead)  # it dies, and there is nobody to tell
        await rig.start()
        await until(lambda: len(rig.ingress.replicas("v1")) == 2 and dead not in rig.ingress.replicas("v1"), "it is replaced")
        assert other in rig.ingress.replicas("v1")

    play(scene)


def test_a_replica_that_is_still_in_its_constructor_is_adopted():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        rig.engine.hold("v1")
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: rig.replicas("v1"), "its replacement starts")
        (starting,) = rig.replicas("v1")
        await rig.crash()
        await rig.start()
        await until(lambda: rig.ingress.table.backends["v1"].starting, "it is announced")
        rig.engine.release("v1")
        await until(lambda: rig.ingress.replicas("v1") == [starting], "it serves")

    play(scene)


def test_a_backend_that_was_being_created_is_created_once_whether_or_not_its_verb_is_sent_again():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        verb = create("v1", num_replicas=2)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.replicas("v1")) == 2, "both start")
        started = rig.replicas("v1")
        await crash_during(rig, first)
        await rig.start()
        again = asyncio.create_task(rig.repeat("id-1", verb))
        await rig.describe()
        assert not again.done()
        rig.engine.release("v1")
        done = await again
        assert done.error is None
        assert sorted(rig.replicas("v1")) == sorted(started)
        assert await rig.repeat("id-1", verb) == done
        with pytest.raises(AlreadyExistsError):
            await rig.verb(verb)

    play(scene)


def test_a_backend_that_was_being_created_is_finished_also_where_nobody_asks_again():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        first = asyncio.create_task(rig.repeat("id-1", create("v1", num_replicas=2)))
        await until(lambda: len(rig.replicas("v1")) == 2, "both start")
        await crash_during(rig, first)
        rig.engine.release("v1")
        await rig.start()
        await until(lambda: "v1" in rig.ingress.table.backends and len(rig.ingress.replicas("v1")) == 2, "it serves")

    play(scene)


def test_a_creation_of_which_nothing_runs_yet_is_undone_and_done_anew_when_it_is_sent_again():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        verb = create("v1")
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: rig.replicas("v1"), "it starts")
        (started,) = rig.replicas("v1")
        await crash_during(rig, first)
        rig.engine._running.pop(started)
        rig.engine.release("v1")
        await rig.start()
        assert "v1" not in (await rig.describe()).backends
        assert (await rig.repeat("id-1", verb)).error is None
        assert len(rig.replicas("v1")) == 1

    play(scene)


def test_a_creation_that_fails_under_the_next_controller_leaves_nothing_and_its_error_is_kept():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        verb = create("v1", num_replicas=2)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.replicas("v1")) == 2, "both start")
        await crash_during(rig, first)
        rig.engine.fail_next("v1", ReplicaStartError("boom"))
        rig.engine.release("v1")
        await rig.start()
        done = await rig.repeat("id-1", verb)
        assert done.error is not None
        assert "boom" in done.error.message
        assert rig.replicas("v1") == []
        await rig.create("v1")

    play(scene)


@pytest.mark.parametrize("cpus", [4.0, 2.0])
def test_an_update_goes_on_under_the_next_controller(cpus: float):
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=2))
        old = rig.replicas("v1")
        rig.engine.hold("v1")
        verb = UpdateBackend("v1", definition("g"), allow_gap=False)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: set(rig.replicas("v1")) - set(old), "a new one starts")
        await crash_during(rig, first)
        rig.engine.release("v1")
        await rig.start()
        assert (await rig.repeat("id-1", verb)).error is None
        assert len(rig.replicas("v1")) == 2
        assert not set(rig.replicas("v1")) & set(old)
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state) == ("g", "ready")

    play(scene, resources={"CPU": cpus})


def entries(rig: Rig, seen: int) -> list[BackendEntry]:
    """What the ingress was told of "v1" after the first so many tables."""
    return [table.backends["v1"] for table in rig.ingress.tables[seen:]]


def test_replicas_that_replace_others_one_at_a_time_go_on_to_serve_under_the_next_controller_and_nothing_old_is_started_again():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=2))
        old = rig.replicas("v1")
        rig.engine.hold("v1")
        verb = UpdateBackend("v1", definition("g"), allow_gap=False)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: set(rig.replicas("v1")) - set(old), "the first new one starts")
        rig.engine.release("v1")
        rig.engine.hold("v1")
        await until(lambda: len(rig.replicas("v1")) == 2 and not set(rig.replicas("v1")) & set(old), "the second one starts")
        serving, starting = rig.replicas("v1")
        assert rig.ingress.replicas("v1") == [serving]
        seen = len(rig.ingress.tables)
        await crash_during(rig, first)
        await rig.start()
        await rig.describe()
        assert rig.replicas("v1") == [serving, starting]
        assert [replica.id for replica in (await rig.describe()).backends["v1"].replicas] == [serving, starting]
        rig.engine.release("v1")
        assert (await rig.repeat("id-1", verb)).error is None
        assert rig.replicas("v1") == [serving, starting]
        assert sorted(rig.ingress.replicas("v1")) == sorted([serving, starting])
        for entry in entries(rig, seen):
            assert serving in [replica.id for replica in entry.replicas]
            assert entry.starting or len(entry.replicas) == 2
            assert entry.fault == ""

    play(scene, resources={"CPU": 2})


def test_of_a_version_that_fails_under_the_next_controller_what_served_is_drained_and_the_old_one_comes_back():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=2))
        old = rig.replicas("v1")
        rig.engine.hold("v1")
        verb = UpdateBackend("v1", definition("g"), allow_gap=False)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: set(rig.replicas("v1")) - set(old), "the first new one starts")
        rig.engine.release("v1")
        rig.engine.hold("v1")
        await until(lambda: len(rig.replicas("v1")) == 2 and not set(rig.replicas("v1")) & set(old), "the second one starts")
        serving, _ = rig.replicas("v1")
        await crash_during(rig, first)
        await rig.start()
        rig.engine.fail_next("v1", ReplicaStartError("boom"))
        rig.engine.release("v1")
        done = await rig.repeat("id-1", verb)
        assert done.error is not None
        assert "boom" in done.error.message
        await until(lambda: len(rig.ingress.replicas("v1")) == 2, "the old version serves again")
        assert {ended.id: ended.reason for ended in rig.engine.ended}[serving] == "exit status 0"  # drained, not killed
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state) == ("f", "ready")

    play(scene, resources={"CPU": 2})


@pytest.mark.parametrize("starting", [True, False], ids=["the new one starts", "nothing runs"])
def test_in_the_gap_of_an_update_requests_wait_for_the_new_replica_also_under_the_next_controller(starting: bool):
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        old = rig.replicas("v1")
        rig.engine.hold("v1")
        first = asyncio.create_task(rig.repeat("id-1", UpdateBackend("v1", definition("g"), allow_gap=True)))
        await until(lambda: set(rig.replicas("v1")) - set(old), "the new one starts")
        (new,) = rig.replicas("v1")
        seen = len(rig.ingress.tables)
        await crash_during(rig, first)
        if not starting:
            rig.engine._running.pop(new)
            rig.engine._books.give_back(new)
        await rig.start()
        await rig.describe()
        rig.engine.release("v1")
        await until(lambda: bool(rig.ingress.replicas("v1")), "it serves, though nobody asks again")
        assert (await rig.describe()).backends["v1"].definition == "g"
        assert all(entry.replicas or entry.starting for entry in entries(rig, seen))

    play(scene, resources={"CPU": 1})


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_crash_at_any_turn_of_an_update_without_room_takes_back_no_new_replica_and_lets_requests_wait(replicas: int, busy: bool):
    async def scene(rig: Rig, turns: int) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=replicas))
        if busy:
            rig.engine.busy.update(rig.replicas("v1"))
        seen = len(rig.ingress.tables)
        verb = UpdateBackend("v1", definition("g"), allow_gap=True)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        for _ in range(turns):
            await asyncio.sleep(0)
        await crash_during(rig, first)
        await rig.start()
        assert (await rig.finishing(asyncio.create_task(rig.repeat("id-1", verb)))).error is None
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state, len(rig.replicas("v1"))) == ("g", "ready", replicas)
        final = set(rig.replicas("v1"))
        served: set[str] = set()
        for entry in entries(rig, seen):
            listed = {replica.id for replica in entry.replicas}
            assert listed or entry.starting
            assert served <= listed
            served |= listed & final

    for turns in range(0, 60, 2):
        play(lambda rig, turns=turns: scene(rig, turns), resources={"CPU": replicas})  # type: ignore[misc]  # mypy can't type a lambda with a default


@pytest.mark.parametrize(("replicas", "allow_gap"), [(1, True), (2, False), (3, False)])
def test_the_next_controller_goes_on_with_an_update_when_what_drains_has_left_its_room(replicas: int, allow_gap: bool):
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=replicas))
        rig.engine.busy.update(rig.replicas("v1"))
        verb = UpdateBackend("v1", definition("g"), allow_gap)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.draining()) == 1, "an old one drains")
        await crash_during(rig, first)
        await rig.start()
        again = asyncio.create_task(rig.repeat("id-1", verb))
        for _ in range(20):
            assert len((await rig.describe()).backends["v1"].replicas) == replicas
            assert len(rig.draining()) == 1
        assert not again.done()
        assert (await rig.finishing(again)).error is None
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state, len(rig.replicas("v1"))) == ("g", "ready", replicas)

    play(scene, resources={"CPU": replicas})


def test_scaling_up_goes_on_under_the_next_controller():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        rig.engine.hold("v1")
        verb = UpdateBackendConfig("v1", {"num_replicas": 3}, None)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.replicas("v1")) == 3, "two more start")
        running = rig.replicas("v1")
        await crash_during(rig, first)
        await rig.start()
        assert len(rig.ingress.replicas("v1")) == 1
        rig.engine.release("v1")
        assert (await rig.repeat("id-1", verb)).error is None
        assert sorted(rig.replicas("v1")) == sorted(running)
        assert (await rig.describe()).backends["v1"].config.num_replicas == 3

    play(scene)


def test_what_is_no_longer_wanted_is_drained_by_the_next_controller():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        rig.ingress.busy_backends = ("v1",)
        first = asyncio.create_task(rig.repeat("id-1", DeleteBackend("v1")))
        await until(lambda: "v1" not in rig.ingress.table.backends, "it is gone from the table")
        await crash_during(rig, first)
        assert len(rig.replicas("v1")) == 2
        rig.ingress.busy_backends = ()
        await rig.start()
        assert (await rig.repeat("id-1", DeleteBackend("v1"))).error is None
        assert rig.replicas("v1") == []

    play(scene)


def test_a_deleted_backend_that_routers_have_requests_for_is_kept_going_by_the_next_controller():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2, graceful_shutdown_timeout=1000.0)
        rig.ingress.busy_backends = ("v1",)
        first = asyncio.create_task(rig.repeat("id-1", DeleteBackend("v1")))
        await until(lambda: "v1" in rig.ingress.table.leaving, "it is leaving")
        await crash_during(rig, first)
        await rig.start()
        dead, _ = rig.replicas("v1")
        rig.engine.end(dead)
        await until(lambda: len(rig.replicas("v1")) == 2 and dead not in rig.replicas("v1"), "what dies is replaced")
        await until(lambda: len(rig.ingress.table.leaving["v1"].replicas) == 2, "routers are told")
        rig.ingress.is_idle()
        assert (await rig.repeat("id-1", DeleteBackend("v1"))).error is None
        assert rig.replicas("v1") == []

    play(scene)


@pytest.mark.parametrize(
    "verb", [DeleteBackend("v1"), UpdateBackendConfig("v1", {"num_replicas": 2}, None)], ids=["deleted", "scaled down"]
)
def test_what_drains_when_the_controller_dies_neither_serves_under_the_next_one_nor_is_replaced(verb: Verb):
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=3)
        before = rig.replicas("v1")
        rig.engine.busy.update(before)
        first = asyncio.create_task(rig.repeat("id-1", verb))
        kept = 0 if isinstance(verb, DeleteBackend) else 2
        await until(lambda: len(rig.draining()) == 3 - kept, "it drains")
        drained, seen = rig.draining(), len(rig.ingress.tables)
        await crash_during(rig, first)
        await rig.start()
        again = asyncio.create_task(rig.repeat("id-1", verb))
        await until(lambda: len(rig.ingress.tables) > seen, "routers are told")
        assert not again.done()
        for id in drained:
            rig.engine.end(id, "exit status 0")
        assert (await again).error is None
        assert rig.replicas("v1") == [id for id in before if id not in drained]
        for table in rig.ingress.tables[seen:]:
            shown = table.backends.get("v1") or table.leaving.get("v1")
            assert (len(shown.replicas) if shown is not None else 0) == kept

    play(scene)


def test_a_backend_is_created_when_those_of_its_tag_that_drain_under_the_next_controller_have_left_their_room():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        rig.engine.busy.update(rig.replicas("v1"))
        deletion = asyncio.create_task(rig.repeat("id-1", DeleteBackend("v1")))
        await until(lambda: bool(rig.draining()), "it drains")
        await crash_during(rig, deletion)
        await rig.start()
        creation = asyncio.create_task(rig.repeat("id-2", create("v1", options=ONE_CPU)))
        await rig.describe()
        assert not creation.done()
        assert (await rig.finishing(creation)).error is None
        assert rig.ingress.replicas("v1") == rig.replicas("v1")

    play(scene, resources={"CPU": 1})


def test_a_process_with_handles_that_connects_again_a_moment_later_than_ingresses_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routers, "_BACK_WITHIN_S", 0.4)

    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        before = rig.process("handles")
        await before.link.connected()
        before.busy_backends = ("v1",)
        deletion = asyncio.create_task(rig.try_verb(DeleteBackend("v1")))
        await until(lambda: "v1" in rig.ingress.table.leaving, "it is leaving")
        await before.link.close()
        await crash_during(rig, deletion)
        starting = asyncio.create_task(rig.start())
        await until(lambda: rig.ingress.table.version > before.table.version, "an ingress is there")
        await rig.describe()
        again = rig.process("handles")
        again.busy_backends = ("v1",)
        await until(lambda: again.tables, "it has a table")
        assert "v1" in again.table.leaving
        await until(lambda: rig._controller._routers._back_at < asyncio.get_running_loop().time(), "everybody is back")
        await rig.describe()
        assert "v1" in again.table.leaving
        assert len(rig.replicas("v1")) == 1
        again.is_idle()
        await until(lambda: rig.replicas("v1") == [], "it has left")
        await starting

    play(scene)


def test_adopted_replicas_are_told_their_config_again():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        (id,) = rig.replicas("v1")
        await rig.verb(UpdateBackendConfig("v1", {"concurrency": 5}, None))
        rig.engine.sent[id].clear()
        await rig.crash()
        await rig.start()
        told = [message.config.concurrency for message in rig.engine.sent[id] if isinstance(message, Configure)]
        assert told == [5]

    play(scene)


def test_a_verb_that_was_done_is_not_done_again_by_the_next_controller():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.create("v2")
        await rig.endpoint("e", "v1")
        first = await rig.repeat("id-1", SetTraffic("e", {"v1": 0.5, "v2": 0.5}))
        await rig.verb(SetTraffic("e", {"v2": 1.0}))
        await rig.crash()
        await rig.start()
        assert await rig.repeat("id-1", SetTraffic("e", {"v1": 0.5, "v2": 0.5})) == first
        assert rig.ingress.table.endpoints["e"].weights == {"v2": 1.0}

    play(scene)


def test_an_update_that_was_under_way_when_everything_died_is_as_if_it_had_never_been_sent():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        rig.engine.hold("v1")
        first = asyncio.create_task(rig.repeat("id-1", UpdateBackend("v1", definition("g"), allow_gap=False)))
        await until(lambda: len(rig.replicas("v1")) > 2, "a new one starts")
        await crash_during(rig, first)
        for id in list(rig.engine._running):
            del rig.engine._running[id]
            rig.engine._books.give_back(id)
        rig.engine.release("v1")
        await rig.start()
        await until(lambda: len(rig.ingress.replicas("v1")) == 2, "it serves again")
        await rig.create("v2")
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state) == ("f", "ready")
        assert {found.spec.generation for found in rig.engine.running().values() if isinstance(found.spec, ReplicaSpec)} == {1, 3}

    play(scene)


def keep_something(state_dir: Path) -> None:
    """An instance with everything, on this state directory, shut down."""

    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=2, concurrency=3))
        await rig.verb(create("v2", options=ONE_CPU))
        await rig.verb(CreateEndpoint("e", "/e", ("GET", "POST"), "v1"))
        await rig.verb(SetTraffic("e", {"v1": 0.25, "v2": 0.75}))
        await rig.verb(ShadowTraffic("e", "v2", 0.5))
        await rig.shut_down()

    play(scene, resources={"CPU": 4}, state_dir=state_dir)


def test_what_was_kept_is_restored_without_waiting_for_its_replicas(tmp_path: Path):
    keep_something(tmp_path)

    async def scene(rig: Rig) -> None:  # which begins when HTTP answers
        found = await rig.describe()
        assert set(found.backends) == {"v1", "v2"}
        assert found.backends["v1"].state == "starting"
        assert found.backends["v1"].config.concurrency == 3
        endpoint = found.endpoints["e"]
        assert (endpoint.route, endpoint.methods) == ("/e", ("GET", "POST"))
        assert (endpoint.traffic, endpoint.shadows) == ({"v1": 0.25, "v2": 0.75}, {"v2": 0.5})
        with pytest.raises(AlreadyExistsError):
            await rig.create("v1")
        rig.engine.release("v1")
        await until(lambda: len(rig.ingress.replicas("v1")) == 2, "its replicas start")

    play(scene, resources={"CPU": 4}, state_dir=tmp_path, hold=("v1",))


def test_a_restored_backend_that_does_not_start_shows_why_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replica_life, "_FIRST_DELAY_S", 1000.0)
    keep_something(tmp_path)

    async def scene(rig: Rig) -> None:  # with room for v1 only
        await until(lambda: len(rig.ingress.replicas("v1")) == 2, "what fits starts")
        info = (await rig.describe()).backends["v2"]
        assert info.state == "unhealthy"
        assert "CPU" in info.reason
        await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 1}, None))
        await until(lambda: rig.ingress.replicas("v2"), "it starts as soon as there is room")
        assert (await rig.describe()).backends["v2"].state == "ready"

    play(scene, resources={"CPU": 2}, state_dir=tmp_path)


def test_what_was_being_created_when_the_whole_instance_died_is_not_restored(tmp_path: Path):
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        first = asyncio.create_task(rig.repeat("id-1", create("v1")))
        await until(lambda: rig.replicas("v1"), "it starts")
        await crash_during(rig, first)
        rig.engine = Engine()
        await rig.start()
        assert (await rig.describe()).backends == {}

    play(scene, state_dir=tmp_path)


def test_a_shutdown_repeated_to_the_next_controller_ends_the_instance():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.crash()
        await rig.start()
        await asyncio.wait_for(rig.shut_down(), PATIENCE_S)
        assert rig.engine.running() == {}

    play(scene)


def test_a_shutdown_that_the_next_controller_takes_over_at_any_turn_starts_nothing_anew():
    async def scene(rig: Rig, turns: int) -> None:
        await rig.create("v1", num_replicas=2)
        before, ingress = rig.replicas("v1"), rig.ingress
        rig.engine.busy.update(before)
        rig.engine.leave()
        for _ in range(turns):
            await asyncio.sleep(0)
        drains = rig.draining() == before
        if drains:
            rig.engine.end(before[0], "exit status 0")
        await rig.crash()
        seen = len(ingress.tables)
        await rig.start()
        await until(lambda: bool(rig.draining()), "they are told to end")
        await rig.finishing(asyncio.create_task(rig.ended()))
        assert all(table.closing for table in ingress.tables[seen:])
        assert [ended.id for ended in rig.engine.ended if ended.role == "replica"] == before[1 if drains else 0 :]
        assert rig.engine.running() == {}

    for turns in range(0, 40, 2):
        play(lambda rig, turns=turns: scene(rig, turns))  # type: ignore[misc]  # mypy can't type a lambda with a default


def test_a_shutdown_that_the_next_controller_takes_over_starts_what_an_accepted_request_waits_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routers, "_BACK_WITHIN_S", 1.0)

    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        ingress = rig.ingress
        ingress.counters = Counters((), (QueueDepth("v1", 1, 1),))
        rig.engine.leave()
        await until(lambda: ingress.table.closing, "new work is refused")
        (dead,) = rig.replicas("v1")
        await rig.crash()
        seen = len(ingress.tables)
        rig.engine._running.pop(dead)  # it dies, and there is nobody to tell
        await rig.start()
        await until(lambda: len(ingress.tables) > seen and bool(ingress.replicas("v1")), "another one serves")
        assert all(table.backends["v1"].replicas or table.backends["v1"].starting for table in ingress.tables[seen:])
        ingress.counters = Counters()
        await rig.ended()
        assert rig.engine.running() == {}

    play(scene)


VERBS: dict[str, tuple[Verb, Callable[[Description], object], object]] = {
    "create": (create("v3", num_replicas=2), lambda found: len(found.backends["v3"].replicas), 2),
    "update": (UpdateBackend("v1", definition("g"), False), lambda found: found.backends["v1"].definition, "g"),
    "scale up": (UpdateBackendConfig("v1", {"num_replicas": 4}, None), lambda found: len(found.backends["v1"].replicas), 4),
    "scale down": (UpdateBackendConfig("v1", {"num_replicas": 1}, None), lambda found: len(found.backends["v1"].replicas), 1),
    "delete": (DeleteBackend("v2"), lambda found: set(found.backends), {"v1"}),
    "endpoint": (CreateEndpoint("f", "/f", ("GET",), "v1"), lambda found: set(found.endpoints), {"e", "f"}),
    "traffic": (SetTraffic("e", {"v1": 0.5, "v2": 0.5}), lambda found: found.endpoints["e"].traffic, {"v1": 0.5, "v2": 0.5}),
}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("name", VERBS)
def test_a_crash_at_any_turn_of_a_verb_is_not_seen_by_who_sends_it_again(name: str, busy: bool):
    verb, look, expected = VERBS[name]

    async def scene(rig: Rig, turns: int) -> None:
        await rig.create("v1", num_replicas=2)
        await rig.create("v2")
        await rig.endpoint("e", "v1")
        if busy:
            rig.engine.busy.update(rig.replicas("v1") + rig.replicas("v2"))
        first = asyncio.create_task(rig.repeat("id-1", verb))
        for _ in range(turns):
            await asyncio.sleep(0)
        await crash_during(rig, first)
        await rig.start()
        done = await rig.finishing(asyncio.create_task(rig.repeat("id-1", verb)))
        assert done.error is None
        found = await rig.describe()
        assert look(found) == expected
        for tag, info in found.backends.items():
            assert info.state == "ready"
            assert len(rig.replicas(tag)) == info.config.num_replicas
            assert sorted(rig.ingress.replicas(tag)) == sorted(rig.replicas(tag))
        assert set(rig.ingress.table.backends) == set(found.backends)

    for turns in range(0, 30, 2):
        play(lambda rig, turns=turns: scene(rig, turns))  # type: ignore[misc]  # mypy can't type a lambda with a default
