"""What does the log say of those who prove to be strangers, however many they are? Nothing of it is theirs but their address."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

SAY_EVERY_S: Final = 10.0
"""How often they are told of at most."""


class Refusals:
    """Tells of the first at once, then every `SAY_EVERY_S` how many there were. On the loop.

    What was refused is said by `one`, with `{host}` in it, or `many`, with `{count}` and the latest `{host}`.
    """

    def __init__(self, log: logging.Logger, one: str, many: str) -> None:
        self._log = log
        self._one = one
        self._many = many
        self._count = 0
        self._lately = ("", "")
        self._again: asyncio.TimerHandle | None = None

    def note(self, host: str, why: str) -> None:
        """One more."""
        self._count += 1
        self._lately = (host, why)
        if self._again is None:
            self._say()

    def close(self) -> None:
        """Say what hasn't been said yet."""
        if self._count:
            self._say()
        if self._again is not None:
            self._again.cancel()

    def _say(self) -> None:
        host, why = self._lately
        what = self._one if self._count == 1 else self._many
        self._log.warning("refused %s: %s", what.format(host=host, count=self._count), why)
        self._count = 0
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(SAY_EVERY_S, self._look)

    def _look(self) -> None:
        self._again = None
        if self._count:
            self._say()
