"""Which keys move when weights change? Drawn from the backends that `headgate.core.traffic` itself chooses."""

from __future__ import annotations

from typing import Final

from docs.pictures.drawing import Picture
from headgate.core.traffic import TrafficPolicy

_KEYS: Final = [f"user-{number}" for number in range(1, 201)]
_ACROSS: Final = 40
_CELL: Final = 18.0
_LOOKS: Final = {"digits:v1": "ours", "digits:v2": "warm"}


def which_keys_move() -> Picture:
    """200 keys, before and after a change of weights."""
    before, after = ({"digits:v1": 0.7, "digits:v2": 0.3}, {"digits:v1": 0.6, "digits:v2": 0.4})
    chosen = [TrafficPolicy("digits", weights) for weights in (before, after)]
    homes = [[str(policy.choose(0.0, key)) for key in _KEYS] for policy in chosen]
    moved = [old != new for old, new in zip(*homes, strict=True)]
    ways = {(old, new) for old, new in zip(*homes, strict=True) if old != new}
    (way,) = ways  # one direction only
    rows = -(-len(_KEYS) // _ACROSS)
    words = [
        f"70 % to 30 %: of {len(_KEYS)} keys {homes[0].count('digits:v1')} go to `digits:v1`, {homes[0].count('digits:v2')} to `digits:v2`",
        f"60 % to 40 %: {sum(moved)} keys have moved, all from `{way[0]}` to `{way[1]}`; the others stay",
    ]
    picture = Picture(
        "which-keys-move",
        790,
        52 + 2 * (rows * _CELL + 36),
        "Which keys move when weights change",
        f"Each key as a square. {'. '.join(words)}.".replace("`", ""),
    )
    y = 22.0
    for line, home in zip(words, homes, strict=True):
        picture.text(30, y, line)
        y += 18
        for number in range(len(_KEYS)):
            row, column = divmod(number, _ACROSS)
            left, top = 30 + column * _CELL, y + row * _CELL
            picture.rectangle(left, top, _CELL - 4, _CELL - 4, _LOOKS[home[number]], round_by=2)
            if moved[number]:
                picture.dot(left + _CELL / 2 - 2, top + _CELL / 2 - 2, 3.5, "bad")
        y += rows * _CELL + 22
    x = 30.0
    for tag, kind in _LOOKS.items():
        picture.rectangle(x, y - 2, _CELL - 4, _CELL - 4, kind, round_by=2)
        picture.text(x + 22, y + 5, f"`{tag}`")
        x += 130
    picture.dot(x + 5, y + 5, 3.5, "bad")
    picture.text(x + 18, y + 5, "a key that moves")
    return picture
