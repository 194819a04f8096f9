"""What becomes of an instance when its driver, its supervisor, its controller or one of its replicas is killed?"""

from __future__ import annotations

import functools
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from headgate.engines.local import folders, launch
from headgate.testing import conformance
from tests.conformance import standin
from tests.conformance.harnesses import settings_for
from tests.e2e.standins import driver, fetch, pid_of, scratch, shut_down, start, started, url
from tests.leaks import processes
from tests.support import GONE_WITHIN_S, wait_until

__all__ = ["scratch"]

pytestmark = [pytest.mark.usefixtures("scratch"), pytest.mark.local_engine("it has a supervisor")]


def _gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _supervisor(name: str = "test") -> int:
    record = folders.read_record(launch.folder_for(name))
    assert record is not None
    return record.pid


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "after it has forked children that live on"])
def test_nothing_is_left_two_seconds_after_the_driver_was_killed(monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    monkeypatch.setenv(standin.REPLICAS, f"{conformance.WORKS} {conformance.STUCK} {standin.FORKS}")
    with driver(forks=forks) as pid:
        folder = launch.folder_for("test")
        mine = {other for other in processes() if os.getsid(other) == pid} - {pid}  # the driver's own children
        assert len(mine) == (2 if forks else 0)
        assert len(processes()) == 1 + len(mine) + 1 + 1 + 1 + 3 + 2  # driver, forks; supervisor, controller, ingress, replicas and theirs
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        wait_until(lambda: set(processes()) == mine and not os.path.exists(folder), GONE_WITHIN_S)
        assert time.monotonic() - begun < GONE_WITHIN_S
    wait_until(lambda: not processes())


def test_the_children_die_with_their_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standin.REPLICAS, f"{conformance.WORKS} {conformance.STUCK}")
    settings = settings_for("test")
    assert start(settings)
    os.kill(_supervisor(), signal.SIGKILL)
    wait_until(lambda: not processes(), GONE_WITHIN_S)
    assert launch.wait_ended(settings.folder, 5.0)
    assert launch.find("test") is None
    with started("test"):  # and what it left is cleaned
        assert fetch() == "ingress-0"


def test_a_controller_that_is_killed_is_started_again_and_finds_what_runs(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setenv(standin.REPLICAS, conformance.WORKS)
    with started():
        replica, ingress = pid_of("replica-0"), pid_of("ingress-0")
        adopted = scratch / "adopted"
        for _ in range(3):  # each time a little later
            adopted.unlink()
            os.kill(pid_of("controller"), signal.SIGKILL)
            assert fetch() == "ingress-0"
            wait_until(lambda: adopted.exists() and adopted.read_text() == "ingress-0 replica-0", what="adoption")
        assert (pid_of("replica-0"), pid_of("ingress-0")) == (replica, ingress)
        assert not _gone(replica)


def test_a_replica_takes_its_children_along_and_a_child_of_its_own_session_ends_with_the_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(standin.REPLICAS, standin.FORKS)
    with started():
        replica = pid_of("replica-0")
        inside = [pid for pid in processes() if pid != replica and os.getsid(pid) == replica]
        outside = [pid for pid, command in processes().items() if "time.sleep(600)" in command and pid not in inside]
        assert len(inside) == len(outside) == 1
        os.kill(replica, signal.SIGKILL)
        wait_until(lambda: inside[0] not in processes())
        assert outside[0] in processes()
    assert not processes()


def test_every_process_is_the_leader_of_a_session_and_holds_only_what_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standin.REPLICAS, conformance.WORKS)
    with started(num_ingresses=2) as settings:
        inodes = _listening_inodes(int(url().rsplit(":", 1)[1]))
        assert len(inodes) == 2
        held = {}
        for name in ("controller", "replica-0", "ingress-0", "ingress-1"):
            pid = pid_of(name)
            assert os.getsid(pid) == os.getpgid(pid) == pid
            links = _links(pid)
            assert not any(settings.folder in link and link.endswith("/lock") for link in links)
            assert not any("pidfd" in link for link in links)
            assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
            held[name] = {inode for inode in inodes if f"socket:[{inode}]" in links}
        assert not held["controller"]
        assert not held["replica-0"]
        assert len(held["ingress-0"]) == len(held["ingress-1"]) == 1
        assert held["ingress-0"] != held["ingress-1"]


def test_a_dead_ingress_leaves_its_queue_to_its_successor() -> None:
    with started() as settings:
        os.kill(pid_of("ingress-0"), signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"{settings.folder}/spec-ingress-0"))
        port = int(url().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass  # the supervisor still holds the socket


def test_the_spec_and_socket_of_a_replica_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standin.REPLICAS, conformance.WORKS)
    with started() as settings:
        spec = Path(f"{settings.folder}/spec-replica-0")
        assert spec.stat().st_mode & 0o777 == 0o600
        os.kill(pid_of("replica-0"), signal.SIGKILL)
        wait_until(lambda: not spec.exists())


