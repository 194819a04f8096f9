"""What do the figures look like? One SVG per work, for light and dark pages, told apart without colours, too.

Usage: plots.py RESULTS.json FOLDER, in the environment `report`; it imports nothing of the suite. So everything is drawn anew by
`.bench/report/bin/python benchmarks/plots.py docs/benchmarks/results.json docs/benchmarks`, without measuring.
"""

from __future__ import annotations

import io
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

# Each is drawn in its first colour, and has its second one where the page is dark. The ground is drawn, too, so that it can be read where
# what shows it is of another mind than the page.
GROUND = ("#ffffff", "#0d1117")
INK = ("#46515c", "#b1bac4")
FAINT = ("#dde2e7", "#2b323a")
GREY = ("#7d8893", "#87919b")
COLOURS = {
    "headgate": ("#d4470c", "#ff8a50"),
    "headgate-2": ("#d4470c", "#ff8a50"),
    "headgate-ray": ("#a86a1a", "#f2b878"),
    "ceiling": ("#8f6f00", "#d9b648"),
    "mosec": ("#0b62b0", "#62b0ff"),
    "ray-serve": ("#6b3fc9", "#a98bff"),
    "ray-serve-fast": ("#9a63d8", "#d3bcff"),
    "litserve": ("#1b7a3c", "#5fcf86"),
    "bentoml": ("#c2255c", "#ff8fb3"),
}
# On lines: the mark at each point, and the dashes between them.
MARKS = {
    "headgate": ("o", "-"),
    "mosec": ("s", "--"),
    "ray-serve": ("X", ":"),
    "ray-serve-fast": ("P", "-."),
    "litserve": ("^", "--"),
    "bentoml": ("D", ":"),
}
AS_LINES = {5, 7}  # works whose cases are levels of load: lines over the level, a panel for the rest of the case's name
AS_ROWS = {10}  # works whose cases are of one contender: a row for each
LEVEL = re.compile(r"^(?:(?P<panel>.*), )?(?P<level>[\d,]+) (?P<unit>users?|% of capacity)$")
COLUMNS = 3
WIDTH = 8.6  # inches of 96 pixels: about what a page of text has
LESS_IS_BETTER = ("ms", "s", "MB")
RATIOS_OF_TIMES = ("to central",)
IN_WORDS = {
    "goodput": "goodput (requests/s)",
    "max": "the slowest request",
    "ms": "time",
    "of the first": "requests/s over those of the first",
    "to central": "mean wait over that in one queue for all replicas",
}


class Panel(NamedTuple):
    """Figures that are compared: for each row the value, and whose it is."""

    title: str
    key: str
    unit: str
    rows: dict[str, tuple[float, str]]


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
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "figure.facecolor": GROUND[0],
            "axes.facecolor": GROUND[0],
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK[0]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": FAINT[0],
            "grid.linewidth": 0.7,
        }
    )
    for number, work in results["works"].items():
        cases = [case for case in work["cases"] if medians(case)]
        if not cases:
            continue
        if int(number) in AS_LINES:
            figure = lines(cases, work["titles"])
        elif int(number) in AS_ROWS:
            figure = bars([one_panel(cases, work["titles"])])
        else:
            figure = bars([panel(case, work["titles"]) for case in cases])
        drawn = io.StringIO()
        figure.savefig(drawn, metadata={"Date": None, "Creator": None, "Title": work["title"]})
        (folder / f"work-{number}.svg").write_text(for_dark_pages(drawn.getvalue()))
        plt.close(figure)


def panel(case: Mapping[str, Any], titles: Mapping[str, str]) -> Panel:
    """A case, with a row for each contender."""
    key = case["agree_on"]
    rows = {title(name, titles): (value, name) for name, value in medians(case).items()}
    return Panel(case["name"], key, case["units"].get(key, ""), rows)


