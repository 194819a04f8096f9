"""What has no room waits: who is told, how long, and what ends it?"""

from __future__ import annotations

import asyncio
import functools
import logging

import pytest

from headgate.config import ReplicaOptions
from headgate.controller import waiting
from headgate.core.messages import DeleteBackend, UpdateBackend, UpdateBackendConfig, VerbDone
from headgate.core.reports import Waiting
from headgate.errors import InsufficientResourcesError, NotRunningError, ReplicaStartError, rebuild
from tests.controller.rig import Rig, create, definition, play
from tests.support import until

ONE_CPU = ReplicaOptions(num_cpus=1)
on_a_cluster = functools.partial(play, waits=True)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.005)


async def waits(rig: Rig, tag: str, replicas: int = 1) -> Waiting:
    """What is told of a backend that waits for room."""
    await until(lambda: len([id for id in rig.engine.waiting() if id in rig.replicas(tag)]) == replicas, f"{tag} waits for room")
    (found,) = [one for one in (await rig.describe()).waiting if one.backend == tag]
    assert found.replicas == replicas
    return found


def begin(rig: Rig, verb: object) -> asyncio.Task[VerbDone]:
    return asyncio.create_task(rig.try_verb(verb))  # type: ignore[arg-type]  # any of the verbs


async def error_of(verb: asyncio.Task[VerbDone]) -> Exception:
    done = await verb
    assert done.error is not None
    return rebuild(done.error)


def test_a_backend_that_has_no_room_waits_is_reported_and_starts_when_there_is():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU, num_replicas=2))
        creating = begin(rig, create("new", options=ONE_CPU))
        found = await waits(rig, "new")
        assert "asked for 1 CPU; free 0 of 2 CPU" in found.reason
        assert (await rig.describe()).backends.keys() == {"old"}
        await rig.verb(UpdateBackendConfig("old", {"num_replicas": 1}, None))
        assert (await creating).error is None
        described = await rig.describe()
        assert (described.waiting, described.backends["new"].state) == ((), "ready")

    on_a_cluster(scene, resources={"CPU": 2})


def test_what_can_never_fit_is_refused_at_once_unless_the_cluster_grows():
    async def never(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        for count in (1, 3):
            with pytest.raises(InsufficientResourcesError, match=r"asked for .* CPU"):
                await rig.verb(create("big", options=ReplicaOptions(num_cpus=3 / count), num_replicas=count))
        with pytest.raises(InsufficientResourcesError, match="free"):
            await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 3}, None))
        assert [ended.id for ended in rig.engine.ended] == []

    async def later(rig: Rig) -> None:
        creating = begin(rig, create("big", options=ReplicaOptions(num_cpus=3)))
        await waits(rig, "big")
        rig.engine.add({"CPU": 1})
        assert (await creating).error is None

    on_a_cluster(never, resources={"CPU": 2})
    on_a_cluster(later, resources={"CPU": 2}, grows=True)


def test_a_verb_waits_for_room_as_long_as_a_start_may_take_and_leaves_nothing():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU))
        with pytest.raises(InsufficientResourcesError, match=r"'new'.*asked for 2 CPU; free 1 of 2 CPU; waited 0\.1 s"):
            await rig.verb(create("new", options=ReplicaOptions(num_cpus=2), startup_timeout=0.1))
        assert rig.replicas("new") == []
        described = await rig.describe()
        assert (described.backends.keys(), described.waiting, described.free["CPU"]) == ({"old"}, (), 1)

    on_a_cluster(scene, resources={"CPU": 2})


def test_deleting_a_backend_ends_its_wait_for_room():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU, num_replicas=2))
        creating = begin(rig, create("new", options=ONE_CPU))
        await waits(rig, "new")
        await rig.verb(DeleteBackend("new"))
        error = await error_of(creating)
        assert isinstance(error, InsufficientResourcesError)
        assert "'new'" in str(error)
        assert "deleted" in str(error)
        assert rig.replicas("new") == []
        await rig.verb(DeleteBackend("old"))
        await rig.verb(create("new", options=ONE_CPU))  # the tag is free

    on_a_cluster(scene, resources={"CPU": 2})


def test_deleting_a_backend_ends_a_change_of_it_that_waits_for_room():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        await rig.verb(create("v2", options=ONE_CPU))
        growing = begin(rig, UpdateBackendConfig("v1", {"num_replicas": 2}, None))
        await waits(rig, "v1")
        await rig.endpoint("e", "v1")
        with pytest.raises(ValueError, match="'e'"):
            await rig.verb(DeleteBackend("v1"))
        assert not growing.done(), "a refused deletion ends nothing"
        growing_other = begin(rig, UpdateBackendConfig("v2", {"num_replicas": 2}, None))
        await waits(rig, "v2")
        await rig.verb(DeleteBackend("v2"))
        assert isinstance(await error_of(growing_other), InsufficientResourcesError)
        assert (await growing).error is None  # in the room of v2

    on_a_cluster(scene, resources={"CPU": 2})


