"""How long do requests wait, by how busy replicas are?

Of requests that come by chance to one queue (Erlang's C, A. K. Erlang 1917), for calls that all take equally long: half of what it is
where their times vary as much as the gaps between requests do.
"""

from __future__ import annotations

import math
from typing import Final

from docs.pictures.drawing import Picture

_REPLICAS: Final = {1: "bad", 4: "warm", 16: "ours"}
_LEFT, _TOP, _WIDTH, _HEIGHT = 70.0, 44.0, 540.0, 230.0
_MOST: Final = 5.0


def mean_wait(replicas: int, busy: float) -> float:
    """Mean time in the queue, in calls, where so many replicas are each busy for this share of the time, below 1."""
    load = replicas * busy
    terms = [load**number / math.factorial(number) for number in range(replicas)]
    last = load**replicas / math.factorial(replicas) / (1 - busy)
    must_wait = last / (sum(terms) + last)
    return must_wait / (replicas * (1 - busy)) / 2


def how_long_requests_wait() -> Picture:
    """Curves for one, several and many replicas."""
    told = [
        f"{_named(replicas)}: " + ", ".join(f"{mean_wait(replicas, busy):.2g} calls at {busy:.0%}" for busy in (0.5, 0.7, 0.9))
        for replicas in _REPLICAS
    ]
    picture = Picture(
        "how-long-requests-wait",
        790,
        330,
        "How long requests wait, by how busy replicas are",
        f"Mean time in the queue, in lengths of a call. {'. '.join(told)}. All rise without bound towards 100 %.",
    )
    for number in range(int(_MOST) + 1):
        picture.line((_x(0), _y(number)), (_x(1), _y(number)), kind="area")
        picture.text(_x(0) - 10, _y(number), str(number), "quiet", anchor="end")
    for number in range(0, 11, 2):
        picture.text(_x(number / 10), _TOP + _HEIGHT + 18, f"{number * 10} %", "quiet", anchor="middle")
    picture.text(_x(0.5), _TOP + _HEIGHT + 42, "share of the time in which a replica is busy", "quiet", anchor="middle")
    picture.text(_x(0) - 10, _TOP - 22, "wait in the queue, in calls", "quiet")
    picture.line((_x(0.7), _y(0)), (_x(0.7), _y(_MOST)), dashed=True)
    picture.text(_x(0.7) - 8, _y(_MOST) + 34, "70 %", "strong", anchor="end")
    for replicas, kind in _REPLICAS.items():
        steps = [number / 200 for number in range(200)]
        points = [(_x(busy), _y(wait)) for busy in steps if (wait := mean_wait(replicas, busy)) <= _MOST]
        picture.line(*points, kind=kind)
    for number, (replicas, kind) in enumerate(_REPLICAS.items()):
        y = _TOP + 60 + number * 26
        picture.line((640, y), (668, y), kind=kind)
        picture.text(678, y, _named(replicas))
    return picture


def _named(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


def _x(busy: float) -> float:
    return _LEFT + _WIDTH * busy


def _y(wait: float) -> float:
    return _TOP + _HEIGHT * (1 - wait / _MOST)
