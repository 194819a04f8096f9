"""Does the check that nothing is left behind see what is left behind?"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from tests.leaks import RUNTIME_VARIABLE, Held, processes
from tests.support import wait_until


def test_a_thread_that_runs_on_is_seen():
    before, stop = Held.now(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="left over")
    thread.start()
    try:
        assert Held.now().more_than(before) == ["thread left over"]
    finally:
        stop.set()
        thread.join()
    assert Held.now().more_than(before) == []


def test_a_socket_that_stays_open_is_seen():
    before = Held.now()
    with socket.socket() as left:
        (seen,) = Held.now().more_than(before)
        assert seen.startswith(f"descriptor {left.fileno()}: socket:")


def test_a_child_that_lives_or_was_not_reaped_is_seen():
    before = Held.now()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        wait_until(lambda: any(line.startswith(f"process {child.pid}: ") for line in Held.now().more_than(before)))
        child.kill()
        wait_until(lambda: child.pid not in processes())
        assert f"child process {child.pid}" in Held.now().more_than(before)
    finally:
        child.kill()
        child.wait()
    assert Held.now().more_than(before) == []


def test_a_process_is_found_when_its_parent_has_ended():
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    program = f"import subprocess, sys; print(subprocess.Popen({sleeper}, stdout=subprocess.DEVNULL).pid)"
    pid = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout)
    try:
        assert pid in processes()
    finally:
        os.kill(pid, 9)
    wait_until(lambda: pid not in processes())


def test_a_file_in_the_runtime_folder_is_seen():
    before = Held.now()
    path = os.path.join(os.environ[RUNTIME_VARIABLE], "left")
    with open(path, "w"):
        pass
    try:
        assert Held.now().more_than(before) == ["in the runtime folder: left"]
    finally:
        os.unlink(path)


def test_a_condition_that_never_holds_fails_with_its_last_assertion():
    def never() -> None:
        raise AssertionError("the reason")

    with pytest.raises(AssertionError, match="never: not within") as failed:
        wait_until(never, timeout_s=0.01)
    assert str(failed.value.__cause__) == "the reason"
