"""Which blocks does a page have, in order, and what is to be done with each?

A block of Python or of a shell is run, unless a comment before it says why not; comments aren't seen on the site:

    <!-- not run: needs a Kubernetes cluster -->

Other comments of that kind: `<!-- figures vary -->`, where numbers are shown as they once were; `<!-- status: 1 -->`, where the last
command is to fail; `<!-- needs: mosec -->`, where another server has to be installed, one of the benchmarks' contenders; and a comment
that holds a whole block, which is run as if it were seen: what a reader has done before, or does afterwards. `<!-- files of: moving.md -->`
stands for the files that another page shows. Anywhere in a page, `<!-- programs: nginx -->` names those without which it isn't
typed along.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

PYTHON: Final = ("python",)
SHELL: Final = ("console",)
SHOWN: Final = ("text", "yaml", "toml", "json", "dockerfile", "ini", "nginx", "promql", "mermaid")
"""What other languages blocks may have: an unknown one is a slip, by which a block would never be run."""

_COMMENT: Final = re.compile(r"<!--(?P<inside>.*?)-->", re.DOTALL)
_FENCE: Final = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.MULTILINE | re.DOTALL
)
_NAME: Final = re.compile(r"# ([\w./-]+\.\w+)\n")
_PROGRAMS: Final = re.compile(r"<!-- programs: (.+?) -->")
_TOLD: Final = re.compile(r"(not run|status|needs): *(.+)|figures vary")
_ELSEWHERE: Final = re.compile(r"files of: *(.+)")


class Block(NamedTuple):
    """One block of a page."""

    line: int
    language: str
    text: str
    why_not: str = ""
    """Why it is not run; empty: it is."""
    status: int = 0
    """How its last command ends."""
    figures_vary: bool = False
    needs: str = ""
    """The contender of the benchmarks that it is about; empty: it is about Headgate alone."""
    borrowed: bool = False
    """It is a file of another page, which may have more than this one uses."""

    @property
    def file(self) -> str:
        """The file that it is, by its first line, a comment with a name; empty: none."""
        named = _NAME.match(self.text)
        return named[1] if named and self.language not in SHELL else ""


class PageError(Exception):
    """A page that can't be run as it is written."""


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, also those in comments."""
    text = page.read_text()
    found: list[Block] = []
    told: dict[str, str] = {}
    at = 0
    for piece in re.finditer(f"{_COMMENT.pattern}|{_FENCE.pattern}", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, piece.start()) + 1
        if told and text[at : piece.start()].strip():
            raise PageError(f"{page.name}:{line}: a comment tells of a block, and none follows: {told}")
        at = piece.end()
        if piece[0].startswith("<!--"):
            inside = _FENCE.search(piece["inside"])
            elsewhere = _ELSEWHERE.fullmatch(piece["inside"].strip())
            if elsewhere is not None:
                found += [block._replace(borrowed=True) for block in blocks(page.with_name(elsewhere[1])) if block.file]
            elif inside is not None:
                found.append(_block(page, line, inside, told))
                told = {}
            else:
                said = _TOLD.fullmatch(piece["inside"].strip())
                told |= {} if said is None else {said[1] or said[0]: said[2] or "yes"}
        else:
            found.append(_block(page, line, piece, told))
            told = {}
    return found


def programs(page: Path) -> list[str]:
    """The programs that a page needs beyond those that all do."""
    return [program for named in _PROGRAMS.findall(page.read_text()) for program in named.split(", ")]


def _block(page: Path, line: int, fenced: re.Match[str], told: dict[str, str]) -> Block:
    language = fenced["language"].strip()
    if not language.startswith("{") and language not in (*PYTHON, *SHELL, *SHOWN):
        raise PageError(f"{page.name}:{line}: a block in {language!r}; blocks are in {', '.join((*PYTHON, *SHELL, *SHOWN))}")
    lines = [part.removeprefix(fenced["indent"]) for part in fenced["text"].splitlines(keepends=True)]
    text = "".join(lines)
    return Block(line, language, text, told.get("not run", ""), int(told.get("status", 0)), "figures vary" in told, told.get("needs", ""))


class Command(NamedTuple):
    """A line that is typed, and what is shown for it."""

    text: str
    shown: list[str]


def commands(block: Block) -> list[Command]:
    """What is typed in a block of a shell: each line with `$ `, and those that a backslash, or an indent by `> `, adds to it."""
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        elif not found:
            raise PageError(f"line {block.line}: a block of a shell begins with `$ `, not with {line!r}")
        elif not found[-1].shown and (line.startswith("> ") or found[-1].text.endswith("\\")):
            found[-1] = Command(f"{found[-1].text}\n{line.removeprefix('> ')}", [])
        else:
            found[-1].shown.append(line)
    return found


def pattern(shown: list[str], figures_vary: bool) -> re.Pattern[str]:
    """What is shown, as what may come out: `...` is anything within a line, and alone any lines; blanks at ends of lines don't count."""
    parts = []
    for line in shown:
        if line.strip() in ("...", "…"):
            parts.append(r"(?:.*\n)*?")
            continue
        words = [_varying(piece) if figures_vary else re.escape(piece) for piece in re.split(r"\.\.\.|…", line.rstrip())]
        parts.append(".*?".join(words) + "[ ]*\n")
    return re.compile("".join(parts))


def _varying(text: str) -> str:
    """The same with other numbers, ids and widths of columns."""
    kinds = {"number": r"[0-9a-f]*\d[0-9a-f.,]*", "blanks": r" +", "rule": "[─━]+"}
    found = re.split(f"({'|'.join(kinds.values())})", text)
    return "".join(next((kind for kind in kinds.values() if re.fullmatch(kind, piece)), re.escape(piece)) for piece in found)
