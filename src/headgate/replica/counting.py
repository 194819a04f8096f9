"""What does a replica count of the calls that it runs, and how is that told?

Each thread that runs user code has lists of its own, so that counting takes no lock and loses nothing; whoever tells adds them up.
"""

from __future__ import annotations

from headgate.core import histograms
from headgate.core.histograms import SIZE_BOUNDS, SUM, TICKS_PER_S, Histogram
from headgate.core.reports import ReplicaCounters
from headgate.replica.member import Member


class Counts:
    """What one thread has counted. Times are in seconds by `time.monotonic()`."""

    __slots__ = ("batch_sizes", "batch_wait", "execution", "queue", "serialisation")

    def __init__(self) -> None:
        self.queue = histograms.tally()
        self.batch_wait = histograms.tally()
        self.execution = histograms.tally()
        self.serialisation = histograms.tally()
        self.batch_sizes = histograms.tally()

    def ran(self, member: Member, started_at: float, run_s: float) -> None:
        """One request was run alone: from its admission it has waited until then."""
        waited_s = started_at - member.received_at + member.micros * 1e-6
        queue, execution = self.queue, self.execution
        queue[int(waited_s * TICKS_PER_S).bit_length()] += 1
        queue[SUM] += waited_s
        execution[int(run_s * TICKS_PER_S).bit_length()] += 1
        execution[SUM] += run_s

    def batch_began(self, members: list[Member], started_at: float) -> None:
        """A batch begins: its members have waited in their routers, and then here for it."""
        queue, batch_wait = self.queue, self.batch_wait
        for member in members:
            queued_s, waited_s = member.micros * 1e-6, started_at - member.received_at
            queue[int(queued_s * TICKS_PER_S).bit_length()] += 1
            queue[SUM] += queued_s
            batch_wait[int(waited_s * TICKS_PER_S).bit_length()] += 1
            batch_wait[SUM] += waited_s

    def batch_ran(self, size: int, run_s: float) -> None:
        """User code was called once for so many requests."""
        histograms.observe_size(self.batch_sizes, size)
        execution = self.execution
        execution[int(run_s * TICKS_PER_S).bit_length()] += 1
        execution[SUM] += run_s

    def encoded(self, seconds: float) -> None:
        """What user code returned was turned into bytes."""
        serialisation = self.serialisation
        serialisation[int(seconds * TICKS_PER_S).bit_length()] += 1
        serialisation[SUM] += seconds


class CountsBySlot(dict[int, Counts]):
    """The counts of all threads, by the slot that each runs; an event loop has slot 0. Those of a slot are made when first asked for."""

    def __missing__(self, slot: int) -> Counts:
        counts = self[slot] = Counts()
        return counts

    def told(self) -> ReplicaCounters:
        """All of them, added up; from any thread."""
        several = list(self.values())

        def add_up(name: str, bounds: int = histograms.BOUNDS) -> Histogram:
            return histograms.add_up(histograms.of(getattr(counts, name), bounds) for counts in several)

        return ReplicaCounters(
            queue=add_up("queue"),
            batch_wait=add_up("batch_wait"),
            execution=add_up("execution"),
            serialisation=add_up("serialisation"),
            batch_sizes=add_up("batch_sizes", SIZE_BOUNDS),
        )
