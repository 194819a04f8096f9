"""In which surroundings does user code run in a real instance, and where does what it prints go?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headgate import serve
from headgate.engines.local import launch
from headgate.errors import ReplicaStartError
from headgate.serve import Instance
from tests.leaks import processes
from tests.support import GONE_WITHIN_S, wait_until

pytestmark = pytest.mark.local_engine("it has a supervisor")


def _answer(function: Callable[..., Any], **options: object) -> Any:
    """What a function returns in a replica with these `ray_actor_options`."""
    serve.create_backend("b", function, ray_actor_options=options)
    serve.create_endpoint("e", backend="b")
    try:
        return serve.get(serve.get_handle("e").remote(), timeout_s=20)
    finally:
        serve.delete_endpoint("e")
        serve.delete_backend("b")


def test_env_vars_devices_and_threads_reach_user_code(instance: Instance) -> None:
    def look():
        import os

        return {name: os.environ.get(name) for name in ("MINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}

    found = _answer(look, num_cpus=2, num_gpus=1, runtime_env={"env_vars": {"MINE": "yes"}})
    assert found == {"MINE": "yes", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2"}


def test_numpy_starts_after_its_limits_are_set(instance: Instance) -> None:
    def look():
        import os
        import sys

        before = "numpy" in sys.modules
        import numpy as np

        np.ones((300, 300)) @ np.ones((300, 300))
        return before, len(os.listdir("/proc/self/task"))

    before, threads = _answer(look)
    assert not before
    assert threads <= 3  # the main thread, the I/O thread, and at most one of uvloop's; none of OpenBLAS


def test_a_working_directory_and_a_time_zone_are_the_drivers(instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")

    def look():
        import os
        import time

        return os.getcwd(), time.strftime("%z", time.localtime(0))

    assert _answer(look) == (str(tmp_path), "+0530")


def test_a_hash_seed_starts_a_fresh_interpreter_which_sees_only_its_own_python_path(instance: Instance) -> None:
    def look():
        import os

        return hash("headgate"), os.environ.get("PYTHONPATH"), os.environ["PYTHONHASHSEED"]

    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    expected = subprocess.run([sys.executable, "-c", "print(hash('headgate'))"], env=environ, capture_output=True, text=True, check=True)
    found = _answer(look, runtime_env={"env_vars": {"PYTHONHASHSEED": "7"}})
    assert found == (int(expected.stdout), os.environ.get("PYTHONPATH"), "7")


def test_a_fresh_interpreter_dies_with_its_instance_like_a_fork(instance: Instance) -> None:
    def look():
        import os

        return os.getpid(), os.getsid(0), os.getppid()

    pid, session, parent = _answer(look, runtime_env={"env_vars": {"PYTHONHASHSEED": "7"}})
    forked, _, forked_parent = _answer(look)
    assert pid == session
    assert pid != forked
    assert parent == forked_parent


def test_replicas_differ_in_what_they_draw_at_random(instance: Instance) -> None:
    def draw():
        import random
        import uuid

        return random.random(), uuid.uuid4().hex

    assert _answer(draw) != _answer(draw)


SCRIPT = """
import sys, time
from headgate import serve
from headgate.errors import ReplicaStartError

class Loud:
    def __init__(self, fails=False):
        print("constructing")
        if fails:
            raise ValueError("the model is not there")
    def __call__(self):
        print("called")
        return 1

if __name__ == "__main__":
    serve.init({init})
    serve.create_backend("loud", Loud)
    serve.create_endpoint("loud", backend="loud")
    assert serve.get_handle("loud").remote().result() == 1
    try:
        serve.create_backend("failing", Loud, fails=True)
    except ReplicaStartError as error:
        assert "the model is not there" in str(error) and "Traceback" in str(error)
    {then}
"""


def _script(tmp_path: Path, init: str, then: str = "") -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(init=init, then=then))
    return [sys.executable, str(path)]


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_what_user_code_prints_is_on_the_drivers_terminal_and_a_constructors_traceback_too(tmp_path: Path) -> None:
    done = subprocess.run(_script(tmp_path, "http_port=0"), env=_environ(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = [line.partition("] ") for line in done.stdout.splitlines()]
    assert [text for _, _, text in said] == ["constructing", "called", "constructing"]
    assert all(whose.startswith(f"[{tag}/") for (whose, _, _), tag in zip(said, ("loud", "loud", "failing"), strict=True))
    assert "ValueError: the model is not there" in done.stderr
    assert 'script.py", line' in done.stderr
    assert not processes()


def test_what_a_detached_instance_prints_is_in_its_log(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    init = f"'side', http_port=0, detached=True, state_dir={str(state_dir)!r}"
    done = subprocess.run(_script(tmp_path, init), env=_environ(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert launch.find("side") is not None
    serve.init("side")
    serve.shutdown()
    assert not processes()
    logs = {path: path.read_text() for path in (state_dir / "logs").glob("replica-*.log")}
    assert [sum(said in log for log in logs.values()) for said in ('"text":"called"', "ValueError: the model is not there")] == [1, 1]
    assert all('"text":"constructing"' in log for log in logs.values())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in logs)
    assert not done.stdout


@pytest.mark.parametrize("forks", ["", "import os; os.fork() or time.sleep(600)"], ids=["alone", "with a fork that lives on"])
def test_a_real_instance_is_gone_two_seconds_after_its_driver_was_killed(tmp_path: Path, forks: str) -> None:
    then = f"{forks}\n    print('up', flush=True)\n    time.sleep(600)"
    script = _script(tmp_path, "http_port=0", then)
    driver = subprocess.Popen(script, env=_environ(), stdout=subprocess.PIPE, text=True, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        assert driver.stdout is not None  # it is a pipe
        while driver.stdout.readline() != "up\n":
            assert driver.poll() is None
        mine = {pid for pid in processes() if os.getsid(pid) == driver.pid}
        folder = launch.find("default")
        assert folder is not None
        assert len(mine) == (2 if forks else 1)
        os.kill(driver.pid, signal.SIGKILL)
        begun = time.monotonic()
        wait_until(lambda: set(processes()) <= mine and not os.path.exists(folder), GONE_WITHIN_S)
        assert time.monotonic() - begun < GONE_WITHIN_S
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait(10)
        if driver.stdout is not None:
            driver.stdout.close()
    wait_until(lambda: not processes())


def test_a_constructor_that_crashes_says_how_it_ended(instance: Instance) -> None:
    def crash():
        pass

    class Crashes:
        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGSEGV)

        def __call__(self) -> None:
            crash()

    with pytest.raises(ReplicaStartError, match="SIGSEGV"):
        serve.create_backend("b", Crashes)
    assert serve.list_backends() == {}
