"""What is the code that a file names, to a process that has imported none of it before?

A process that has imported a module goes on having what its file said then, and so has every module that took something from it. A replica
imports what the files say now. So what a replica is to be told is found out as it will see it: in a fresh process, `main`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from headgate.core.specs import Definition
from headgate.engines.local import processes
from headgate.errors import ErrorInfo, HeadgateError, InvalidValueError, describe

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from headgate.importing import main; main(*map(int, sys.argv[2:]))"
)
_in_main = False


class Named(msgspec.Struct, frozen=True):
    """Code as a file names it."""

    import_path: str
    init_args: list[Any]
    init_kwargs: dict[str, Any]


class Found(msgspec.Struct, frozen=True):
    """How a replica gets it, or why not."""

    definition: Definition | None = None
    error: ErrorInfo | None = None
    key: str = "import_path"  # of the file, under which the mistake is


def definitions(named: Mapping[str, Named], folder: str, timeout_s: float) -> dict[str, Found]:
    """Import all that code in a fresh process, which finds modules where this one does, but first in `folder`, if there is one.

    Raises `InvalidValueError` where the process ends before that, or takes longer than `timeout_s`.
    """
    if _in_main:
        raise InvalidValueError(
            "it is deployed by a module that is imported to be deployed; put what sets up under `if __name__ == '__main__':`"
        )
    path = [folder, *sys.path] if folder and folder not in sys.path else sys.path
    with tempfile.TemporaryFile() as file:  # a pipe holds little, and would have to be read meanwhile
        file.write(msgspec.msgpack.encode(named))
        file.seek(0)
        command = [sys.executable, "-P", "-c", _PROGRAM, json.dumps([os.fspath(entry) for entry in path])]
        command += [str(file.fileno()), str(os.getpid())]
        # -P: a file of the working directory must not hide a module. A session of its own: Ctrl-C reaches this process alone, which ends
        # it, and code that asks something on the terminal fails instead of being stopped for good.
        try:
            done = subprocess.run(
                command, pass_fds=(file.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise InvalidValueError(
                f"the code of {', '.join(map(repr, named))} is not imported after {timeout_s:g} s, the startup_timeout of all together"
            ) from None
        file.seek(0)
        said = file.read()
    if done.returncode != 0:
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise InvalidValueError(f"the process that imports its code ended before it was done ({how})")
    return msgspec.msgpack.decode(said, type=dict[str, Found])


def main(number: int, parent: int) -> None:
    """Read from that file what to import, and write what it is there; doesn't return. Ends when `parent` does."""
    global _in_main
    processes.end_with(parent)
    _in_main = True
    os.set_inheritable(number, False)
    with open(number, "r+b") as file:
        named = msgspec.msgpack.decode(file.read(), type=dict[str, Named])
        found = {name: _describe(each) for name, each in named.items()}
        file.seek(0)
        file.truncate()
        file.write(msgspec.msgpack.encode(found))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # threads that the code has begun may go on for good


def _describe(named: Named) -> Found:
    from headgate.replica import definition

    try:
        target = definition.find(named.import_path)
        if wrong := definition.misfit(target, named.init_args, named.init_kwargs):
            return Found(error=describe(InvalidValueError(wrong[1])), key=wrong[0])
        return Found(definition.describe(target, tuple(named.init_args), named.init_kwargs, import_path=named.import_path))
    except HeadgateError as error:
        return Found(error=describe(error))
