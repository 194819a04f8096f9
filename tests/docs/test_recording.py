"""Does the picture of the quick start show what happens? And is it drawn as it was recorded?"""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from docs.recording.drawing import svg
from docs.recording.quick_start import PICTURE, README, Recording, Step, record, steps
from docs.recording.terminal import ROWS, Frame, Row, Run
from tests.docs.pages import Block, commands, pattern
from tests.support import leave_out

SVG = "{http://www.w3.org/2000/svg}"
ANEW = "python -m docs.recording"


def said_in(picture: str) -> str:
    """What the picture says to who can't see it: all that the terminals have shown."""
    return ET.fromstring(picture).findtext(f"{SVG}desc") or ""


def drawn_in(picture: str) -> set[str]:
    """Every row that is ever seen, its words with one blank between."""
    pieces = ET.fromstring(picture).findall(f"{SVG}g/{SVG}g/{SVG}g")
    return {" ".join(text.text or "" for text in piece.findall(f"{SVG}text")) for piece in pieces}


# What the README shows is typed along by test_pages.py; so what the picture shows as well happens today.
def test_the_picture_shows_the_commands_of_the_readme_and_what_they_say() -> None:
    told = commands(Block(1, "console", said_in(PICTURE.read_text())))
    wanted = steps(README)
    assert [command.text for command in told] == [step.command for step in wanted], ANEW
    for command, step in zip(told, wanted, strict=True):
        shown = "".join(f"{line}\n" for line in command.shown)
        assert pattern(step.shown, step.figures_vary).fullmatch(shown), f"{ANEW}: {command}"


def test_all_that_the_picture_says_is_drawn() -> None:
    picture = PICTURE.read_text()
    told = {" ".join(line.split()) for line in said_in(picture).splitlines()}
    assert told <= drawn_in(picture) | {""}, ANEW


def test_the_picture_is_small_and_needs_nothing_else() -> None:
    picture = PICTURE.read_text()
    assert len(picture) < 100_000
    assert not re.search(r"<script|<image|href=|url\((?!#)|@import", picture)


def frame(at_s: float, *lines: str, terminal: int = 0) -> Frame:
    rows = [Row((Run(0, line, "default", False),) if line else (), None) for line in lines]
    return Frame(at_s, terminal, (*rows, *[Row((), None)] * (ROWS - len(rows))))


def test_a_row_moves_on_when_it_changes_and_stands_at_its_end() -> None:
    frames = [frame(0, "same", "one"), frame(1, "same", "two"), frame(1, "same", "three"), frame(4, "same", "three")]
    drawn = svg("title", Recording(frames, 10, "one\n"))
    assert drawn.count(">same</text>") == drawn.count(">one</text>") == drawn.count(">three</text>") == 1
    assert ">two<" not in drawn  # for no time at all
    last = re.search(r'transform="translate\((-\d+)\)"><g [^>]*><text[^>]*>one<', drawn)
    assert last is not None  # where it stands unless it is moved
    (moves,) = re.findall(r"@keyframes \w+ \{ (.*) \}", drawn)
    assert moves == f"0.00%{{transform:translateX(0px)}}10.00%{{transform:translateX({last[1]}px)}}"


def test_a_colour_without_a_place_is_refused() -> None:
    odd = Frame(0, 0, (Row((Run(0, "x", "0f0f0f", False),), None), *[Row((), None)] * (ROWS - 1)))
    with pytest.raises(SystemExit, match="0f0f0f"):
        svg("title", Recording([odd], 1, ""))


def shells() -> None:
    missing = [program for program in ("setsid", "bash") if shutil.which(program) is None]
    if missing:
        leave_out(f"not installed: {', '.join(missing)}")


def test_what_a_terminal_shows_is_recorded() -> None:
    shells()
    colours = Step(0, r"printf '\e[1;31mred\e[0m and not\n'", ["red and not"], False)
    recorded = record([Step(0, "cat a.txt", ["x", "y"], False, "a.txt"), colours])
    assert recorded.text == f"$ cat a.txt\nx\ny\n$ {colours.command}\nred and not\n"
    moments = [seen.at_s for seen in recorded.frames]
    assert moments == sorted(moments)
    assert len({seen.rows for seen in recorded.frames}) >= len("cat a.txt") + len(colours.command)  # every key is seen
    last = recorded.frames[-1].rows
    assert last[4].runs == (Run(0, "red", "red", True), Run(4, "and not", "default", False))
    assert (last[5].runs[0].text, last[5].cursor) == ("$", 2)


def test_a_recording_fails_where_something_else_is_said(tmp_path: Path) -> None:
    shells()
    with pytest.raises(SystemExit, match=r"said:\s+one\s+The README shows:\s+two"):
        record([Step(0, "echo one", ["two"], False)])
