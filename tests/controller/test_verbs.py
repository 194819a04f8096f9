"""Does each verb do what the contract says, and nothing when it fails?"""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from headgate.config import ReplicaOptions
from headgate.core.messages import (
    CompareInit,
    Configure,
    CreateBackend,
    CreateEndpoint,
    DeleteBackend,
    DeleteEndpoint,
    Measure,
    SetTraffic,
    ShadowTraffic,
    UpdateBackend,
    UpdateBackendConfig,
)
from headgate.core.reports import RETRIED, SHADOW_DROPPED, Counters, EventCount, Measurement, QueueDepth, RequestCount
from headgate.core.specs import MethodInfo
from headgate.errors import (
    AlreadyExistsError,
    ConfigError,
    InsufficientResourcesError,
    InUseError,
    NotFoundError,
    NotRunningError,
    ReplicaStartError,
)
from tests.controller.rig import PATIENCE_S, Rig, create, definition, play
from tests.support import until

ONE_CPU = ReplicaOptions(num_cpus=1)


def test_http_answers_once_every_ingress_follows_a_table():
    async def scene(rig: Rig) -> None:
        assert rig.engine.is_serving
        assert rig.ingress.tables

    play(scene, num_ingresses=2)


def test_a_created_backend_is_in_every_table_when_the_verb_returns():
    async def scene(rig: Rig) -> None:
        router = rig.process("handles")
        await router.link.connected()
        await rig.create("v1", num_replicas=3)
        for process in (rig.ingress, router):
            assert len(process.replicas("v1")) == 3
            assert sorted(process.replicas("v1")) == sorted(rig.replicas("v1"))

    play(scene)


def test_a_constructor_that_raises_leaves_nothing_of_its_backend_and_hands_on_the_traceback():
    async def scene(rig: Rig) -> None:
        rig.engine.fail_next("bad", ReplicaStartError("no model", remote_traceback="Traceback: here"))
        with pytest.raises(ReplicaStartError, match="no model") as caught:
            await rig.create("bad", num_replicas=4)
        assert caught.value.remote_traceback == "Traceback: here"
        assert rig.replicas("bad") == []
        assert (await rig.describe()).backends == {}
        await rig.create("bad")  # the tag is free

    play(scene)


def test_what_does_not_fit_is_refused_at_once_naming_asked_and_free():
    async def scene(rig: Rig) -> None:
        with pytest.raises(InsufficientResourcesError, match="CPU"):
            await rig.verb(create("big", options=ONE_CPU, num_replicas=5))
        assert rig.engine.ended == []  # nothing was started
        await rig.verb(create("big", options=ONE_CPU, num_replicas=4))

    play(scene, resources={"CPU": 4})


def test_a_slow_backend_blocks_no_other_verb():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("slow")
        slow = asyncio.create_task(rig.create("slow"))
        await until(lambda: rig.replicas("slow"), "the slow one starts")
        await rig.create("quick")
        await rig.endpoint("e", "quick")
        await rig.verb(UpdateBackendConfig("quick", {"num_replicas": 2}, None))
        assert not slow.done()
        assert "slow" not in rig.ingress.table.backends
        with pytest.raises(NotFoundError):
            await rig.verb(CreateEndpoint("f", None, ("GET",), "slow"))
        rig.engine.release("slow")
        await slow
        assert "slow" in rig.ingress.table.backends

    play(scene)


def test_two_that_create_the_same_tag_at_once_make_one_backend():
    async def scene(rig: Rig) -> None:
        results = await asyncio.gather(*(rig.try_verb(create("v1")) for _ in range(4)))
        errors = [done.error for done in results if done.error is not None]
        assert [error.kind for error in errors] == ["AlreadyExistsError"] * 3
        assert len(rig.replicas("v1")) == 1

    play(scene)


def test_a_duplicate_tag_is_refused():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        with pytest.raises(AlreadyExistsError, match="update_backend"):
            await rig.create("v1")

    play(scene)


