"""Where do the entries of a process go, and when does a file of them come to an end?

An instance that somebody watches writes to the terminal that it was started from. Else each process has a file of its own,
which takes also what is written past Python, such as by a library in C: descriptors 1 and 2 lead there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from headgate.core.specs import LogSettings
from headgate.logs.entry import Entry, as_json, as_text

MAX_BYTES: Final = 10 << 20
"""A file that has become longer is put aside; so an instance's log stays bounded."""
KEPT: Final = 4
"""So many files of a process are kept that were put aside."""
KEPT_OF_ENDED: Final = 50
"""Of so many processes that have ended the files stay."""
_OF_ENDING: Final = re.compile(r"(?P<process>(ingress|replica)-.+)\.log(\.(?P<number>\d+))?")
_PATIENCE_S: Final = 1.0
_TERMINAL: Final = 2


def path_of(folder: str, role: str, id: str = "") -> str:
    """The file of a process."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return f"{folder}/{role}-{id}.log" if id else f"{folder}/{role}.log"


def forget_ended(folder: str, *, kept: int = KEPT_OF_ENDED) -> None:
    """Remove what processes have written that ended long ago: all but the latest `kept` of them."""
    ended: dict[str, float] = {}
    files: dict[str, list[str]] = {}
    for entry in os.scandir(folder):
        match = _OF_ENDING.fullmatch(entry.name)
        if match is None or not entry.is_file(follow_symlinks=False):
            continue
        files.setdefault(match["process"], []).append(entry.path)
        if match["number"] is None:
            with contextlib.suppress(OSError):
                if not _is_written_to(entry.path):
                    ended[match["process"]] = entry.stat().st_mtime
    for process in sorted(ended, key=ended.__getitem__)[: max(0, len(ended) - kept)]:
        for path in files[process]:
            with contextlib.suppress(OSError):
                os.remove(path)


def _is_written_to(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def output_of(settings: LogSettings, role: str, id: str = "") -> Output:
    """Where a process writes."""
    return File(path_of(settings.folder, role, id)) if settings.folder else Output(json=settings.format == "json")


class Output:
    """Entries, written for people or as JSON. Any thread may write; nobody waits for more than the write itself."""

    def __init__(self, *, json: bool, descriptor: int = _TERMINAL) -> None:
        self._json = json
        self._descriptor = descriptor
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget who was writing: this is a fork, in which that thread isn't."""
        # A signal handler may write, too. No line waits long for another: one that does may be cut by it.
        self._lock = threading.RLock()

    def write(self, entry: Entry, descriptor: int | None = None) -> None:
        """Write an entry, to another descriptor where one is given. Nobody is left to tell where that fails."""
        self.write_all((entry,), descriptor)

    def write_all(self, entries: Iterable[Entry], descriptor: int | None = None) -> None:
        """Write several, as they come: what makes them may take its time, and others run at each write."""
        for data in _together(map(as_json if self._json else _as_line, entries)):
            is_held = self._lock.acquire(timeout=_PATIENCE_S)
            try:
                with contextlib.suppress(OSError):
                    self._write(self._descriptor if descriptor is None else descriptor, data)
            finally:
                if is_held:
                    self._lock.release()

    def _write(self, descriptor: int, data: bytearray) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:  # a terminal that another program has set so
                select.select([], [descriptor], [])


def _as_line(entry: Entry) -> bytes:
    return f"{as_text(entry)}\n".encode("utf-8", "backslashreplace")


def _together(lines: Iterable[bytes]) -> Iterator[bytearray]:
    """Lines that are written at once: so much at most as a pipe takes whole, so that those of other processes don't come between."""
    data = bytearray()
    for line in lines:
        if data and len(data) + len(line) > select.PIPE_BUF:
            yield data
            data = bytearray()
        data += line
    yield data


class File(Output):
    """A file of one process; what was in it when it has become too long is in `<path>.1`, and what was in that in `<path>.2`, …"""

    def __init__(self, path: str, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        super().__init__(json=True, descriptor=1)
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._pid = os.getpid()
        self._take(self._opened(path))
        forget_ended(os.path.dirname(path))

    def write_all(self, entries: Iterable[Entry], descriptor: int | None = None) -> None:
        """As `Output`; all descriptors lead to the file."""
        super().write_all(entries)

    def _write(self, descriptor: int, data: bytearray) -> None:
        if os.fstat(self._descriptor).st_size > self._max_bytes and os.getpid() == self._pid:  # not what user code has forked
            with contextlib.suppress(OSError):  # then this one gets longer
                self._begin_the_next()
        super()._write(descriptor, data)

    def _opened(self, path: str) -> int:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(opened, fcntl.LOCK_SH)  # for as long as somebody may write to it
        return opened

    def _take(self, opened: int) -> None:
        for descriptor in (1, 2):
            os.dup2(opened, descriptor)
        os.close(opened)

    def _begin_the_next(self) -> None:
        opened = self._opened(f"{self._path}.new")  # first, since it may fail
        for number in range(self._kept, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self._path}.{number}")
        os.replace(f"{self._path}.new", self._path)
        self._take(opened)
