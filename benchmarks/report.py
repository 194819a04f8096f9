"""What do the figures say? JSON to Markdown, and a summary for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from benchmarks import floors
from benchmarks.contenders import CONTENDERS

TITLES = {name: contender.title for name, contender in CONTENDERS.items()}
REFERENCE = "headgate"
WIDEST = 6  # cases that still stand side by side

HEAD = """# How fast is Headgate?

Written by `python3 dev.py bench`, which anybody can run: see [`benchmarks/README.md`](../../benchmarks/README.md) for what each work is,
and how it is measured. The figures with all their windows are in [`results.json`](results.json).

Windows of a contender are measured until three in a row agree within 10 % on the main figure of the work, and at most six times. A figure
is the median of those three, or of all where they don't agree; `±` is half of what lies between the smallest and the largest of them. `*`
marks what did not agree within 10 %, of whichever figure. `x` is the ratio to Headgate in the same run.
"""

# What the first table shows: the number of a work, and which of its cases.
HEADLINES = (
    (1, "1 connection"),
    (1, "64 connections"),
    (2, "64 connections"),
    (3, "*"),
    (4, "*"),
    (6, "*"),
    (8, "1 user"),
    (8, "64 users"),
    (9, "*"),
    (12, "*"),
)


def markdown(results: Mapping[str, Any]) -> str:
    """The report."""
    works: dict[str, Any] = dict(sorted(results["works"].items(), key=lambda item: int(item[0])))
    parts = [HEAD, _machine(results["machine"], works), _headlines(works), _floors(floors.outcomes(works))]
    parts += [_work(number, work) for number, work in works.items()]
    parts.append(_disagreeing(works))
    return "\n".join(parts)


def terminal(works: Mapping[str, Any], judged: Iterable[floors.Outcome]) -> str:
    """The main figure of every case, and the floors that the run can judge."""
    lines = []
    for number, work in works.items():
        lines.append(f"\n{number}. {work['title']}")
        for case in work["cases"]:
            lines.append(f"  {case['name']}, {case['agree_on']}")
            lines += [f"    {_title(name):34} {_cell(case, name)}" for name in case["figures"]]
        lines += [f"  {note}" for note in work["notes"]]
    lines.append("\nFloors")
    lines += [
        f"  {_verdict(outcome):8} {_value(outcome):>8}  work {outcome.floor.work}, {_asked(outcome)}"
        for outcome in judged
        if outcome.met is not None
    ]
    return "\n".join(lines)


def quantity(value: float, unit: str = "") -> str:
    """A figure as people read it: three digits or more, in a unit that suits."""
    if unit == "ms" and abs(value) >= 1000:
        value, unit = value / 1000, "s"
    elif unit == "ms" and 0 < abs(value) < 0.1:
        value, unit = value * 1000, "µs"
    elif unit == "MB" and abs(value) >= 1000:
        value, unit = value / 1000, "GB"
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{'' if unit in ('', '1/s', 'MB/s') else ' ' + unit}"


def _headlines(works: Mapping[str, Any]) -> str:
    """Who is how many times as fast."""
    shown = [
        (number, case)
        for number, pattern in HEADLINES
        for case in works.get(str(number), {"cases": []})["cases"]
        if fnmatch(case["name"], pattern) and REFERENCE in case["figures"]
    ]
    names = [name for name in CONTENDERS if name != REFERENCE and any(name in case["figures"] for _, case in shown)]
    rows = [
        (str(number), f"{case['name']}: {case['agree_on']}", _cell(case, REFERENCE), *(_times_as_fast(case, name) for name in names))
        for number, case in shown
    ]
    return (
        "## In short\n\nHow many times as fast Headgate is: its figure over the other's, or for times and memory the other's over its. "
        "Above 1 Headgate is ahead.\n\n" + _table(("work", "", "Headgate", *map(_title, names)), rows, "ll" + "r" * (len(names) + 1))
    )


def _times_as_fast(case: Mapping[str, Any], name: str) -> str:
    key = case["agree_on"]
    mine, other = (case["figures"].get(one, {"medians": {}})["medians"].get(key) for one in (REFERENCE, name))
    if not mine or not other:
        return ""
    ratio = other / mine if case["units"].get(key) in ("ms", "s", "MB") else mine / other
    sure = all(key not in case["figures"][one]["unsteady"] for one in (REFERENCE, name))
    return (f"{ratio:,.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 3 else f"{ratio:.2f}") + ("" if sure else "*")


def _machine(here: Mapping[str, Any], works: Mapping[str, Any]) -> str:
    versions: dict[str, dict[str, str]] = {}
    for work in works.values():
        for name, found in work["versions"].items():
            versions.setdefault(name, {}).update(found)
    peers = "; ".join(", ".join(f"{name} {version}" for name, version in found.items()) for found in versions.values())
    commits = ", ".join(sorted({f"`{work['commit']}`" for work in works.values()}))
    return (
        f"Machine: {here['cores']} cores of {here['cpu']}, {here['memory_gb']} GB, Linux {here['kernel']}, Python {here['python']}, "
        f"wrk {here['wrk']}. Headgate at {commits} (`+`: with changes). By environment: {peers}.\n"
    )


def _floors(judged: Sequence[floors.Outcome]) -> str:
    rows = [
        (
            str(outcome.floor.work),
            _asked(outcome),
            _value(outcome),
            f"**{_verdict(outcome)}**" if outcome.met is False else _verdict(outcome),
        )
        for outcome in judged
        if outcome.met is not None
    ]
    unknown = sorted({outcome.floor.work for outcome in judged if outcome.met is None})
    rest = f"\nNot measured: floors of work {', '.join(map(str, unknown))}.\n" if unknown else ""
    return "## Floors\n\nWhat Headgate has to reach.\n\n" + _table(("work", "asked for", "measured", ""), rows, "rlrl") + rest


def _work(number: str, work: Mapping[str, Any]) -> str:
    cases = work["cases"]
    names = list(dict.fromkeys(name for case in cases for name in case["figures"]))
    figures = list(dict.fromkeys(case["agree_on"] for case in cases))
    parts = [f"## {number}. {work['title']}\n", f"![{work['title']}](work-{number}.svg)\n"]
    parts.append(f"Here {', '.join(f'`{figure}`' for figure in figures)}:\n")
    if len(cases) <= WIDEST:
        rows = [(_title(name), *(_cell(case, name) for case in cases)) for name in names]
        parts.append(_table(("", *(case["name"] for case in cases)), rows, "l" + "r" * len(cases)))
    else:
        rows = [(case["name"], *(_cell(case, name) for name in names)) for case in cases]
        parts.append(_table(("", *map(_title, names)), rows, "l" + "r" * len(names)))
    parts += [f"- {note}" for note in work["notes"]] + [""] * bool(work["notes"])
    parts.append("<details><summary>All figures</summary>\n")
    for case in cases:
        keys = list(dict.fromkeys(key for name in case["figures"] for key in case["figures"][name]["medians"]))
        rows = [(_title(name), *(_spread(case, name, key) for key in keys)) for name in case["figures"]]
        parts.append(_table((case["name"], *keys), rows, "l" + "r" * len(keys)))
    parts.append("</details>\n")
    quick = ", in quick form" if work["quick"] else ""
    parts.append(f"Measured {work['measured'].replace('T', ' ').replace('+00:00', ' UTC')} in {work['took_s']} s{quick}.\n")
    return "\n".join(parts)


def _disagreeing(works: Mapping[str, Any]) -> str:
    rows = []
    for number, work in works.items():
        for case in work["cases"]:
            for name, figures in case["figures"].items():
                if figures["agreed"]:
                    continue
                values = " ".join(quantity(window[case["agree_on"]]) for window in figures["windows"] if case["agree_on"] in window)
                rows.append((number, case["name"], _title(name), values, "; ".join(figures["void"])))
    if not rows:
        return "## What did not agree\n\nNothing: on the main figure three windows in a row of everybody are within 10 %.\n"
    return "## What did not agree\n\n" + _table(("work", "case", "", "windows", "windows that don't count"), rows, "rllll")


def _cell(case: Mapping[str, Any], name: str) -> str:
    figures = case["figures"].get(name)
    if figures is None:
        return ""
    figure = case["agree_on"]
    if figure not in figures["medians"]:
        return "void"
    value = figures["medians"][figure]
    reference = case["figures"].get(REFERENCE, {}).get("medians", {}).get(figure)
    ratio = (
        f" x{quantity(value / reference) if value > reference else format(value / reference, '.2g')}"
        if reference and name != REFERENCE
        else ""
    )
    return f"{quantity(value, case['units'].get(figure, ''))}{'' if figures['agreed'] else '*'}{ratio}"


def _spread(case: Mapping[str, Any], name: str, key: str) -> str:
    figures = case["figures"][name]
    if key not in figures["medians"]:
        return ""
    mark = "*" if key in figures["unsteady"] else ""
    return f"{quantity(figures['medians'][key], case['units'].get(key, ''))}{mark} ±{figures['spread'][key] / 2:.0%}"


def _asked(outcome: floors.Outcome) -> str:
    return outcome.floor.describe(TITLES)


def _verdict(outcome: floors.Outcome) -> str:
    return "not measured" if outcome.met is None else "met" if outcome.met else "not met"


def _value(outcome: floors.Outcome) -> str:
    return "" if outcome.value is None else quantity(outcome.value, outcome.floor.unit) + ("" if outcome.steady else "*")


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], align: str) -> str:
    marks = [{"l": "---", "r": "---:"}[side] for side in align]
    lines = [list(heads), marks, *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
