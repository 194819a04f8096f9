"""What has a process of this machine used: CPU time and memory?"""

from __future__ import annotations

import os

from headgate.core.reports import Usage

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Places in /proc/PID/stat, from the state on; what is before that may hold any character.
_USER, _SYSTEM, _PAGES = 11, 12, 21


def of(pid: int) -> Usage:
    """What the process has used by now; nothing of one that has just ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return Usage()
    return Usage((int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_S, int(fields[_PAGES]) * _PAGE_BYTES)


def own() -> Usage:
    """The same of this process."""
    return of(os.getpid())
