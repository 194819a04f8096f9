"""Which backend of an endpoint gets a request?

Without a shard key each request is an independent weighted draw. With one, weighted rendezvous hashing decides, from
nothing but endpoint, key, tags and weights, so that every router on every machine agrees, after every restart; the
formula is spelled out with test vectors in `docs/reference/session-affinity.md`.
"""

from __future__ import annotations

import bisect
import itertools
import math
import numbers
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from headgate.errors import InvalidTypeError, InvalidValueError

TOLERANCE: Final = 1e-6
"""How far the sum of the weights may be off 1."""

MOST_KEYS: Final = 65_536
"""So many are remembered with their backends, by all policies that share a memory."""
LONGEST_KEY: Final = 64
"""Characters of a key that is remembered: longer ones are worked out each time."""

_NO_SHADOWS: Mapping[str, float] = {}


class KeyMemory:
    """Which backends keys led to, in several policies; so many keys in all, and when it is full it begins anew."""

    __slots__ = ("_count", "_filled")

    def __init__(self) -> None:
        self._count = 0
        self._filled: list[dict[str, str]] = []

    def add(self, remembered: dict[str, str], key: str, tag: str) -> None:
        """Keep one key of the policy that remembers there."""
        if self._count >= MOST_KEYS:
            for each in self._filled:
                each.clear()
            self._filled.clear()
            self._count = 0
        if not remembered:
            self._filled.append(remembered)
        remembered[key] = tag
        self._count += 1


class TrafficPolicy:
    """The weights of the backends behind one endpoint, and its shadows. Never changes: a new policy is a new object.

    `keys` says how much those policies that share it may remember.
    """

    __slots__ = ("_bounds", "_hashers", "_keys", "_remembered", "_shadows", "_weights", "only", "tags")

    tags: tuple[str, ...]
    """The backends that may be chosen (weight above 0), sorted."""
    only: str | None
    """The backend that gets every request, where there is just one."""

    def __init__(
        self, endpoint: str, weights: Mapping[str, float], shadows: Mapping[str, float] = _NO_SHADOWS, keys: KeyMemory | None = None
    ) -> None:
        self.tags = tuple(sorted(tag for tag, weight in weights.items() if weight > 0))
        self._weights = [float(weights[tag]) for tag in self.tags]
        self._shadows = sorted((tag, float(proportion)) for tag, proportion in shadows.items() if proportion > 0)
        self.only = self.tags[0] if len(self.tags) == 1 else None
        # Draws are scaled to the sum: it may be off 1 by the tolerance.
        self._bounds = list(itertools.accumulate(self._weights))
        self._hashers = [blake2b(f"{endpoint}\0{tag}\0".encode()) for tag in self.tags]
        self._keys = keys or KeyMemory()
        self._remembered: dict[str, str] = {}

    def choose(self, draw: float, shard_key: str | None) -> str | None:
        """The backend of one request; None without traffic. `draw`, uniform in [0, 1), counts only without a key."""
        if self.only is not None or not self.tags:
            return self.only
        if shard_key is not None:
            tag = self._remembered.get(shard_key)
            if tag is None:
                tag = self._choose_by_key(shard_key)
                if len(shard_key) <= LONGEST_KEY:
                    self._keys.add(self._remembered, shard_key, tag)
            return tag
        index = bisect.bisect_right(self._bounds, draw * self._bounds[-1])
        return self.tags[min(index, len(self.tags) - 1)]

    def shadows(self, draw: Callable[[], float]) -> list[str]:
        """The backends that get a copy of one request; each is drawn apart, by a call of `draw` of its own."""
        return [tag for tag, proportion in self._shadows if draw() < proportion]

    def _choose_by_key(self, shard_key: str) -> str:
        key = shard_key.encode()
        best, best_cost = "", math.inf
        # In the order of the tags, so that the smaller wins a tie.
        for tag, weight, prefix in zip(self.tags, self._weights, self._hashers, strict=True):
            hasher = prefix.copy()
            hasher.update(key)
            number = int.from_bytes(hasher.digest()[:8], "big")
            cost = -math.log(((number >> 11) + 0.5) / 2**53) / weight
            if cost < best_cost or not best:
                best, best_cost = tag, cost
        return best


def check_weights(weights: object) -> dict[str, float]:
    """Check what was given to `set_traffic`; the weights come back as floats, otherwise as they were given.

    Raises `InvalidTypeError` for what is not a dict of strings to numbers; `InvalidValueError` where it is empty, a
    weight is negative or not finite, or the sum is off 1 by more than `TOLERANCE`.
    """
    if not isinstance(weights, Mapping):
        raise InvalidTypeError(f"traffic must be a dict of backend tag to weight, got {type(weights).__name__}: {weights!r}")
    checked: dict[str, float] = {}
    for tag, weight in weights.items():
        if not isinstance(tag, str):
            raise InvalidTypeError(f"traffic: a backend is named by a string, got {type(tag).__name__}: {tag!r}")
        checked[tag] = _number(weight, f"traffic: the weight of {tag!r}")
    if not checked:
        raise InvalidValueError("traffic is an empty dict; give at least one backend a weight")
    for tag, weight in checked.items():
        if not math.isfinite(weight) or weight < 0:
            raise InvalidValueError(f"traffic: the weight of {tag!r} must be at least 0 and finite, got {weight!r}")
    total = math.fsum(checked.values())
    if not abs(total - 1) <= TOLERANCE:
        percent = "; 90 % is 0.9" if abs(total - 100) <= 1 else ""
        raise InvalidValueError(f"traffic: weights must sum to 1, these sum to {total!r}: {checked!r}{percent}")
    return checked


def check_proportion(proportion: object) -> float:
    """Check the share of requests that `shadow_traffic` copies: a number from 0 to 1, else a typed error."""
    checked = _number(proportion, "shadow traffic: the proportion")
    if not 0 <= checked <= 1:
        raise InvalidValueError(f"shadow traffic: the proportion must be from 0 to 1, got {proportion!r}")
    return checked


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{what} must be a number, got {type(value).__name__}: {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
