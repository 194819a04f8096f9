"""What have several processes counted together, what of that stays when one has ended, and what is told?"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headgate.core import histograms
from headgate.core.histograms import Histogram
from headgate.core.labels import Labels
from headgate.core.reports import Counters, EventCount, QueueDepth, ReplicaCounters, RequestCount


def add_up(several: Iterable[Counters]) -> Counters:
    """The sum of the counters of several routers."""
    several = list(several)
    depths: dict[str, tuple[int, int]] = {}
    events: dict[tuple[str, str, str, str], int] = {}
    for counters in several:
        for depth in counters.queues:
            queued, in_flight = depths.get(depth.backend, (0, 0))
            depths[depth.backend] = (queued + depth.queued, in_flight + depth.in_flight)
        for event in counters.events:
            key = (event.event, event.endpoint, event.backend, event.reason)
            events[key] = events.get(key, 0) + event.count
    return Counters(
        _requests(counters.requests for counters in several),
        tuple(QueueDepth(tag, *both) for tag, both in sorted(depths.items())),
        tuple(EventCount(*key, count) for key, count in sorted(events.items())),
        _requests(counters.shadows for counters in several),
    )


def _requests(several: Iterable[tuple[RequestCount, ...]]) -> tuple[RequestCount, ...]:
    found: dict[tuple[str, str, int], RequestCount] = {}
    for requests in several:
        for request in requests:
            key = (request.endpoint, request.backend, request.status)
            before = found.get(key)
            if before is None:
                found[key] = request
                continue
            both = histograms.add_up([Histogram(before.buckets, before.seconds), Histogram(request.buckets, request.seconds)])
            found[key] = RequestCount(*key, before.count + request.count, both.sum, both.buckets)
    return tuple(found[key] for key in sorted(found))


def lasting(counters: Counters) -> Counters:
    """What stays of a router that has ended: its queues are gone, and its process."""
    return msgspec.structs.replace(counters, queues=(), usage=None)


def only(counters: Counters, labels: Labels) -> Counters:
    """What of it is told: nothing of endpoints and backends that are forgotten."""
    return msgspec.structs.replace(
        counters,
        requests=tuple(count for count in counters.requests if labels.has(count.endpoint, count.backend)),
        events=tuple(count for count in counters.events if labels.has(count.endpoint, count.backend)),
        shadows=tuple(count for count in counters.shadows if labels.has(count.endpoint, count.backend)),
    )


def add_up_replicas(several: Iterable[ReplicaCounters]) -> ReplicaCounters:
    """The sum of the counters of several replicas. What their processes use, and the metrics of the user's own, are each one's alone."""
    several = list(several)
    return ReplicaCounters(
        queue=histograms.add_up(counters.queue for counters in several),
        batch_wait=histograms.add_up(counters.batch_wait for counters in several),
        execution=histograms.add_up(counters.execution for counters in several),
        serialisation=histograms.add_up(counters.serialisation for counters in several),
        batch_sizes=histograms.add_up(counters.batch_sizes for counters in several),
    )


def lasting_of_replica(counters: ReplicaCounters) -> ReplicaCounters:
    """What stays of a replica that has ended."""
    return msgspec.structs.replace(counters, usage=None, metrics=(), failures=())
