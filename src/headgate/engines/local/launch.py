"""How does the driver start an instance on this machine?

It executes a supervisor, which starts everything else, and waits until HTTP answers. Where that fails, nothing is left
running and the error says why. `serve.init` asks `find` first, and connects where an instance of that name runs.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Final

import msgspec

from headgate.engines.base import InstanceSettings, Report
from headgate.engines.local import folders
from headgate.engines.local.folders import LocalWay, find, folder_for, has_died
from headgate.engines.local.protocol import Boot
from headgate.errors import InstanceStartError, InvalidValueError, rebuild
from headgate.logs.entry import as_text, from_json
from headgate.logs.output import path_of
from headgate.router.admin import TOKEN_VARIABLE
from headgate.router.way import Way

__all__ = ["LocalStarter", "find", "folder_for", "has_died", "launch", "reap", "wait_ended"]

START_TIMEOUT_S: Final = 60.0
REAP_TIMEOUT_S: Final = 5.0
_LOG_TAIL_BYTES: Final = 4096
_INHERITED_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)

_supervisors: dict[str, int] = {}  # by folder: what this process has started and must reap
_supervisors_lock = threading.Lock()
os.register_at_fork(after_in_child=_supervisors.clear)  # a fork of the driver has started nothing


def launch(settings: InstanceSettings, *, root: str = "headgate.root", timeout_s: float = START_TIMEOUT_S) -> bool:
    """Start an instance and wait until HTTP answers. False where one of that name runs already: connect to it.

    `settings.folder` is `folder_for(name)`; `root` is the module to run, whose `main` supervises. Call it from any thread.

    Raises `AddressInUseError`, `StateDirInUseError`, `LogDirInUseError`, `StateDirUnsafeError`, `InvalidValueError` for a `log_dir`
    that can't be used, or `InstanceStartError` for anything else, with the end of the log. After an error, or an interrupt, nothing of
    it is left running.
    """
    if settings.state_kept:
        folders.check_state_dir(settings.state_dir)
    with folders.starting(settings.folder, timeout_s):
        if not _wait_free(settings.folder, timeout_s):
            return False
        reap(settings.folder)
        replaces_dead = folders.clear(settings.folder)
        python_path = os.environ.get("PYTHONPATH")
        _start(Boot(settings=settings, root=root, python_path=python_path, replaces_dead=replaces_dead), timeout_s)
    folders.sweep(os.path.dirname(settings.folder))
    return True


class LocalStarter:
    """See `Starter`: the functions of this module, for instances of this machine."""

    def find(self, name: str) -> Way | None:
        """The way to the running instance of that name."""
        folder = find(name)
        record = None if folder is None else folders.read_record(folder)
        return None if folder is None or record is None else LocalWay(folder, traces=record.traces)

    def running(self) -> list[str]:
        """Of this user, on this machine."""
        return sorted(record.name for record in folders.running())

    def start(self, settings: InstanceSettings) -> Way | None:
        """`launch` it."""
        return LocalWay(settings.folder, traces=settings.traces) if launch(settings) else None

    def wait_ended(self, way: Way, timeout_s: float) -> bool:
        """Also reaps the supervisor, where this process has started it."""
        return wait_ended(way.folder, timeout_s)

    def has_ended(self, way: Way) -> bool:
        """Whether its supervisor is gone."""
        return has_died(way.folder)

    def abandon(self, way: Way) -> None:
        """Without this process it is killed by its supervisor."""

    def leave(self, way: Way) -> None:
        """Where it has ended by itself, nobody has reaped its supervisor so far."""
        if has_died(way.folder):
            reap(way.folder)


def wait_ended(folder: str, timeout_s: float) -> bool:
    """Wait until the instance in this folder has ended and left nothing; False where it has not after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    if not folders.wait_ended(folder, timeout_s):
        return False
    with _supervisors_lock:
        pid = _supervisors.pop(folder, None)
    if pid is not None and not _reap(pid, deadline):
        with _supervisors_lock:
            _supervisors[folder] = pid
        return False
    return True


def reap(folder: str) -> None:
    """Reap the supervisor of the instance that this process had started in this folder, and that has let go of it."""
    with _supervisors_lock:
        pid = _supervisors.pop(folder, None)
    if pid is not None:
        _reap(pid, time.monotonic() + REAP_TIMEOUT_S)


def _wait_free(folder: str, timeout_s: float) -> bool:
    """True once nobody holds the folder, which takes a moment where an instance is ending; False where one serves."""
    deadline = time.monotonic() + timeout_s
    while folders.is_held(folder):
        if folders.read_record(folder) is not None:
            return False
        if time.monotonic() > deadline:
            raise InstanceStartError(f"the instance in {folder} has been ending for {timeout_s:g} s and still runs")
        time.sleep(0.01)
    return True


