"""What is there to see of an instance: what was asked for, what runs and why not, and what was counted?

What `serve.status()` and `serve.stat()` return.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.histograms import Histogram
from headgate.core.specs import Code


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One replica: its life's state by the table in `core/replica_life.py`."""

    id: str
    state: str
    pid: int | None = None
    gpus: tuple[str, ...] = ()
    since_s: float = 0.0


class BackendInfo(msgspec.Struct, frozen=True):
    """A backend: what was asked for (`config`, `options`), and what runs."""

    tag: str
    definition: str
    config: BackendConfig
    options: ReplicaOptions
    state: str = "ready"  # ready, starting, updating, unhealthy
    reason: str = ""  # why it is not ready, with the last traceback
    replicas: tuple[ReplicaStatus, ...] = ()
    methods: tuple[str, ...] = ()
    code: Code = Code()  # as a file names it


class Coming(msgspec.Struct, frozen=True):
    """Replicas that a verb under way starts before it counts: so many, of which so many are ready."""

    replicas: int
    ready: int


class EndpointInfo(msgspec.Struct, frozen=True):
    """An endpoint: its route, HTTP methods, weights and shadows."""

    name: str
    route: str | None
    methods: tuple[str, ...]
    traffic: dict[str, float]
    shadows: dict[str, float]


class ProcessInfo(msgspec.Struct, frozen=True):
    """One process of the instance, on a cluster with its `node`.

    `rss_bytes` is the memory that it has resident, 0 where it has just ended, or isn't on the controller's node.
    """

    role: str
    id: str
    pid: int
    rss_bytes: int = 0
    node: str = ""


class Waiting(msgspec.Struct, frozen=True):
    """Replicas of one backend that start once there is room: `reason` names what each asks for and what is free."""

    backend: str
    replicas: int
    reason: str
    since_s: float  # how long the oldest of them has waited

    @property
    def text(self) -> str:
        """All of it, for people."""
        return f"{self._who} for room, since {self.since_s:.0f} s: {self.reason}"

    @property
    def lasting_text(self) -> str:
        """What stays true while nothing changes, so that routers need not be told again."""
        return f"{self._who} for room: {self.reason}"

    @property
    def _who(self) -> str:
        return "1 replica waits" if self.replicas == 1 else f"{self.replicas} replicas wait"


class Description(msgspec.Struct, frozen=True):
    """The whole instance, at one moment."""

    name: str
    http_urls: tuple[str, ...]
    backends: dict[str, BackendInfo]
    endpoints: dict[str, EndpointInfo]
    processes: tuple[ProcessInfo, ...]
    resources: dict[str, float]  # what the engine has
    free: dict[str, float]
    waiting: tuple[Waiting, ...]  # for room: also replicas of backends that a verb is about to create or to change
    ready: bool  # every backend with traffic has a ready replica
    coming: dict[str, Coming] = {}  # by backend, also those that a verb is about to create
    http: dict[str, Any] = {}  # how it serves HTTP: arguments of `init`
    state_id: str = ""  # another one where something else is asked for
    log_dir: str = ""  # where its processes have files; empty: they write to a terminal, or where Ray has it
    state_dir: str = ""  # where it keeps its state, on the controller's machine
    admin_address: str = ""  # where its controller takes commands from afar, host and port; empty: nowhere
    certificate_days: float | None = None  # for so many the certificate is valid that it has on disk; None: unknown, or it has none


class RequestCount(msgspec.Struct, frozen=True, array_like=True):
    """Requests of one endpoint to one backend that ended with one HTTP status; backend "" where none was chosen."""

    endpoint: str
    backend: str
    status: int
    count: int
    seconds: float  # total, from arrival to answer
    buckets: tuple[int, ...] = ()  # of these times, as in `core/histograms.py`; none where an ingress refused by itself


class QueueDepth(msgspec.Struct, frozen=True, array_like=True):
    """Requests for one backend that are under way: `in_flight` of them, of which `queued` wait in a router."""

    backend: str
    queued: int
    in_flight: int


SHED: Final = "shed"
EXPIRED: Final = "expired"
CANCELLED: Final = "cancelled"
RETRIED: Final = "retried"
SHADOW_DROPPED: Final = "shadow dropped"


