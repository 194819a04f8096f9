"""Is a process that was attacked still what it was: the same one, with no more descriptors, threads and memory than before?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from headgate.serve import Instance
from tests.support import wait_until

MEMORY_BYTES: Final = 30 << 20
"""So much more may a process have than before."""
KEPT_BYTES: Final = 64 << 20
"""And so much more where large buffers came and went: the C library keeps that of them (`headgate.heap`)."""


class Upkeep:
    """What the processes of an instance hold, as of now."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._before = {(process.role, process.pid): _held(process.pid) for process in instance.status().processes}
        self._memory = {key: memory_of(key[1]) for key in self._before}

    def check(self) -> float:
        """The same processes are there, and soon hold no more than then. Returns by how many bytes the largest has grown."""

        def settled() -> bool:
            now = {(process.role, process.pid): _held(process.pid) for process in self._instance.status().processes}
            assert now.keys() == self._before.keys(), f"processes were {sorted(self._before)}, are {sorted(now)}"
            more = {key: (self._before[key], held) for key, held in now.items() if any(map(int.__gt__, held, self._before[key]))}
            assert not more, f"descriptors and threads were, and are: {more}"
            return True

        wait_until(settled, 10.0, "no process has more descriptors or threads than before")
        return max(memory_of(key[1]) - memory for key, memory in self._memory.items())


def _held(pid: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def memory_of(pid: int) -> int:
    """Its resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
