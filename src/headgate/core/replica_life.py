"""What may happen to a replica, in which order, and when may the next one start after one has died?

The life is a table: state and event give the next state, and an event that can't happen raises. The back-off counts
only deaths that say something about the code: during construction, or before the first answer.
"""

from __future__ import annotations

from typing import Final

import msgspec

# States.
STARTING: Final = "starting"
"""Its process is made, and the definition imported and constructed."""
READY: Final = "ready"
"""It takes calls."""
DRAINING: Final = "draining"
"""It finishes what it has, and gets nothing new."""
STOPPING: Final = "stopping"
"""It is being killed."""
ENDED: Final = "ended"
"""Nothing of it is left."""

# Events.
CONSTRUCTED: Final = "constructed"
DRAIN: Final = "drain"
KILL: Final = "kill"
END: Final = "end"

LIFE: Final[dict[str, dict[str, str]]] = {
    # What is still in its constructor has nothing to finish.
    STARTING: {CONSTRUCTED: READY, DRAIN: STOPPING, KILL: STOPPING, END: ENDED},
    READY: {DRAIN: DRAINING, KILL: STOPPING, END: ENDED},
    DRAINING: {DRAIN: DRAINING, KILL: STOPPING, END: ENDED},
    # It may have become ready, or be asked again to go, while the kill was on its way.
    STOPPING: {CONSTRUCTED: STOPPING, DRAIN: STOPPING, KILL: STOPPING, END: ENDED},
    ENDED: {},
}
"""The next state, by state and event."""

# Why a ready replica ended that nobody asked to.
SIGNAL: Final = "signal"
"""A signal killed it, such as SIGSEGV, or SIGKILL where there was no memory left."""
EXIT: Final = "exit"
"""It exited by itself."""
HEALTH_CHECK: Final = "health check"
"""It was killed: it did not answer, made no progress, or said that it is unwell."""
BROKEN_LINK: Final = "broken link"
"""It was killed: a router could not talk to it."""
OTHER: Final = "other"
CAUSES_OF_DEATH: Final = (SIGNAL, EXIT, HEALTH_CHECK, BROKEN_LINK, OTHER)

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 30.0
_TOGETHER_S = 0.1


class ImpossibleEventError(RuntimeError):
    """An event that the table does not have: a mistake in Headgate, never in what a user did."""


def after(state: str, event: str) -> str:
    """The state that follows. Raises `ImpossibleEventError`."""
    try:
        return LIFE[state][event]
    except KeyError:
        raise ImpossibleEventError(f"a replica that is {state} can't get the event {event!r}") from None


class BackOff(msgspec.Struct, frozen=True):
    """How often in a row replicas of one backend died early, and until when no new one is started."""

    failures: int = 0
    until: float = 0.0
    counted_at: float = 0.0

    def died(self, state: str, now: float, since: float) -> BackOff:
        """A replica died early that had been in `state` since then.

        Replicas that die together count once, but for one that took the place of another. The first that was ready is
        replaced at once; what fails in construction, or again, waits longer and longer.
        """
        together = now < self.until or (state != STARTING and since <= self.counted_at and now - self.counted_at < _TOGETHER_S)
        if self.failures and together:
            return self
        steps = self.failures if state == STARTING else self.failures - 1
        delay = 0.0 if steps < 0 else min(_FIRST_DELAY_S * 2.0 ** min(steps, 16), _LONGEST_DELAY_S)
        return BackOff(self.failures + 1, now + delay, now)

    @property
    def delay_s(self) -> float:
        """How long the last death that was counted puts off the next start."""
        return self.until - self.counted_at

    def may_start(self, now: float) -> bool:
        """Whether the next replica may start."""
        return now >= self.until


def cause_of_death(told: str) -> str:
    """The cause of an end that an engine tells for people, as in `Ended.reason`."""
    if told.startswith("killed by "):
        return SIGNAL
    return EXIT if told.startswith("exit status ") else OTHER


def died_early(state: str, answered: int, ready_for_s: float) -> bool:
    """Whether the end of a replica that nobody asked for counts towards the back-off.

    `answered` is how many answers it is known to have given, `ready_for_s` how long it was ready: one that was ready for
    longer than the longest delay without being asked anything does not crash in a loop.
    """
    return state == STARTING or (answered == 0 and ready_for_s < _LONGEST_DELAY_S)