def test_set_traffic_returns_when_every_ingress_and_every_client_that_answers_follows():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.create("v2")
        await rig.endpoint("e", "v1")
        router, frozen = rig.process("handles"), rig.process("frozen")
        await asyncio.gather(router.link.connected(), frozen.link.connected())
        await until(lambda: router.tables and frozen.tables, "both have a table")
        frozen.frozen = True
        done = await rig.verb(SetTraffic("e", {"v1": 0.4, "v2": 0.6}))
        assert router.table.endpoints["e"].weights == {"v1": 0.4, "v2": 0.6}
        assert rig.ingress.table.endpoints["e"].weights == {"v1": 0.4, "v2": 0.6}
        (warning,) = done.warnings
        assert "frozen" in warning

    play(scene)


def test_set_traffic_waits_for_an_ingress_however_long_it_takes():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e")
        rig.ingress.frozen = True
        verb = asyncio.create_task(rig.verb(SetTraffic("e", {"v1": 1.0})))
        await until(lambda: rig.ingress.table.endpoints["e"].weights, "the table has arrived")
        assert not verb.done()
        rig.ingress._received(rig.ingress.tables.pop())  # unfrozen, it does not answer; frozen off, it does
        assert not verb.done()
        rig.ingress.frozen = False
        rig.ingress._received(rig.ingress.table)
        await verb

    play(scene)


def test_refused_verbs_change_nothing():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e", "v1")
        before = rig.ingress.table
        with pytest.raises(ConfigError):
            await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 3, "max_batch_size": 2}, None))
        with pytest.raises(ValueError, match=r"0\.5"):
            await rig.verb(SetTraffic("e", {"v1": 0.5}))
        with pytest.raises(LookupError):
            await rig.verb(ShadowTraffic("e", "v2", 0.5))
        with pytest.raises(InUseError, match="'e'"):
            await rig.verb(DeleteBackend("v1"))
        assert rig.ingress.table == before
        assert len(rig.replicas("v1")) == 1

    play(scene)


def test_deleting_an_endpoint_returns_when_its_admitted_requests_are_answered():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e", "v1")
        rig.ingress.busy_endpoints = ("e",)
        verb = asyncio.create_task(rig.verb(DeleteEndpoint("e")))
        await until(lambda: "e" not in rig.ingress.table.endpoints, "the endpoint is gone from the table")
        await rig.endpoint("other", "v1")  # which needs a newer table, of which the ingress says that it still serves "e"
        assert not verb.done()
        rig.ingress.is_idle()
        await verb

    play(scene)


def test_deleting_a_backend_drains_it_before_its_replicas_end_and_frees_its_tag():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        await rig.endpoint("e", "v1")
        await rig.create("v2")
        await rig.verb(SetTraffic("e", {"v2": 1.0, "v1": 0.0}))
        rig.ingress.busy_backends = ("v1",)
        verb = asyncio.create_task(rig.verb(DeleteBackend("v1")))
        await until(lambda: "v1" not in rig.ingress.table.backends, "the backend is gone from the table")
        await rig.describe()
        assert len(rig.ingress.table.leaving["v1"].replicas) == 2  # what is queued still goes there
        rig.ingress.is_idle()
        await verb
        assert rig.ingress.table.leaving == {}
        assert rig.replicas("v1") == []
        assert rig.ingress.table.endpoints["e"].weights == {"v2": 1.0}
        await rig.create("v1")

    play(scene)


def test_a_deleted_backend_gets_the_replicas_that_accepted_requests_wait_for():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        rig.engine.hold("v1")
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: rig.replicas("v1"), "its replacement starts")
        (starting,) = rig.replicas("v1")
        rig.ingress.busy_backends = ("v1",)
        verb = asyncio.create_task(rig.verb(DeleteBackend("v1")))
        await until(lambda: "v1" in rig.ingress.table.leaving, "the backend is leaving")
        assert rig.ingress.table.leaving["v1"].starting == 1
        rig.engine.release("v1")
        await until(lambda: [replica.id for replica in rig.ingress.table.leaving["v1"].replicas] == [starting], "it takes requests")
        rig._controller._had_answered(starting)  # else its death, after another, would put off the next start
        rig.engine.end(starting)
        await until(lambda: rig.replicas("v1") and rig.replicas("v1") != [starting], "one that dies is replaced")
        tables = [table.leaving["v1"] for table in rig.ingress.tables if "v1" in table.leaving]
        assert all(entry.replicas or entry.starting for entry in tables)
        assert not verb.done()
        rig.ingress.is_idle()
        await verb
        assert rig.replicas("v1") == []

    play(scene)


