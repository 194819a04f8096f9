"""What do the figures look like? One SVG per work, for light and dark pages.

Usage: plots.py RESULTS.json FOLDER, in the environment `report`; it imports nothing of the suite.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

INK = "#848d97"  # readable on white and on black
FAINT = "#848d9755"
ACCENT = "#e8590c"
COLOURS = {
    "headgate": ACCENT,
    "headgate-2": "#f4a261",
    "ceiling": "#b58900",
    "mosec": "#1c7ed6",
    "ray-serve": "#7048e8",
    "ray-serve-fast": "#9775fa",
    "litserve": "#2f9e44",
    "bentoml": "#d6336c",
}
LINES = {5, 7}  # works whose cases are levels of load: lines over the level, a panel for the rest of the case's name
LEVEL = re.compile(r"^(?:(?P<panel>.*), )?(?P<level>[\d,]+) (?P<unit>users|% of capacity)$")
COLUMNS = 3


def main() -> None:
    """Draw all works."""
    results: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "headgate",
            "font.family": ["sans-serif"],
            "font.size": 9,
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": FAINT,
            "grid.linewidth": 0.5,
        }
    )
    for number, work in results["works"].items():
        cases = [case for case in work["cases"] if any(figures["medians"] for figures in case["figures"].values())]
        if not cases:
            continue
        figure = lines(cases, work["titles"]) if int(number) in LINES else bars(cases, work["titles"])
        figure.savefig(folder / f"work-{number}.svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def bars(cases: list[Mapping[str, Any]], titles: Mapping[str, str]) -> Any:
    """A panel per case: the figure that had to agree, on a logarithmic scale where it spans more than a factor of ten."""
    names = list(dict.fromkeys(name for case in cases for name in case["figures"]))
    columns = 2 if len(cases) == 4 else min(COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10, rows * (0.55 + 0.24 * len(names))), squeeze=False, layout="constrained")
    for at, axis in enumerate(axes.flat):
        if at >= len(cases):
            axis.axis("off")
            continue
        case = cases[at]
        key = case["agree_on"]
        shown = [name for name in names if key in case["figures"].get(name, {"medians": {}})["medians"]]
        values = [case["figures"][name]["medians"][key] for name in shown]
        scale = ""
        axis.barh(range(len(shown)), values, color=[colour(name) for name in shown], height=0.7)
        if min(values) > 0 and max(values) > 10 * min(values):
            scale = ", logarithmic"
            axis.set_xscale("log")
            axis.set_xlim(min(values) / 3, max(values) * 6)
        else:
            axis.set_xlim(0, max(values) * 1.3 or 1)
        for row, value in enumerate(values):
            axis.annotate(shortened(value), (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_yticks(range(len(shown)), [titles.get(name, name) for name in shown])
        for name, label in zip(shown, axis.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name == "headgate" else "normal")
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.minorticks_off()
        axis.spines["bottom"].set_visible(False)
        axis.set_title(f"{case['name']}: {said(key, case)}{scale}", fontsize=9, loc="left")
    return figure


def lines(cases: list[Mapping[str, Any]], titles: Mapping[str, str]) -> Any:
    """A panel per kind of case, the figure that had to agree over the level of load."""
    panels: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    unit = ""
    for case in cases:
        found = LEVEL.match(case["name"])
        if found:
            unit = found["unit"]
            panels.setdefault(found["panel"] or "", []).append((float(found["level"].replace(",", "")), case))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10 if columns > 1 else 6, rows * 2.8), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles: dict[str, Any] = {}
    for axis, (title, levels) in zip(axes.flat, panels.items(), strict=False):
        key = levels[0][1]["agree_on"]
        for name in dict.fromkeys(name for _, case in levels for name in case["figures"]):
            points = [(level, case["figures"][name]["medians"].get(key)) for level, case in levels if name in case["figures"]]
            known = [(level, value) for level, value in points if value is not None]
            if not known:
                continue
            own = name == "headgate"
            (handles[name],) = axis.plot(
                *zip(*known, strict=True),
                marker="o",
                markersize=4,
                color=colour(name),
                linewidth=2.2 if own else 1.4,
                zorder=3 if own else 2,
            )
        if unit == "users":
            axis.set_xscale("log", base=2)
        axis.set_xticks([level for level, _ in levels], [f"{level:g}" for level, _ in levels])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(visible=True)
        axis.set_xlabel(unit)
        axis.set_title(f"{title}: {said(key, levels[0][1])}" if title else said(key, levels[0][1]), fontsize=9, loc="left")
    labels = [titles.get(name, name) for name in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8)
    return figure


def said(key: str, case: Mapping[str, Any]) -> str:
    """A figure with its unit, where its name doesn't say it."""
    unit = case["units"].get(key, "")
    return f"{key} ({unit})" if unit not in ("", "1/s", "MB/s") else str(key)


def colour(name: str) -> str:
    """The same in all plots."""
    return COLOURS.get(name, INK)


def shortened(value: float) -> str:
    """Three digits."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
