"""What is a server program asked to serve? `PROGRAM WORK PORT key=value ...`, the same for all."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType
from typing import NamedTuple

CHUNKS = 50  # of an answer in work `stream`
CHUNK = b"0123456789abcde\n"
MODEL_BATCH = 16  # the largest of the models
MODEL_WAIT_S = 0.001  # for such a batch to fill, where a contender is to be told
BATCH = 32  # the largest in work `batch`
LARGEST_BODY = 16 * 1024 * 1024  # bytes that every server must take
LONGEST_S = 30  # how long every server may take over a request, where it asks
PR_SET_CHILD_SUBREAPER = 36

# Where all processes of a program find the option `sleep_ms`, and the work.
SLEEP_MS = "HEADGATE_BENCHMARK_SLEEP_MS"
WORK = "HEADGATE_BENCHMARK_WORK"


class Asked(NamedTuple):
    """The command line."""

    work: str
    port: int
    options: dict[str, str]

    def number(self, key: str, otherwise: int) -> int:
        """An option that is a whole number."""
        return int(self.options.get(key, otherwise))


def asked() -> Asked:
    """Read the command line, and leave none of it to libraries that look there too.

    Whatever the server starts stays below this process from here on, also what daemonises: so it is found when all has to end.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _, work, port, *options = sys.argv
    del sys.argv[1:]
    wanted = Asked(work, int(port), dict(option.split("=", 1) for option in options))
    os.environ[WORK] = work
    os.environ[SLEEP_MS] = wanted.options.get("sleep_ms", "100")
    return wanted


def sleep() -> None:
    """What the handlers of `slow` and `drip` do, in whichever process they run."""
    time.sleep(int(os.environ[SLEEP_MS]) / 1000)


def exit_on_sigterm() -> None:
    """Make SIGTERM end the program by `SystemExit`, so that what it has opened is closed."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


def unknown(work: str) -> SystemExit:
    """What to raise for a work that a program doesn't have."""
    return SystemExit(f"{sys.argv[0]} has no work {work!r}")
