"""Is what runs what is asked for, whatever dies?"""

from __future__ import annotations

import asyncio
import tempfile

import pytest

from headgate.controller import ingresses, lease
from headgate.controller.controller import Controller
from headgate.controller.restarts import Restarts
from headgate.controller.store import Store
from headgate.core import replica_life
from headgate.core.desired import Fault
from headgate.core.messages import BrokenReplica, DeleteBackend, HadAnswered, Pong, UpdateBackend, UpdateBackendConfig
from headgate.engines.base import IngressSpec, Running
from headgate.errors import InstanceStartError, ReplicaStartError
from headgate.router.way import Way
from tests.controller.rig import PATIENCE_S, Engine, Process, Rig, create, definition, play, settings_in
from tests.support import until

QUICK = {"health_check_period": 0.01, "health_check_timeout": 0.1}


@pytest.fixture(autouse=True)
def _quick_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_life, "_FIRST_DELAY_S", 0.02)


async def until_replaced(rig: Rig, tag: str, id: str, count: int = 1) -> None:
    await until(lambda: id not in rig.ingress.replicas(tag) and len(rig.ingress.replicas(tag)) == count, f"{id} is replaced")


def test_a_dead_replica_leaves_the_table_at_once_and_is_replaced():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        dead, other = rig.replicas("v1")
        rig.engine.hold("v1")
        rig.engine.end(dead)
        await until(lambda: rig.ingress.replicas("v1") == [other], "the table is without it")
        assert rig.ingress.table.backends["v1"].starting == 1
        rig.engine.release("v1")
        await until_replaced(rig, "v1", dead, 2)
        assert other in rig.ingress.replicas("v1")

    play(scene)


def test_a_backend_whose_replacement_does_not_start_is_shown_with_the_traceback_and_tried_again():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        for _ in range(3):
            rig.engine.fail_next("v1", ReplicaStartError("no model", remote_traceback="Traceback: here"))
        seen: list[str] = []
        (id,) = rig.replicas("v1")
        rig.engine.end(id)
        await until(lambda: not rig.ingress.replicas("v1"), "it is gone")
        while not rig.ingress.replicas("v1"):
            info = (await rig.describe()).backends["v1"]
            if info.state == "unhealthy":
                seen.append(info.reason)
            await asyncio.sleep(0.001)
        assert any("no model" in reason and "Traceback: here" in reason for reason in seen)
        assert any(
            "Traceback: here" in table.backends["v1"].fault for table in rig.ingress.tables if "v1" in table.backends
        )  # what /-/readyz says
        assert rig.ingress.table.backends["v1"].fault == ""
        info = (await rig.describe()).backends["v1"]
        assert (info.state, info.reason) == ("ready", "")

    play(scene)


def test_a_crash_loop_slows_down_and_no_replica_is_announced_while_none_may_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replica_life, "_FIRST_DELAY_S", 1000.0)

    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        rig.engine.fail_next("v1", ReplicaStartError("boom"))
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: not rig.replicas("v1") and not rig.ingress.table.backends["v1"].starting, "it is given up for now")
        await rig.verb(UpdateBackend("v1", definition("fixed"), allow_gap=False))  # new code gets a new chance
        assert len(rig.ingress.replicas("v1")) == 1

    play(scene)


def test_deaths_after_the_first_answer_never_slow_the_next_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replica_life, "_FIRST_DELAY_S", 1000.0)

    async def scene(rig: Rig) -> None:
        await rig.create("v1", **QUICK)
        for _ in range(5):
            (id,) = rig.replicas("v1")
            rig.say(id, Pong(0, answered=1))
            pings = len(rig.engine.sent[id])
            await until(lambda id=id, pings=pings: len(rig.engine.sent[id]) >= pings + 2, "the controller has heard of the answer")  # type: ignore[misc]  # mypy can't type a lambda with a default
            rig.engine.end(id)
            await until_replaced(rig, "v1", id)

    play(scene)


@pytest.mark.parametrize("told_first", [True, False], ids=["told before its end", "told after its end"])
def test_a_replica_that_had_answered_slows_no_start_though_it_dies_before_it_is_asked(monkeypatch: pytest.MonkeyPatch, told_first: bool):
    monkeypatch.setattr(replica_life, "_FIRST_DELAY_S", 1000.0)

    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        for _ in range(5):
            (id,) = rig.replicas("v1")
            if told_first:
                rig.ingress.link.send(HadAnswered(id))
                await rig.describe()  # so that it has arrived
            rig.engine.end(id)
            if not told_first:
                rig.ingress.link.send(HadAnswered(id))
            await until_replaced(rig, "v1", id)

    play(scene)


def test_the_reason_is_forgotten_once_all_replicas_are_ready_and_the_back_off_is_not(monkeypatch: pytest.MonkeyPatch):
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        rig.engine.fail_next("v1", ReplicaStartError("no model"))
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: rig.ingress.table.backends["v1"].fault == "no model", "it is unhealthy")
        assert rig.ingress.table.backends["v1"].pause_s == pytest.approx(2 * replica_life._FIRST_DELAY_S)
        await until(lambda: len(rig.ingress.replicas("v1")) == 2, "it has recovered")
        rig.engine.hold("v1")
        rig.engine.end(rig.replicas("v1")[0])
        await until(lambda: len(rig.ingress.replicas("v1")) == 1, "one is missing")
        assert "no model" not in rig.ingress.table.backends["v1"].fault
        rig.engine.release("v1")

    play(scene)


