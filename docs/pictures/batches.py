"""When do batches leave? Drawn from what `headgate.core.batching` itself decides about requests that arrive at given moments."""

from __future__ import annotations

from typing import Final, NamedTuple

from docs.pictures.drawing import Picture
from headgate.core.batching import BatchQueue

_MS: Final = 11.5
"""So wide is a millisecond, in pixels."""
_LEFT: Final = 90.0
_ROW: Final = 11.0
_KINDS: Final = ("ours", "other", "warm", "yours")


class Batch(NamedTuple):
    """Requests that share a call, by the moments of their arrival, and when that began, in milliseconds."""

    arrived: list[float]
    began: float


def batches(arrivals: list[float], call_ms: float, max_batch_size: int, wait_ms: float) -> list[Batch]:
    """What one replica does with these arrivals, one batch at a time."""
    queue: BatchQueue[float] = BatchQueue(max_batch_size, wait_ms)
    left, free_at, now, found = sorted(arrivals), 0.0, 0.0, list[Batch]()
    while left or len(queue):
        while left and left[0] <= now:
            at = left.pop(0)
            queue.add(at, "one group", at)
        sealed = queue.seal(now) if now >= free_at else None
        if sealed is not None:
            found.append(Batch(sealed, now))
            free_at = now + call_ms
        else:
            leaves_at = queue.leaves_at(now)
            moments = [*left[:1], *([] if leaves_at is None else [max(leaves_at, free_at)])]
            now = min(moment for moment in moments if moment > now)
    return found


_QUIET: Final = [2.0, 20.0, 38.0]
_BUSY: Final = [1.0, 3.0, 6.0, 8.0, 9.0, 11.0, 14.0, 16.0, 17.0, 19.0, 22.0, 23.0, 25.0, 27.0]
_CALL_MS: Final = 10.0
_SIZE: Final = 4


def when_a_batch_leaves() -> Picture:
    """Three replicas: few requests, many requests, and few that wait for company."""
    steady = [2.0, 5.0, 7.0, 22.0, 24.0, 25.0, 27.0, 38.0]
    cases = [
        ("Few requests: each is called at once, alone.", _QUIET, 0.0),
        (f"Many requests: while a batch runs the next one fills, up to {_SIZE}.", _BUSY, 0.0),
        ("With a wait of 8 ms: a batch leaves when it is full, or its oldest is 8 ms old.", steady, 8.0),
    ]
    told, drawn = [], []
    for words, arrivals, wait_ms in cases:
        found = batches(arrivals, _CALL_MS, _SIZE, wait_ms)
        drawn.append((words, found))
        told.append(f"{words} " + ", ".join(f"at {batch.began:g} ms a batch of {len(batch.arrived)}" for batch in found))
    height = sum(80 + _ROW * sum(len(batch.arrived) for batch in found) for _, found in drawn) + 46
    picture = Picture(
        "when-a-batch-leaves",
        790,
        height,
        "When a batch leaves",
        f"A replica whose calls take {_CALL_MS:g} ms, with batches of up to {_SIZE}. {'. '.join(told)}.",
    )
    y = 10.0
    for words, found in drawn:
        y = _timeline(picture, y, words, found)
    _scale(picture, y)
    return picture


def _timeline(picture: Picture, y: float, words: str, found: list[Batch]) -> float:
    """Each request as a line from its arrival until its call, and the calls below; returns where it ends."""
    picture.text(16, y + 10, words, "strong")
    y += 30
    picture.text(16, y + 6, "waits", "quiet")
    for number, batch in enumerate(found):
        kind = _KINDS[number % len(_KINDS)]
        for arrived in batch.arrived:
            picture.dot(_x(arrived), y + 4, 4, kind)
            if batch.began > arrived:
                picture.line((_x(arrived) + 4, y + 4), (_x(batch.began), y + 4), kind=kind)
            y += _ROW
    y += 4
    picture.text(16, y + 12, "runs", "quiet")
    for number, batch in enumerate(found):
        size = len(batch.arrived)
        picture.box(_x(batch.began), y, _MS * _CALL_MS, 26, f"batch of {size}", kind=_KINDS[number % len(_KINDS)])
    return y + 46


def _scale(picture: Picture, y: float) -> None:
    picture.line((_x(0), y), (_x(57), y))
    for ms in range(0, 57, 10):
        picture.line((_x(ms), y), (_x(ms), y + 5))
        picture.text(_x(ms), y + 18, f"{ms} ms", "quiet", anchor="middle")


def _x(ms: float) -> float:
    return _LEFT + _MS * ms