def test_a_caller_who_leaves_while_its_verb_waits_for_room_leaves_nothing():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU))
        leaving = begin(rig, create("new", options=ONE_CPU))
        await waits(rig, "new")
        leaving.cancel()
        await until(lambda: rig.replicas("new") == [], "nothing of the backend is left")
        described = await rig.describe()
        assert (described.backends.keys(), described.waiting) == ({"old"}, ())

    on_a_cluster(scene, resources={"CPU": 1})


def test_a_shutdown_ends_what_waits_for_room():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU))
        creating = begin(rig, create("new", options=ONE_CPU))
        await waits(rig, "new")
        await rig.shut_down()
        assert isinstance(await error_of(creating), NotRunningError)
        assert rig.engine.running() == {}

    on_a_cluster(scene, resources={"CPU": 1})


def test_a_replica_that_died_waits_for_room_and_requests_are_told_why_meanwhile():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, startup_timeout=0.2))
        await rig.endpoint("e", "v1")
        creating = begin(rig, create("next", options=ONE_CPU))
        await waits(rig, "next")
        rig.engine.end(rig.replicas("v1")[0])  # whose room the other one gets
        assert (await creating).error is None
        await waits(rig, "v1")
        await until(lambda: rig.ingress.table.backends["v1"].starting == 0, "requests don't wait for what has no room")
        entry = rig.ingress.table.backends["v1"]
        assert "1 replica waits for room: asked for" in entry.fault  # not for how long: that would be news for all, again and again
        assert entry.pause_s > 0
        described = await rig.describe()
        assert "asked for 1 CPU; free 0 of 1 CPU" in described.backends["v1"].reason
        first = rig.replicas("v1")
        await until(lambda: rig.replicas("v1") not in ([], first), "it waits on, as another one, after startup_timeout")
        rig.engine.add({"CPU": 1})
        await until(lambda: len(rig.ingress.replicas("v1")) == 1, "it starts when there is room")

    on_a_cluster(scene, resources={"CPU": 1})


def test_the_log_tells_of_a_long_wait_and_then_seldom(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(waiting, "TELL_AFTER_S", 0.05)
    caplog.set_level(logging.WARNING, "headgate.controller")

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "waits for room" in record.getMessage()]

    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU))
        creating = begin(rig, create("new", options=ONE_CPU))
        began = asyncio.get_running_loop().time()
        await until(lambda: len(told()) == 3, "it is told three times")
        assert asyncio.get_running_loop().time() - began >= 0.2  # after 0.05, 0.1 and 0.2 s
        assert "backend 'new'" in told()[0]
        assert "asked for 1 CPU; free 0 of 1 CPU" in told()[0]
        rig.engine.add({"CPU": 1})
        assert (await creating).error is None

    on_a_cluster(scene, resources={"CPU": 1})


def test_an_update_keeps_its_rules_where_the_engine_waits():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        with pytest.raises(InsufficientResourcesError, match="allow_gap=True"):
            await rig.verb(UpdateBackend("v1", definition("g"), False))
        old = rig.replicas("v1")
        await rig.verb(UpdateBackend("v1", definition("g"), True))
        assert rig.replicas("v1") != old
        await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 1}, None))
        rig.engine.add({"CPU": 1})
        await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 2}, None))
        await rig.verb(UpdateBackend("v1", definition("h"), False))  # one at a time
        assert (await rig.describe()).backends["v1"].definition == "h"
        assert len(rig.replicas("v1")) == 2

    on_a_cluster(scene, resources={"CPU": 1})


def test_an_update_of_what_waits_for_room_waits_too():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        creating = begin(rig, create("other", options=ONE_CPU))
        await waits(rig, "other")
        rig.engine.end(rig.replicas("v1")[0])
        assert (await creating).error is None
        await waits(rig, "v1")
        updating = begin(rig, UpdateBackend("v1", definition("g"), False))
        await waits(rig, "v1", 2)
        await rig.verb(DeleteBackend("other"))
        rig.engine.add({"CPU": 1})
        assert (await updating).error is None
        assert (await rig.describe()).backends["v1"].definition == "g"
        await until(lambda: len(rig.replicas("v1")) == 1, "the old one has gone")

    on_a_cluster(scene, resources={"CPU": 1})


def test_the_next_controller_carries_on_with_what_waits_for_room():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("old", options=ONE_CPU))
        creating = begin(rig, create("new", options=ONE_CPU))
        await waits(rig, "new")
        await rig.crash()
        await rig.start()
        await waits(rig, "new")
        rig.engine.add({"CPU": 1})
        assert (await creating).error is None
        assert (await rig.describe()).backends.keys() == {"old", "new"}

    on_a_cluster(scene, resources={"CPU": 1})


def test_where_a_constructor_fails_a_deletion_that_waited_finds_nothing():
    async def scene(rig: Rig) -> None:
        creating = begin(rig, create("bad"))
        await until(lambda: rig.replicas("bad"), "it is in its constructor")
        deleting = begin(rig, DeleteBackend("bad"))
        await rig.describe()
        rig.engine.fail_next("bad", ReplicaStartError("no model"))
        rig.engine.release("bad")
        assert isinstance(await error_of(creating), ReplicaStartError)
        assert isinstance(await error_of(deleting), LookupError)

    on_a_cluster(scene, hold=("bad",))
