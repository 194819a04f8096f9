"""Does a page do what it shows? Type along, in a fresh folder, as a person does who reads it from top to bottom.

A program of its own, which `test_pages.py` runs within a network of its own, so that port 8000 is free: `typing_along.py PAGE...`. With
`--contender NAME --environment FOLDER` what needs that contender is typed, too; its environment is found as `old`.
It has two terminals and a Python. `headgate run`, and what ends in `&`, stays in the first terminal, until something else is
to stay there or the page ends: then it gets a Ctrl-C. All else runs in the second. Blocks of Python go to one session, but for files.

Several pages, each in a folder of its own, share that session without its names, and so an instance that one of them starts in it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.docs.pages import PYTHON, SHELL, Block, Command, PageError, blocks, commands, pattern

_LIMIT_S: Final = 60.0
_WIDTH: Final = 100
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")
_STAYS: Final = re.compile(r"headgate run\b|.*[^&]&$", re.DOTALL)

SESSION: Final = """
def session():
    import contextlib, io, json, os, sys, traceback
    names, answers = sys.modules["__main__"].__dict__, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the processes of an instance say is no answer
    del names["session"]
    for line in sys.stdin:
        code, said = json.loads(line), io.StringIO()
        if code["folder"] != os.getcwd():
            os.chdir(code["folder"])
            for name in [name for name in names if not name.startswith("__")]:
                del names[name]
        try:
            with contextlib.redirect_stdout(said):
                exec(compile(code["text"], code["name"], "exec"), names)
            problem = ""
        except BaseException:
            problem = traceback.format_exc()
        print(json.dumps([said.getvalue(), problem]), file=answers, flush=True)
