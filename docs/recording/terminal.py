"""What does a shell on a terminal show, at any moment? A real one; `pyte` knows what the bytes mean that it is sent."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import pyte

ROWS: Final = 24
COLUMNS: Final = 84

_PROMPT: Final = b"\x1b]133;A\x07"
"""What is sent when a command may be typed, as many shells do; it isn't seen."""
_SHELL: Final = ("setsid", "--ctty", "bash", "--noprofile", "--norc", "-i")
_LOOKS_LIKE: Final = {
    "TERM": "xterm-256color",
    "PS1": rf"\[\e[32m\]$\[\e[0m\] \[{_PROMPT.decode()}\]",
    # As many shells do: what ends within a line has the rest of it, and the prompt the next one.
    "PROMPT_COMMAND": rf"printf '%{COLUMNS}s\r' ''",
}
_SETTLED_S: Final = 0.02
"""What is written at once may come in several pieces."""
_END_S: Final = 30.0
_WORDS: Final = re.compile(r"\S+(?: \S+)*")


class Run(NamedTuple):
    """Words of one look, and the column in which they begin."""

    column: int
    text: str
    colour: str
    bold: bool


class Row(NamedTuple):
    """A row, and the column of the cursor, where it is there and seen."""

    runs: tuple[Run, ...]
    cursor: int | None


class Frame(NamedTuple):
    """What is seen from a moment on, and in which of the terminals."""

    at_s: float
    terminal: int
    rows: tuple[Row, ...]


class Terminal:
    """A shell in that folder. Whoever makes one ends it."""

    def __init__(self, folder: str, environ: Mapping[str, str]) -> None:
        self.prompts = 0
        """How often a command could be typed."""
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._shell = subprocess.Popen(_SHELL, cwd=folder, env={**environ, **_LOOKS_LIKE}, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def type(self, keys: str) -> None:
        """As a person does."""
        os.write(self._ours, keys.encode())

    def wait_for_more(self, at_most_s: float, *, needed: bool = True) -> bool:
        """Wait until something has come, and all of it; returns whether it has. Where it is `needed` and hasn't, raises `SystemExit`."""
        came = False
        while select.select([self._ours], [], [], _SETTLED_S if came else max(0.0, at_most_s))[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the shell has ended
                break
            self._stream.feed(data)
            self.prompts += data.count(_PROMPT)
            came = True
        if needed and not came:
            raise SystemExit(f"nothing more came from the terminal:\n{self.text()}")
        return came

    def settle(self) -> None:
        """Wait for the echo of a key."""
        self.wait_for_more(_END_S)

    def wait(self, done: Callable[[], bool], at_most_s: float) -> None:
        """Read on until that is so."""
        limit = time.monotonic() + at_most_s
        while not done():
            self.wait_for_more(limit - time.monotonic())

    def rows(self) -> tuple[Row, ...]:
        """All rows, from the top. Raises `SystemExit` where there are too many."""
        if self._screen.cursor.y == ROWS - 1:
            raise SystemExit(f"the first of more than {ROWS} rows would scroll away:\n{self.text()}")
        cursor = self._screen.cursor
        return tuple(Row(self._runs(y), cursor.x if cursor.y == y and not cursor.hidden else None) for y in range(ROWS))

    def text(self) -> str:
        """What is written there, without empty rows at the end."""
        return "".join(f"{line.rstrip()}\n" for line in self._screen.display).rstrip("\n") + "\n"

    def end(self) -> None:
        """End what stays, as by Ctrl-C, and the shell."""
        asked, limit = self.prompts, time.monotonic() + _END_S
        self.type("\x03")
        while self.prompts == asked and time.monotonic() < limit:
            self.wait_for_more(limit - time.monotonic(), needed=False)
        self._shell.send_signal(signal.SIGHUP)
        self._shell.wait(_END_S)
        os.close(self._ours)

    def _runs(self, y: int) -> tuple[Run, ...]:
        cells = self._screen.buffer[y]
        line = "".join(cells[x].data for x in range(COLUMNS))
        found: list[Run] = []
        for words in _WORDS.finditer(line):
            start = words.start()
            for x in range(words.start() + 1, words.end() + 1):
                before, here = cells[x - 1], cells[x]
                if x == words.end() or (here.fg, here.bold) != (before.fg, before.bold):
                    if piece := line[start:x].strip():
                        found.append(Run(line.index(piece, start), piece, before.fg, before.bold))
                    start = x
        return tuple(found)
