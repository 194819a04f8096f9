"""Does starting an instance end in one that answers, or in a typed error with nothing left running?"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.engines.local import folders, launch
from headgate.errors import (
    AddressInUseError,
    InstanceStartError,
    InvalidValueError,
    LogDirInUseError,
    StateDirInUseError,
    StateDirUnsafeError,
)
from tests.conformance.harnesses import settings_for
from tests.e2e.standins import driver, fetch, pid_of, scratch, shut_down, start, started, url
from tests.leaks import processes
from tests.support import wait_until

__all__ = ["scratch"]

pytestmark = [pytest.mark.usefixtures("scratch"), pytest.mark.local_engine("it launches a supervisor")]


def _assert_nothing_left(folder: str) -> None:
    assert not processes()
    assert not os.path.exists(folder)


def _killed_supervisor(settings_folder: str) -> None:
    record = folders.read_record(settings_folder)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    assert launch.wait_ended(settings_folder, 5.0)


def test_http_answers_when_launch_returns() -> None:
    with started() as settings:
        assert fetch() == "ingress-0"
        assert launch.find("test") == settings.folder
    assert launch.find("test") is None


def test_an_instance_that_runs_is_not_started_again() -> None:
    with started() as settings:
        before = processes()
        assert not start(settings)
        assert processes() == before


def test_instances_of_other_names_run_side_by_side() -> None:
    with started("one") as one:
        address = url()
        other = settings_for("two")
        assert start(other)
        try:
            assert url() != address
            assert launch.find("one") == one.folder
            assert launch.find("two") == other.folder
        finally:
            folders_ended = (one.folder, other.folder)
            shut_down(other)  # the stand-ins of both look at the same file
    assert not any(map(os.path.exists, folders_ended))


def test_a_port_that_another_instance_has_is_named_and_nothing_is_left() -> None:
    with started("one"):
        port = int(url().rsplit(":", 1)[1])
        before = processes()
        other = settings_for("two", port=port)
        with pytest.raises(AddressInUseError, match=str(port)):
            start(other)
        assert processes() == before
        assert not os.path.exists(other.folder)
        assert fetch() == "ingress-0"


def test_a_port_that_another_program_has_is_named_even_where_it_would_share() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = settings_for("test", port=port)
        with pytest.raises(AddressInUseError, match=str(port)):
            start(settings)
    _assert_nothing_left(settings.folder)


def test_ingresses_share_the_port() -> None:
    with started(num_ingresses=2):
        seen = {"ingress-0": 0, "ingress-1": 0}
        for _ in range(60):
            seen[fetch()] += 1
        assert min(seen.values()) > 5


def test_a_host_that_is_not_of_this_machine_is_refused() -> None:
    settings = settings_for("test", host="192.0.2.1")
    with pytest.raises(InvalidValueError, match=r"192\.0\.2\.1"):
        start(settings)
    _assert_nothing_left(settings.folder)


def test_ipv6_is_served(scratch: Path) -> None:
    with started(host="::1"):
        assert url().startswith("http://[::1]:")
        assert fetch() == "ingress-0"


def test_two_threads_that_start_at_once_make_one_instance() -> None:
    settings = settings_for("test")
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(start(settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    shut_down(settings)


def test_two_processes_that_start_at_once_make_one_instance() -> None:
    program = (
        "import sys; from tests.conformance.harnesses import ROOT, settings_for; from headgate.engines.local import launch\n"
        "print(launch.launch(settings_for('test', detached=True), root=ROOT))"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environ, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=30)[0].strip() for process in both) == ["False", "True"]
    shut_down(settings_for("test"))


def test_an_instance_starts_in_the_moment_in_which_another_of_its_name_ends(scratch: Path) -> None:
    settings = settings_for("test")
    assert start(settings)
    (scratch / "shutdown").touch()
    wait_until(lambda: launch.find("test") is None)
    (scratch / "shutdown").unlink()
    assert start(settings)
    assert fetch() == "ingress-0"
    shut_down(settings)


def test_what_a_dead_instance_left_is_replaced_on_the_same_port() -> None:
    settings = settings_for("test")
    assert start(settings)
    port = int(url().rsplit(":", 1)[1])
    _killed_supervisor(settings.folder)
    assert os.path.exists(f"{settings.folder}/instance")
    assert launch.find("test") is None
    with started(port=port):
        assert fetch() == "ingress-0"


def test_the_folders_of_other_dead_instances_are_swept_and_strangers_are_not() -> None:
    dead = settings_for("dead")
    assert start(dead)
    _killed_supervisor(dead.folder)
    stranger = Path(folders.base_folder(), "stranger")
    stranger.mkdir()
    (stranger / "precious").touch()
    try:
        with started():
            assert not os.path.exists(dead.folder)
            assert (stranger / "precious").exists()
    finally:
        shutil.rmtree(stranger)
        os.rmdir(folders.base_folder())


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_base_folder_that_is_open_to_others_is_refused(mode: int) -> None:
    base = Path(folders.base_folder())
    base.mkdir()
    base.chmod(mode)
    try:
        with pytest.raises(StateDirUnsafeError, match="open to others"):
            start(settings_for("test"))
        with pytest.raises(StateDirUnsafeError, match="open to others"):
            launch.find("test")
        assert not processes()
    finally:
        base.rmdir()


def test_a_base_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    base = Path(folders.base_folder())
    tmp_path.chmod(0o700)
    base.symlink_to(tmp_path)
    try:
        with pytest.raises(StateDirUnsafeError, match="not a folder"):
            start(settings_for("test"))
    finally:
        base.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_base_folder_of_somebody_else_is_refused() -> None:
    base = Path(folders.base_folder())
    base.mkdir(0o700)
    os.chown(base, 12345, 12345)
    try:
        with pytest.raises(StateDirUnsafeError, match="12345"):
            start(settings_for("test"))
    finally:
        base.rmdir()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    base = Path(folders.base_folder())
    base.mkdir(0o700)
    folder = Path(launch.folder_for("test"))
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(StateDirUnsafeError, match="not a folder"):
            start(settings_for("test"))
    finally:
        folder.unlink()
        base.rmdir()


def test_a_log_dir_that_can_not_be_written_to_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    settings = msgspec.structs.replace(settings_for("test"), log_dir=str(tmp_path / "logs"))
    with pytest.raises(InvalidValueError, match=r"log_dir=.*can't be written to: File exists"):
        start(settings)
    _assert_nothing_left(settings.folder)


def test_a_log_dir_takes_the_lines_of_one_instance_at_a_time(tmp_path: Path) -> None:
    log_dir = tmp_path / "logs"
    one, two = (msgspec.structs.replace(settings_for(name), log_dir=str(log_dir)) for name in ("one", "two"))
    assert start(one)
    try:
        said = {path.name: path.read_bytes() for path in log_dir.iterdir()}
        with pytest.raises(LogDirInUseError, match=r"log_dir=.*/logs' is in use"):
            start(two)
        assert not os.path.exists(two.folder)
        assert {path.name: path.read_bytes() for path in log_dir.iterdir()} == said
    finally:
        shut_down(one)
    assert start(two)  # what the first has left is no obstacle
    shut_down(two)


def test_a_state_dir_serves_one_instance_at_a_time(tmp_path: Path) -> None:
    state_dir = str(tmp_path / "state")
    with started("one", state_dir=state_dir):
        other = settings_for("two", state_dir=state_dir)
        with pytest.raises(StateDirInUseError, match="state_dir"):
            start(other)
        assert not os.path.exists(other.folder)
    with started("two", state_dir=state_dir):
        pass
    assert os.path.isdir(state_dir)


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_state_dir_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    state_dir.chmod(mode)
    settings = settings_for("test", state_dir=str(state_dir))
    with pytest.raises(StateDirUnsafeError, match=str(state_dir)):
        start(settings)
    _assert_nothing_left(settings.folder)


def test_the_error_of_a_controller_that_refuses_is_the_errors_own_class() -> None:
    settings = settings_for("refuses")
    with pytest.raises(InvalidValueError, match="this state can't be read"):
        start(settings)
    _assert_nothing_left(settings.folder)


def test_a_controller_that_dies_at_the_start_is_an_error_with_the_end_of_the_log() -> None:
    settings = settings_for("crashes", detached=True)
    with pytest.raises(InstanceStartError, match=r"(?s)SIGKILL.*the controller says goodbye"):
        start(settings)
    _assert_nothing_left(settings.folder)


def test_a_start_that_takes_too_long_is_given_up_and_nothing_is_left() -> None:
    settings = settings_for("hangs")
    with pytest.raises(InstanceStartError, match=r"within 1\.5 s"):
        start(settings, timeout_s=1.5)
    wait_until(lambda: not processes())
    _assert_nothing_left(settings.folder)


def test_an_interrupted_start_leaves_nothing() -> None:
    settings = settings_for("hangs")

    def interrupt() -> None:
        pid_of("controller")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        start(settings)
    thread.join()
    wait_until(lambda: not processes())
    _assert_nothing_left(settings.folder)


def test_descriptors_that_the_driver_leaks_are_not_kept_by_the_instance() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    with started():
        os.close(writer)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""  # nobody else has the other end
    os.close(reader)


def test_a_detached_instance_outlives_its_driver_and_logs_to_a_file(tmp_path: Path) -> None:
    with driver(detached=True, then="") as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    folder = launch.find("test")
    assert folder is not None
    assert fetch() == "ingress-0"
    assert os.readlink(f"/proc/{pid_of('ingress-0')}/fd/1") == f"{folder}/logs/ingress-ingress-0.log"
    shut_down(settings_for("test"))


def test_a_fork_of_the_driver_does_not_wait_for_the_supervisor_as_its_own_child() -> None:
    with started() as settings:
        child = multiprocessing.get_context("fork").Process(target=_shut_down_from_a_fork, args=(settings.folder,))
        child.start()
        child.join(10)
        assert child.exitcode == 0
        child.close()


def _shut_down_from_a_fork(folder: str) -> None:
    begun = time.monotonic()
    assert not launch.wait_ended(folder, 0.05)  # it runs, and is left alone
    assert time.monotonic() - begun < 5


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_every_name_has_a_short_folder_of_its_own(one: str, other: str) -> None:
    folder = launch.folder_for(one)
    assert len(os.fsencode(f"{folder}/r-{'x' * 36}.sock")) <= 107
    assert os.path.dirname(folder) == folders.base_folder()
    assert (folder == launch.folder_for(other)) == (one == other)


def test_a_base_folder_with_too_long_a_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.BASE_VARIABLE, "/tmp/" + "x" * 80)
    with pytest.raises(InvalidValueError, match=folders.BASE_VARIABLE):
        launch.folder_for("test")
