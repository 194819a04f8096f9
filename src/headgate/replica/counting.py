"""What does a replica count of the calls that it runs, and how is that told?

Each thread that runs user code has lists of its own, so that counting waits for nobody and loses nothing; whoever tells adds them up.
"""

from __future__ import annotations

from collections.abc import Callable

from headgate.core import histograms
from headgate.core.histograms import SIZE_BOUNDS, Histogram
from headgate.core.reports import ReplicaCounters
from headgate.replica.member import Member
from headgate.timings import MANY, Timings


class Counts:
    """What one thread has counted. Times are in seconds by `time.monotonic()`."""

    __slots__ = ("batch_sizes", "batch_wait", "execution", "queue", "serialisation")

    def __init__(self) -> None:
        self.queue = Timings()
        self.batch_wait = Timings()
        self.execution = Timings()
        self.serialisation = Timings()
        self.batch_sizes = histograms.tally()

    def ran(self, member: Member, started_at: float, run_s: float) -> None:
        """One request was run alone: from its admission it has waited until then."""
        execution = self.execution
        execution.append(run_s)
        self.queue.append(started_at - member.received_at + member.micros * 1e-6)
        if len(execution) >= MANY:
            execution.settle()
            self.queue.settle()

    def batch_began(self, members: list[Member], started_at: float) -> None:
        """A batch begins: its members have waited in their routers, and then here for it."""
        queue, batch_wait = self.queue, self.batch_wait
        for member in members:
            queue.append(member.micros * 1e-6)
            batch_wait.append(started_at - member.received_at)
        if len(batch_wait) >= MANY:
            batch_wait.settle()
            queue.settle()

    def batch_ran(self, size: int, run_s: float) -> None:
        """User code was called once for so many requests."""
        histograms.observe_size(self.batch_sizes, size)
        self.execution.take(run_s)

    def encoded(self, seconds: float) -> None:
        """What user code returned was turned into bytes."""
        self.serialisation.take(seconds)


class CountsBySlot(dict[int, Counts]):
    """The counts of all threads, by the slot that each runs; an event loop has slot 0. Those of a slot are made when first asked for."""

    def __missing__(self, slot: int) -> Counts:
        counts = self[slot] = Counts()
        return counts

    def told(self) -> ReplicaCounters:
        """All of them, added up; from any thread."""
        several = list(self.values())

        def add_up(each: Callable[[Counts], Histogram]) -> Histogram:
            return histograms.add_up(map(each, several))

        return ReplicaCounters(
            queue=add_up(lambda counts: counts.queue.told()),
            batch_wait=add_up(lambda counts: counts.batch_wait.told()),
            execution=add_up(lambda counts: counts.execution.told()),
            serialisation=add_up(lambda counts: counts.serialisation.told()),
            batch_sizes=add_up(lambda counts: histograms.of(counts.batch_sizes, SIZE_BOUNDS)),
        )
