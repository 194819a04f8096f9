"""Which ratios must hold in a run, whatever the machine?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any


@dataclass(frozen=True)
class Floor:
    """One promise: a figure of Headgate, or its ratio to the best of others in the same case. Of several cases, the worst counts."""

    work: int
    cases: str  # a pattern
    figure: str
    at_least: float | None = None
    at_most: float | None = None
    against: tuple[str, ...] = ()  # contenders
    of_peak: bool = False  # relative to Headgate's best in all cases of the work
    contender: str = "headgate"
    where: str = ""  # which cases, in words, where the pattern doesn't say it
    unit: str = ""

    def describe(self, titles: dict[str, str]) -> str:
        """In words; `titles` has those of contenders."""
        limits = {"at least": self.at_least, "at most": self.at_most}
        asked = [f"{word} {limit:g}{' ' * bool(self.unit)}{self.unit}" for word, limit in limits.items() if limit is not None]
        whom = " or ".join(titles.get(name, name) for name in self.against)
        relation = f" times that of {whom}" if self.against else " of its peak" if self.of_peak else ""
        return f"{self.where or self.cases}: {self.figure} {' and '.join(asked)}{relation}"


@dataclass(frozen=True)
class Outcome:
    """What a run says about a floor."""

    floor: Floor
    value: float | None  # None where the run can't tell, or nothing of Headgate's counts
    met: bool | None
    steady: bool = True  # the windows of all that it is about agreed
    short_by: float = 1.0  # how many times the value would have to be better, where it isn't met


ON_RAY = "headgate-ray"


def _work_1() -> list[Floor]:
    ratios = {"mosec": 3, "ray-serve-fast": 6, "ray-serve": 80, "litserve": 15, "fastapi": 4, "ceiling": 0.6, "asgi-hop": 1}
    on_ray = {"headgate": 0.9, "ray-serve-fast": 5}
    return [
        *(Floor(1, "64 connections", "requests/s", at_least=ratio, against=(name,)) for name, ratio in ratios.items()),
        *(Floor(1, "64 connections", "requests/s", at_least=ratio, against=(name,), contender=ON_RAY) for name, ratio in on_ray.items()),
    ]


FLOORS = (
    *_work_1(),
    Floor(1, "64 connections", "requests/s", at_least=0.95, against=("headgate-uncounted",)),  # what metrics, logs and ids may cost
    Floor(1, "1 connection", "p50", at_most=1.1, against=("mosec",)),
    Floor(2, "64 connections", "requests/s", at_least=1.3, against=("mosec",)),
    Floor(3, "10 KB", "requests/s", at_least=2, against=("mosec",)),
    Floor(3, "1 MB", "requests/s", at_least=1, against=("mosec",)),
    Floor(3, "10 MB", "requests/s", at_least=1, against=("mosec",)),
    Floor(4, "sequential*", "calls/s", at_least=25, against=("ray-serve",), where="sequential"),
    Floor(4, "*in flight, from one thread", "calls/s", at_least=60, against=("ray-serve",), where="in flight"),
    Floor(4, "asyncio*", "calls/s", at_least=100, against=("ray-serve",), where="asyncio"),
    Floor(4, "one backend*", "calls/s", at_least=10, against=("ray-serve", "ray-serve-fast"), where="between two actors", contender=ON_RAY),
    Floor(5, "*", "of peak", at_least=0.98, where="every level past saturation"),
    Floor(5, "*", "p99 to ideal", at_most=1.15, where="every level past saturation"),
    Floor(5, "*", "failed", at_most=0, where="every level"),
    Floor(6, "*", "batches", at_least=3, at_most=4, where="dripped requests"),
    Floor(6, "*", "max", at_most=230, where="dripped requests", unit="ms"),
    Floor(6, "*", "failed", at_most=0, where="dripped requests"),
    Floor(7, "120 % of capacity", "goodput", at_least=0.95, of_peak=True),
    Floor(7, "120 % of capacity", "rejected p99", at_most=50, unit="ms"),
    Floor(8, "*", "chunks/s", at_least=3, against=("ray-serve", "ray-serve-fast"), where="every number of users"),
    Floor(9, "*on a running Ray cluster", "first answer", at_most=3, unit="s", contender=ON_RAY),
    Floor(10, "*", "of the first", at_least=0.9, where="every size"),
    Floor(11, "one ingress", "to central", at_most=1.2),
    Floor(11, "one ingress", "failed", at_most=0),
    Floor(11, "two ingresses", "to central", at_most=1.5, contender="headgate-2"),
    Floor(11, "two ingresses", "failed", at_most=0, contender="headgate-2"),
)


def outcomes(works: dict[str, Any]) -> list[Outcome]:
    """Judge every floor by what results.json holds under `works`."""
    return [judge(floor, works.get(str(floor.work), {}).get("cases", [])) for floor in FLOORS]


def judge(floor: Floor, cases: list[dict[str, Any]]) -> Outcome:
    """What the cases of its work say about one floor."""
    values = []
    steady = True
    for case in cases:
        if floor.contender not in case["figures"] or not fnmatch(case["name"], floor.cases):
            continue
        mine = _median(case, floor.contender, floor.figure)
        if mine is None:
            if not case["figures"][floor.contender]["medians"]:  # no window counted: that can't be better than a bad one
                return Outcome(floor, None, met=False, short_by=math.inf)
            continue
        reference = 1.0
        others = {name: other for name in floor.against if (other := _median(case, name, floor.figure)) is not None}
        if floor.against:
            if not others:
                continue
            reference = max(others.values()) if floor.at_least is not None else min(others.values())
        elif floor.of_peak:
            reference = max(_median(other, floor.contender, floor.figure) or 0.0 for other in cases)
        steady = steady and all(floor.figure not in case["figures"][name]["unsteady"] for name in (floor.contender, *others))
        values.append(mine / reference if reference else math.inf)
    if not values:
        return Outcome(floor, None, None)
    if floor.at_least is not None and min(values) < floor.at_least:
        return Outcome(floor, min(values), False, steady, _times(floor.at_least, min(values)))
    if floor.at_most is not None and max(values) > floor.at_most:
        return Outcome(floor, max(values), False, steady, _times(max(values), floor.at_most))
    return Outcome(floor, max(values) if floor.at_least is None else min(values), True, steady)


def _times(larger: float, smaller: float) -> float:
    return larger / smaller if smaller else math.inf


def _median(case: dict[str, Any], contender: str, figure: str) -> float | None:
    value: float | None = case["figures"].get(contender, {}).get("medians", {}).get(figure)
    return value
