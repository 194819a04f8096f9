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
    """One replica."""

    id: str
    """Its id, as in log lines and `serve.context.replica`."""
    state: str
    """Where it is in its life, by the table in `core/replica_life.py`: "starting", "ready", "draining", "stopping"."""
    pid: int | None = None
    """Its process; None where that isn't known yet."""
    gpus: tuple[str, ...] = ()
    """The devices that it was given, as in its `CUDA_VISIBLE_DEVICES`."""
    since_s: float = 0.0
    """For so many seconds it has been in this state."""


class BackendInfo(msgspec.Struct, frozen=True):
    """A backend: what was asked for, and what runs."""

    tag: str
    """Its name."""
    definition: str
    """The name of its function or class."""
    config: BackendConfig
    """Its whole config."""
    options: ReplicaOptions
    """What each replica takes: its `ray_actor_options`."""
    state: str = "ready"
    """ "ready": it has all replicas that were asked for; "starting": some are on their way; "updating": new code is; "unhealthy": some
    are missing because they fail."""
    reason: str = ""
    """Why it is not ready, with the last traceback; empty where nothing is wrong."""
    replicas: tuple[ReplicaStatus, ...] = ()
    """Those that run, of older code too."""
    methods: tuple[str, ...] = ()
    """What can be called of it; "" is the call itself."""
    code: Code = Code()
    """What `serve.get_declared` says of its code."""


class Coming(msgspec.Struct, frozen=True):
    """Replicas that a verb under way starts before it counts."""

    replicas: int
    """So many."""
    ready: int
    """So many of them are ready."""


class EndpointInfo(msgspec.Struct, frozen=True):
    """An endpoint."""

    name: str
    """Its name, which handles use."""
    route: str | None
    """The path under which HTTP clients reach it; None: handles only."""
    methods: tuple[str, ...]
    """The HTTP methods that it answers."""
    traffic: dict[str, float]
    """The weights of its backends, which sum up to 1; empty: it answers 503."""
    shadows: dict[str, float]
    """The backends that get copies, each with its share, above 0 and up to 1."""


class ProcessInfo(msgspec.Struct, frozen=True):
    """One process of the instance."""

    role: str
    """ "supervisor", "controller", "ingress" or "replica"."""
    id: str
    """Its id, as in log lines."""
    pid: int
    """The number that the system of its machine knows it by."""
    rss_bytes: int = 0
    """The memory that it has resident; 0 where it has just ended, or isn't on the controller's node."""
    node: str = ""
    """On a cluster, where it runs."""


class Waiting(msgspec.Struct, frozen=True):
    """Replicas of one backend that start once there is room."""

    backend: str
    """The backend's tag."""
    replicas: int
    """So many wait."""
    reason: str
    """What each asks for, and what is free."""
    since_s: float
    """For so many seconds the oldest of them has waited."""

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
    """The instance's name."""
    http_urls: tuple[str, ...]
    """Where HTTP clients reach it."""
    backends: dict[str, BackendInfo]
    """All backends, by tag."""
    endpoints: dict[str, EndpointInfo]
    """All endpoints, by name."""
    processes: tuple[ProcessInfo, ...]
    """All its processes."""
    resources: dict[str, float]
    """What the engine has, by name, such as "CPU" and "GPU"; "memory" in bytes."""
    free: dict[str, float]
    """What of that is not booked."""
    waiting: tuple[Waiting, ...]
    """What waits for room: also replicas of backends that a verb is about to create or to change."""
    ready: bool
    """Whether every backend with traffic has a ready replica."""
    coming: dict[str, Coming] = {}
    """What verbs under way start, by backend, also of those that they are about to create."""
    http: dict[str, Any] = {}
    """How it serves HTTP: arguments of `init`."""
    state_id: str = ""
    """Another one where something else is asked for."""
    log_dir: str = ""
    """Where its processes have files; empty: they write to a terminal, or where Ray has it."""
    state_dir: str = ""
    """Where it keeps its state, on the controller's machine."""
    admin_address: str = ""
    """Where its controller takes commands from afar, host and port; empty: nowhere."""
    certificate_days: float | None = None
    """For so many days the certificate is valid that it has on disk; None: unknown, or it has none."""


class RequestCount(msgspec.Struct, frozen=True, array_like=True):
    """Requests of one endpoint to one backend that ended with one HTTP status."""

    endpoint: str
    """Its name; empty where there is none of that name, or an ingress refused by itself."""
    backend: str
    """Its tag; empty where none was chosen."""
    status: int
    """The HTTP status, also of calls by handles; 499 where the caller gave it up."""
    count: int
    """So many."""
    seconds: float
    """All their times from arrival to answer, added up."""
    buckets: tuple[int, ...] = ()
    """How many of these times are in each bucket, as in `Histogram`; none where an ingress refused by itself."""


class QueueDepth(msgspec.Struct, frozen=True, array_like=True):
    """Requests for one backend that are under way."""

    backend: str
    """Its tag."""
    queued: int
    """So many wait in a router."""
    in_flight: int
    """So many were admitted and have not ended, those that wait among them."""


SHED: Final = "shed"
# By which rule.
QUEUE_FULL: Final = "queue full"
DEADLINE: Final = "deadline"
NO_REPLICA: Final = "no replica"
NO_TRAFFIC: Final = "no traffic"
STARTING: Final = "starting"
SHUTTING_DOWN: Final = "shutting down"
TOO_MANY_BYTES: Final = "max_inflight_bytes"
SHED_REASONS: Final = (QUEUE_FULL, DEADLINE, NO_REPLICA, NO_TRAFFIC, STARTING, SHUTTING_DOWN, TOO_MANY_BYTES)
EXPIRED: Final = "expired"
# At which stage.
QUEUED: Final = "queued"
RUNNING: Final = "running"
CANCELLED: Final = "cancelled"
RETRIED: Final = "retried"
SHADOW_DROPPED: Final = "shadow dropped"


