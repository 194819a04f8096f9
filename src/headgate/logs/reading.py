"""What have the processes of an instance said, in the order of time, and what do they say next?

Each has files of its own, see `output.py`. What was written past Python, a line that is no entry, has the time of the entry
before it.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from collections.abc import Iterator
from io import BufferedReader

from headgate.logs.entry import Entry, from_json

_NAME = re.compile(r"(?P<role>[a-z]+)(-(?P<id>.+))?\.log")


class Folder:
    """The files of one instance."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._processes: dict[str, _Process] = {}

    def read(self) -> Iterator[Entry]:
        """What has been written since the last time, by all of them, by time."""
        for name in sorted(os.listdir(self._path)):
            match = _NAME.fullmatch(name)
            if match is not None and name not in self._processes:
                self._processes[name] = _Process(f"{self._path}/{name}", match["role"], match["id"] or "")
        return heapq.merge(*[process.read() for process in self._processes.values()], key=lambda entry: entry.time)

    def close(self) -> None:
        """Close them."""
        for process in self._processes.values():
            process.close()


class _Process:
    def __init__(self, path: str, role: str, id: str) -> None:
        self._path = path
        self._role = role
        self._id = id
        self._file: BufferedReader | None = None
        self._latest: Entry | None = None

    def read(self) -> Iterator[Entry]:
        """What it has written since, also to files that it has put aside."""
        if self._file is None:
            for number in range(len(self._aside()), 0, -1):
                with contextlib.suppress(FileNotFoundError), open(f"{self._path}.{number}", "rb") as file:
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

    def _aside(self) -> list[str]:
        folder, name = os.path.split(self._path)
        return [other for other in os.listdir(folder) if other.startswith(f"{name}.")]

    def _open(self) -> None:
        self._file = None
        with contextlib.suppress(FileNotFoundError):
            self._file = open(self._path, "rb")  # noqa: SIM115  # closed by `close`, or when it is put aside

    def _is_put_aside(self) -> bool:
        assert self._file is not None
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:  # removed, or between the two steps
            return False

    def _entries(self, file: BufferedReader) -> Iterator[Entry]:
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
            yield entry

    def _past_python(self, text: str, file: BufferedReader) -> Entry:
        before = self._latest
        time = os.fstat(file.fileno()).st_mtime if before is None else before.time
        return Entry(time=time, role=self._role, id=self._id, backend="" if before is None else before.backend, text=text)
