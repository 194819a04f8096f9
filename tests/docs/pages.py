"""Which blocks does a page have, in order, and what is to be done with each?

A block of Python or of a shell is run, unless a comment before it says why not; comments aren't seen on the site:

    <!-- not run: needs a Kubernetes cluster -->

Other comments of that kind: `<!-- figures vary -->`, where numbers are shown as they once were; `<!-- status: 1 -->`, where the last
command is to fail; `<!-- needs: mosec -->`, where another server has to be installed, one of the benchmarks' contenders;
`<!-- within: endpoints.greet -->`, where in a declared state a part of one stands; and a comment that holds a whole block, which is run
as if it were seen: what a reader has done before, or does afterwards. `<!-- files of: moving.md -->` stands for the files that another
page shows. Anywhere in a page, `<!-- programs: nginx -->` names those without which it isn't typed along. Any other comment is a slip,
by which something would not be done that somebody has asked for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

PYTHON: Final = ("python",)
SHELL: Final = ("console",)
SHOWN: Final = ("text", "yaml", "toml", "json", "dockerfile", "ini", "nginx", "promql", "mermaid")
"""What other languages blocks may have: an unknown one is a slip, by which a block would never be run."""

_COMMENT: Final = re.compile(r"^<!--(?P<inside>.*?)-->", re.MULTILINE | re.DOTALL)
_INLINE_COMMENT: Final = re.compile(r"(?<!`)<!--")
_ANY_FENCE: Final = re.compile(r"^ *(?:```|~~~)", re.MULTILINE)
_FENCE: Final = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.MULTILINE | re.DOTALL
)
_NAME: Final = re.compile(r"# ([\w./-]+\.\w+)\n")
_PROGRAMS: Final = re.compile(r"<!-- programs: (.+?) -->")
_TOLD: Final = re.compile(r"(not run|status|needs|within): *(.+)|figures vary")
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
    within: str = ""
    """Of which part of a declared state it is a part; empty: it is whole, or something else."""

    @property
    def is_typed(self) -> bool:
        """Whether who types along does something with it, where its contender is installed."""
        return self.language in (*PYTHON, *SHELL) and not self.why_not

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
        between, at = text[at : piece.start()], piece.end()
        if told and between.strip():
            raise PageError(f"{page.name}:{line}: a comment tells of a block, and none follows: {told}")
        _check_nothing_in(between, page, line)
        if piece["inside"] is None:
            found.append(_block(page, line, piece, told))
            told = {}
            continue
        words = piece["inside"].strip()
        inside = list(_FENCE.finditer(piece["inside"]))
        said = _TOLD.fullmatch(words)
        if inside:
            before = piece["inside"][: inside[0].start()].strip()
            if len(inside) > 1 or _TOLD.match(before):
                raise PageError(f"{page.name}:{line}: a comment holds one block; what tells of it stands in a comment before")
            found.append(_block(page, line, inside[0], told))
            told = {}
        elif said is not None:
            told |= {said[1] or said[0]: said[2] or "yes"}
        elif elsewhere := _ELSEWHERE.fullmatch(words):
            found += [block._replace(borrowed=True) for block in blocks(page.with_name(elsewhere[1])) if block.file]
        elif not _PROGRAMS.fullmatch(piece[0]):
            raise PageError(f"{page.name}:{line}: nothing is known of a comment such as {words!r}; see {__name__}")
    if told:
        raise PageError(f"{page.name}: the last comment tells of a block, and none follows: {told}")
    _check_nothing_in(text[at:], page, text.count("\n"))
    return found


def _check_nothing_in(between: str, page: Path, line: int) -> None:
    """What is between two blocks, before that line, has nothing of one that was not found."""
    if _ANY_FENCE.search(between):
        raise PageError(f"{page.name}: before line {line} a block doesn't end as it begins")
    if _INLINE_COMMENT.search(between):
        raise PageError(f"{page.name}: before line {line} a comment doesn't begin its line, or doesn't end")


def programs(page: Path) -> list[str]:
    """The programs that a page needs beyond those that all do."""
    return [program for named in _PROGRAMS.findall(page.read_text()) for program in named.split(", ")]


def _block(page: Path, line: int, fenced: re.Match[str], told: dict[str, str]) -> Block:
    language = fenced["language"].strip()
    if not language.startswith("{") and language not in (*PYTHON, *SHELL, *SHOWN):
        raise PageError(f"{page.name}:{line}: a block in {language!r}; blocks are in {', '.join((*PYTHON, *SHELL, *SHOWN))}")
    if fenced["fence"] == "```" and _ANY_FENCE.search(fenced["text"]):
        raise PageError(f"{page.name}: the block in line {line} doesn't end as it begins")
    lines = [part.removeprefix(fenced["indent"]) for part in fenced["text"].splitlines(keepends=True)]
    text = "".join(lines)
    return Block(
        line,
        language,
        text,
        why_not=told.get("not run", ""),
        status=int(told.get("status", 0)),
        figures_vary="figures vary" in told,
        needs=told.get("needs", ""),
        within=told.get("within", ""),
    )


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
    # Before that of a number, since every number of decimal digits is also one of these; and an id may have no digit by chance.
    kinds = {r"(?=[\d.,]*[a-f])[0-9a-f]*\d[0-9a-f.,]*": r"[0-9a-f.,]+", r"\d[\d.,]*": r"\d[\d.,]*", " +": " +", "[─━]+": "[─━]+"}
    found = re.split(f"({'|'.join(kinds)})", text)
    return "".join(next((may for shown, may in kinds.items() if re.fullmatch(shown, piece)), re.escape(piece)) for piece in found)