class EventCount(msgspec.Struct, frozen=True, array_like=True):
    """How often something befell requests of one endpoint to one backend."""

    event: str
    """ "shed" (refused with 503), "expired" (out of time after admission), "cancelled" (its caller gave it up), "retried" (it was sent to
    another replica), or "shadow dropped" (a copy that was not sent)."""
    endpoint: str
    """Its name."""
    backend: str
    """Its tag; empty where none was chosen."""
    reason: str
    """Of what was shed the rule, as in the answer; of what expired, "queued" or "running"; else empty."""
    count: int
    """So often."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What a process has used."""

    cpu_seconds: float = 0.0
    """CPU time since it started."""
    rss_bytes: int = 0
    """The memory that it has resident now."""


class Counters(msgspec.Struct, frozen=True):
    """What one router counted since it started, and its process."""

    requests: tuple[RequestCount, ...] = ()
    """Requests, by how they ended."""
    queues: tuple[QueueDepth, ...] = ()
    """What is under way now, by backend."""
    events: tuple[EventCount, ...] = ()
    """What befell requests."""
    shadows: tuple[RequestCount, ...] = ()
    """Copies for shadows, by how they ended."""
    usage: Usage | None = None
    """Of an ingress's process; what else has a router is the user's own process, or a replica."""

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
    """One set of labels of a metric of the user's own."""

    labels: tuple[str, ...]
    """Their values, in the order of the metric's `labels`."""
    values: tuple[float, ...]
    """Its value; of a histogram the count in each bucket, and last the sum."""


class UserMetric(msgspec.Struct, frozen=True, array_like=True):
    """A metric of the user's own, in one replica."""

    kind: str
    """ "counter", "gauge" or "histogram"."""
    name: str
    """Its name, of a counter without `_total`."""
    help: str
    """Its documentation."""
    labels: tuple[str, ...]
    """The names of its labels."""
    series: tuple[Series, ...]
    """Its values, by labels."""
    bounds: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, without infinity."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What has failed in the same way, `count` times as far as is told; all but `count` is of the latest time."""

    kind: str
    """A class in `headgate.errors`: "ReplicaDiedError" for a replica that ended unasked, "ReplicaStartError" for one that did not
    start, and otherwise that of a call of user code."""
    backend: str
    """Its tag."""
    endpoint: str
    """Its name; empty where no request was concerned."""
    error: str
    """The class of what was raised, or the cause of a death."""
    count: int
    """So often."""
    at: float
    """When, in seconds since 1970, by the clock of the process."""
    replica: str
    """The replica's id."""
    request_id: str = ""
    """The request's."""
    message: str = ""
    """What was said when it was raised."""
    traceback: str = ""
    """Its text."""


class ReplicaCounters(msgspec.Struct, frozen=True):
    """What replicas counted: times in seconds, and sizes of batches."""

    queue: Histogram = Histogram()
    """From admission until user code began, without the way there; for a batch handler, until the request left its router."""
    batch_wait: Histogram = Histogram()
    """For a batch handler, from there until its batch began."""
    execution: Histogram = Histogram()
    """Calls of user code; a batch is one, and so is each part of a batch that is split."""
    serialisation: Histogram = Histogram()
    """Turning what user code returned into bytes; what is `bytes` already, and streams, aren't counted."""
    batch_sizes: Histogram = Histogram()
    """Requests in a batch; the upper bound of bucket `n` is 2**n of them."""
    usage: Usage | None = None
    """Of one replica: what its process has used."""
    metrics: tuple[UserMetric, ...] = ()
    """Of one replica: the metrics of the user's own."""
    failures: tuple[Failure, ...] = ()
    """Of one replica: those since it said so last; each is said once."""


class ReplicaReport(msgspec.Struct, frozen=True):
    """One replica that runs: the metrics of the user's own are its alone."""

    id: str
    """Its id."""
    backend: str
    """Its backend's tag."""
    metrics: tuple[UserMetric, ...] = ()
    """The metrics of the user's own."""


class ProcessReport(msgspec.Struct, frozen=True):
    """One process of the instance that runs, and what it has used."""

    role: str
    """As in `ProcessInfo`."""
    id: str
    """Its id."""
    backend: str
    """Of a replica its backend's tag; else empty."""
    usage: Usage
    """What it has used."""


class Measurement(msgspec.Struct, frozen=True):
    """What all processes have counted, added up, also those that have ended."""

    counters: Counters
    """What routers counted."""
    replica_starts: dict[str, int] = {}
    """Starts of replicas by backend, whatever came of them."""
    replica_deaths: dict[str, int] = {}
    """Deaths of replicas that nobody asked for, by backend."""
    routers: int = 0
    """So many were asked and answered."""
    unhealthy: dict[str, str] = {}
    """Backends that have fewer replicas than they should: why, with the last traceback."""
    replica_death_reasons: dict[str, dict[str, int]] = {}
    """The deaths, by backend and then by reason."""
    replica_start_failures: dict[str, int] = {}
    """Starts that failed, by backend: not for want of room, nor where nobody wanted them any more."""
    replica_start_times: dict[str, Histogram] = {}
    """Seconds of the starts that became ready under one controller, by backend; bucket `n` ends at 2**n times 10 ms."""
    backends: dict[str, ReplicaCounters] = {}
    """What replicas counted, by backend."""
    replicas: tuple[ReplicaReport, ...] = ()
    """Those that run."""
    processes: tuple[ProcessReport, ...] = ()
    """Those that run."""
    failures: tuple[Failure, ...] = ()
    """What has failed of late, the latest first."""
