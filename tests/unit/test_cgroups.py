"""How many CPUs, and how much memory, does an instance find that is limited by control groups?"""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate.engines.local import cgroups, machine


def lay(root: Path, **files: str) -> str:
    """These files below it: `a__b` stands for `a/b`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def at(path: str) -> str:
    return path.replace("/", "__")


def test_a_container_sees_its_limits_at_the_root(tmp_path: Path):
    root = lay(
        tmp_path,
        proc__self__cgroup="0::/\n",
        **{at("sys/fs/cgroup/cpu.max"): "200000 100000\n", at("sys/fs/cgroup/memory.max"): "536870912\n"},
    )
    assert cgroups.cpus(root) == 2
    assert cgroups.memory_bytes(root) == 536870912


def test_half_a_cpu_is_half_a_cpu(tmp_path: Path):
    assert cgroups.cpus(lay(tmp_path, **{at("sys/fs/cgroup/cpu.max"): "50000 100000\n"})) == 0.5


def test_without_a_limit_there_is_none(tmp_path: Path):
    files = {at("sys/fs/cgroup/cpu.max"): "max 100000\n", at("sys/fs/cgroup/memory.max"): "max\n"}
    root = lay(tmp_path, proc__self__cgroup="0::/user.slice\n", **files)
    assert cgroups.cpus(root) is None
    assert cgroups.memory_bytes(root) is None
    assert cgroups.cpus(str(tmp_path / "nothing")) is None


def test_the_lowest_of_all_groups_above_a_service_counts(tmp_path: Path):
    slice_ = "sys/fs/cgroup/system.slice"
    root = lay(
        tmp_path,
        proc__self__cgroup="0::/system.slice/headgate.service\n",
        **{
            at(f"{slice_}/cpu.max"): "300000 100000\n",
            at(f"{slice_}/headgate.service/cpu.max"): "600000 100000\n",
            at(f"{slice_}/headgate.service/memory.max"): "1000\n",
            at(f"{slice_}/other.service/cpu.max"): "100000 100000\n",
        },
    )
    assert cgroups.cpus(root) == 3
    assert cgroups.memory_bytes(root) == 1000


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_control_groups_of_version_1_are_read_too(tmp_path: Path, mount: str):
    group = f"sys/fs/cgroup/{mount}/docker/4711"
    memory = "sys/fs/cgroup/memory/docker/4711/memory.limit_in_bytes"
    root = lay(
        tmp_path,
        proc__self__cgroup=f"5:memory:/docker/4711\n4:{mount}:/docker/4711\n1:name=systemd:/docker/4711\n",
        **{at(f"{group}/cpu.cfs_quota_us"): "150000\n", at(f"{group}/cpu.cfs_period_us"): "100000\n", at(memory): "4096\n"},
        **{at(f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us"): "-1\n", at(f"sys/fs/cgroup/{mount}/cpu.cfs_period_us"): "100000\n"},
    )
    assert cgroups.cpus(root) == 1.5
    assert cgroups.memory_bytes(root) == 4096


def test_a_container_of_version_1_that_is_told_its_path_outside_sees_its_limits_at_the_root(tmp_path: Path):
    root = lay(
        tmp_path,
        proc__self__cgroup="4:cpu,cpuacct:/docker/4711\n",
        **{at("sys/fs/cgroup/cpu/cpu.cfs_quota_us"): "400000\n", at("sys/fs/cgroup/cpu/cpu.cfs_period_us"): "100000\n"},
    )
    assert cgroups.cpus(root) == 4


def test_what_the_groups_leave_limits_the_machine_and_never_adds_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(cgroups, "cpus", lambda: 2.0)
    assert machine.resources({}, {})[0]["CPU"] == 2
    assert machine.resources({"CPU": 5}, {})[0]["CPU"] == 5
    monkeypatch.setattr(cgroups, "cpus", lambda: 100.0)
    assert machine.resources({}, {})[0]["CPU"] == 64
    monkeypatch.setattr(cgroups, "cpus", lambda: None)
    assert machine.resources({}, {})[0]["CPU"] == 64