def _start(boot: Boot, timeout_s: float) -> None:
    settings = boot.settings
    logs = _Logs()
    ours, theirs = socket.socketpair()
    pid: int | None = None
    try:
        logs.open(settings.log_dir)
        pid = _execute(boot, theirs, logs.of_supervisor)
        theirs.close()
        ours.settimeout(timeout_s)
        ours.sendall(msgspec.msgpack.encode(boot))
        ours.shutdown(socket.SHUT_WR)
        report = _read_report(ours, pid, timeout_s)
        if report.error is not None:
            raise logs.with_tail(rebuild(report.error))
    except BaseException as error:
        if pid is not None:
            _end(pid)
        folders.remove_instance(settings.folder, is_starter=True)
        if isinstance(error, _DiedError):
            raise logs.with_tail(InstanceStartError(str(error))) from None
        raise
    finally:
        ours.close()
        theirs.close()
        logs.close()
    with _supervisors_lock:
        _supervisors[settings.folder] = pid


def _execute(boot: Boot, stdin: socket.socket, log: int | None) -> int:
    environ = dict(os.environ)
    # The supervisor must find Headgate, and replicas the user's modules, wherever the driver found them: also where it changed sys.path.
    environ.pop(TOKEN_VARIABLE, None)
    environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    actions: list[tuple[int, int, int]] = [(os.POSIX_SPAWN_DUP2, stdin.fileno(), 0)]
    if log is not None:
        actions += [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    # A session of its own, so that Ctrl-C reaches the driver alone; -P, because a file of the working directory must not hide a module.
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", boot.root],
            environ,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_INHERITED_SIGNALS,
        )
    except OSError as error:
        raise InstanceStartError(f"{sys.executable or 'the Python interpreter'} can't be executed: {error.strerror}") from error


class _DiedError(Exception):
    """The supervisor ended, or was silent for too long, before it could say why."""


def _read_report(sock: socket.socket, pid: int, timeout_s: float) -> Report:
    deadline = time.monotonic() + timeout_s
    data = b""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _DiedError(f"the instance did not answer HTTP within {timeout_s:g} s")
        if not poll.poll(left_s * 1000):
            continue
        try:
            received = sock.recv(65536)
        except OSError:
            received = b""
        if not received:
            break
        data += received
    if not data:
        raise _DiedError(f"the supervisor (pid {pid}) ended before the instance served")
    return msgspec.msgpack.decode(data, type=Report)


class _Logs:
    """The files to which those write that start an instance. Open, so that they can be read when the instance's folder is gone."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, int]] = {}

    def open(self, folder: str) -> None:
        """Open them, if there is a folder of them."""
        try:
            for role in ("supervisor", "controller") if folder else ():
                path = path_of(folder, role)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._files[path] = (descriptor, os.fstat(descriptor).st_size)
        except OSError as error:
            raise InvalidValueError(f"log_dir={folder!r} can't be written to: {error.strerror}") from error

    @property
    def of_supervisor(self) -> int | None:
        """The first of them; None: it writes to this terminal."""
        return next((descriptor for descriptor, _ in self._files.values()), None)

    def with_tail(self, error: Exception) -> Exception:
        """The error with what was written to them since."""
        if not isinstance(error, InstanceStartError):
            return error
        said = [f"The end of {path}:\n{text}" for path, file in self._files.items() if (text := self._tail(*file))]
        return InstanceStartError("\n\n".join([error.message, *said]))

    def close(self) -> None:
        """Close them."""
        for descriptor, _ in self._files.values():
            os.close(descriptor)

    def _tail(self, descriptor: int, begins: int) -> str:
        size = os.fstat(descriptor).st_size
        start = max(begins, size - _LOG_TAIL_BYTES)
        entries = [(line, from_json(line)) for line in os.pread(descriptor, size - start, start).splitlines()]
        return "\n".join(line.decode("utf-8", "replace") if entry is None else as_text(entry) for line, entry in entries).strip()


def _end(pid: int) -> None:
    """Make sure that a supervisor whose start failed is gone; its children die with it."""
    if not _reap(pid, time.monotonic() + 0.5):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _reap(pid, time.monotonic() + REAP_TIMEOUT_S)


def _reap(pid: int, deadline: float) -> bool:
    while True:
        try:
            done = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # this process ignores SIGCHLD, or somebody else in it waits for all children
            done = not _exists(pid)
        if done:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
