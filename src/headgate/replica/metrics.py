"""What may user code count, and how? `serve.metrics`.

    PIXELS = serve.metrics.Counter("pixels", "Pixels that were classified.", labelnames=("model",))

    def classify(request):
        PIXELS.labels(model="small").inc(len(request.data))

A metric lives in each process that makes it or gets it with its code. Those of a replica are on `/-/metrics`, with the labels `backend`
and `replica` added; elsewhere, as in the program that starts an instance, they count for nobody. Names and arguments are those of
`prometheus_client`, of which this is as much as can be added up over processes.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from bisect import bisect_left
from collections.abc import Collection
from itertools import pairwise
from typing import Any, ClassVar, Final, Self

from headgate.core.histograms import BOUNDS, TICKS_PER_S
from headgate.core.reports import Series, UserMetric
from headgate.errors import InvalidTypeError, InvalidValueError

__all__ = ["DEFAULT_BUCKETS", "Counter", "Gauge", "Histogram"]

MOST_SERIES: Final = 1000
"""Of one metric: so many sets of labels are kept, and further ones count nothing."""
MOST_SERIES_IN_ALL: Final = 10_000
"""The same of all metrics of a process together."""
DEFAULT_BUCKETS: Final = tuple(2**number / TICKS_PER_S for number in range(BOUNDS))
"""The upper bounds of Headgate's own histograms of times: from 100 microseconds, each twice the one before."""

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ADDED: Final = ("backend", "replica")
_log = logging.getLogger("headgate.replica")
_lock = threading.RLock()  # a signal's handler may count, too


def _begin_anew() -> None:
    """In a fork of user code, in which who held the lock isn't."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew)


class _Family:
    """One metric of this process, however often it was made: the values of each set of labels."""

    def __init__(self, kind: str, name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self.kind, self.name, self.documentation, self.labels, self.bounds = kind, name, documentation, labels, bounds
        self.series: dict[tuple[str, ...], list[float]] = {}
        self.warned = False

    def values(self, labels: tuple[str, ...]) -> list[float]:
        """Where this set of labels is counted; where there are too many, nowhere."""
        with _lock:
            found = self.series.get(labels)
            if found is not None:
                return found
            blank = [0.0] * (len(self.bounds) + 2 if self.kind == "histogram" else 1)
            if len(self.series) < MOST_SERIES and sum(len(family.series) for family in _families.values()) < MOST_SERIES_IN_ALL:
                self.series[labels] = blank
                return blank
            warned, self.warned = self.warned, True
        if not warned:
            _log.warning(
                "metric %r: %d sets of labels are kept (at most %d of a metric, %d of all together); further ones count nothing. "
                "Use labels with few values: no ids, no names of users",
                self.name,
                len(self.series),
                MOST_SERIES,
                MOST_SERIES_IN_ALL,
            )
        return blank

    def told(self) -> UserMetric:
        """All of it, as it is now."""
        series = tuple(Series(labels, tuple(values)) for labels, values in self.series.items())
        return UserMetric(self.kind, self.name, self.documentation, self.labels, series, self.bounds)


_families: dict[str, _Family] = {}


def told() -> tuple[UserMetric, ...]:
    """Every metric of this process with its values; from any thread."""
    with _lock:
        return tuple(family.told() for family in _families.values())


class _Metric:
    """What all kinds have in common."""

    _kind: ClassVar[str]
    _bounds: tuple[float, ...] = ()

    def __init__(self, name: str, documentation: str = "", labelnames: Collection[str] = ()) -> None:
        _check_name(name)
        if not isinstance(documentation, str):
            raise InvalidTypeError(f"metric {name!r}: documentation must be a string, got {type(documentation).__name__}")
        labels = _checked_labels(name, labelnames)
        with _lock:
            family = _families.get(name)
            if family is None:
                family = _families[name] = _Family(self._kind, name, _text(documentation), labels, self._bounds)
            elif (family.kind, family.labels, family.bounds) != (self._kind, labels, self._bounds):
                raise InvalidValueError(
                    f"there is a metric {name!r} already, a {family.kind} with the labels {family.labels} "
                    "and other arguments than these; give this one another name"
                )
        self._family = family
        self._values: list[float] | None = None if labels else family.values(())

    def labels(self, **labels: object) -> Self:
        """The same metric for one set of labels, each of which must be given; values are taken as text.

        Of one metric 1,000 sets are kept, of all of a process 10,000: further ones count nothing, which is said once in the log.
        Raises `InvalidValueError` (`ValueError`) for other names than `labelnames`.
        """
        family = self._family
        if labels.keys() != set(family.labels) or self._values is not None:
            wanted = ", ".join(family.labels) or "none"
            raise InvalidValueError(f"metric {family.name!r} has the labels {wanted}, got {', '.join(labels) or 'none'}")
        one = type(self).__new__(type(self))
        one._family, one._bounds = family, self._bounds
        one._values = family.values(tuple(_text(str(labels[name])) for name in family.labels))
        return one

    def _add(self, amount: Any, sign: float = 1.0) -> None:
        number = self._number(amount)
        values = self._counted()
        with _lock:
            values[0] += sign * number

    def _counted(self) -> list[float]:
        if self._values is None:
            names = ", ".join(f"{name}=…" for name in self._family.labels)
            raise InvalidValueError(f"metric {self._family.name!r} has labels: count by .labels({names})")
        return self._values

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InvalidTypeError(f"metric {self._family.name!r} counts numbers, got {type(value).__name__}: {value!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Metrics travel with the code that uses them: what a replica gets is its own metric of that name.
        family = self._family
        chosen = None if self._values is None else next((labels for labels, values in family.series.items() if values is self._values), ())
        return _rebuilt, (type(self), family.name, family.documentation, family.labels, family.bounds, chosen)


class Counter(_Metric):
    """A number that only grows. On the page its name ends in `_total`, given or not.

    Args:
        name: of letters, digits and underscores; not from `headgate_` on, which is Headgate's own.
        documentation: what it counts, in a sentence.
        labelnames: the names of its labels.

    A metric of the same name and arguments is the same metric. Raises `InvalidValueError` (`ValueError`) for other arguments than
    that one's, and for names that can't be used; `InvalidTypeError` (`TypeError`).
    """

    _kind = "counter"

    def __init__(self, name: str, documentation: str = "", labelnames: Collection[str] = ()) -> None:
        _check_name(name)
        super().__init__(name.removesuffix("_total"), documentation, labelnames)

    def inc(self, amount: float = 1) -> None:
        """Count `amount` more. Raises `InvalidValueError` (`ValueError`) below 0, `InvalidTypeError` (`TypeError`) for no number."""
        if self._number(amount) < 0:
            raise InvalidValueError(f"counter {self._family.name!r} can't be made smaller, got {amount!r}; use a Gauge for what goes down")
        self._add(amount)


class Gauge(_Metric):
    """A number that goes up and down. Arguments and errors as for `Counter`."""

    _kind = "gauge"

    def set(self, value: float) -> None:
        """It is `value` from now on. Raises `InvalidTypeError` (`TypeError`) for what is no number."""
        number = self._number(value)
        values = self._counted()
        with _lock:
            values[0] = number

    def inc(self, amount: float = 1) -> None:
        """It is `amount` more, or less where that is below 0; errors as for `set`."""
        self._add(amount)

    def dec(self, amount: float = 1) -> None:
        """It is `amount` less; errors as for `set`."""
        self._add(amount, -1.0)


class Histogram(_Metric):
    """How many values there were up to each bound, and their sum. Arguments and errors as for `Counter`.

    Args:
        buckets: the upper bounds, growing; `DEFAULT_BUCKETS` are for times in seconds.
    """

    _kind = "histogram"

    def __init__(
        self, name: str, documentation: str = "", labelnames: Collection[str] = (), *, buckets: Collection[float] = DEFAULT_BUCKETS
    ) -> None:
        try:
            bounds = tuple(float(bound) for bound in buckets)
        except (TypeError, ValueError):
            raise InvalidTypeError(f"metric {name!r}: buckets must be numbers, got {buckets!r}") from None
        if bounds and bounds[-1] == float("inf"):
            bounds = bounds[:-1]  # it is always there
        if not bounds or math.isnan(bounds[0]) or any(not low < high for low, high in pairwise(bounds)):
            raise InvalidValueError(f"metric {name!r}: buckets must be bounds that grow, got {buckets!r}")
        self._bounds = bounds
        super().__init__(name, documentation, labelnames)

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the buckets. Raises `InvalidTypeError` (`TypeError`) for what is no number."""
        number = self._number(value)
        values = self._counted()
        with _lock:
            values[bisect_left(self._bounds, number)] += 1
            values[-1] += number