def one_panel(cases: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Panel:
    """All cases, with a row for each."""
    key = cases[0]["agree_on"]
    rows = {
        case["name"] if name == "headgate" else f"{case['name']}, {title(name, titles)}": (value, name)
        for case in cases
        for name, value in medians(case).items()
    }
    return Panel("", key, cases[0]["units"].get(key, ""), rows)


def bars(panels: Sequence[Panel]) -> Any:
    """A panel beside the other, with the same rows, which are named once. Where all show the same figure they have the same scale."""
    rows = list(dict.fromkeys(row for each in panels for row in each.rows))
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    high = -(-len(panels) // columns)
    size = (WIDTH, 0.35 + high * (0.5 + 0.22 * len(rows)))
    figure, axes = plt.subplots(high, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    together = len({each.key for each in panels}) == 1
    every = [value for each in panels for value, _ in each.rows.values()]
    for at, (axis, each) in enumerate(zip(axes.flat, panels, strict=False)):
        compared = every if together else [value for value, _ in each.rows.values()]
        logarithmic = min(compared) > 0 and max(compared) > 10 * min(compared)
        draw(axis, each, rows, compared, logarithmic=logarithmic)
        axis.set_yticks(range(len(rows)), rows if at % columns == 0 else [""] * len(rows))
        for name, label in zip(rows, axis.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name == "Headgate" else "normal")
        figure_shown = said(each.key, each.unit, logarithmic=logarithmic)
        told = [each.title] if together else [each.title, figure_shown]
        axis.set_title("\n".join(line for words in told for line in textwrap.wrap(words, 90 // columns)))
        if together and at == 0:
            figure.suptitle(figure_shown, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return figure


def draw(axis: Any, each: Panel, rows: Sequence[str], compared: Sequence[float], *, logarithmic: bool) -> None:
    """Bars, which begin at 0; on a logarithmic scale, which has no 0, dots."""
    values = [value for value, _ in each.rows.values()]
    places = [rows.index(row) for row in each.rows]
    looks = [colour(name) for _, name in each.rows.values()]
    if logarithmic:
        least, most = min(compared) / 1.6, max(compared)
        axis.set_xscale("log")
        axis.set_xlim(least, most * 7)  # room for what is written behind the dots
        axis.scatter(values, places, s=34, c=looks, zorder=3)
        axis.hlines(places, least, values, colors=looks, linewidth=1.2)
        ticks = [10.0**power for power in range(-3, 9) if least <= 10.0**power <= most * 2]
        axis.set_xticks(ticks, [shortened(tick) for tick in ticks])
        axis.grid(visible=True, axis="x")
    else:
        axis.set_xlim(0, max(compared) * 1.3 or 1)
        axis.barh(places, values, color=looks, height=0.66)
        axis.set_xticks([])
    for value, place in zip(values, places, strict=True):
        axis.annotate(shortened(value), (value, place), (6, 0), textcoords="offset points", va="center")
    axis.minorticks_off()
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    axis.set_ylim(len(rows) - 0.4, -0.6)


def lines(cases: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Any:
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
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.9 + rows * 2.3), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles: dict[str, Any] = {}
    for axis, (name_of_panel, levels) in zip(axes.flat, panels.items(), strict=False):
        for name in dict.fromkeys(name for _, case in levels for name in case["figures"]):
            known = [(level, medians(case)[name]) for level, case in levels if name in medians(case)]
            if not known:
                continue
            own = name == "headgate"
            mark, dashes = MARKS.get(name, ("v", "-"))
            # Wide and below, so that others who are as good are seen on it.
            (handles[name],) = axis.plot(
                *zip(*known, strict=True),
                marker=mark,
                markersize=9 if own else 5,
                linestyle=dashes,
                color=colour(name),
                linewidth=4 if own else 1.5,
                zorder=2 if own else 3,
            )
        if unit != "% of capacity":
            axis.set_xscale("log", base=2)
        axis.set_xticks([level for level, _ in levels], [f"{level:g}" for level, _ in levels])
        axis.minorticks_off()
        axis.set_ylim(0, 1.1 * max(value for _, case in levels for value in medians(case).values()) or 1)
        axis.grid(visible=True)
        axis.set_xlabel(unit)
        axis.set_title("\n".join(textwrap.wrap(name_of_panel, 34)))
    first = cases[0]
    key = first["agree_on"]
    figure.suptitle(said(key, first["units"].get(key, "")), x=0.01, ha="left", fontsize=9, fontweight="bold")
    labels = [title(name, titles) for name in handles]
    figure.legend(
        handles.values(), labels, loc="outside lower left", ncols=min(3, len(handles)), frameon=False, handlelength=4, labelcolor=INK[0]
    )
    return figure


def for_dark_pages(drawn: str) -> str:
    """The same with a second set of colours."""
    pairs = dict([GROUND, INK, FAINT, GREY, *COLOURS.values()])
    names = {light: f"--colour-{number}" for number, light in enumerate(pairs)}

    def rules(which: Mapping[str, str]) -> str:
        return "svg { " + " ".join(f"{names[light]}: {shown};" for light, shown in which.items()) + " }"

    style = f"<style>\n{rules({light: light for light in pairs})}\n@media (prefers-color-scheme: dark) {{ {rules(pairs)} }}\n</style>"
    named = re.sub(r"#[0-9a-f]{6}\b", lambda found: f"var({names[found[0]]}, {found[0]})" if found[0] in names else found[0], drawn)
    return named.replace("<defs>", f"{style}\n <defs>", 1)


def medians(case: Mapping[str, Any]) -> dict[str, float]:
    """What each contender came to, of those that did."""
    key = case["agree_on"]
    return {name: figures["medians"][key] for name, figures in case["figures"].items() if key in figures["medians"]}


def title(name: str, titles: Mapping[str, str]) -> str:
    """How a contender is called; with two ingresses it is the same one."""
    return titles.get(name) or titles.get(name.removesuffix("-2"), name)


def said(key: str, unit: str, *, logarithmic: bool = False) -> str:
    """A figure with its unit, where its name doesn't say it, and which way is better."""
    named = IN_WORDS.get(key, key) + (f" ({unit})" if unit not in ("", "1/s", "MB/s") else "")
    better = "less" if unit in LESS_IS_BETTER or key in RATIOS_OF_TIMES else "more"
    return f"{named}, {better} is better{', logarithmic' if logarithmic else ''}"


def colour(name: str) -> str:
    """The same in all plots."""
    return COLOURS.get(name, GREY)[0]


def shortened(value: float) -> str:
    """Three digits."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
