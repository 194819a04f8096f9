"""What is there to see of an instance: what was asked for, what runs and why not, and what was counted?

What `serve.status()` and `serve.stat()` return.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headgate.config import BackendConfig, ReplicaOptions
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
    state_dir: str = ""  # where it keeps its state, on the controller's machine


class RequestCount(msgspec.Struct, frozen=True, array_like=True):
    """Requests of one endpoint to one backend that ended with one HTTP status; backend "" where none was chosen."""

    endpoint: str
    backend: str
    status: int
    count: int
    seconds: float  # total, from arrival to answer


class QueueDepth(msgspec.Struct, frozen=True, array_like=True):
    """Requests for one backend that are under way: `in_flight` of them, of which `queued` wait in a router."""

    backend: str
    queued: int
    in_flight: int


class Counters(msgspec.Struct, frozen=True):
    """What one router counted since it started."""

    requests: tuple[RequestCount, ...] = ()
    queues: tuple[QueueDepth, ...] = ()
    shadows_dropped: int = 0
    retried: int = 0


class Measurement(msgspec.Struct, frozen=True):
    """The counters of all routers that answered, added up, also of those that have ended."""

    counters: Counters
    replica_starts: dict[str, int] = {}
    replica_deaths: dict[str, int] = {}
    routers: int = 0
    unhealthy: dict[str, str] = {}  # backends that have fewer replicas than they should: why, with the last traceback