def test_why_a_replica_that_had_answered_is_gone_is_said_until_the_next_one_is_ready():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        (id,) = rig.replicas("v1")
        rig.ingress.link.send(HadAnswered(id))
        await rig.describe()  # so that it has arrived
        rig.engine.hold("v1")
        rig.engine.end(id)
        await until(lambda: "killed by SIGKILL" in rig.ingress.table.backends["v1"].fault, "routers know why")
        backend = (await rig.describe()).backends["v1"]
        assert (backend.state, backend.reason) == ("unhealthy", f"replica {id} ended: killed by SIGKILL")
        assert rig.ingress.table.backends["v1"].starting == 1  # at once
        rig.engine.release("v1")
        await until(lambda: rig.ingress.table.backends["v1"].fault == "", "all is well")
        assert (await rig.describe()).backends["v1"].state == "ready"

    play(scene)


def test_what_is_kept_of_a_backend_that_crashes_for_days_is_bounded():
    async def scene() -> None:
        restarts = Restarts(lambda: None)
        for number in range(1000):
            restarts.failed("v1", f"r{number}", replica_life.READY, 100.0 * number - 1.0, "crashed", no_room=False, now=100.0 * number)
        assert len(restarts._troubles["v1"].counted) <= 64
        assert not restarts.take_back("r999")  # one of a thousand: the others stand
        assert restarts.faults() == {"v1": Fault("crashed", 30.0)}
        restarts.forget("v1")

    asyncio.run(scene())


def test_no_task_stays_of_replicas_that_have_come_and_gone():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", num_replicas=2)
        await rig.describe()
        before = len(asyncio.all_tasks())
        for _ in range(20):
            id = rig.replicas("v1")[0]
            rig.ingress.link.send(HadAnswered(id))
            rig.engine.end(id)
            await until_replaced(rig, "v1", id, 2)
            await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 4}, None))
            await rig.verb(UpdateBackendConfig("v1", {"num_replicas": 2}, None))
        await until(lambda: len(asyncio.all_tasks()) <= before, "there are as many tasks as before")

    play(scene)


def test_a_replica_that_gives_no_sign_of_life_is_replaced():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", **QUICK)
        (id,) = rig.replicas("v1")
        rig.engine.stuck.add(id)
        await until_replaced(rig, "v1", id)
        assert [ended.id for ended in rig.engine.ended] == [id]

    play(scene)


def test_while_a_stuck_replica_is_killed_another_is_announced_so_that_what_is_queued_waits():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", **QUICK)
        (id,) = rig.replicas("v1")
        rig.engine.stuck.add(id)
        await until_replaced(rig, "v1", id)
        seen = [table.backends["v1"] for table in rig.ingress.tables if "v1" in table.backends]
        assert all(backend.replicas or backend.starting for backend in seen), "routers were told that nobody will come"

    play(scene)


@pytest.mark.parametrize("pong", [Pong(0, overdue_s=0.2), Pong(0, unhealthy="ValueError: lost the GPU")])
def test_a_replica_that_is_overdue_or_unwell_is_replaced(pong: Pong):
    async def scene(rig: Rig) -> None:
        await rig.create("v1", **QUICK)
        (id,) = rig.replicas("v1")
        rig.say(id, pong)
        await until_replaced(rig, "v1", id)

    play(scene)


def test_a_shorter_health_check_period_counts_at_once():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", **(QUICK | {"health_check_period": 1000.0}))
        (id,) = rig.replicas("v1")
        rig.say(id, Pong(0, unhealthy="ValueError: lost the GPU"))
        await rig.verb(UpdateBackendConfig("v1", {"health_check_period": 0.01}, None))
        await until_replaced(rig, "v1", id)

    play(scene)


def test_a_call_that_is_a_little_overdue_is_left_alone():
    async def scene(rig: Rig) -> None:
        await rig.create("v1", **QUICK)
        (id,) = rig.replicas("v1")
        rig.say(id, Pong(0, overdue_s=0.05))
        await until(lambda: len(rig.engine.sent[id]) > 5, "it was asked a few times")
        assert rig.replicas("v1") == [id]

    play(scene)


def test_a_replica_that_a_router_can_not_talk_to_is_killed_and_replaced():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        (id,) = rig.replicas("v1")
        rig.ingress.link.send(BrokenReplica("no-such-replica", "garbage"))
        rig.ingress.link.send(BrokenReplica(id, "garbage"))
        rig.ingress.link.send(BrokenReplica(id, "garbage"))
        await until_replaced(rig, "v1", id)
        (replacement,) = rig.replicas("v1")
        rig.ingress.link.send(BrokenReplica(id, "garbage"))
        await rig.describe()
        assert rig.replicas("v1") == [replacement]

    play(scene)