def test_a_deleted_backend_whose_requests_take_longer_than_its_grace_is_ended_and_routers_are_told():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", graceful_shutdown_timeout=0.1)
        rig.ingress.busy_backends = ("v1",)
        await rig.verb(DeleteBackend("v1"))
        assert rig.replicas("v1") == []
        assert rig.ingress.table.leaving == {}

    play(scene)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_backend_of_a_tag_that_is_leaving_is_created_once_that_has_left(busy: bool):
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        (old,) = rig.replicas("v1")
        if busy:
            rig.engine.busy.add(old)
        rig.ingress.busy_backends = ("v1",)
        deletion = asyncio.create_task(rig.verb(DeleteBackend("v1")))
        await until(lambda: "v1" in rig.ingress.table.leaving, "the backend is leaving")
        creation = asyncio.create_task(rig.verb(create("v1", options=ONE_CPU)))
        await rig.describe()
        assert rig.replicas("v1") == [old]
        rig.ingress.is_idle()
        if busy:
            await until(lambda: rig.draining() == [old], "its replica drains")
            await rig.describe()
            assert not creation.done()
        await rig.finishing(creation)
        await deletion
        assert rig.ingress.replicas("v1") == rig.replicas("v1") != [old]
        assert all(not table.leaving.keys() & table.backends.keys() for table in rig.ingress.tables)

    play(scene, resources={"CPU": 1})


def test_scaling_up_starts_more_and_scaling_down_drains_the_youngest():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        (first,) = rig.replicas("v1")
        await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 3}, None))
        assert len(rig.ingress.replicas("v1")) == 3
        await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 1}, None))
        assert rig.replicas("v1") == rig.ingress.replicas("v1") == [first]
        assert all(ended.reason == "exit status 0" for ended in rig.engine.ended)

    play(scene)


def test_a_scale_up_that_fails_changes_nothing():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        rig.engine.fail_next("v1", ReplicaStartError("boom"))
        with pytest.raises(ReplicaStartError):
            await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 3, "concurrency": 7}, None))
        assert len(rig.replicas("v1")) == 1
        info = (await rig.describe()).backends["v1"]
        assert (info.config.num_replicas, info.config.concurrency, info.state) == (1, None, "ready")

    play(scene)


def test_live_replicas_take_a_changed_config_without_a_restart():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        before = rig.replicas("v1")
        await rig.verb(UpdateBackendConfig("v1", {"concurrency": 5}, None))
        assert rig.replicas("v1") == before
        for id in before:
            assert [m.config.concurrency for m in rig.engine.sent[id] if isinstance(m, Configure)] == [5]
        assert rig.ingress.table.backends["v1"].concurrency == 5

    play(scene)


def test_an_update_starts_the_new_before_it_drains_the_old():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        old = rig.replicas("v1")
        rig.engine.hold("v1")
        update = asyncio.create_task(rig.verb(UpdateBackend("v1", definition("g"), allow_gap=False)))
        await until(lambda: len(rig.replicas("v1")) == 4, "two new ones start beside the old")
        assert sorted(rig.ingress.replicas("v1")) == sorted(old)
        assert (await rig.describe()).backends["v1"].state == "updating"
        rig.engine.release("v1")
        await update
        assert len(rig.replicas("v1")) == 2
        assert not set(rig.replicas("v1")) & set(old)
        assert sorted(rig.ingress.replicas("v1")) == sorted(rig.replicas("v1"))
        assert (await rig.describe()).backends["v1"].definition == "g"

    play(scene)


def test_an_update_that_fails_to_start_leaves_the_old_one_serving():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        before, tables = rig.replicas("v1"), len(rig.ingress.tables)
        rig.engine.fail_next("v1", ReplicaStartError("boom"))
        with pytest.raises(ReplicaStartError, match="boom"):
            await rig.verb(UpdateBackend("v1", definition("g"), allow_gap=False))
        assert rig.replicas("v1") == before
        assert len(rig.ingress.tables) == tables
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state) == ("f", "ready")

    play(scene)