def _told(scratch: Path) -> list[int]:
    """The controllers that were told to end the instance."""
    path = scratch / "told"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def test_a_supervisor_that_is_told_to_end_has_the_controller_do_it_and_leaves_nothing(scratch: Path) -> None:
    settings = settings_for("test")
    assert start(settings)
    os.kill(_supervisor(), signal.SIGTERM)
    assert launch.wait_ended(settings.folder, 5.0)
    assert _told(scratch) == [pid_of("controller")]
    assert not os.path.exists(settings.folder)
    assert not processes()


def test_a_controller_that_was_away_when_the_supervisor_was_told_to_end_is_told_when_it_is_back(scratch: Path) -> None:
    settings = settings_for("test")
    assert start(settings)
    supervisor, controller = _supervisor(), pid_of("controller")
    os.kill(supervisor, signal.SIGSTOP)  # so that it hears of both at once
    os.kill(controller, signal.SIGKILL)
    os.kill(supervisor, signal.SIGTERM)
    os.kill(supervisor, signal.SIGCONT)
    assert launch.wait_ended(settings.folder, 5.0)
    assert _told(scratch) == [pid_of("controller")] != [controller]
    assert not processes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_is_told_to_end_once_more_ends_everything_at_once(number: int, scratch: Path) -> None:
    settings = settings_for("stays")
    assert start(settings)
    supervisor = _supervisor("stays")
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: _told(scratch))
    os.kill(supervisor, number)
    assert launch.wait_ended(settings.folder, GONE_WITHIN_S)
    assert not processes()


def test_a_controller_that_does_not_end_in_its_time_is_ended(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setenv(standin.PATIENCE, "0.5")
    settings = settings_for("stays")
    assert start(settings)
    os.kill(_supervisor("stays"), signal.SIGTERM)
    assert launch.wait_ended(settings.folder, 0.1 + 0.5 + GONE_WITHIN_S)
    assert _told(scratch) == [pid_of("controller")]
    assert not processes()


def test_a_signal_to_all_others_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standin.REPLICAS, conformance.WORKS)
    with started():
        before = {name: pid_of(name) for name in ("controller", "ingress-0", "replica-0")}
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
        assert fetch() == "ingress-0"
        assert {name: pid_of(name) for name in before} == before
        assert not any(map(_gone, before.values()))


def test_a_controller_that_is_stuck_is_replaced(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setenv(standin.PATIENCE, "0.5")
    with started():
        stuck = pid_of("controller")
        os.kill(stuck, signal.SIGSTOP)
        wait_until(lambda: pid_of("controller") != stuck, 0.5 + GONE_WITHIN_S)
        assert _gone(stuck)
        wait_until(lambda: (scratch / "adopted").read_text() == "ingress-0", what="adoption")


def test_each_controller_that_is_stuck_soon_after_its_start_gets_twice_the_time_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setenv(standin.PATIENCE, "0.5")
    with started():
        took_s: list[float] = []
        for _ in range(3):
            stuck = pid_of("controller")
            os.kill(stuck, signal.SIGSTOP)
            begun = time.monotonic()
            wait_until(functools.partial(_replaced, stuck))
            took_s.append(time.monotonic() - begun)
            wait_until(lambda: (scratch / "adopted").read_text() == "ingress-0", what="adoption")
        # Looks are a fifth of the patience apart, so that it may be that much shorter.
        assert [took >= 0.8 * patience for took, patience in zip(took_s, (0.5, 1.0, 2.0), strict=True)] == [True] * 3


def test_a_controller_is_not_blamed_for_a_time_in_which_the_supervisor_was_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standin.PATIENCE, "1")
    with started():
        supervisor, controller = _supervisor(), pid_of("controller")
        for pid in (supervisor, controller):
            os.kill(pid, signal.SIGSTOP)
        _pass(1.5)
        os.kill(supervisor, signal.SIGCONT)
        _pass(0.3)  # the controller wakes a little later
        os.kill(controller, signal.SIGCONT)
        _pass(0.5)
        assert not _gone(controller)
        assert fetch() == "ingress-0"
        assert pid_of("controller") == controller


def _replaced(controller: int) -> bool:
    return _gone(controller) and pid_of("controller") != controller


def _pass(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until)


def test_the_supervisor_has_one_thread_and_no_numpy() -> None:
    with started():
        pid = _supervisor()
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
        with open(f"/proc/{pid}/maps") as file:
            assert "numpy" not in file.read()


def test_a_shutdown_in_the_middle_of_a_crash_of_the_controller_is_obeyed_by_the_next(scratch: Path) -> None:
    settings = settings_for("test")
    assert start(settings)
    os.kill(pid_of("controller"), signal.SIGKILL)
    shut_down(settings)
    assert not processes()


def _links(pid: int) -> list[str]:
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except FileNotFoundError:
            continue
    return found


def _listening_inodes(port: int) -> list[str]:
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return [row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"]
