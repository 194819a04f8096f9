"""What does SIGTERM do in the processes of an instance, and in the one that started it?

It tells the supervisor to shut the instance down in order. Service managers send it to all processes at once: those below
the supervisor stay until they are told to end, since what was admitted needs them. The driver exits by it, in order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

_AGAIN_AFTER_S: Final = 0.001

_exiting = False
_told = False
_kept = 0  # by `exits_within`


def stay() -> None:
    """SIGTERM does nothing in this process from now on, unless user code sets a handler of its own."""
    signal.signal(signal.SIGTERM, _stay)


def exit_once() -> None:
    """The next SIGTERM raises `SystemExit` in the main thread, the one after it kills.

    Where the program has said what SIGTERM does, or this isn't the main thread, nothing changes.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, _exit)


def let_be() -> None:
    """SIGTERM does again what it did before `exit_once`, unless `exits_within` is entered."""
    if not _kept and signal.getsignal(signal.SIGTERM) is _exit:
        with contextlib.suppress(ValueError):  # not the main thread: it stays until the process ends
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def exits_within() -> Iterator[None]:
    """As `exit_once`, in here, for what this process has begun and is yet to leave to itself."""
    global _kept
    _kept += 1
    try:
        exit_once()
        yield
    finally:
        _kept -= 1
        let_be()


def exits() -> None:
    """The interpreter exits, and what `exit_once` is for is under way: a first SIGTERM must not interrupt it."""
    global _exiting
    _exiting = True


def was_told() -> bool:
    """Whether the interpreter exits because of a SIGTERM."""
    return _told


def _stay(number: int, frame: FrameType | None) -> None:
    """A handler, where ignoring the signal would be inherited by the programs that user code starts."""


def _exit(number: int, frame: FrameType | None) -> None:
    from headgate.router.borrowing import Shield

    if Shield.is_up():  # interrupted there, the main thread would block all handles, and the shutdown, for good
        again = threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    global _told
    _told = True
    signal.signal(number, signal.SIG_DFL)
    if not _exiting:
        raise SystemExit(128 + number)


def _before_fork() -> None:
    """Hold it back until the child has its own handling: by ours, it would be lost there."""
    _forking.unblock = _is_ours() and signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _after_fork() -> None:
    if _forking.unblock:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def _forked() -> None:
    """A child that is forked in such a process is user code's own."""
    if _is_ours():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_fork()


def _is_ours() -> bool:
    return signal.getsignal(signal.SIGTERM) in (_stay, _exit)


_forking = threading.local()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)
