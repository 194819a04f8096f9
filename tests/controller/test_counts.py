"""Does what an instance has counted stay, over the ends of its processes and of its controller?"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headgate import usage
from headgate.config import BackendConfig, ReplicaOptions
from headgate.controller import kept_counts
from headgate.controller.kept_counts import KeptCounting, KeptCounts
from headgate.core.messages import Deploy, DeployedBackend, Measure
from headgate.core.reports import Counters, Measurement, RequestCount, Usage
from headgate.errors import InsufficientResourcesError, ReplicaStartError
from tests.controller.rig import Rig, create, definition, play
from tests.support import until


async def measured(rig: Rig) -> Measurement:
    return msgspec.msgpack.decode((await rig.verb(Measure())).result, type=Measurement)


def test_what_was_shown_never_counts_backwards_though_the_controller_dies_with_who_had_counted_it():
    async def scene(rig: Rig) -> None:
        await rig.create("v1")
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


def test_a_start_that_came_to_nothing_is_counted_as_that():
    async def scene(rig: Rig) -> None:
        rig.engine.fail_next("v1", ReplicaStartError("no model"))
        done = await rig.try_verb(create("v1"))
        assert done.error is not None
        found = await measured(rig)
        assert (found.replica_starts, found.replica_start_failures, found.replica_deaths) == ({"v1": 1}, {"v1": 1}, {})

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
