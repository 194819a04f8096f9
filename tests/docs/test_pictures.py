"""Are the pictures those that the code draws now, on a page, and legible in the light and in the dark?"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from docs.pictures.__main__ import FOLDER, files
from docs.pictures.batches import Batch, batches
from docs.pictures.drawing import Picture
from docs.pictures.waits import mean_wait

ROOT = Path(__file__).parents[2]
DRAWN = files()
_SVG = "{http://www.w3.org/2000/svg}"


def test_the_pictures_are_those_that_the_code_draws() -> None:
    kept = {path: path.read_text() for path in FOLDER.glob("*.svg")}
    assert kept.keys() == DRAWN.keys(), "python -m docs.pictures"
    assert [path.name for path, text in DRAWN.items() if kept[path] != text] == [], "python -m docs.pictures"


def test_each_is_on_a_page_which_says_what_it_shows() -> None:
    said = {}
    for page in ROOT.glob("docs/**/*.md"):
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            said[(page.parent / target).resolve()] = words
    for path, text in DRAWN.items():
        title = ET.fromstring(text).findtext(f"{_SVG}title")
        assert title, path.name
        assert title.startswith(said[path]), path.name


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_each_has_a_description_and_its_words_within_it(path: Path) -> None:
    drawn = ET.fromstring(DRAWN[path])
    named = (drawn.get("aria-labelledby") or "").split()
    assert [found.get("id") for found in (drawn.find(f"{_SVG}title"), drawn.find(f"{_SVG}desc")) if found is not None] == named
    assert len(drawn.findtext(f"{_SVG}desc") or "") > 80
    for words in drawn.iter(f"{_SVG}text"):
        text, x = "".join(words.itertext()), float(words.get("x", ""))
        wide = len(text) * 7.8
        before = {"start": 0.0, "middle": wide / 2, "end": wide}[words.get("text-anchor", "")]
        assert x - before >= 0, text
        assert x - before + wide <= float(drawn.get("width", "")), text
        assert 8 < float(words.get("y", "")) < float(drawn.get("height", "")), text


def test_words_stand_out_from_all_that_they_may_stand_on() -> None:
    style = Picture("any", 1, 1, "", "").svg()
    rules = re.findall(r"\.picture (\S+) \{ fill: (\S+);(?: fill: light-dark\((\S+), (\S+)\);)? \}", style)
    fills = {selector: ((light, dark) if dark else (plain, plain)) for selector, plain, light, dark in rules}
    words = [fills["text"], fills[".quiet"]]
    grounds = [fill for selector, fill in fills.items() if selector not in ("text", ".quiet") and ".head" not in selector]
    pages = ("#ffffff", "#131416")  # of the site; GitHub's are #ffffff and #0d1117
    assert len(grounds) == 7
    for ink, ground in itertools.product(words, grounds):
        for number, page in enumerate(pages):
            behind = page if ground[number] == "none" else ground[number]
            assert contrast(ink[number], behind) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    """By WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_that_do_not_fit_their_box_are_refused() -> None:
    with pytest.raises(ValueError, match="too long for a box of 40"):
        Picture("any", 100, 100, "", "").box(0, 0, 40, 20, "seven words")


def test_batches_leave_when_they_are_full_or_have_waited() -> None:
    assert batches([1.0, 2.0, 3.0], call_ms=10, max_batch_size=2, wait_ms=0) == [Batch([1.0], 1.0), Batch([2.0, 3.0], 11.0)]
    assert batches([1.0, 2.0, 9.0], call_ms=10, max_batch_size=4, wait_ms=5) == [Batch([1.0, 2.0], 6.0), Batch([9.0], 16.0)]


def test_waits_are_those_that_books_have() -> None:
    # One server, calls of equal length: busy / (2 (1 - busy)), by Pollaczek and Khinchine.
    assert [mean_wait(1, busy) for busy in (0.5, 0.7, 0.9)] == pytest.approx([0.5, 7 / 6, 4.5])
    # Erlang's C of 3 servers at a load of 2 is 4/9; of calls that vary it is twice the wait.
    assert 2 * mean_wait(3, 2 / 3) == pytest.approx(4 / 9)
