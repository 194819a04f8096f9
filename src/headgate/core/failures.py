"""Which failures are worth telling of? Of each way to fail the latest, and how often it has been; of the ways those of late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from headgate.core.reports import Failure

LONGEST_MESSAGE: Final = 500
"""Characters; of a longer one the end is left out, …"""
LONGEST_TRACEBACK: Final = 8000
"""… and of a longer traceback the beginning, since it ends with what was raised."""


class Failures:
    """At most `most` ways to fail, each with the latest of its failures. Not for several threads at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[tuple[str, str, str, str], Failure] = {}  # the latest last

    def add(self, failure: Failure) -> None:
        """Take note of a failure; where there is no room, the way to fail that was met longest ago is forgotten for it."""
        way = (failure.kind, failure.backend, failure.endpoint, failure.error)
        before = self._found.pop(way, None)
        self._found[way] = msgspec.structs.replace(
            failure,
            count=failure.count + (before.count if before is not None else 0),
            message=_beginning(failure.message, LONGEST_MESSAGE),
            traceback=_end(failure.traceback, LONGEST_TRACEBACK),
        )
        if len(self._found) > self._most:
            del self._found[next(iter(self._found))]

    def add_all(self, failures: Iterable[Failure]) -> None:
        """The same for several, the latest first."""
        for failure in reversed(tuple(failures)):
            self.add(failure)

    def latest(self) -> tuple[Failure, ...]:
        """All that are known, the latest first."""
        return tuple(reversed(self._found.values()))

    def take(self) -> tuple[Failure, ...]:
        """The same, and forget them."""
        found = self.latest()
        self._found.clear()
        return found


def _beginning(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _end(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"