def test_where_new_replicas_do_not_fit_beside_the_old_they_replace_them_one_at_a_time():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=3))
        old = rig.replicas("v1")
        seen = len(rig.ingress.tables)
        await rig.verb(UpdateBackend("v1", definition("g"), allow_gap=False))
        assert not set(rig.replicas("v1")) & set(old)
        assert len(rig.ingress.replicas("v1")) == 3
        counts = [len(table.backends["v1"].replicas) for table in rig.ingress.tables[seen:]]
        assert min(counts) == 2  # two served at all times
        assert all(table.backends["v1"].starting or len(table.backends["v1"].replicas) == 3 for table in rig.ingress.tables[seen:])

    play(scene, resources={"CPU": 3})


def test_an_update_waits_for_the_room_of_what_the_one_before_has_replaced():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU, num_replicas=2))
        rig.engine.busy.update(rig.replicas("v1"))
        first = asyncio.create_task(rig.verb(UpdateBackend("v1", definition("g"), allow_gap=False)))
        await until(lambda: len(rig.draining()) == 2, "the old ones drain")
        seen = len(rig.ingress.tables)
        second = asyncio.create_task(rig.verb(UpdateBackend("v1", definition("h"), allow_gap=False)))
        for _ in range(20):
            await rig.describe()
        assert len(rig.draining()) == 2
        await rig.finishing(second)
        await first
        assert all(len(table.backends["v1"].replicas) == 2 for table in rig.ingress.tables[seen:])
        assert (await rig.describe()).backends["v1"].definition == "h"

    play(scene, resources={"CPU": 4})


def test_one_replica_that_does_not_fit_twice_is_updated_only_with_a_gap_in_which_requests_wait():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        old = rig.replicas("v1")
        with pytest.raises(InsufficientResourcesError, match="allow_gap=True"):
            await rig.verb(UpdateBackend("v1", definition("g"), allow_gap=False))
        assert rig.replicas("v1") == old
        seen = len(rig.ingress.tables)
        await rig.verb(UpdateBackend("v1", definition("g"), allow_gap=True))
        assert rig.replicas("v1") != old
        gap = [table.backends["v1"] for table in rig.ingress.tables[seen:] if not table.backends["v1"].replicas]
        assert gap
        assert all(entry.starting for entry in gap)

    play(scene, resources={"CPU": 1})


def test_an_update_with_a_gap_that_fails_brings_the_old_version_back():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", options=ONE_CPU))
        rig.engine.fail_next("v1", ReplicaStartError("boom"))
        with pytest.raises(ReplicaStartError):
            await rig.verb(UpdateBackend("v1", definition("g"), allow_gap=True))
        await until(lambda: rig.ingress.replicas("v1"), "the old version serves again")
        info = (await rig.describe()).backends["v1"]
        assert (info.definition, info.state) == ("f", "ready")

    play(scene, resources={"CPU": 1})


def test_a_route_that_is_taken_is_refused_and_the_same_endpoint_again_is_a_no_op():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e", "v1")
        await rig.create("v2")
        await rig.verb(SetTraffic("e", {"v2": 1.0}))
        await rig.endpoint("e", "v1")
        assert rig.ingress.table.endpoints["e"].weights == {"v2": 1.0}
        with pytest.raises(AlreadyExistsError, match="'e'"):
            await rig.verb(CreateEndpoint("f", "/e", ("GET",), None))

    play(scene)


def test_describe_tells_what_is_asked_for_and_what_runs():
    async def scene(rig: Rig) -> None:
        await rig.verb(create("v1", code=definition("M", predict=MethodInfo("predict")), options=ONE_CPU, num_replicas=2))
        await rig.endpoint("e", "v1")
        found = await rig.describe()
        assert found.name == "test"
        assert found.http_urls == ("http://127.0.0.1:1234",)
        info = found.backends["v1"]
        assert (info.tag, info.definition, info.state, info.reason) == ("v1", "M", "ready", "")
        assert set(info.methods) == {"", "predict"}
        assert [replica.state for replica in info.replicas] == ["ready", "ready"]
        assert found.endpoints["e"].traffic == {"v1": 1.0}
        assert found.resources["CPU"] - found.free["CPU"] == 2
        assert found.ready
        assert {process.role for process in found.processes} >= {"supervisor", "controller"}

    play(scene)


