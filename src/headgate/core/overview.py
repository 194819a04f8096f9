"""What does the dashboard show of an instance at one moment?

Everybody who reaches the port can see it. So what user code said when it raised, and tracebacks, are in it only where the instance
runs with `debug`, but for the last line of why a replica did not start; and what may be secret isn't in the declared state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from headgate.core import declared, rates
from headgate.core.histograms import Histogram
from headgate.core.rates import Rates, Times
from headgate.core.reports import (
    SHED,
    BackendInfo,
    Description,
    EndpointInfo,
    Failure,
    Measurement,
    QueueDepth,
    ReplicaCounters,
    ReplicaStatus,
    RequestCount,
    Usage,
)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

MOST_REPLICAS: Final = 64
"""So many of a backend are shown one by one; first those that aren't ready."""
_RAISED: Final = "check_health() raised"
_TRACEBACK: Final = "Traceback (most recent call last)"
_NOT_SHOWN: Final = "(not shown here)"
_MAY_BE_SECRET: Final = {"init_args": (), "init_kwargs": (), "ray_actor_options": ("runtime_env",)}


class Branch(msgspec.Struct, frozen=True):
    """A backend that an endpoint sends a share of its requests to, or of copies of them."""

    backend: str
    share: float
    rates: Rates | None


class EndpointView(msgspec.Struct, frozen=True):
    """An endpoint, with what clients see of it. `rates` are None until there are two measurements."""

    name: str
    route: str | None
    methods: tuple[str, ...]
    rates: Rates | None
    traffic: tuple[Branch, ...]
    shadows: tuple[Branch, ...]
    shed: dict[str, int]  # how many were refused with 503, by the rule that refused them


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica. `cores` is how much CPU time it uses in a second."""

    id: str
    state: str
    since_s: float
    gpus: tuple[str, ...] = ()
    rss_bytes: int = 0
    cores: float | None = None


class BackendView(msgspec.Struct, frozen=True):
    """A backend and its replicas."""

    tag: str
    definition: str
    state: str
    reason: str
    wanted: int  # replicas
    ready: int
    counts: dict[str, int]  # replicas by state
    replicas: tuple[ReplicaView, ...]  # not all, where there are very many
    queued: int
    in_flight: int
    rates: Rates | None
    queue: Times
    batch_wait: Times
    execution: Times
    max_batch_size: int
    batches: tuple[tuple[int, int], ...]  # how many were of up to so many requests, and more than the one before
    mean_batch: float | None
    starts: int
    start_failures: int
    deaths: dict[str, int]  # by reason


class ComingView(msgspec.Struct, frozen=True):
    """Replicas that a verb starts before it counts; `waits` says what for, where there is no room."""

    backend: str
    replicas: int
    ready: int
    waits: str


class FailureView(msgspec.Struct, frozen=True):
    """What has failed of late; see `Failure`."""

    kind: str
    backend: str
    endpoint: str
    error: str
    count: int
    ago_s: float
    replica: str
    request_id: str
    message: str
    traceback: str


class Overview(msgspec.Struct, frozen=True):
    """All of it. Rates and times are of the last `window_s` seconds; 0 where there is nothing yet to compare with."""

    name: str
    version: str
    ready: bool
    debug: bool
    takes_changes: bool  # from who has the admin token
    http_urls: tuple[str, ...]
    window_s: float
    rates: Rates | None
    refused: dict[str, int]  # by the ingresses themselves, by status
    queued: int
    in_flight: int
    processes: int
    rss_bytes: int
    cores: float | None
    endpoints: tuple[EndpointView, ...]
    backends: tuple[BackendView, ...]
    coming: tuple[ComingView, ...]
    failures: tuple[FailureView, ...]
    state_id: str


class Looked(msgspec.Struct, frozen=True):
    """A measurement, and when it was made."""

    at_s: float
    measurement: Measurement


def overview(
    description: Description, before: Looked, after: Looked, *, version: str, takes_changes: bool = False, debug: bool, now: float
) -> Overview:
    """Compare two measurements, which may be the same, and say what runs. `now` is in seconds since 1970."""
    return _Viewer(description, before, after, debug=debug, now=now).all(version, takes_changes)


class _Viewer:
    def __init__(self, description: Description, before: Looked, after: Looked, *, debug: bool, now: float) -> None:
        self._description = description
        self._before, self._after = before.measurement, after.measurement
        self._window_s = max(0.0, after.at_s - before.at_s)
        self._debug = debug
        self._now = now
        ended, known = self._after.counters, self._before.counters
        requests = rates.requests_between(known.requests, ended.requests)
        copies = rates.requests_between(known.shadows, ended.shadows)
        self._by_endpoint = _grouped(requests, lambda count: count.endpoint)
        self._by_backend = _grouped([*requests, *copies], lambda count: count.backend)
        self._by_branch = _grouped(requests, lambda count: (count.endpoint, count.backend))
        self._copies = _grouped(copies, lambda count: (count.endpoint, count.backend))
        self._shed = _grouped(
            (event for event in rates.events_between(known.events, ended.events) if event.event == SHED), lambda event: event.endpoint
        )
        self._depths = {depth.backend: depth for depth in ended.queues}
        self._used = {process.id: process.usage for process in self._after.processes}
        self._had_used = {process.id: process.usage for process in self._before.processes}

    def all(self, version: str, takes_changes: bool) -> Overview:
        description, processes = self._description, self._after.processes
        queues = self._after.counters.queues
        cores = [self._cores(process.id, process.usage) for process in processes]
        return Overview(
            name=description.name,
            version=version,
            ready=description.ready,
            debug=self._debug,
            takes_changes=takes_changes,
            http_urls=description.http_urls,
            window_s=self._window_s,
            rates=self._rates(count for name, counts in self._by_endpoint.items() if name for count in counts),
            refused=rates.rates(self._by_endpoint.get("", ()), 1.0).statuses,
            queued=sum(depth.queued for depth in queues),
            in_flight=sum(depth.in_flight for depth in queues),
            processes=len(processes),
            rss_bytes=sum(process.usage.rss_bytes for process in processes),
            cores=sum(used for used in cores if used is not None) if self._window_s else None,
            endpoints=tuple(self._endpoint(endpoint) for _, endpoint in sorted(description.endpoints.items())),
            backends=tuple(self._backend(backend) for _, backend in sorted(description.backends.items())),
            coming=self._coming(),
            failures=tuple(self._failure(failure) for failure in self._after.failures),
            state_id=description.state_id,
        )

    def _endpoint(self, endpoint: EndpointInfo) -> EndpointView:
        name = endpoint.name
        shed = _grouped(self._shed.get(name, ()), lambda event: event.reason)
        return EndpointView(
            name=name,
            route=endpoint.route,
            methods=endpoint.methods,
            rates=self._rates(self._by_endpoint.get(name, ())),
            traffic=self._branches(name, endpoint.traffic, self._by_branch),
            shadows=self._branches(name, endpoint.shadows, self._copies),
            shed={rule: sum(event.count for event in events) for rule, events in shed.items()},
        )

    def _coming(self) -> tuple[ComingView, ...]:
        waits = {waiting.backend: waiting.text for waiting in self._description.waiting}
        return tuple(
            ComingView(tag, coming.replicas, coming.ready, waits.get(tag, "")) for tag, coming in sorted(self._description.coming.items())
        )

    def _branches(self, name: str, shares: Mapping[str, float], counts: Mapping[tuple[str, str], list[RequestCount]]) -> tuple[Branch, ...]:
        return tuple(Branch(tag, share, self._rates(counts.get((name, tag), ()))) for tag, share in sorted(shares.items()))

    def _backend(self, backend: BackendInfo) -> BackendView:
        tag, after = backend.tag, self._after
        before, told = self._before.backends.get(tag, ReplicaCounters()), after.backends.get(tag, ReplicaCounters())
        depth = self._depths.get(tag, QueueDepth(tag, 0, 0))
        states = [replica.state for replica in backend.replicas]
        shown = sorted(backend.replicas, key=lambda replica: (replica.state == "ready", replica.id))[:MOST_REPLICAS]
        sizes = rates.between(before.batch_sizes, told.batch_sizes)
        return BackendView(
            tag=tag,
            definition=backend.definition,
            state=backend.state,
            reason=backend.reason if self._debug else without_frames(without_faults(backend.reason)),
            wanted=backend.config.num_replicas,
            ready=states.count("ready"),
            counts={state: states.count(state) for state in sorted(set(states))},
            replicas=tuple(self._replica(replica) for replica in sorted(shown, key=lambda replica: replica.id)),
            queued=depth.queued,
            in_flight=depth.in_flight,
            rates=self._rates(self._by_backend.get(tag, ())),
            queue=self._times(before.queue, told.queue),
            batch_wait=self._times(before.batch_wait, told.batch_wait),
            execution=self._times(before.execution, told.execution),
            max_batch_size=backend.config.max_batch_size,
            batches=tuple((1 << number, count) for number, count in enumerate(sizes.buckets)),
            mean_batch=sizes.sum / sizes.count if sizes.count else None,
            starts=after.replica_starts.get(tag, 0),
            start_failures=after.replica_start_failures.get(tag, 0),
            deaths=after.replica_death_reasons.get(tag, {}),
        )

    def _replica(self, replica: ReplicaStatus) -> ReplicaView:
        used = self._used.get(replica.id, Usage())
        return ReplicaView(replica.id, replica.state, replica.since_s, replica.gpus, used.rss_bytes, self._cores(replica.id, used))

    def _failure(self, failure: Failure) -> FailureView:
        is_told = self._debug or failure.kind != "UserCodeError"  # else it is what user code said
        return FailureView(
            kind=failure.kind,
            backend=failure.backend,
            endpoint=failure.endpoint,
            error=failure.error,
            count=failure.count,
            ago_s=max(0.0, self._now - failure.at),
            replica=failure.replica,
            request_id=failure.request_id,
            message=failure.message if self._debug else without_faults(failure.message) if is_told else "",
            traceback=failure.traceback if self._debug else "",
        )

    def _rates(self, counts: Iterable[RequestCount]) -> Rates | None:
        return rates.rates(counts, self._window_s) if self._window_s else None

    def _times(self, before: Histogram, after: Histogram) -> Times:
        return rates.times(rates.between(before, after)) if self._window_s else Times()

    def _cores(self, id: str, used: Usage) -> float | None:
        had_used = self._had_used.get(id)
        if had_used is None or not self._window_s:
            return None
        return max(0.0, used.cpu_seconds - had_used.cpu_seconds) / self._window_s


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def without_faults(text: str) -> str:
    """Without what a health check said when it raised."""
    said, raised, _ = text.partition(_RAISED)
    return said + raised


def without_frames(text: str) -> str:
    """What is said before a traceback, and the line that it ends with, which says what was raised."""
    said, mark, traceback = text.partition(_TRACEBACK)
    if not mark:
        return text
    said, last = said.rstrip(), traceback.strip().rpartition("\n")[2]
    return said if said.endswith(last) else f"{said}\n{last}".lstrip("\n")


def declared_data(description: Description) -> dict[str, Any]:
    """The declared state as plain data, as `headgate config` prints it, but for what may be secret."""
    data = declared.to_data(declared.of_running(description))
    for backend in data["backends"].values():
        for key, parts in _MAY_BE_SECRET.items():
            if key in backend and not parts:
                backend[key] = _NOT_SHOWN
            for part in parts:
                if part in backend.get(key, {}):
                    backend[key][part] = _NOT_SHOWN
    return data