def _rebuilt(
    cls: type[_Metric], name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...], chosen: tuple[str, ...] | None
) -> _Metric:
    metric = Histogram(name, documentation, labels, buckets=bounds) if cls is Histogram else cls(name, documentation, labels)
    return metric.labels(**dict(zip(labels, chosen, strict=True))) if chosen else metric


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise InvalidTypeError(f"the name of a metric must be a string, got {type(name).__name__}: {name!r}")
    if not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"{name!r} can't be the name of a metric: it must be letters, digits and underscores, and begin with no digit"
        )
    if name.startswith("headgate_"):
        raise InvalidValueError(f"{name!r} can't be the name of a metric of your own: headgate_… are Headgate's")


def _checked_labels(name: str, labelnames: Collection[str]) -> tuple[str, ...]:
    if isinstance(labelnames, str):
        raise InvalidTypeError(
            f"metric {name!r}: labelnames must be several names, got the string {labelnames!r}; did you mean ({labelnames!r},)?"
        )
    labels = tuple(labelnames)
    for label in labels:
        if not isinstance(label, str):
            raise InvalidTypeError(f"metric {name!r}: the name of a label must be a string, got {type(label).__name__}: {label!r}")
        if not _LABEL.fullmatch(label) or label.startswith("__") or label == "le":
            raise InvalidValueError(f"metric {name!r}: {label!r} can't be the name of a label; use letters, digits and underscores")
        if label in _ADDED:
            raise InvalidValueError(f"metric {name!r}: the label {label!r} is added to every metric; give yours another name")
    if len(set(labels)) < len(labels):
        raise InvalidValueError(f"metric {name!r}: a label is named twice: {labels}")
    return labels


def _text(said: str) -> str:
    """The same with whatever UTF-8 can't say written out."""
    return said.encode("utf-8", "backslashreplace").decode()