def test_an_instance_is_ready_when_every_backend_with_traffic_has_a_replica():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e", "v1")
        assert (await rig.describe()).ready
        rig.engine.hold("v1")
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: not rig.ingress.replicas("v1"), "the table is without it")
        assert not (await rig.describe()).ready

    play(scene)


def test_measure_adds_up_all_routers_also_those_that_have_ended():
    async def scene(rig: Rig) -> None:
        for tag in ("v1", "v2"):
            await rig.create(tag)
        await rig.endpoint("e", "v1")
        router = rig.process("handles")
        await router.link.connected()
        events = (EventCount(RETRIED, "e", "v1", "", 1), EventCount(SHADOW_DROPPED, "e", "v2", "", 1))
        rig.ingress.counters = Counters((RequestCount("e", "v1", 200, 3, 0.5, (1, 2)),), (QueueDepth("v1", 2, 5),), events)
        router.counters = Counters(
            (RequestCount("e", "v1", 200, 4, 0.25, (4,)), RequestCount("e", "v1", 500, 1, 1.0)), (QueueDepth("v1", 1, 1),)
        )

        async def measured() -> Measurement:
            return msgspec.msgpack.decode((await rig.verb(Measure())).result, type=Measurement)

        found = await measured()
        added_up = (RequestCount("e", "v1", 200, 7, 0.75, (5, 2)), RequestCount("e", "v1", 500, 1, 1.0))
        assert found.counters.requests == added_up
        assert found.counters.queues == (QueueDepth("v1", 3, 6),)
        assert (found.counters.shadows_dropped, found.counters.retried, found.routers) == (1, 1, 2)
        await router.link.close()
        while (found := await measured()).routers != 1:
            pass
        assert found.counters.requests == added_up
        assert found.counters.queues == (QueueDepth("v1", 2, 5),)

    play(scene)


def test_connecting_compares_only_what_was_given_and_names_all_that_differs():
    async def scene(rig: Rig) -> None:
        await rig.verb(CompareInit({}))
        await rig.verb(CompareInit({"http_port": 0, "debug": False, "resources": None}))
        await rig.verb(CompareInit({"http_port": 1234, "http_host": "127.0.0.1", "state_dir": None}))
        with pytest.raises(ConfigError, match=r"http_port=8000.*num_ingresses=3"):
            await rig.verb(CompareInit({"http_port": 8000, "num_ingresses": 3, "debug": False}))

    play(scene)


def test_shutdown_waits_for_the_requests_under_way_then_stops_everything_and_answers():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        await rig.endpoint("e", "v1")
        rig.ingress.counters = Counters((), (QueueDepth("v1", 0, 1),))
        ingress = rig.ingress
        shutdown = asyncio.create_task(rig.shut_down())
        await until(lambda: ingress.table.closing, "new work is refused")
        with pytest.raises(NotRunningError):
            await rig.create("v2")
        assert len(rig.replicas("v1")) == 2
        ingress.counters = Counters((), (QueueDepth("v1", 0, 0),))
        await asyncio.wait_for(shutdown, PATIENCE_S)
        assert rig.engine.running() == {}
        assert [ended.role for ended in rig.engine.ended] == ["replica", "replica", "ingress"]

    play(scene)


def test_routers_in_replicas_go_on_while_the_instance_drains():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        dies, stays = rig.replicas("v1")
        ingress, outside = rig.ingress, rig.process("handles")
        router = rig.process("handles in a replica", replica=stays)
        await router.link.connected()
        ingress.counters = Counters((), (QueueDepth("v1", 0, 1),))
        shutdown = asyncio.create_task(rig.shut_down())
        await until(lambda: ingress.table.closing, "new work is refused")
        version = ingress.table.version
        late = rig.process("first call of a handle", replica=stays)  # of something that was admitted before
        await late.link.connected()
        rig.engine.end(dies)
        await until(lambda: router.tables[-1].version > version and late.tables, "a replica that dies changes the table")
        ingress.counters = Counters()
        await shutdown
        assert not any(table.closing for table in [*router.tables, *late.tables])
        assert outside.table.closing

    play(scene)


