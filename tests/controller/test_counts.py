"""Does what an instance has counted stay, over the ends of its processes and of its controller?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headgate import usage
from headgate.config import BackendConfig, ReplicaOptions
from headgate.controller import kept_counts
from headgate.controller.kept_counts import KeptCounting, KeptCounts
from headgate.core.labels import REMEMBERED
from headgate.core.messages import DeleteBackend, DeleteEndpoint, Deploy, DeployedBackend, Measure
from headgate.core.reports import Counters, Measurement, RequestCount, Usage
from headgate.errors import InsufficientResourcesError, ReplicaStartError
from tests.controller.rig import Rig, create, definition, play
from tests.support import until


async def measured(rig: Rig) -> Measurement:
    return msgspec.msgpack.decode((await rig.verb(Measure())).result, type=Measurement)


def test_what_was_shown_never_counts_backwards_though_the_controller_dies_with_who_had_counted_it():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("e", "v1")
        rig.engine.end(rig.replicas("v1")[0], "killed by SIGSEGV")
        await until(lambda: len(rig.replicas("v1")) == 1, "another has taken its place")
        router = rig.process("handles")
        await router.link.connected()
        router.counters = Counters((RequestCount("e", "v1", 200, 4, 0.25, (4,)),))
        rig.ingress.counters = Counters((RequestCount("e", "v1", 200, 3, 0.5, (1, 2)),))
        before = await measured(rig)
        assert before.counters.requests == (RequestCount("e", "v1", 200, 7, 0.75, (5, 2)),)
        assert (before.replica_starts, before.replica_death_reasons) == ({"v1": 2}, {"v1": {"signal": 1}})
        assert before.replica_start_times["v1"].count >= 1
        await router.link.close()
        await rig.crash()
        await rig.start()
        after = await measured(rig)
        assert after.counters.requests == before.counters.requests
        assert (after.replica_starts, after.replica_deaths) == (before.replica_starts, before.replica_deaths)
        assert after.replica_start_times["v1"].count >= before.replica_start_times["v1"].count

    play(scene)


def counted(*names: str) -> Counters:
    """What a router has counted of each: a request to the endpoint and the backend of that name."""
    return Counters(tuple(RequestCount(name, name, 200, 1, 0.25, (1,)) for name in names))


def test_what_is_told_of_a_thousand_endpoints_and_backends_that_come_and_go_stays_bounded():
    async def scene(rig: Rig) -> None:
        names: list[str] = []
        sizes: list[int] = []
        router = rig.process("handles")
        await router.link.connected()
        for number in range(1000):
            names.append(f"v{number:03}")
            await rig.create(names[-1])
            await rig.endpoint(names[-1], names[-1])
            router.counters = counted(*names[-2 * REMEMBERED :])  # of which a router keeps twice as many
            if number % 50 == 49:
                found = await measured(rig)
                told = names[-REMEMBERED - 1 :]
                assert [count.endpoint for count in found.counters.requests] == told
                assert [found.replica_starts.get(name, 0) for name in told] == [1] * len(told)
                assert set(found.replica_start_times) | set(found.replica_starts) <= set(told)
                sizes.append(os.stat(f"{rig.folder}/counters").st_size)
            await rig.verb(DeleteEndpoint(names[-1]))
            await rig.verb(DeleteBackend(names[-1]))
        assert max(sizes[10:]) <= 1.1 * sizes[10]  # once many have ended
        fleet = rig._controller._fleet
        assert max(len(counts) for counts in (fleet.starts, fleet.start_times, fleet.start_failures, fleet.deaths)) <= REMEMBERED + 1

    play(scene)


def test_starts_of_backends_that_never_came_to_be_are_told_for_a_while():
    async def scene(rig: Rig) -> None:
        for number in range(REMEMBERED + 50):
            rig.engine.fail_next(f"v{number:03}", ReplicaStartError("no model"))
            await rig.try_verb(create(f"v{number:03}"))
            found = await measured(rig)
            assert found.replica_start_failures[f"v{number:03}"] == 1
            assert len(found.replica_start_failures) == min(number + 1, REMEMBERED)

    play(scene)


def test_what_comes_back_while_it_is_remembered_counts_on_and_so_it_does_over_the_death_of_the_controller():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        await rig.endpoint("v1", "v1")
        rig.ingress.counters = counted("v1")
        for verb in (DeleteEndpoint("v1"), DeleteBackend("v1")):
            await rig.verb(verb)
            assert (await measured(rig)).counters.requests == rig.ingress.counters.requests
        await rig.crash()
        await rig.start()
        found = await measured(rig)
        assert (found.counters.requests, found.replica_starts) == (rig.ingress.counters.requests, {"v1": 1})
        await rig.create("v1")
        assert (await measured(rig)).replica_starts == {"v1": 2}

    play(scene)


def test_a_start_that_came_to_nothing_is_counted_as_that():
    async def scene(rig: Rig) -> None:
        rig.engine.fail_next("v1", ReplicaStartError("no model"))
        done = await rig.try_verb(create("v1"))
        assert done.error is not None
        found = await measured(rig)
        assert (found.replica_starts, found.replica_start_failures, found.replica_deaths) == ({"v1": 1}, {"v1": 1}, {})

    play(scene)


def test_what_has_failed_of_late_is_told_also_replicas_that_ended_or_did_not_start():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
        assert (await measured(rig)).failures == ()
        rig.engine.fail_next("v1", ReplicaStartError("no model", remote_traceback="Traceback: it isn't there"))
        rig.engine.end(rig.replicas("v1")[0], "killed by SIGSEGV")
        await until(lambda: len(rig.replicas("v1")) == 1, "another has taken its place at last")
        start, death = (await measured(rig)).failures
        assert (death.kind, death.backend, death.error, death.message) == ("ReplicaDiedError", "v1", "signal", "killed by SIGSEGV")
        assert (start.kind, start.backend, start.message) == ("ReplicaStartError", "v1", "no model")
        assert start.traceback == "Traceback: it isn't there"

    play(scene)


def test_a_start_without_room_or_that_nobody_wants_any_more_is_no_failed_one():
    async def scene(rig: Rig) -> None:
        rig.engine.fail_next("v1", InsufficientResourcesError("all is taken"))
        assert (await rig.try_verb(create("v1"))).error is not None
        state = (await rig.describe()).state_id
        held = DeployedBackend("held", definition(), BackendConfig(), ReplicaOptions())
        work = asyncio.create_task(rig.driver.link.call(Deploy((held,), (), state)))
        await until(lambda: rig.replicas("held"), "it starts")
        work.cancel()
        await until(lambda: not rig.replicas("held"), "it is given up")
        found = await measured(rig)
        assert (found.replica_starts, found.replica_start_failures) == ({"v1": 1, "held": 1}, {})

    play(scene, hold=("held",))


def test_processes_are_told_with_what_they_use():
    async def scene(rig: Rig) -> None:
        rig.ingress.counters = Counters(usage=Usage(1.5, 4096))
        processes = {process.role: process for process in (await measured(rig)).processes}
        assert processes["ingress"].usage == Usage(1.5, 4096)
        assert processes["controller"].usage.cpu_seconds > 0
        assert processes["controller"].usage.rss_bytes > 1 << 20

    play(scene)


@pytest.mark.parametrize("left", [None, b"", b"garbage", "another"])
def test_what_another_instance_has_left_and_what_can_not_be_read_is_not_counted_on_from(left: bytes | str | None, tmp_path: Path):
    kept = KeptCounts("this", KeptCounting(), KeptCounting(), {"v1": 3}, {}, {}, [])
    kept_counts.write(str(tmp_path), kept)
    assert kept_counts.read(str(tmp_path), "this") == kept
    if left is None:
        (tmp_path / "counters").unlink()
    elif isinstance(left, bytes):
        (tmp_path / "counters").write_bytes(left)
    else:
        kept_counts.write(str(tmp_path), msgspec.structs.replace(kept, instance=left))
    assert kept_counts.read(str(tmp_path), "this") is None


def test_a_process_that_has_ended_has_used_nothing():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert usage.of(gone.pid) == Usage()
    assert usage.own().rss_bytes > 1 << 20
