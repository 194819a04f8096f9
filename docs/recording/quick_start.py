"""What is the quick start, and who types it? All that the README shows before its first heading, by shells on two terminals.

A file is written, and shown by `cat`. `headgate run` stays in the first terminal, and what comes after it goes into the second. What is
drawn is what came, when it came; only waits are shortened, and after each command there is time to read. Port 8000 has to be free.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import headgate
from docs.recording.terminal import Frame, Terminal
from tests.docs.pages import SHELL, blocks, commands, pattern

README: Final = Path(__file__).parents[2] / "README.md"
PICTURE: Final = Path(__file__).parents[1] / "quick-start.svg"
TITLE: Final = "The quick start of Headgate, recorded from two terminals; waits are shortened"

_KEY_S: Final = 0.055
_THINK_S: Final = 0.6
_READ_S: Final = 1.2
_READ_LINE_S: Final = 0.22
_LAST_S: Final = 3.0
_LONGEST_WAIT_S: Final = 0.7
_LIMIT_S: Final = 60.0
"""A command that takes longer doesn't end."""
_QUIET_S: Final = 1.0
"""What stays has said all that it has to say at first when it says nothing for so long."""


class Step(NamedTuple):
    """A command, in which terminal it is typed, and what the README shows for it."""

    terminal: int
    command: str
    shown: list[str]
    figures_vary: bool
    file: str = ""
    """What to write before, and where: the command shows it."""

    @property
    def stays(self) -> bool:
        """Whether it goes on while the next is typed."""
        return self.command.startswith("headgate run ")


class Recording(NamedTuple):
    """What was seen, in order, and all that the terminals show at the end."""

    frames: list[Frame]
    length_s: float
    text: str


def steps(page: Path) -> list[Step]:
    """What is done, in order."""
    first_heading = page.read_text().split("\n## ")[0].count("\n") + 1
    found: list[Step] = []
    for block in blocks(page):
        terminal = int(any(step.stays for step in found))
        if block.line > first_heading or block.why_not:
            continue
        if block.file:
            found.append(Step(terminal, f"cat {block.file}", block.text.splitlines(), False, block.file))
        elif block.language in SHELL:
            found += [Step(terminal, command.text, command.shown, block.figures_vary) for command in commands(block)]
    return found


class _Recorder:
    """Types, and keeps what is seen of the terminal in which it types."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._now_s = 0.0

    def look(self, number: int, terminal: Terminal, after_s: float = 0.0) -> None:
        """Keep what is there after so long a time; later it may have changed."""
        self._now_s += after_s
        self._frames.append(Frame(self._now_s, number, terminal.rows()))

    def do(self, step: Step, terminal: Terminal) -> None:
        """Type a command and wait for what it says."""
        terminal.wait(lambda: terminal.prompts > 0, _LIMIT_S)
        self.look(step.terminal, terminal)
        self._now_s += _THINK_S
        for key in step.command:
            terminal.type(key)
            terminal.settle()
            self.look(step.terminal, terminal, _KEY_S)
        terminal.wait(lambda: terminal.text().endswith(f"$ {step.command}\n"), _LIMIT_S)
        before, asked = terminal.text(), terminal.prompts
        terminal.type("\r")
        wanted = pattern(step.shown, step.figures_vary)

        def done() -> bool:
            if step.stays:
                return wanted.match(_after(before, terminal.text())) is not None
            return terminal.prompts > asked

        limit = time.monotonic() + _LIMIT_S
        while not done():
            began = time.monotonic()
            terminal.wait_for_more(limit - began)
            self.look(step.terminal, terminal, min(time.monotonic() - began, _LONGEST_WAIT_S))
        while step.stays and terminal.wait_for_more(_QUIET_S, needed=False):
            self.look(step.terminal, terminal)
        said = _after(before, terminal.text())
        if not (wanted.match(said) if step.stays else wanted.fullmatch(said)):
            raise SystemExit(f"$ {step.command}\nsaid:\n{said}\nThe README shows:\n" + "\n".join(step.shown))
        self._now_s += _READ_S + _READ_LINE_S * said.count("\n")

    def recording(self, terminals: list[Terminal]) -> Recording:
        """All of it."""
        text = "".join(terminal.text().removesuffix("$\n") for terminal in terminals)
        return Recording(self._frames, self._now_s + _LAST_S, text)


def _after(before: str, text: str) -> str:
    """What has come since a command was typed."""
    return text.removeprefix(before).removesuffix("$\n")


def record(todo: list[Step]) -> Recording:
    """Do it, in a folder of its own. Raises `SystemExit` where something is said that the README doesn't show."""
    with tempfile.TemporaryDirectory() as folder:
        for step in todo:
            if step.file:
                Path(folder, step.file).write_text("".join(f"{line}\n" for line in step.shown))
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(headgate.__file__).parents[1]),
            "HEADGATE_RUNTIME_DIR": folder,
            "HOME": folder,
            "LANG": "C.UTF-8",
        }
        recorder = _Recorder()
        terminals = [Terminal(folder, environ) for _ in range(1 + max(step.terminal for step in todo))]
        try:
            for step in todo:
                recorder.do(step, terminals[step.terminal])
            return recorder.recording(terminals)
        finally:
            for terminal in terminals:
                terminal.end()
