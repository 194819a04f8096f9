"""How is a picture made of boxes, arrows and words, as an SVG that is read in the light and in the dark?

Each colour has two values, and CSS takes the one that fits the page: of the site, of GitHub, or of whatever shows the file. What knows
nothing of that shows the light ones. Words are text, with a title and a description for those who don't see the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

Point = tuple[float, float]

SIZE: Final = 13.0
"""Of letters, in pixels."""
_LINE: Final = 18.0
_WIDE: Final = 0.6
"""A letter is about so much of `SIZE` wide, in the widest of the usual fonts."""
_HEAD: Final = 8.0
_ROUND: Final = 6.0

# What a box or line is: its outline and its inside, each in the light and in the dark.
_KINDS: Final = {
    "plain": (("#8793a1", "#66707c"), ("#f3f5f7", "#22262b")),
    "ours": (("#2f6fd0", "#5aa2ff"), ("#e8f1fd", "#14273f")),
    "yours": (("#2b8a57", "#4fb87a"), ("#e6f4ec", "#12301f")),
    "other": (("#7a52c7", "#a98bef"), ("#f1ebfc", "#2a2040")),
    "warm": (("#b86210", "#e79a4c"), ("#fdf1e4", "#38260f")),
    "bad": (("#c0392b", "#ef7a75"), ("#fdebea", "#3b1a1b")),
    "area": (("#b7c0ca", "#434b54"), ("none", "none")),
}
_INK: Final = ("#1c232b", "#e6e9ed")
_QUIET: Final = ("#586472", "#a3adb9")


class Box(NamedTuple):
    """A rectangle that is drawn. `at` is a share of a side, from its left or top."""

    x: float
    y: float
    width: float
    height: float

    def left(self, at: float = 0.5) -> Point:
        """A point of its left side."""
        return self.x, self.y + self.height * at

    def right(self, at: float = 0.5) -> Point:
        """A point of its right side."""
        return self.x + self.width, self.y + self.height * at

    def top(self, at: float = 0.5) -> Point:
        """A point of its upper side."""
        return self.x + self.width * at, self.y

    def bottom(self, at: float = 0.5) -> Point:
        """A point of its lower side."""
        return self.x + self.width * at, self.y + self.height


class Picture:
    """A drawing of that size, in pixels. Words between backticks are code, as in Markdown."""

    def __init__(self, name: str, width: float, height: float, title: str, description: str) -> None:
        self.name, self.width, self.height = name, width, height
        self._title, self._description = title, description
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "plain", round_by: float = _ROUND) -> Box:
        """Words in a rectangle, the first line in bold. Raises `ValueError` where they are wider than that."""
        for line in lines:
            if _width_of(line) > width - 8:
                raise ValueError(f"{self.name}: {line!r} is too long for a box of {width:g}")
        self.rectangle(x, y, width, height, kind, round_by=round_by)
        first = y + height / 2 - (len(lines) - 1) * _LINE / 2
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + number * _LINE, line, "quiet" if number else "strong", anchor="middle")
        return Box(x, y, width, height)

    def area(self, x: float, y: float, width: float, height: float, name: str) -> Box:
        """What holds others, with its name in the upper left corner."""
        self.rectangle(x, y, width, height, "area", round_by=10)
        self.text(x + 12, y + 15, name, "quiet")
        return Box(x, y, width, height)

    def rectangle(self, x: float, y: float, width: float, height: float, kind: str, *, round_by: float = 0) -> None:
        """One without words."""
        self._parts.append(f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(round_by)}"/>')

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        """A circle."""
        self._parts.append(f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>')

    def text(self, x: float, y: float, words: str, kind: str = "ink", *, anchor: str = "start") -> None:
        """Words, with their middle at this height."""
        inside = "".join(f'<tspan class="code">{escape(part)}</tspan>' if code else escape(part) for part, code in _parts_of(words))
        self._parts.append(f'<text class="{kind}" x="{_n(x)}" y="{_n(y + SIZE * 0.35)}" text-anchor="{anchor}">{inside}</text>')

    def line(self, *points: Point, kind: str = "plain", dashed: bool = False) -> None:
        """From point to point."""
        way = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._parts.append(f'<polyline class="line {kind}{" dashed" if dashed else ""}" points="{way}"/>')

    def arrow(self, *points: Point, kind: str = "plain", both: bool = False, dashed: bool = False) -> None:
        """From point to point, with round corners and a head at the end; `both` ends have one."""
        ways = [_direction(points[-2], points[-1])]
        ends = [points[-1]]
        points = (*points[:-1], _moved(points[-1], ways[0], -_HEAD))
        if both:
            ways.append(_direction(points[1], points[0]))
            ends.append(points[0])
            points = (_moved(points[0], ways[1], -_HEAD), *points[1:])
        way = f"M{_p(points[0])}"
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            into, out = _direction(before, corner), _direction(corner, after)
            way += f" L{_p(_moved(corner, into, -_ROUND))} Q{_p(corner)} {_p(_moved(corner, out, _ROUND))}"
        way += f" L{_p(points[-1])}"
        self._parts.append(f'<path class="line {kind}{" dashed" if dashed else ""}" d="{way}"/>')
        for end, (dx, dy) in zip(ends, ways, strict=True):
            back = _moved(end, (dx, dy), -_HEAD)
            sides = [_moved(back, (-dy, dx), _HEAD / 2), _moved(back, (dy, -dx), _HEAD / 2)]
            self._parts.append(f'<polygon class="head {kind}" points="{" ".join(_p(point) for point in (end, *sides))}"/>')

    def svg(self) -> str:
        """The file."""
        size = f'width="{_n(self.width)}" height="{_n(self.height)}" viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        title, description = f"{self.name}-title", f"{self.name}-description"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" {size} role="img" aria-labelledby="{title} {description}">',
                f'<title id="{title}">{escape(self._title)}</title>',
                f'<desc id="{description}">{escape(self._description)}</desc>',
                f"<style>\n{_STYLE}</style>",
                *self._parts,
                "</svg>\n",
            ]
        )


def _styles() -> Iterator[str]:
    def rule(selector: str, what: str, colours: tuple[str, str]) -> str:
        light, dark = colours
        both = "" if light == dark else f" {what}: light-dark({light}, {dark});"
        return f".picture {selector} {{ {what}: {light};{both} }}"

    yield "svg:root { color-scheme: light dark; }"
    yield f".picture text {{ font: {SIZE:g}px system-ui, sans-serif; }}"
    yield ".picture .strong { font-weight: 600; }"
    yield ".picture .code { font: 12px ui-monospace, monospace; }"
    yield rule("text", "fill", _INK)
    yield rule(".quiet", "fill", _QUIET)
    for kind, (line, inside) in _KINDS.items():
        yield rule(f".{kind}", "stroke", line)
        yield rule(f".{kind}", "fill", inside)
        yield rule(f".head.{kind}", "fill", line)
    yield ".picture .line { fill: none; stroke-width: 1.5; }"
    yield ".picture .dashed { stroke-dasharray: 5 4; }"


_STYLE: Final = "".join(f"{line}\n" for line in _styles())


def _parts_of(words: str) -> list[tuple[str, bool]]:
    return [(part, number % 2 == 1) for number, part in enumerate(words.split("`")) if part]


def _width_of(words: str) -> float:
    return len(words.replace("`", "")) * SIZE * _WIDE


def _direction(start: Point, end: Point) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    return dx / length, dy / length


def _moved(point: Point, direction: Point, by: float) -> Point:
    return point[0] + direction[0] * by, point[1] + direction[1] * by


def _p(point: Point) -> str:
    return f"{_n(point[0])},{_n(point[1])}"


def _n(number: float) -> str:
    """As short as it can be said; a tenth of a pixel is enough."""
    return f"{round(number, 1) + 0.0:g}"
