"""What have the processes of an instance said, in the order of time, and what do they say next?

Each has files of its own, see `output.py`. What was written past Python, a line that is no entry, has the time of the entry
before it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Final

import msgspec

from headgate.logs.entry import Entry, from_json

MOST: Final = 5000
"""No part of a log has more entries."""

Mark = tuple[int, int]
"""How far the files of a process were read: which one of them, by its inode, and up to which byte."""

_BADNESS: Final = logging.getLevelNamesMapping()
_NAME = re.compile(r"(?P<role>[a-z]+)(-(?P<id>.+))?\.log")


class Wanted(msgspec.Struct, frozen=True):
    """Which entries: of this backend, of this request, logged and at least so bad, as "WARNING"."""

    backend: str | None = None
    request: str | None = None
    level: str | None = None

    def has(self, entry: Entry) -> bool:
        """Whether this is one of them."""
        return (
            (self.backend is None or entry.backend == self.backend)
            and (self.request is None or self.request in entry.request_ids)
            and (self.level is None or _BADNESS.get(entry.level, -1) >= _BADNESS.get(self.level, 0))
        )


class Part(msgspec.Struct, frozen=True):
    """Some of what was said, by time, and up to where that was read."""

    entries: list[Entry]
    marks: dict[str, Mark]


def latest(folder: str, lines: int, wanted: Wanted) -> Part:
    """The latest so many entries of what there is, `MOST` of them where `lines` is 0."""
    with contextlib.closing(Folder(folder)) as files:
        found = deque(filter(wanted.has, files.read()), maxlen=min(lines or MOST, MOST))
        return Part(list(found), files.marks)


def following(folder: str, marks: Mapping[str, Mark], wanted: Wanted) -> Part:
    """What comes after these marks; where that is more than `MOST`, the first of it."""
    with contextlib.closing(Folder(folder, marks)) as files:
        return Part(list(itertools.islice(filter(wanted.has, files.read()), MOST)), files.marks)


class Folder:
    """The files of one instance, read from the beginning, or from where `marks` say that others have read."""

    def __init__(self, path: str, marks: Mapping[str, Mark] | None = None) -> None:
        self.marks = dict(marks or {})
        """By the name of each process's file: how far what was returned so far goes."""
        self._path = path
        self._processes: dict[str, _Process] = {}

    def read(self) -> Iterator[Entry]:
        """What has been written since the last time, by all of them, by time."""
        for name in sorted(os.listdir(self._path)):
            match = _NAME.fullmatch(name)
            if match is not None and name not in self._processes:
                process = _Process(f"{self._path}/{name}", match["role"], match["id"] or "", self.marks.get(name))
                self._processes[name] = process
        read = [self._named(name, process) for name, process in self._processes.items()]
        for name, entry, mark in heapq.merge(*read, key=lambda found: found[1].time):
            self.marks[name] = mark
            yield entry

    def _named(self, name: str, process: _Process) -> Iterator[tuple[str, Entry, Mark]]:
        return ((name, entry, mark) for entry, mark in process.read())

    def close(self) -> None:
        """Close them."""
        for process in self._processes.values():
            process.close()


class _Process:
    def __init__(self, path: str, role: str, id: str, mark: Mark | None) -> None:
        self._path = path
        self._role = role
        self._id = id
        self._mark = mark  # from where the first read goes on
        self._file: BufferedReader | None = None
        self._latest: Entry | None = None

    def read(self) -> Iterator[tuple[Entry, Mark]]:
        """What it has written since, also to files that it has put aside, each with how far that goes."""
        if self._file is None:
            with contextlib.ExitStack() as stack:
                for file in self._put_aside(stack):
                    yield from self._entries(file)
            self._open()
        while self._file is not None:
            yield from self._entries(self._file)
            if not self._is_put_aside():
                return
            yield from self._entries(self._file)  # what came between the two looks
            self._file.close()
            self._open()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _put_aside(self, stack: contextlib.ExitStack) -> list[BufferedReader]:
        """The files that it has put aside, the oldest first; from a mark on only those that weren't read yet. The stack closes them."""
        found = []
        for number in range(len(self._aside()), 0, -1):
            with contextlib.suppress(FileNotFoundError):
                found.append(stack.enter_context(open(f"{self._path}.{number}", "rb")))  # noqa: SIM115  # the stack's
        if self._is_current():
            return []
        return found[next((index for index, file in enumerate(found) if self._go_on(file)), 0) :]

    def _go_on(self, file: BufferedReader) -> bool:
        """Where the mark is in this file, go there."""
        if self._mark is None or os.fstat(file.fileno()).st_ino != self._mark[0]:
            return False
        file.seek(self._mark[1])
        return True

    def _is_current(self) -> bool:
        try:
            return self._mark is not None and os.stat(self._path).st_ino == self._mark[0]
        except FileNotFoundError:
            return False

    def _aside(self) -> list[str]:
        folder, name = os.path.split(self._path)
        return [other for other in os.listdir(folder) if other.startswith(f"{name}.")]

    def _open(self) -> None:
        self._file = None
        with contextlib.suppress(FileNotFoundError):
            self._file = open(self._path, "rb")  # noqa: SIM115  # closed by `close`, or when it is put aside
            self._go_on(self._file)
            self._mark = None

    def _is_put_aside(self) -> bool:
        assert self._file is not None
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:  # removed, or between the two steps
            return False

    def _entries(self, file: BufferedReader) -> Iterator[tuple[Entry, Mark]]:
        inode = os.fstat(file.fileno()).st_ino
        while True:
            begins = file.tell()
            line = file.readline()
            if not line.endswith(b"\n"):
                file.seek(begins)  # its writer isn't done with it
                return
            entry = from_json(line)
            if entry is None:
                entry = self._past_python(line.rstrip(b"\r\n").decode("utf-8", "replace"), file)
            self._latest = entry
            yield entry, (inode, file.tell())

    def _past_python(self, text: str, file: BufferedReader) -> Entry:
        before = self._latest
        time = os.fstat(file.fileno()).st_mtime if before is None else before.time
        return Entry(time=time, role=self._role, id=self._id, backend="" if before is None else before.backend, text=text)
