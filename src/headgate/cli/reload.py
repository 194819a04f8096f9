"""How does `headgate run --reload` go on serving while new code warms?

This process has the instance and watches files. Each version of the code is set up in a process of its own, by `cli/again.py`, where
what exists already is updated: new replicas start, and only when they are ready the old ones go. A version that fails prints
its error, and the one before it serves on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from headgate.cli import output, service_manager
from headgate.cli.target import Target
from headgate.cli.where import Where
from headgate.errors import HeadgateError

if TYPE_CHECKING:
    from watchfiles import Change

    from headgate.serve import Instance

_LOOK_MS: Final = 200
_TERMINATE_S: Final = 5.0
_PROGRAM: Final = "import sys; from headgate.cli.again import main; sys.exit(main())"


class Names(msgspec.Struct):
    """What a version of the code has set up."""

    backends: set[str] = msgspec.field(default_factory=set)
    endpoints: set[str] = msgspec.field(default_factory=set)


class Job(msgspec.Struct, frozen=True):
    """What the process is told that sets up one version."""

    where: Where
    target: Target
    arguments: tuple[str, ...]


class Reloader:
    """Sets up the code, and again whenever a file has changed. Leave it by `with`."""

    def __init__(self, instance: Instance, where: Where, target: Target, arguments: tuple[str, ...], watched: tuple[str, ...]) -> None:
        self._instance = instance
        self._job = Job(where, target, arguments)
        self._watched = [os.path.abspath(path) for path in watched] or [_folder_of(target)]
        self._changes = self._watch()
        self._process: subprocess.Popen[bytes] | None = None
        self._told: int | None = None  # where the process writes what it has set up
        self._began = 0.0
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
        self._began = time.monotonic()
        self._told, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs), msgspec.json.encode(self._job).decode()], pass_fds=(theirs,)
            )
        finally:
            os.close(theirs)

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
        names = self._names()
        self._known = Names(self._known.backends | names.backends, self._known.endpoints | names.endpoints)
        self._process = None

    def _finish(self) -> None:
        """Say how it went, and remove what this version no longer has."""
        assert self._process is not None
        status, self._process, before, names = self._process.returncode, None, self._known, self._names()
        if status != 0:
            self._known = Names(before.backends | names.backends, before.endpoints | names.endpoints)
            goes_on = "; what served before serves on" if before.backends else ""
            output.note(f"{self._job.target.text} failed{goes_on}; waiting for a change")
            return
        self._known = names
        for endpoint in before.endpoints - names.endpoints:
            self._remove(self._instance.delete_endpoint, endpoint)
        for backend in before.backends - names.backends:
            self._remove(self._instance.delete_backend, backend)
        output.note(f"set up in {output.seconds_text(time.monotonic() - self._began)}: {', '.join(sorted(names.backends)) or 'no backend'}")
        service_manager.tell(service_manager.READY, f"serving {self._job.target.text}")

    def _remove(self, verb: Callable[[str], None], name: str) -> None:
        try:
            verb(name)
        except LookupError:  # the program has done so itself
            return
        except HeadgateError as error:
            output.note(f"{name} is no longer set up, and stays: {error}")

    def _names(self) -> Names:
        assert self._told is not None
        os.set_blocking(self._told, False)  # the process has ended, but what it has forked may still have the other end
        with open(self._told, "rb") as file:
            told = file.read()
        self._told = None
        return msgspec.json.decode(told, type=Names) if told else Names()


def _folder_of(target: Target) -> str:
    return os.getcwd() if target.function else os.path.dirname(os.path.abspath(target.module))
