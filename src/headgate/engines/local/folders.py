"""Where does an instance keep its sockets, and does an instance of that name run?

Each user has one base folder, which nobody else may enter; each instance has a folder in it. Its supervisor holds a lock on
the file `lock` there for as long as it lives, and the file `instance` says that it serves. Whoever starts an instance holds
a lock on the folder itself meanwhile, so that two who start the same one at once make one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from headgate.engines.local.protocol import InstanceRecord
from headgate.errors import InstanceStartError, InvalidValueError, LogDirInUseError, StateDirInUseError, StateDirUnsafeError
from headgate.router.way import Way

BASE_VARIABLE: Final = "HEADGATE_RUNTIME_DIR"
MAX_FOLDER_BYTES: Final = 64
"""A Unix socket's path has at most 107 bytes; this leaves room for `/r-<id>.sock` with ids of 36."""
_MAX_GIVEN_BYTES: Final = MAX_FOLDER_BYTES - len("/headgate/~0123456789abcdef")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,23}")
_POLL_S: Final = 0.005


def base_folder() -> str:
    """The folder of all of this user's instances: `/tmp/headgate-<uid>`, or `headgate` in `$HEADGATE_RUNTIME_DIR`."""
    given = os.environ.get(BASE_VARIABLE)
    return f"{os.path.abspath(given)}/headgate" if given else f"/tmp/headgate-{os.geteuid()}"


def folder_for(name: str) -> str:
    """The folder of the instance of that name, whether it runs or not. Long names, and those with odd characters, are hashed.

    Raises `InvalidValueError` where the base folder's path is too long for sockets.
    """
    base = base_folder()
    folder = f"{base}/{name}"
    if not _PLAIN_NAME.fullmatch(name) or len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        folder = f"{base}/~{hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        raise InvalidValueError(f"{base} is too long for the paths of sockets; set {BASE_VARIABLE} to at most {_MAX_GIVEN_BYTES} bytes")
    return folder


def find(name: str) -> str | None:
    """The folder of the running instance of that name; None where none runs, or it is starting or ending.

    Raises `StateDirUnsafeError` where somebody else could have put a socket there.
    """
    folder = folder_for(name)
    if not _exists_safely(base_folder()):
        return None
    return folder if read_record(folder) is not None and is_held(folder) else None


def running() -> list[InstanceRecord]:
    """What this user's running instances say of themselves."""
    base = base_folder()
    if not _exists_safely(base):
        return []
    found = [(f"{base}/{name}", read_record(f"{base}/{name}")) for name in os.listdir(base)]
    return [record for folder, record in found if record is not None and is_held(folder)]


def stale() -> list[str]:
    """The folders of instances that were killed; `sweep` removes them."""
    base = base_folder()
    if not _exists_safely(base):
        return []
    found = sorted(f"{base}/{name}" for name in os.listdir(base))
    return [folder for folder in found if read_record(folder) is not None and not is_held(folder)]


def read_record(folder: str) -> InstanceRecord | None:
    """What a serving instance says of itself; None where there is none."""
    try:
        with open(f"{folder}/instance", "rb") as file:
            return msgspec.msgpack.decode(file.read(), type=InstanceRecord)
    except (OSError, msgspec.DecodeError):
        return None


def is_held(folder: str) -> bool:
    """Whether a supervisor holds the lock of this folder."""
    try:
        lock = os.open(f"{folder}/lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)  # and with it the lock


def has_died(folder: str) -> bool:
    """Whether the instance of this folder is gone: with its folder, or, where it was killed, without."""
    return not is_held(folder) if os.path.exists(f"{folder}/lock") else not os.path.exists(folder)


class LocalWay(Way):
    """The way to an instance of this machine: it ends with its supervisor, which holds a lock."""

    def was_killed(self) -> bool:
        """Its supervisor has left the lock behind."""
        return os.path.exists(f"{self.folder}/lock") and not is_held(self.folder)

    def _runs(self) -> bool:
        return not has_died(self.folder)


def hold(folder: str, timeout_s: float = 1.0) -> int | None:
    """Take the lock of a folder for this process; returns a descriptor to keep, or None where another one keeps it.

    It is tried for `timeout_s`, because others take it for a moment to see whether it is free.
    """
    return _hold(os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), timeout_s)


