"""What has to start and what has to go, so that what runs becomes what is asked for?

`reconcile` compares the two. `next_step` is the plan of a rolling update, one step at a time: asked again after each, it
needs no memory of its own, so that a new controller can go on where an old one died.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from headgate.core.replica_life import READY, STARTING


class Wanted(msgspec.Struct, frozen=True):
    """So many replicas of this generation of a backend."""

    generation: int
    count: int


class Actual(msgspec.Struct, frozen=True):
    """One replica as it is. `number` orders them by age: the oldest has the smallest."""

    id: str
    backend: str
    generation: int
    state: str
    number: int


class Actions(msgspec.Struct, frozen=True):
    """What to do: replicas to start by backend, and the ids of those to drain."""

    start: dict[str, int]
    drain: tuple[str, ...]


def reconcile(wanted: Mapping[str, Wanted], actual: Iterable[Actual], paused: Collection[str] = ()) -> Actions:
    """What turns `actual` into `wanted`. Backends in `paused` (in their back-off) start nothing now.

    What is of another generation or of no wanted backend goes. Of a surplus those that are still starting go first, then
    the youngest.
    """
    live: dict[str, list[Actual]] = {}
    drain: list[str] = []
    for replica in actual:
        if replica.state not in (STARTING, READY):
            continue
        target = wanted.get(replica.backend)
        if target is None or target.generation != replica.generation:
            drain.append(replica.id)
        else:
            live.setdefault(replica.backend, []).append(replica)
    start: dict[str, int] = {}
    for tag, target in wanted.items():
        replicas = sorted(live.get(tag, ()), key=lambda replica: (replica.state == STARTING, replica.number))
        drain += [replica.id for replica in replicas[target.count :]]
        if len(replicas) < target.count and tag not in paused:
            start[tag] = target.count - len(replicas)
    return Actions(start, tuple(drain))


# Steps of a rolling update.


class Start(msgspec.Struct, frozen=True):
    """Start so many of the new generation. `beside`: nothing old goes before all of the new are ready."""

    count: int
    beside: bool


class StopOld(msgspec.Struct, frozen=True):
    """Drain one old replica to make room, and wait for its end."""


class Commit(msgspec.Struct, frozen=True):
    """All of the new are ready: shift, and drain the old."""


class Refuse(msgspec.Struct, frozen=True):
    """It can't be done: `gap` says that it could be, if requests may wait while nothing runs."""

    gap: bool
    why: str


Step = Start | StopOld | Commit | Refuse


def next_step(*, wanted: int, old: int, new: int, fits: Callable[[int, bool], str | None], waits: bool, allow_gap: bool) -> Step:
    """The next step from `old` live old replicas and `new` ready new ones to `wanted` new ones.

    `fits(count, without_one)` is None if that many more fit beside what runs (less one old replica), else says why not;
    `waits`: what doesn't fit now may wait for room.
    New ones start beside the old where all of them fit. Otherwise they replace the old one at a time: started first where
    one fits, else in the room of an old one; a gap, in which nothing runs, only with `allow_gap`. Where no old one has that
    room either, all of them wait for it, if they may.
    """
    missing = wanted - new
    if missing <= 0:
        return Commit()
    why = fits(missing, False)
    if why is None:
        return Start(missing, beside=True)
    if missing > 1 and fits(1, False) is None:
        return Start(1, beside=False)
    if old == 0 or fits(1, True) is not None:
        return Start(missing, beside=True) if waits else Refuse(gap=False, why=why)
    if old + new > 1 or allow_gap:
        return StopOld()
    return Refuse(gap=True, why=why)