class EventCount(msgspec.Struct, frozen=True, array_like=True):
    """How often something befell requests of one endpoint to one backend.

    `event` is "shed" (refused with 503, by the rule that `reason` names), "expired" (out of time after admission), "cancelled" (its
    caller gave it up), "retried" (it was sent to another replica), or "shadow dropped" (a copy that was not sent).
    """

    event: str
    endpoint: str
    backend: str
    reason: str
    count: int


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What a process has used: CPU time since it started, and the memory that it has resident now."""

    cpu_seconds: float = 0.0
    rss_bytes: int = 0


class Counters(msgspec.Struct, frozen=True):
    """What one router counted since it started, and its process."""

    requests: tuple[RequestCount, ...] = ()
    queues: tuple[QueueDepth, ...] = ()
    events: tuple[EventCount, ...] = ()
    shadows: tuple[RequestCount, ...] = ()  # copies, by how they ended
    usage: Usage | None = None  # of an ingress; what else has a router is the user's own process, or a replica

    @property
    def retried(self) -> int:
        """How often requests were sent to another replica."""
        return self._events(RETRIED)

    @property
    def shadows_dropped(self) -> int:
        """How many copies were not sent."""
        return self._events(SHADOW_DROPPED)

    def labels(self) -> Iterator[tuple[str, str]]:
        """The endpoint and the backend of each count; a pair comes several times."""
        for count in (*self.requests, *self.shadows):
            yield count.endpoint, count.backend
        for event in self.events:
            yield event.endpoint, event.backend

    def _events(self, event: str) -> int:
        return sum(count.count for count in self.events if count.event == event)


class Series(msgspec.Struct, frozen=True, array_like=True):
    """One set of labels of a metric of the user's own: its value, or of a histogram the count in each bucket and the sum."""

    labels: tuple[str, ...]
    values: tuple[float, ...]


class UserMetric(msgspec.Struct, frozen=True, array_like=True):
    """A metric of the user's own, in one replica."""

    kind: str  # "counter", "gauge" or "histogram"
    name: str
    help: str
    labels: tuple[str, ...]  # their names
    series: tuple[Series, ...]
    bounds: tuple[float, ...] = ()  # of a histogram's buckets, without infinity


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What has failed in the same way, `count` times as far as is told; all but `count` is of the latest time.

    `kind` is a class in `headgate.errors`: "ReplicaDiedError" for a replica that ended unasked, "ReplicaStartError" for one that did not
    start, and otherwise that of a call of user code.
    """

    kind: str
    backend: str
    endpoint: str
    error: str  # the class of what was raised, or the cause of a death
    count: int
    at: float  # seconds since 1970, by the clock of the process
    replica: str
    request_id: str = ""
    message: str = ""
    traceback: str = ""


class ReplicaCounters(msgspec.Struct, frozen=True):
    """What one replica counted since it started. Times are as in `core/histograms.py`."""

    queue: Histogram = Histogram()
    batch_wait: Histogram = Histogram()
    execution: Histogram = Histogram()
    serialisation: Histogram = Histogram()
    batch_sizes: Histogram = Histogram()
    usage: Usage | None = None
    metrics: tuple[UserMetric, ...] = ()
    failures: tuple[Failure, ...] = ()  # those since it said so last: each is said once


class ReplicaReport(msgspec.Struct, frozen=True):
    """One replica that runs: the metrics of the user's own are its alone."""

    id: str
    backend: str
    metrics: tuple[UserMetric, ...] = ()


class ProcessReport(msgspec.Struct, frozen=True):
    """One process of the instance that runs, and what it has used; `backend` is a replica's."""

    role: str
    id: str
    backend: str
    usage: Usage


class Measurement(msgspec.Struct, frozen=True):
    """What all processes have counted, added up, also those that have ended."""

    counters: Counters  # of routers
    replica_starts: dict[str, int] = {}  # by backend, whatever came of them
    replica_deaths: dict[str, int] = {}
    routers: int = 0  # that were asked and answered
    unhealthy: dict[str, str] = {}  # backends that have fewer replicas than they should: why, with the last traceback
    replica_death_reasons: dict[str, dict[str, int]] = {}  # the deaths, by backend and then by reason
    replica_start_failures: dict[str, int] = {}  # those that failed: not for want of room, nor where nobody wanted them any more
    replica_start_times: dict[str, Histogram] = {}  # of those that became ready under one controller, in buckets from 10 ms
    backends: dict[str, ReplicaCounters] = {}  # what replicas counted, by backend
    replicas: tuple[ReplicaReport, ...] = ()
    processes: tuple[ProcessReport, ...] = ()
    failures: tuple[Failure, ...] = ()  # of late, the latest first