def _hold(lock: int, timeout_s: float = 1.0) -> int | None:
    deadline = time.monotonic() + timeout_s
    while not _try_lock(lock, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(lock)
            return None
        time.sleep(_POLL_S)
    return lock


def hold_state(state_dir: str) -> int:
    """Take the lock of a state directory. Raises `StateDirInUseError` where another instance has it."""
    lock = hold(state_dir)
    if lock is None:
        raise StateDirInUseError(f"state_dir={state_dir!r} is in use by another running instance; shut that down, or give another one")
    return lock


def hold_logs(log_dir: str) -> int:
    """Take a folder for the log of this instance alone. Raises `LogDirInUseError` where another one writes there."""
    # No file of ours lies among the log's: the folder itself is locked.
    lock = _hold(os.open(log_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    if lock is None:
        raise LogDirInUseError(f"log_dir={log_dir!r} is in use by another running instance, whose lines would mix; give another one")
    return lock


def check_state_dir(path: str) -> None:
    """Make a user's state directory where it doesn't exist, and refuse one that others could write: its contents are unpickled.

    Raises `StateDirUnsafeError`, or `InvalidValueError` where it can't be made.
    """
    try:
        if not os.path.isdir(path):
            os.makedirs(path, mode=0o700, exist_ok=True)
            _sync(os.path.dirname(path))  # else a power cut may take the folder along with all that was synced in it
        found = os.stat(path)
    except OSError as error:
        raise InvalidValueError(f"state_dir={path!r} can't be made: {error.strerror}") from error
    _refuse_foreign("the state directory", path, found, stat.S_IWGRP | stat.S_IWOTH)


@contextlib.contextmanager
def starting(folder: str, timeout_s: float) -> Iterator[None]:
    """Be the only one who starts the instance of this folder. The folder exists meanwhile, empty or not.

    Raises `StateDirUnsafeError` for an unsafe base folder, `InstanceStartError` after `timeout_s` seconds of waiting.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        _make_base(os.path.dirname(folder))
        try:
            _make_safely(folder)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # an ending instance has just removed one of them
        try:
            while not _try_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise InstanceStartError(f"another process has been starting the instance in {folder} for {timeout_s:g} s")
                time.sleep(_POLL_S)
            if not is_still_there(lock, folder):
                continue
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # said aloud, because a child forked meanwhile may have the descriptor, too
            return
        finally:
            os.close(lock)


def clear(folder: str) -> bool:
    """Remove what a dead instance left in its folder; True where there was something."""
    names = os.listdir(folder)
    for name in names:
        remove(f"{folder}/{name}")
    return bool(names)


def remove(path: str) -> None:
    """Remove a file or a folder with all that is in it; what is gone already is fine."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        shutil.rmtree(path, ignore_errors=True)
    except FileNotFoundError:
        pass


def remove_instance(folder: str, *, is_starter: bool = False) -> None:
    """Remove the folder of an instance that ends, and the base folder where that was the last one.

    Where somebody waits in `starting` to have the folder next, it is left to them, empty. `is_starter`: we are that one.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        is_ours = is_starter or _try_lock(lock, fcntl.LOCK_EX)
        for name in sorted(os.listdir(folder), key=lambda name: name == "lock"):  # that one last: without it the folder counts as free
            remove(f"{folder}/{name}")
        if is_ours:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
                os.rmdir(os.path.dirname(folder))
    finally:
        os.close(lock)


def sweep(base: str) -> None:
    """Remove the folders of instances that have died, such as those of a machine that was switched off."""
    for name in os.listdir(base):
        folder = f"{base}/{name}"
        if not os.path.exists(f"{folder}/lock"):
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _try_lock(lock, fcntl.LOCK_EX) and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def wait_ended(folder: str, timeout_s: float) -> bool:
    """Wait until no instance runs in this folder; False where one still does after `timeout_s` seconds."""
    try:
        lock = os.open(f"{folder}/lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(lock, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
    finally:
        os.close(lock)


def make(folder: str) -> None:
    """Make a folder in the base folder, and that, where they are missing. Raises as `starting`."""
    while True:
        _make_base(os.path.dirname(folder))
        with contextlib.suppress(FileNotFoundError):  # an ending instance has just removed the base folder
            _make_safely(folder)
            return


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_base(base: str) -> None:
    try:
        os.makedirs(os.path.dirname(base), exist_ok=True)
        _make_safely(base)
    except StateDirUnsafeError:
        raise
    except OSError as error:
        raise InstanceStartError(f"{base} can't be made: {error.strerror}; set {BASE_VARIABLE} to a folder of your own") from error


def _make_safely(folder: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    _exists_safely(folder)


def _exists_safely(folder: str) -> bool:
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise StateDirUnsafeError(f"{folder} is not a folder but something that somebody put there; remove it, or set {BASE_VARIABLE}")
    _refuse_foreign("the folder", folder, found, 0o077)
    return True


def _refuse_foreign(what: str, path: str, found: os.stat_result, forbidden: int) -> None:
    if found.st_uid != os.geteuid():
        raise StateDirUnsafeError(f"{what} {path} belongs to user {found.st_uid}, not to you ({os.geteuid()}); use one of your own")
    if found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        raise StateDirUnsafeError(f"{what} {path} is open to others (mode {mode:04o}); close it: chmod {mode & ~forbidden:04o} {path}")


def is_still_there(descriptor: int, path: str) -> bool:
    """Whether an open file is still what is at that path."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
