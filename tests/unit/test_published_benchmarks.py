"""Are the published figures those that were measured, in the reports and in their plots?"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "docs/benchmarks", ROOT / "docs/benchmarks/ray"]
WORKS_AS_LINES = ("5", "7")
"""Their plots are lines over the load, which don't spell out what they show."""


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_no_report_is_left_out_here() -> None:
    assert {file.parent for file in ROOT.glob("docs/**/results.json")} == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_report_says_what_was_measured(folder: Path) -> None:
    assert (folder / "README.md").read_text() == report.markdown(results(folder)), "written by `python3 dev.py bench`, never by hand"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_work_has_a_plot_of_what_was_measured(folder: Path) -> None:
    works = results(folder)["works"]
    assert {path.name for path in folder.glob("*.svg")} == {f"work-{number}.svg" for number in works}
    for number, work in works.items():
        drawn = (folder / f"work-{number}.svg").read_text()
        words = Counter(map(html.unescape, re.findall(r">([^<>\n]+)</text>", drawn)))
        assert f"<title>{html.escape(work['title'], quote=False)}</title>" in drawn
        medians = [
            (work["titles"].get(name), figures["medians"][case["agree_on"]])
            for case in work["cases"]
            for name, figures in case["figures"].items()
            if case["agree_on"] in figures["medians"]
        ]
        if number in WORKS_AS_LINES:
            assert {title for title, _ in medians if title} <= words.keys(), number
        else:
            assert not Counter(shortened(value) for _, value in medians) - words, f"work {number}: see benchmarks/plots.py"


def shortened(value: float) -> str:
    """Three digits, as a plot has them."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
