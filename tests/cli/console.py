"""How does a person use the command in a test: on a terminal of some width, and in a pipe?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from click.shell_completion import ShellComplete

import headgate
from headgate.cli.main import headgate as group
from headgate.cli.main import run
from tests.support import wait_until

NAME = "cli-test"
COMMAND = (sys.executable, "-m", "headgate")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Said(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str = ""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """As this process has it, without what speaks of terminals and colours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")}
    return {**kept, "PYTHONPATH": str(Path(headgate.__file__).parents[1]), "TERM": "xterm", **(extra or {})}


def piped(*arguments: str, stdin: str = "", cwd: str | Path | None = None, **extra: str) -> Said:
    """Run it with its output in a pipe."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment(extra), input=stdin, capture_output=True, text=True, check=False, timeout=60, cwd=cwd
    )
    return Said(done.returncode, done.stdout, done.stderr)


def completed(*words: str, tries: int = 5) -> list[str]:
    """What a shell is offered for the last of these words. Where the machine is busy that is nothing, so it is asked a few times."""
    shell = ShellComplete(group, {}, "headgate", "_HEADGATE_COMPLETE")
    for _ in range(tries):
        if offered := [item.value for item in shell.get_completions([*words[:-1]], words[-1])]:
            return offered
    return []


def here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Said:
    """What it comes to in this process, whose output is no terminal: quick, where no signal, input or exit matters."""
    capsys.readouterr()
    status = run(arguments)
    return Said(status, *capsys.readouterr())


class Terminal:
    """It runs on a terminal of its own."""

    def __init__(self, *arguments: str, width: int = 100, cwd: str | Path | None = None, **extra: str) -> None:
        self.raw = ""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *COMMAND, *arguments],  # so that Ctrl-C, typed there, reaches it
            env=environment(extra),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
        )
        os.close(theirs)

    @property
    def text(self) -> str:
        """All that it has written so far, without what moves the cursor and colours."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def read(self, timeout_s: float | None = None) -> bool:
        """Wait for more, or for that time; False at the end."""
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # all who had the terminal have left it
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    def until(self, text: str, timeout_s: float = 30.0) -> str:
        """Read until that is there."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text!r}"
            assert self.read(1.0), f"it ended without {text!r}: {self.text!r}"
        return self.text

    def until_it_reads(self) -> None:
        """Wait until it waits for a key. Python looks for signals before it reads: a Ctrl-C between the two is seen at the next key."""

        def reads() -> bool:
            number, *arguments = Path(f"/proc/{self.process.pid}/syscall").read_text().split()
            return number.isdigit() and arguments[0] == "0x0"  # from standard input

        wait_until(reads, 30.0)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def end(self) -> Said:
        """Read all, and wait for its end."""
        while self.read():
            pass
        return Said(self.process.wait(30), self.text)

    def close(self) -> None:
        """See that nothing of it stays."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        os.close(self._ours)


@contextlib.contextmanager
def on_terminal(*arguments: str, width: int = 100, cwd: str | Path | None = None, **extra: str) -> Iterator[Terminal]:
    """Run it on a terminal."""
    terminal = Terminal(*arguments, width=width, cwd=cwd, **extra)
    try:
        yield terminal
    finally:
        terminal.close()


def shown(*arguments: str, width: int = 100, **extra: str) -> Said:
    """What it shows on a terminal of that width."""
    with on_terminal(*arguments, width=width, **extra) as terminal:
        return terminal.end()
