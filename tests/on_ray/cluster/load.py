"""What does a steady stream of requests at several nodes come to?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.chaos.load import Load, Outcome

REQUEST_S = 10.0
"""How long a request may take: more than it takes until a node that is out of reach is given up."""


class Loads:
    """A `Load` of `rate` requests a second on each of these URLs, at each of these routes."""

    def __init__(self, urls: Iterable[str], tags: Iterable[str], rate: float) -> None:
        urls, tags = list(urls), list(tags)
        self._of = {
            tag: [
                Load(f"{url}/{tag}", rate, timeout_s=REQUEST_S, seed=number, name=f"{tag}-at-{number}") for number, url in enumerate(urls)
            ]
            for tag in tags
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for load in self.all:
            self._stack.enter_context(load)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    @property
    def all(self) -> list[Load]:
        return [load for loads in self._of.values() for load in loads]

    def wait_for_more(self, count: int) -> None:
        """Until that many more have ended on each."""
        for load in self.all:
            load.wait_for_more(count)

    def check_definite(self) -> None:
        """See `Load`."""
        for load in self.all:
            load.check_definite()

    def bad(self, tag: str) -> list[Outcome]:
        """All at that route that were not answered with 200."""
        return [outcome for load in self._of[tag] for outcome in load.bad()]

    def bodies(self, tag: str, since: float) -> set[str]:
        """What good answers said, of the requests that were sent since."""
        return {outcome.body for load in self._of[tag] for outcome in load.outcomes if outcome.status == 200 and outcome.sent_at >= since}

    def count(self) -> int:
        """How many have ended."""
        return sum(len(load.outcomes) for load in self.all)
