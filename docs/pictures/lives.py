"""What may happen to a replica, and when does the next one start? Drawn from the table and the back-off in `headgate.core.replica_life`."""

from __future__ import annotations

from typing import Final

from docs.pictures.drawing import Box, Picture
from headgate.core.replica_life import DRAINING, ENDED, LIFE, READY, STARTING, STOPPING, BackOff

# Where each state is, so that no two ways cross: between those that serve ways lead across, to what ends them up and down.
_PLACES: Final = {
    STARTING: Box(100, 130, 120, 44),
    READY: Box(330, 130, 120, 44),
    DRAINING: Box(530, 130, 120, 44),
    STOPPING: Box(100, 28, 660, 40),
    ENDED: Box(100, 236, 660, 40),
}
_LOOKS: Final = {STARTING: "plain", READY: "yours", DRAINING: "warm", STOPPING: "bad", ENDED: "plain"}


def replica_life() -> Picture:
    """The table, as states and arrows."""
    said = [f"{state}: {', '.join(f'{event} leads to {after}' for event, after in row.items())}" for state, row in LIFE.items() if row]
    last = [state for state, row in LIFE.items() if not row]
    description = f"A replica begins as {next(iter(LIFE))}. {'. '.join(said)}. Nothing follows on {', '.join(last)}."
    picture = Picture("replica-life", 790, 300, "The states of a replica, and the events that change them", description)
    places = {state: picture.box(*_PLACES[state], state, kind=_LOOKS[state]) for state in LIFE}
    start = places[next(iter(LIFE))]
    picture.dot(start.x - 60, start.left()[1], 6, "plain")
    picture.arrow((start.x - 54, start.left()[1]), start.left())
    for state, row in LIFE.items():
        ways: dict[str, list[str]] = {}
        for event, after in row.items():
            ways.setdefault(after, []).append(event)
        for after, events in ways.items():
            _way(picture, places[state], places[after], ", ".join(events))
    return picture


def _way(picture: Picture, start: Box, end: Box, label: str) -> None:
    """An arrow with its label: to itself, across, or up and down."""
    if start == end:
        if start.width > 200:  # above its right end
            x, y = start.right()[0], start.y
            picture.arrow((x - 70, y), (x - 70, y - 16), (x - 30, y - 16), (x - 30, y))
            picture.text(x - 78, y - 16, label, "quiet", anchor="end")
        else:
            x, y = start.right(0.25)
            picture.arrow((x, y), (x + 22, y), (x + 22, y + 22), (x, y + 22))
            picture.text(x + 30, y + 11, label, "quiet")
    elif start.y == end.y:
        picture.arrow(start.right(), end.left())
        picture.text((start.right()[0] + end.x) / 2, start.right()[1] - 12, label, "quiet", anchor="middle")
    else:
        narrow = min(start, end, key=lambda box: box.width)
        beside = start.width == end.width  # between the two that hold all others: right of these
        x = start.right()[0] - 25 if beside else narrow.top()[0]
        down = end.y > start.y
        ends = (start.bottom()[1], end.y) if down else (start.y, end.bottom()[1])
        picture.arrow((x, ends[0]), (x, ends[1]))
        picture.text(x + 8, (narrow.bottom()[1] + end.y) / 2 if down and not beside else sum(ends) / 2, label, "quiet")


def restarts() -> Picture:
    """How long the next start waits, by how many replicas failed in a row: what the back-off itself says."""
    in_construction, before_an_answer = _delays(STARTING), _delays(READY)
    rows = [
        ("in its constructor", in_construction, "bad"),
        ("ready, before its first answer", before_an_answer, "warm"),
    ]
    told = "; ".join(f"{name}: {', '.join(_seconds(delay) for delay in delays)}" for name, delays, _ in rows)
    description = (
        f"For how many seconds the next start waits after each replica in a row that died. {told}. A death after the first answer: 0."
    )
    picture = Picture("restarts", 790, 190, "When the next replica starts after one that died", description)
    picture.text(20, 22, "The one before died …", "quiet")
    picture.text(262, 22, "… seconds until the next starts, after the 1st, 2nd, 3rd … in a row", "quiet")
    for number, (name, delays, kind) in enumerate(rows):
        y = 44 + number * 44
        picture.text(20, y + 16, name)
        for place, delay in enumerate(delays):
            picture.box(262 + place * 57, y, 52, 32, _seconds(delay), kind=kind if delay else "yours")
    y = 44 + len(rows) * 44
    picture.text(20, y + 16, "after its first answer")
    picture.box(262, y, 52, 32, _seconds(0.0), kind="yours")
    picture.text(326, y + 16, "every time: it starts at once, and the count begins anew", "quiet")
    return picture


def _delays(state: str) -> list[float]:
    """Of nine replicas in a row that died in this state, each when it had been there for a moment."""
    back_off, now, delays = BackOff(), 0.0, []
    for _ in range(9):
        now = back_off.until + 1.0
        back_off = back_off.died(state, now, since=now - 0.5)
        delays.append(back_off.delay_s)
    return delays


def _seconds(delay: float) -> str:
    return f"{round(delay, 1):g}"
