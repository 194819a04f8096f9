"""How is a recording drawn, as an SVG that plays wherever an image may be? Without a script: CSS moves what is drawn.

Each row is a strip of all that it ever shows, side by side, of which the window shows one piece; it moves on when the row changes. So a row
costs one animation, and what doesn't change is drawn once. At the end it begins anew. Who prefers less motion, and what knows no CSS, sees
the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.sax.saxutils import escape

from docs.recording.terminal import COLUMNS, ROWS, Row

if TYPE_CHECKING:
    from docs.recording.quick_start import Recording

_CELL: Final = 8.4
_LINE: Final = 18.0
_SIZE: Final = 14.0
_LEFT: Final = 16.0
_BAR: Final = 36.0
_TOP: Final = _BAR + 10.0
_WIDTH: Final = round(COLUMNS * _CELL + 2 * _LEFT)
_HEIGHT: Final = round(_TOP + ROWS * _LINE + 12)
_TAB: Final = 116.0
_TABS: Final = ("Terminal 1", "Terminal 2")

# On black whatever the page is, as terminals often are, and with an outline, so that it ends somewhere on a black page.
_INK: Final = "#d7dde4"
_COLOURS: Final = {
    "default": _INK,
    "red": "#ff8f87",
    "green": "#7ddb8f",
    "brown": "#e8c268",  # yellow, as terminals of four bits per pixel had it
    "blue": "#86b7ff",
    "magenta": "#d8a5ff",
    "cyan": "#6fd3dd",
    "white": "#ffffff",
}


class Strip(NamedTuple):
    """All that a place shows, in order, each from its moment on."""

    moments_s: list[float]
    pieces: list[str]


def svg(title: str, recording: Recording) -> str:
    """The file."""
    frames = recording.frames
    strips = [_strip([(frame.at_s, _bar(frame.terminal)) for frame in frames])]
    strips += [_strip([(frame.at_s, _row(frame.rows[y], y)) for frame in frames]) for y in range(ROWS)]
    moving = [(number, strip) for number, strip in enumerate(strips) if len(strip.pieces) > 1 or strip.pieces[0]]
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title text">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="text">{escape(recording.text)}</desc>',
            f"<style>\n{_style(moving, recording.length_s)}</style>",
            f'<clipPath id="window"><rect x="1" y="1" width="{_WIDTH - 2}" height="{_HEIGHT - 2}" rx="8"/></clipPath>',
            f'<rect x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8" fill="#12161c" stroke="#6e7781"/>',
            f'<path d="M1 {_n(_BAR)}H{_WIDTH - 1}" stroke="#39414b"/>',
            '<g clip-path="url(#window)">',
            *(_drawn(number, strip) for number, strip in moving),
            "</g>",
            "</svg>\n",
        ]
    )


def _strip(seen: Sequence[tuple[float, str]]) -> Strip:
    """Without what is as it was before, and of what is of the same moment, the last."""
    strip = Strip([], [])
    for at_s, piece in seen:
        if strip.moments_s and strip.moments_s[-1] == at_s:
            strip.moments_s.pop()
            strip.pieces.pop()
        if not strip.pieces or strip.pieces[-1] != piece:
            strip.moments_s.append(at_s)
            strip.pieces.append(piece)
    return strip


def _drawn(number: int, strip: Strip) -> str:
    pieces = "".join(f'<g transform="translate({at * _WIDTH})">{piece}</g>' for at, piece in enumerate(strip.pieces) if piece)
    return f'<g id="r{number}" class="row" transform="translate({(1 - len(strip.pieces)) * _WIDTH})">{pieces}</g>'


def _style(strips: Sequence[tuple[int, Strip]], length_s: float) -> str:
    lines = [
        f"text {{ font: {_SIZE:g}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: {_INK}; }}",
        ".bold { font-weight: bold; }",
        ".tab { font-family: system-ui, sans-serif; font-size: 13px; text-anchor: middle; fill: #9aa4af; }",
        ".open { fill: #ffffff; }",
        *(f".{name} {{ fill: {colour}; }}" for name, colour in _COLOURS.items() if name != "default"),
        "@media (prefers-reduced-motion: no-preference) {",
        f".row {{ animation: {length_s:.2f}s step-end infinite; }}",
    ]
    for number, (moments_s, _) in strips:
        if len(moments_s) > 1:
            moves = "".join(f"{100 * at_s / length_s:.2f}%{{transform:translateX({-at * _WIDTH}px)}}" for at, at_s in enumerate(moments_s))
            lines += [f"#r{number} {{ animation-name: r{number}; }}", f"@keyframes r{number} {{ {moves} }}"]
    return "".join(f"{line}\n" for line in [*lines, "}"])


def _bar(terminal: int) -> str:
    tabs = []
    for number, name in enumerate(_TABS):
        middle = _LEFT + (number + 0.5) * _TAB
        if number == terminal:
            tabs.append(f'<path d="M{_n(middle - _TAB / 2)} {_n(_BAR - 1)}h{_n(_TAB)}" stroke="#7ddb8f" stroke-width="2"/>')
        tabs.append(f'<text class="tab{" open" if number == terminal else ""}" x="{_n(middle)}" y="23">{name}</text>')
    return "".join(tabs)


def _row(row: Row, y: int) -> str:
    middle = _TOP + (y + 0.5) * _LINE
    parts = []
    if row.cursor is not None:
        parts.append(f'<rect x="{_n(_x(row.cursor))}" y="{_n(middle - 9)}" width="{_n(_CELL)}" height="18" fill="#9aa4af"/>')
    for run in row.runs:
        looks = [name for name, wanted in ((run.colour, run.colour != "default"), ("bold", run.bold)) if wanted]
        if run.colour not in _COLOURS:
            raise SystemExit(f"{run.text!r} is in a colour that has no place here: {run.colour!r}")
        look = f' class="{" ".join(looks)}"' if looks else ""
        length = f' textLength="{_n(len(run.text) * _CELL)}"' if len(run.text) > 1 else ""
        parts.append(f'<text x="{_n(_x(run.column))}" y="{_n(middle + 5)}"{length}{look}>{escape(run.text)}</text>')
    return "".join(parts)


def _x(column: int) -> float:
    return _LEFT + column * _CELL


def _n(number: float) -> str:
    """As short as it can be said."""
    return f"{round(number, 1) + 0.0:g}"
