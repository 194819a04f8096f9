"""How is a process of this machine watched, named and killed, and why did it end?"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import Final

from headgate.errors import InstanceStartError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)


def watch_parent(pid: int) -> int:
    """A descriptor that can be read once this process, which must be our parent, has ended. Raises `InstanceStartError` where it has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise InstanceStartError(f"the process that starts the instance (pid {pid}) has ended") from None
    if os.getppid() != pid:
        os.close(descriptor)
        raise InstanceStartError(f"the process that starts the instance (pid {pid}) has ended")
    return descriptor


def adopt_orphans() -> None:
    """What a child's own children leave behind when it ends comes here, instead of to the machine's first process."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with(parent: int) -> None:
    """From now on this process is killed when its parent ends; it ends here where that has happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def kill(pid: int) -> None:
    """Kill a child and its process group, at once."""
    kill_group(pid)
    kill_one(pid)  # it may not have become the leader of its group yet


def kill_group(pid: int) -> None:
    """Kill the process group that a child leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_one(pid: int) -> None:
    """Kill a process and nothing else."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    """The pids of this process's children, those that it has adopted included."""
    pid = os.getpid()
    try:
        with open(f"/proc/self/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def reason(code: int, status: int) -> str:
    """Why a process ended, for people; `code` and `status` are what `waitid` says."""
    if code == os.CLD_EXITED:
        return f"exit status {status}"
    name = signal.Signals(status).name if status in signal.Signals._value2member_map_ else f"signal {status}"
    return f"killed by {name}" + (" (core dumped)" if code == os.CLD_DUMPED else "")


def set_name(name: str) -> None:
    """Name this process for `ps` and `top`; the kernel keeps 15 characters."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
