"""How does a command speak: to a terminal of any width, with and without colour, and to a pipe?

On a terminal tables are aligned, as wide as it is, and coloured unless `NO_COLOR` is set. Elsewhere there is one record to a line,
its fields separated by tabs, nothing left out and without a heading: for `cut`, `awk` and `grep`. Progress goes to standard
error, and only where that is a terminal. Rich is imported when something is said: commands import this module.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@functools.cache
def to_stdout() -> Console:
    """What was asked for."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


@functools.cache
def to_stderr() -> Console:
    """Everything else."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def is_terminal() -> bool:
    """Whether people look at standard output: FORCE_COLOR says that they do."""
    return to_stdout().is_terminal


class Column(NamedTuple):
    """One column of a table. Where the terminal is narrow, those with the highest `rank` are left out first; 0 stays."""

    name: str
    rank: int = 0
    right: bool = False
    flexible: bool = False  # cut to what is left of the line
    may_be_empty: bool = False  # and is left out where it is in all rows


STYLES = {
    "ready": "green",
    "starting": "yellow",
    "updating": "yellow",
    "draining": "yellow",
    "unhealthy": "bold red",
    "not ready": "bold red",
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
}
"""States that have a colour wherever they are said."""

_GAP = 2
_FLEXIBLE_AT_LEAST = 12


def say(text: str = "", style: str = "", *, prose: bool = False) -> None:
    """Print a line, as it is; on a terminal `prose` is broken between words."""
    if not is_terminal():
        print(text, file=to_stdout().file)  # where rich would turn tabs into blanks
        return
    from rich.text import Text

    to_stdout().print(Text(text, style=style), soft_wrap=not prose)


def note(text: str) -> None:
    """Say on standard error what goes on."""
    print(text, file=to_stderr().file, flush=True)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, empty: str = "") -> None:
    """Print records; on a terminal where there are none, `empty`."""
    if not is_terminal():
        for row in rows:
            say(record(row))
    elif not rows:
        say(empty, style="dim")
    else:
        to_stdout().print(table_for(columns, rows, to_stdout().width), no_wrap=True)


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print what is known of one thing, on a terminal: a name and a value to a line."""
    from rich.text import Text

    for name, value in pairs:
        to_stdout().print(Text.assemble((f"{name}: ", "bold"), (value, STYLES.get(value, ""))), soft_wrap=True)


def record(fields: Sequence[str]) -> str:
    """The fields of a record on one line."""
    return "\t".join(map(_one_line, fields))


def table_for(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table:
    """The table as wide as that at most: without the columns that don't fit, and without those in which nothing stands."""
    from rich.table import Table
    from rich.text import Text

    shown = [number for number, column in enumerate(columns) if not column.may_be_empty or any(row[number] for row in rows)]
    while _width(columns, rows, shown) > width and any(columns[number].rank for number in shown):
        shown.remove(max(shown, key=lambda number: columns[number].rank))
    room = _room(columns, rows, shown, width)
    made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for number in shown:
        column = columns[number]
        made.add_column(
            column.name.upper(),
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if column.flexible else min(_cell_width(columns, rows, number), width),
            max_width=room.get(number),
        )
    for row in rows:
        made.add_row(*[Text(_one_line(row[number]), style=STYLES.get(row[number], "")) for number in shown])
    return made


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> int:
    widths = [_cell_width(columns, rows, number) for number in shown]
    return sum(
        min(width, _FLEXIBLE_AT_LEAST) if columns[number].flexible else width for number, width in zip(shown, widths, strict=True)
    ) + _GAP * max(len(shown) - 1, 0)


def _room(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> dict[int, int]:
    """How wide the flexible columns may be, so that what doesn't fit ends in an ellipsis: the narrow ones as they are, the rest alike."""
    wanted = {number: _cell_width(columns, rows, number) for number in shown}
    flexible = sorted((number for number in shown if columns[number].flexible), key=wanted.__getitem__)
    left = width - _GAP * max(len(shown) - 1, 0) - sum(wanted[number] for number in shown if not columns[number].flexible)
    room: dict[int, int] = {}
    for index, number in enumerate(flexible):
        room[number] = max(min(wanted[number], left // (len(flexible) - index)), 1)
        left -= room[number]
    return room


def _cell_width(columns: Sequence[Column], rows: Sequence[Sequence[str]], number: int) -> int:
    return max(len(columns[number].name), *(len(_one_line(row[number])) for row in rows), 0)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something takes its time, on a terminal."""
    console = to_stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def as_json(record: Any) -> None:
    """Print a record as JSON: indented on a terminal, else on one line."""
    import msgspec

    encoded = msgspec.json.encode(record)
    say((msgspec.json.format(encoded, indent=2) if is_terminal() else encoded).decode())


def bytes_text(count: float) -> str:
    """As people read it: 34 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds_text(seconds: float) -> str:
    """As people read it: 250 us, 4.2 ms, 12 s, 3 min, 2 h, 5 d."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min"), (172800, 1 / 3600, "h")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