def test_a_dead_ingress_is_started_again_with_its_number_and_the_latest_table():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        (before,) = [found for found in rig.engine.running().values() if found.role == "ingress"]
        rig.engine.end(before.id)
        await until(lambda: any(found.role == "ingress" for found in rig.engine.running().values()), "there is an ingress again")
        await rig.endpoint("e", "v1")  # returns only when the new one follows
        assert "e" in rig.ingress.table.endpoints
        (after,) = [found for found in rig.engine.running().values() if found.role == "ingress"]
        assert after.id != before.id
        assert after.spec is not None
        assert before.spec is not None
        assert after.spec.place == before.spec.place  # type: ignore[union-attr]  # both are ingresses

    play(scene)


def test_ingresses_come_and_go_with_the_places_for_them():
    def placed(rig: Rig) -> list[str]:
        return sorted(found.spec.place for found in rig.engine.running().values() if isinstance(found.spec, IngressSpec))

    async def scene(rig: Rig) -> None:
        rig.engine.set_places("0", "a", "b")
        await until(lambda: placed(rig) == ["0", "a", "b"], "there is one at each place")
        await until(lambda: rig.ingress.table.num_ingresses == 3, "they share what may be held")
        rig.engine.set_places("a")
        await until(lambda: placed(rig) == ["a"], "those without a place have left")
        await rig.crash()
        rig.engine._places = ["a", "c"]  # while there was no controller
        await rig.start()
        await until(lambda: placed(rig) == ["a", "c"], "the next controller sees to it, too")
        await rig.create("v1")
        await rig.endpoint("e", "v1")  # returns only when all follow

    play(scene)


def test_an_instance_on_a_cluster_ends_when_its_owner_is_away_for_too_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "AWAY_S", 0.3)

    async def scene(rig: Rig) -> None:
        owner = Process(rig.way, "client", "owner", owner=True)
        await owner.link.connected()
        await rig.create("v1")
        await rig.crash()
        await rig.start()  # the owner comes back in time
        await until(lambda: not rig._controller._lease._timer, "the owner is there again")
        await rig.describe()
        await owner.link.close()
        await rig.ended()
        assert rig.replicas("v1") == []

    play(scene, leased=True)


def test_an_ingress_that_gives_no_sign_of_life_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingresses, "CHECK_PERIOD_S", 0.01)
    monkeypatch.setattr(ingresses, "CHECK_TIMEOUT_S", 0.05)

    async def scene(rig: Rig) -> None:
        stuck = rig.ingress.id
        rig.engine.stuck.add(stuck)
        await until(lambda: stuck not in rig.engine.running(), "it is killed")
        await until(lambda: any(found.role == "ingress" for found in rig.engine.running().values()), "there is an ingress again")

    play(scene)


def test_a_replica_that_dies_while_its_backend_is_created_fails_the_verb():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        creating = asyncio.create_task(rig.try_verb(create("v1", num_replicas=2)))
        await until(lambda: len(rig.replicas("v1")) == 2, "both start")
        rig.engine.end(rig.replicas("v1")[0], "killed by SIGSEGV")
        done = await creating
        assert done.error is not None
        assert done.error.kind == "ReplicaStartError"
        assert "SIGSEGV" in done.error.message
        assert rig.replicas("v1") == []

    play(scene)


def test_a_new_instance_whose_ingress_can_not_start_is_given_up_and_says_why():
    class NoIngress(Engine):
        async def start_ingress(self, spec: IngressSpec) -> Running:
            raise ReplicaStartError("no such certificate")

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="hg-") as folder:
            with pytest.raises(InstanceStartError, match="no such certificate"):
                await asyncio.wait_for(
                    Controller(settings_in(folder), NoIngress(), Way(folder), Store(folder, durable=False)).run(), PATIENCE_S
                )

    asyncio.run(main())


def test_a_replica_that_dies_while_others_of_its_backend_are_in_their_constructors_fails_the_verb_at_once():
    async def scene(rig: Rig) -> None:
        rig.engine.hold("v1")
        creating = asyncio.create_task(rig.try_verb(create("v1", num_replicas=2)))
        await until(lambda: len(rig.replicas("v1")) == 2, "both start")
        ready, _ = rig.replicas("v1")
        rig.engine._construct(rig.engine._running[ready])
        await until(lambda: rig.engine.running()[ready].state == "ready", "one is ready")
        await rig.describe()
        rig.engine.end(ready)
        done = await creating  # although the other one is still held
        assert done.error is not None
        assert rig.replicas("v1") == []

    play(scene)


def test_a_replica_that_is_ended_over_its_work_is_named_in_the_log(caplog: pytest.LogCaptureFixture):
    async def scene(rig: Rig) -> None:
        await rig.create("v1", graceful_shutdown_timeout=0.05)
        (id,) = rig.replicas("v1")
        rig.engine.busy.add(id)
        await rig.verb(DeleteBackend("v1"))
        assert f"replica {id} of backend 'v1' was ended over what it had not finished" in caplog.text

    play(scene)