session()
"""


class Terminal:
    """A command that runs on a terminal of its own; what it says of its progress is left out."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, _WIDTH, 0, 0))
        errors, theirs_too = os.pipe()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "bash", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs_too, env={**os.environ, "TERM": "xterm"}
        )
        os.close(theirs)
        os.close(theirs_too)
        self._ended = os.pidfd_open(self.process.pid)
        self._open = {self._ours: "", errors: ""}
        self._streams = [self._ours, errors]

    @property
    def text(self) -> str:
        """What it has said: output first, then errors."""
        both = "".join(self._open[stream] for stream in self._streams)
        return _ESCAPES.sub("", both).replace("\r\n", "\n").replace("\0", "")

    def read(self, deadline: float) -> bool:
        """Wait for more; False at the end of both, or of the command: what that has left running may keep them open."""
        left = [stream for stream in self._streams if not self._open[stream].endswith("\0")]
        if not left:
            return False
        ready, _, _ = select.select([*left, self._ended], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise PageError(f"$ {self.command}\nis not done after {_LIMIT_S:g} s; it said:\n{self.text}")
        for stream in set(left) & set(ready):
            try:
                data = os.read(stream, 65536)
            except OSError:  # all who had the terminal have left it
                data = b""
            self._open[stream] += data.decode(errors="replace") if data else "\0"
        return ready != [self._ended]

    def answer(self, shown: str) -> None:
        """Type what the page shows as typed: what stands behind a question."""
        for question, typed in re.findall(r"^(.*\?.*:) (\S+)$", shown, re.MULTILINE):
            deadline = time.monotonic() + _LIMIT_S
            while question not in self.text and self.read(deadline):
                pass
            os.write(self._ours, f"{typed}\n".encode())

    def end(self, by: signal.Signals | None = None) -> int:
        """Wait for its end, after that signal; returns its exit status."""
        deadline = time.monotonic() + _LIMIT_S
        if by is not None and self.process.poll() is None:
            os.killpg(self.process.pid, by)
        while self.read(deadline):
            pass
        status = self.process.wait(_LIMIT_S)
        for stream in (*self._streams, self._ended):
            os.close(stream)
        return status


class Reader:
    """Who types along."""

    def __init__(self) -> None:
        self._stays: Terminal | None = None
        self._session: subprocess.Popen[str] | None = None
        self._printed: str | None = None
        """By the block before, where that was one of Python."""

    def do(self, block: Block) -> None:
        """Type a block, and compare what it shows."""
        printed, self._printed = self._printed, None
        if block.file:
            path = Path(block.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language in PYTHON:
            self._printed = self._python(block)
        elif block.language in SHELL:
            typed = commands(block)
            for command in typed:
                self._shell(command, block, block.status if command is typed[-1] else 0)
        elif block.language == "text":
            if printed is None:
                raise PageError("a block of text is what the block of Python before it prints, and there is none")
            _compare("the block of Python above", block.text.splitlines(), printed, block.figures_vary)

    def _shell(self, command: Command, block: Block, status: int) -> None:
        if _STAYS.match(command.text):
            self.leave()
            self._stays = terminal = Terminal(command.text.rstrip("&"))
            wanted, deadline = pattern(command.shown, block.figures_vary), time.monotonic() + _LIMIT_S
            while not wanted.match(terminal.text):
                if not terminal.read(deadline):
                    raise PageError(f"$ {command.text}\nhas ended, and said:\n{terminal.text}")
            return
        terminal = Terminal(command.text)
        terminal.answer("\n".join(command.shown))
        ended = terminal.end()
        said = terminal.text
        if ended != status:
            raise PageError(f"$ {command.text}\nended with {ended}, not {status}, and said:\n{said}")
        if command.shown:
            _compare(f"$ {command.text}", command.shown, said, block.figures_vary)

    def _python(self, block: Block) -> str:
        if self._session is None:
            self._session = subprocess.Popen([sys.executable, "-c", SESSION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        code = {"text": block.text, "name": f"<the block in line {block.line}>", "folder": os.getcwd()}
        self._session.stdin.write(f"{json.dumps(code)}\n")
        self._session.stdin.flush()
        answer = self._session.stdout.readline()
        if not answer:
            raise PageError("the session of Python has ended")
        said, problem = json.loads(answer)
        if problem:
            raise PageError(problem)
        return str(said)

    def leave(self) -> None:
        """End what stays in the first terminal, as by Ctrl-C."""
        if self._stays is not None:
            terminal, self._stays = self._stays, None
            terminal.end(signal.SIGINT)

    def close(self) -> None:
        """End everything."""
        try:
            if self._session is not None:
                self._session.communicate(timeout=_LIMIT_S)
        finally:
            self.leave()


def _compare(what: str, shown: list[str], said: str, figures_vary: bool) -> None:
    said = "".join(f"{line.rstrip()}\n" for line in said.rstrip().splitlines())
    if not pattern(shown, figures_vary).fullmatch(said):
        raise PageError(f"{what}\nsaid:\n{said}\nThe page shows:\n" + "\n".join(shown))


@contextlib.contextmanager
def _folders(count: int) -> Iterator[list[Path]]:
    """A folder for each page, which stays until all of them end."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as around:
        folders = [Path(around, str(number)) for number in range(count)]
        for folder in folders:
            folder.mkdir()
        try:
            yield folders
        finally:
            os.chdir(before)


def _raise_loopback() -> None:
    """A fresh network has 127.0.0.1, and it is down."""
    up = 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", up))  # SIOCSIFFLAGS


def main(pages: list[Path], contender: str, environment: str) -> None:
    """Type along pages, with what they show of a contender that is installed in that environment."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it, and so would what is typed
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a person's terminal stays when a command has ended, and so what that has left running
    _raise_loopback()
    found = [blocks(page) for page in pages]
    with _folders(len(pages)) as folders, contextlib.closing(Reader()) as reader:
        for page, folder, shown in zip(pages, folders, found, strict=True):
            os.chdir(folder)
            os.environ["HOME"] = str(folder)  # where `~` is
            if environment:
                Path("old").symlink_to(environment)
            for block in shown:
                if block.why_not or block.needs not in ("", contender):
                    continue
                try:
                    reader.do(block)
                except PageError as error:
                    subprocess.run(["headgate", "stop"], capture_output=True, check=False)  # what the rest of the page would have ended
                    raise SystemExit(f"{page.name}, line {block.line}: {error}") from None
            reader.leave()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="+", type=lambda path: Path(path).resolve())
    parser.add_argument("--contender", default="")
    parser.add_argument("--environment", default="")
    main(**vars(parser.parse_args()))