def test_shutdown_waits_for_the_replica_that_accepted_requests_wait_for_and_replaces_what_dies():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        rig.engine.hold("v1")
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: rig.replicas("v1"), "its replacement starts")
        ingress = rig.ingress
        ingress.counters = Counters((), (QueueDepth("v1", 1, 1),))
        shutdown = asyncio.create_task(rig.shut_down())
        await until(lambda: ingress.table.closing, "new work is refused")
        (starting,) = rig.replicas("v1")
        rig.engine.release("v1")
        await until(lambda: ingress.replicas("v1") == [starting], "it takes requests")
        rig._controller._had_answered(starting)  # else its death, after another, would put off the next start
        rig.engine.end(starting)
        await until(lambda: bool(ingress.replicas("v1")) and ingress.replicas("v1") != [starting], "it is replaced")
        assert all(table.backends["v1"].replicas or table.backends["v1"].starting for table in ingress.tables if "v1" in table.backends)
        assert not shutdown.done()
        ingress.counters = Counters()
        await shutdown
        assert rig.engine.running() == {}

    play(scene)


def test_what_still_waits_at_the_end_of_a_shutdown_is_told_that_no_replica_will_come():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", graceful_shutdown_timeout=0.1)
        await rig.create("v2", graceful_shutdown_timeout=0.1)
        rig.engine.hold("v1")
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: rig.replicas("v1"), "its replacement starts")
        ingress = rig.ingress
        ingress.busy_backends = ("v2",)
        deletion = asyncio.create_task(rig.try_verb(DeleteBackend("v2")))
        ingress.counters = Counters((), (QueueDepth("v1", 1, 1),))
        await until(lambda: "v2" in ingress.table.leaving, "v2 is leaving")
        await rig.shut_down()
        await deletion
        for entry in (ingress.table.backends["v1"], *ingress.table.leaving.values()):
            assert (entry.replicas, entry.starting) == ((), 0)
        assert [ended.role for ended in rig.engine.ended][-1] == "ingress"

    play(scene)


def test_shutdown_ends_verbs_that_wait_and_leaves_nothing_of_them():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("slow")
        slow = asyncio.create_task(rig.create("slow"))
        await until(lambda: rig.replicas("slow"), "it starts")
        await rig.shut_down()
        with pytest.raises(NotRunningError):
            await slow
        assert rig.engine.running() == {}

    play(scene)


def test_everybody_who_asks_for_a_shutdown_is_answered():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await asyncio.gather(rig.shut_down(), rig.shut_down(), rig.shut_down())

    play(scene)


def test_a_verb_sent_again_is_applied_once_and_gets_the_same_answer():
    async def scene(rig: Rig) -> None:
        verb: CreateBackend = create("v1")
        first = await rig.repeat("id-1", verb)
        second = await rig.repeat("id-1", verb)
        assert first.error is None
        assert first == second
        assert len(rig.replicas("v1")) == 1
        refused = await rig.repeat("id-2", verb)
        assert refused.error is not None
        await rig.verb(DeleteBackend("v1"))
        assert await rig.repeat("id-2", verb) == refused

    play(scene)


def rest(rig: Rig) -> None:
    """The controller has just pushed a table, and that was much work: the next push waits."""
    rig._controller._routers._pace.done(1.0, asyncio.get_running_loop().time())


def test_routers_are_told_of_a_replica_that_has_no_grace_before_it_ends():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2, graceful_shutdown_timeout=0)
        stop, told = rig.engine.stop, []

        async def stopped(id: str, grace_s: float) -> None:
            table = rig._controller._routers.table
            assert table is not None
            told.append(id not in {replica.id for replica in table.backends["v1"].replicas})
            await stop(id, grace_s)

        rig.engine.stop = stopped  # type: ignore[method-assign]
        rest(rig)
        await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 1}, None))
        assert told == [True]

    play(scene)


def test_what_an_endpoint_had_is_waited_for_though_another_of_its_name_comes_at_once():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e", "v1")
        rig.ingress.busy_endpoints = ("e",)
        rest(rig)
        deletion = asyncio.create_task(rig.verb(DeleteEndpoint("e")))
        await asyncio.sleep(0)  # it has been sent
        await rig.endpoint("e", "v1")
        await rig.endpoint("f")  # a whole turn of everything
        assert not deletion.done()
        rig.ingress.is_idle()
        await deletion
        assert "e" in rig.ingress.table.endpoints

    play(scene)
