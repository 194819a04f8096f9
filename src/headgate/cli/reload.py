"""How does `headgate run --reload` go on serving while new code warms?

This process has the instance and watches files. Each version of the code is set up in a process of its own, by `cli/again.py`, where
what exists already is updated: new replicas start, and only when they are ready the old ones go. A version that fails prints
its error, and the one before it serves on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Self

import msgspec

from headgate.cli import output, service_manager
from headgate.cli.target import Target
from headgate.cli.where import Where

if TYPE_CHECKING:
    from watchfiles import Change

_LOOK_MS: Final = 200
_TERMINATE_S: Final = 5.0
_PROGRAM: Final = "import sys; from headgate.cli.again import main; sys.exit(main())"


class Names(msgspec.Struct):
    """What a version of the code has set up, or several versions."""

    backends: set[str] = msgspec.field(default_factory=set)
    endpoints: set[str] = msgspec.field(default_factory=set)

    def add(self, others: Names) -> None:
        """And what those have set up."""
        self.backends |= others.backends
        self.endpoints |= others.endpoints


class Job(msgspec.Struct, frozen=True):
    """What the process is told that sets up one version: the first line of a file, to which it adds a `Names` for each thing it sets up."""

    where: Where
    target: Target
    arguments: tuple[str, ...]
    before: Names  # what earlier versions have set up, and is there still
    began: float  # time.monotonic()


class Reloader:
    """Sets up the code, and again whenever a file has changed. Leave it by `with`."""

    def __init__(self, where: Where, target: Target, arguments: tuple[str, ...], watched: tuple[str, ...]) -> None:
        self._where = where
        self._target = target
        self._arguments = arguments
        self._watched = [os.path.abspath(path) for path in watched] or [_folder_of(target)]
        self._changes = self._watch()
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None  # with the job of the process, and what it has set up
        self._known = Names()
        self._begin()

    def step(self) -> None:
        """Wait a moment for a change, or for the end of what sets up."""
        changed = next(self._changes)
        if changed:
            names = sorted({os.path.relpath(path) for _, path in changed})
            output.note(f"changed: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}; setting up anew")
            self._end()
            self._begin()
        elif self._process is not None and self._process.poll() is not None:
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()

    def _watch(self) -> Iterator[set[tuple[Change, str]]]:
        from watchfiles import PythonFilter, watch

        code, files = PythonFilter(), {path for path in self._watched if os.path.isfile(path)}
        return watch(
            *self._watched,
            watch_filter=lambda change, path: path in files or code(change, path),
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=True,
        )

    def _begin(self) -> None:
        job = Job(self._where, self._target, self._arguments, self._known, time.monotonic())
        # Not a pipe, which holds 64 KiB: nobody reads before the process has ended.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # `_names` closes it
        self._file.write(msgspec.json.encode(job) + b"\n")
        self._file.seek(0)
        number = self._file.fileno()
        self._process = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(number)], pass_fds=(number,))

    def _end(self) -> None:
        """End the process that sets up, which may be a program that goes on for good."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_TERMINATE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._known.add(self._names())
        self._process = None

    def _finish(self) -> None:
        """Take note of how it went, which it has said itself where it went well."""
        assert self._process is not None
        status, self._process, names = self._process.returncode, None, self._names()
        if status == 0:
            self._known = names
            service_manager.tell(service_manager.READY, f"serving {self._target.text}")
            return
        goes_on = "; what served before serves on" if self._known.backends else ""
        self._known.add(names)
        output.note(f"{self._target.text} failed{goes_on}; waiting for a change")

    def _names(self) -> Names:
        assert self._file is not None
        found = Names()
        with self._file as file:
            file.seek(0)
            for line in file.read().splitlines()[1:]:
                found.add(msgspec.json.decode(line, type=Names))
        self._file = None
        return found


def _folder_of(target: Target) -> str:
    return os.getcwd() if target.function else os.path.dirname(os.path.abspath(target.module))
