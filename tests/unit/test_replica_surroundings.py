"""Which environment variables does a replica get, and which of them need a fresh interpreter?"""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.specs import Definition
from headgate.engines.base import ReplicaSpec
from headgate.engines.local import machine, surroundings


def _spec(
    environ: dict[str, str], *, env_vars: dict[str, str] | None = None, num_cpus: float = 0, gpus: tuple[str, ...] = ()
) -> ReplicaSpec:
    return ReplicaSpec(
        id="a",
        token="t",
        backend="b",
        definition=Definition(payload=b"", name="f", environ=environ),
        config=BackendConfig(),
        options=ReplicaOptions(num_cpus=num_cpus, runtime_env={"env_vars": env_vars} if env_vars else {}),
        instance="i",
        gpus=gpus,
    )


def test_numeric_libraries_get_one_thread_unless_cpus_are_asked_for() -> None:
    for cpus, threads in ((0, "1"), (0.5, "1"), (1, "1"), (3, "3"), (2.5, "2")):
        environ = surroundings.environment(_spec({"A": "1"}, num_cpus=cpus), {})
        assert {environ[name] for name in surroundings.THREAD_VARIABLES} == {threads}


def test_what_the_user_set_stays_whether_in_the_drivers_environment_or_in_env_vars() -> None:
    environ = surroundings.environment(_spec({"MKL_NUM_THREADS": "6"}, env_vars={"OPENBLAS_NUM_THREADS": "7"}, num_cpus=2), {})
    assert environ["MKL_NUM_THREADS"] == "6"
    assert environ["OPENBLAS_NUM_THREADS"] == "7"
    assert environ["OMP_NUM_THREADS"] == "2"


def test_the_others_follow_omp_num_threads_where_the_user_set_that() -> None:
    environ = surroundings.environment(_spec({"OMP_NUM_THREADS": "4,2"}, num_cpus=2), {})
    assert environ["OMP_NUM_THREADS"] == "4,2"
    assert environ["MKL_NUM_THREADS"] == "4"


def test_env_vars_come_over_the_drivers_environment_and_devices_over_both() -> None:
    spec = _spec({"A": "1", "B": "1", "CUDA_VISIBLE_DEVICES": "0,1,2"}, env_vars={"B": "2"}, gpus=("GPU-x", "2"))
    environ = surroundings.environment(spec, {"C": "3"})
    assert (environ["A"], environ["B"], environ["CUDA_VISIBLE_DEVICES"]) == ("1", "2", "GPU-x,2")
    assert "C" not in environ


def test_without_a_device_asked_for_the_drivers_devices_are_left_alone() -> None:
    assert surroundings.environment(_spec({"CUDA_VISIBLE_DEVICES": "0,1"}), {})["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "CUDA_VISIBLE_DEVICES" not in surroundings.environment(_spec({"A": "1"}), {})


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "PYTHONPATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_variables_that_are_read_when_a_program_starts_need_a_fresh_one(name: str) -> None:
    own = {"A": "1", name: "1"}
    assert not surroundings.needs_exec(own | {"A": "2", "OMP_NUM_THREADS": "1"}, own)
    assert surroundings.needs_exec(own | {name: "2"}, own)
    assert surroundings.needs_exec({"A": "1"}, own)
    assert surroundings.needs_exec(own, {"A": "1"})


def test_gpus_come_from_the_drivers_own_where_those_are_set(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"nvidia{number + 4}").touch()
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidia-uvm").touch()
    devices = str(tmp_path)
    assert machine.gpu_ids({}, devices) == ("0", "1", "2")
    assert machine.gpu_ids({"CUDA_VISIBLE_DEVICES": "5, GPU-ab,7"}, devices) == ("5", "GPU-ab", "7")
    assert machine.gpu_ids({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, devices) == ("1",)
    assert machine.gpu_ids({"CUDA_VISIBLE_DEVICES": ""}, devices) == ()
    assert machine.gpu_ids({}, f"{devices}/missing") == ()


def test_resources_that_are_given_come_over_those_that_are_found() -> None:
    found, gpus = machine.resources({"CPU": 64, "GPU": 3, "tpu": 1}, {"CUDA_VISIBLE_DEVICES": "1,7"})
    assert (found["CPU"], found["GPU"], found["tpu"]) == (64, 3, 1)
    assert gpus == ("1", "7", "0")
    assert found["memory"] > 0
    assert machine.resources({"GPU": 1}, {"CUDA_VISIBLE_DEVICES": "1,7"})[1] == ("1",)
    assert machine.resources({}, {"CUDA_VISIBLE_DEVICES": "1,7"})[0]["GPU"] == 2
