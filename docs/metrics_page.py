"""What do the tables of the page about metrics say? Made from what `/-/metrics` is made of.

`python docs/metrics_page.py` writes them anew into `docs/reference/metrics.md`; what stands around them is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headgate.core.messages import RoutingTable
from headgate.core.reports import Counters, Measurement
from headgate.ingress.metrics import COUNTER, HISTOGRAM, Family, own

PAGE: Final = Path(__file__).parent / "reference" / "metrics.md"
_HEAD: Final = "| metric | type | labels | unit | what |\n|---|---|---|---|---|\n"
_TABLE: Final = re.compile(r"^\| metric \|.*\n(?:\|.*\n)+", re.MULTILINE)
_UNITS: Final = {"seconds": "seconds", "bytes": "bytes", "ratio": "from 0 to 1"}


def text() -> str:
    """The page with its tables made anew. Raises `ValueError` where it lacks a heading with one below."""
    page = PAGE.read_text()
    for heading, families in own(Measurement(Counters()), RoutingTable(0)).items():
        above, title, below = page.partition(f"\n## {heading}\n")
        section, end, rest = below.partition("\n## ")
        table = _TABLE.search(section)
        if table is None:
            raise ValueError(f"{PAGE.name} has no table of metrics below {heading!r}")
        page = "".join((above, title, section[: table.start()], _table(families), section[table.end() :], end, rest))
    return page


def _table(families: Iterable[Family]) -> str:
    return _HEAD + "".join(map(_row, families))


def _row(family: Family) -> str:
    name = f"{family.name}_total" if family.kind == COUNTER else family.name
    cells = (f"`{name}`", _type(family), _labels(family), _UNITS.get(family.name.rpartition("_")[2], ""), family.help.removesuffix("."))
    return f"| {' | '.join(cells)} |\n"


def _type(family: Family) -> str:
    if family.kind != HISTOGRAM:
        return family.kind
    return f"{HISTOGRAM}, {family.first:g} to {family.first * 2 ** (family.bounds - 1):.10g}"


def _labels(family: Family) -> str:
    named = ", ".join(f"`{label}`" for label in family.labels)
    values = ", ".join(f"`{value}`" for value in family.values)
    return f"{named}: {values}" if values else named


if __name__ == "__main__":
    PAGE.write_text(text())
