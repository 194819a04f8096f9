"""Which system calls that change something does a child make, and what if it is killed at one of them?

A fork of this process is traced (ptrace), and stopped before and after every such call. Where it stops it can be killed, so
that there is no moment between two calls that could not be tried. Linux only, and only where a process may trace its children.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

_CALLS: Final[dict[str, dict[int, str]]] = {
    "x86_64": {
        1: "write",
        2: "open",
        18: "pwrite64",
        20: "writev",
        74: "fsync",
        75: "fdatasync",
        76: "truncate",
        77: "ftruncate",
        82: "rename",
        83: "mkdir",
        84: "rmdir",
        85: "creat",
        86: "link",
        87: "unlink",
        257: "openat",
        258: "mkdirat",
        263: "unlinkat",
        264: "renameat",
        265: "linkat",
        285: "fallocate",
        296: "pwritev",
        316: "renameat2",
        328: "pwritev2",
    },
    "aarch64": {
        34: "mkdirat",
        35: "unlinkat",
        37: "linkat",
        38: "renameat",
        45: "truncate",
        46: "ftruncate",
        47: "fallocate",
        56: "openat",
        64: "write",
        66: "writev",
        68: "pwrite64",
        70: "pwritev",
        82: "fsync",
        83: "fdatasync",
        276: "renameat2",
        287: "pwritev2",
    },
}
"""What can change a file system, or makes sure of a change."""

_BY_DESCRIPTOR: Final = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "fsync", "fdatasync")
_BY_PATH: Final = {"open": 0, "creat": 0, "truncate": 0, "rename": 0, "mkdir": 0, "rmdir": 0, "link": 0, "unlink": 0}
"""Which argument is the path; in all others it is the one after the descriptor of a folder."""

_TRACEME: Final = 0
_SYSCALL: Final = 24
_SETOPTIONS: Final = 0x4200
_GET_SYSCALL_INFO: Final = 0x420E
_TRACESYSGOOD: Final = 0x1
_EXITKILL: Final = 0x100000
_STOPPED_AT_A_CALL: Final = signal.SIGTRAP | 0x80
_ENTRY: Final = 1
_EXIT: Final = 2
_REFUSED: Final = 77
"""Exit status of a child that may not be traced."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Info(ctypes.Structure):
    """`struct ptrace_syscall_info`, at an entry; at an exit `nr` has the result."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("nr", ctypes.c_int64),
        ("args", ctypes.c_uint64 * 6),
    )


class Call(NamedTuple):
    """One call that changes something. `path` is what it acts on: by name, or what its descriptor is open to."""

    name: str
    path: str
    data: bytes = b""
    """What `write` and `pwrite64` write."""
    at: int = 0
    """Where `pwrite64` writes; the size that `ftruncate` sets; the flags of `openat`."""


class Traced(NamedTuple):
    """What a child did before it ended or was killed. The last call of one that was killed `before` it was not made."""

    calls: list[Call]
    killed: bool


def why_not() -> str:
    """Why children can't be traced here; "" where they can."""
    if platform.machine() not in _CALLS:
        return f"the numbers of system calls are not known for {platform.machine()}"
    try:
        trace(lambda: None)
    except OSError as error:
        return f"this process may not trace its children: {error.strerror}"
    return ""


def trace(act: Callable[[], object], *, kill_at: int | None = None, after: bool = False) -> Traced:
    """Run `act` in a child, to its end or to its call number `kill_at` (from 0), before or `after` which it is killed by SIGKILL.

    Raises `AssertionError` where `act` raises, `OSError` where children can't be traced.
    """
    pid = os.fork()
    if not pid:
        _be_traced(act)
    tracer = _Tracer(pid)
    try:
        return tracer.run(kill_at, after=after)
    finally:
        tracer.end()


def _be_traced(act: Callable[[], object]) -> NoReturn:
    status = _REFUSED
    try:
        if _libc.ptrace(_TRACEME, 0, None, None) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            status = 1
            act()
            status = 0
    except BaseException:  # noqa: BLE001  # the root of this process
        traceback.print_exc()
    finally:
        os._exit(status)


class _Tracer:
    """Follows one child, which has just been forked."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = False
        self._calls: list[Call] = []
        self._names = _CALLS[platform.machine()]

    def run(self, kill_at: int | None, *, after: bool) -> Traced:
        ended = self._wait()
        if ended is not None:
            raise OSError(0, "PTRACE_TRACEME is refused" if ended == _REFUSED else f"the child ended with {ended}")
        self._ptrace(_SETOPTIONS, _TRACESYSGOOD | _EXITKILL)
        memory = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._follow(memory, kill_at, after=after)
        finally:
            os.close(memory)

    def _follow(self, memory: int, kill_at: int | None, *, after: bool) -> Traced:
        info = _Info()
        while True:
            self._ptrace(_SYSCALL, 0)
            ended = self._wait()
            if ended is not None:
                assert ended == 0, f"the child ended with {ended} after {len(self._calls)} calls"
                return Traced(self._calls, killed=False)
            self._ptrace(_GET_SYSCALL_INFO, ctypes.sizeof(info), ctypes.addressof(info))
            if info.op == _ENTRY:
                call = self._call(info, memory)
                if call is None:
                    continue
                self._calls.append(call)
                if after:  # the next stop is this call's end
                    self._ptrace(_SYSCALL, 0)
                    assert self._wait() is None
                if len(self._calls) - 1 == kill_at:
                    self.end()
                    return Traced(self._calls, killed=True)

    def end(self) -> None:
        """Kill it where it has not ended."""
        if not self._ended:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._ended = True

    def _call(self, info: _Info, memory: int) -> Call | None:
        name = self._names.get(info.nr)
        args = info.args
        if name is None:
            return None
        if name in _BY_DESCRIPTOR:
            path = os.readlink(f"/proc/{self._pid}/fd/{args[0]}")
            if name == "write" or name == "pwrite64":
                return Call(name, path, os.pread(memory, args[2], args[1]), args[3] if name == "pwrite64" else -1)
            return Call(name, path, at=args[1])
        path = self._text(memory, args[_BY_PATH.get(name, 1)])
        if name == "openat" or name == "open":
            flags = args[2 if name == "openat" else 1]
            return Call("openat", path, at=flags) if flags & os.O_CREAT else None
        if name == "unlinkat":
            name = "unlink"
        return Call(name, path)

    def _text(self, memory: int, address: int) -> str:
        data = b""
        while b"\0" not in data:
            data += os.pread(memory, 64 - address % 64, address)  # never over the end of a page
            address += 64 - address % 64
        return os.fsdecode(data[: data.index(b"\0")])

    def _wait(self) -> int | None:
        """Until it stops at a call: None; or has ended: its exit status, below 0 for a signal. Signals are not delivered."""
        while True:
            _, status = os.waitpid(self._pid, 0)
            if not os.WIFSTOPPED(status):
                self._ended = True
                return os.waitstatus_to_exitcode(status)
            if os.WSTOPSIG(status) in (_STOPPED_AT_A_CALL, signal.SIGSTOP):
                return None
            self._ptrace(_SYSCALL, 0)

    def _ptrace(self, request: int, data: int, address: int | None = None) -> None:
        # For GET_SYSCALL_INFO the size comes before the address of what is filled in.
        given = (data, address) if address is not None else (None, data)
        if _libc.ptrace(request, self._pid, *given) == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
