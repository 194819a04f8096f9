"""What does this process hold, and what has it started: how can a test tell that nothing is left behind?"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

from headgate.engines.local.folders import BASE_VARIABLE
from tests import ray_cluster

RUNTIME_VARIABLE = BASE_VARIABLE
"""Where instances put their folders; `tests/conftest.py` sets it to one of the session's own."""


class Held(NamedTuple):
    """What this process, and what it started, holds at one moment."""

    threads: frozenset[threading.Thread]
    descriptors: dict[int, str]
    children: frozenset[int]
    processes: dict[int, str]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Held:
        """Look, within about 3 ms."""
        folder = os.environ[RUNTIME_VARIABLE]
        files = (os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names)
        return cls(frozenset(threading.enumerate()), descriptors(), frozenset(children()), processes(), frozenset(files))

    def more_than(self, before: Held) -> list[str]:
        """What is there now that was not there before, in words."""
        known = set(before.descriptors.items())
        return [
            *(f"thread {thread.name}" for thread in self.threads - before.threads if thread.is_alive()),
            *(f"descriptor {number}: {what}" for number, what in self.descriptors.items() if (number, what) not in known),
            *(f"child process {pid}" for pid in self.children - before.children - self.processes.keys()),
            *(f"process {pid}: {command}" for pid, command in self.processes.items() if pid not in before.processes),
            *(f"in the runtime folder: {name}" for name in self.files - before.files),
        ]


def processes() -> dict[int, str]:
    """Every living process, but this one, whose environment names our runtime folder: its pid and command line. On Ray, actors too.

    Instances exec their supervisor with the driver's environment and fork the rest, so that this finds them whoever their parent is now.
    """
    mark = f"{RUNTIME_VARIABLE}={os.environ[RUNTIME_VARIABLE]}".encode()
    cluster_mark = f"{ray_cluster.CLUSTER_VARIABLE}=1".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        folder = Path("/proc", entry)
        try:
            # A zombie has no environment: it has ended, and is its parent's to reap. Ray writes titles over a part of it.
            environ = folder.joinpath("environ").read_bytes().split(b"\0")
            command = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if (
                mark in environ and cluster_mark not in environ and not command.startswith("ray::")
            ):  # whose title is where its environment was
                found[int(entry)] = command
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
    if ray_cluster.in_use():
        found.update((-zlib.crc32(name.encode()) - 1, f"actor {name}") for name in ray_cluster.actors())  # no pids: below 0
    return found


def children() -> set[int]:
    """The pids of this process's children, zombies included."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found.update(int(pid) for pid in Path("/proc/self/task", task, "children").read_text().split())
        except OSError:  # the thread ended meanwhile
            continue
    return found


def descriptors() -> dict[int, str]:
    """This process's open descriptors and what each is, such as `socket:[4711]`.

    Not the standard streams: pytest points them elsewhere for every phase of a test.
    """
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) <= 2:
            continue
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the one that listed the folder
            continue
    return found


def stacks_of(pid: int) -> str:
    """The stacks of all threads of a Python process, or why they can't be seen."""
    program = str(Path(sys.executable).with_name("py-spy"))
    try:
        done = subprocess.run([program, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stacks: {error}"
    return done.stdout or done.stderr
