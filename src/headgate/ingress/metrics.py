"""What does `/-/metrics` say? What the whole instance has counted, in Prometheus's text format.

`docs/reference/metrics.md` has the list, made from here by `docs/metrics_page.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from headgate.core import histograms
from headgate.core.histograms import BOUNDS, SIZE_BOUNDS, START_TICKS_PER_S, TICKS_PER_S, Histogram
from headgate.core.messages import RoutingTable
from headgate.core.replica_life import CAUSES_OF_DEATH
from headgate.core.reports import (
    CANCELLED,
    EXPIRED,
    QUEUED,
    RETRIED,
    RUNNING,
    SHADOW_DROPPED,
    SHED,
    SHED_REASONS,
    Measurement,
    ReplicaCounters,
    ReplicaReport,
    RequestCount,
    UserMetric,
)
from headgate.ingress.problems import Reply

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

_Labels = tuple[str, ...]
_Samples = Iterable[tuple[_Labels, float]]
_Histograms = Iterable[tuple[_Labels, Histogram]]

_PER_REQUEST: Final = ("endpoint", "backend", "status")
_PER_ENDPOINT: Final = ("endpoint", "backend")
_PER_BACKEND: Final = ("backend",)
_PER_PROCESS: Final = ("role", "process", "backend")


def page(measurement: Measurement, table: RoutingTable) -> Reply:
    """The page. Call it in a thread: the first call imports prometheus-client, which takes longer than a request may wait."""
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class Once(Collector):
        def collect(self) -> Iterator[Metric]:
            return families(measurement, table)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return Reply(200, b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n", generate_latest(registry))


class Family(NamedTuple):
    """One of Headgate's own metrics, with its samples."""

    kind: str
    name: str
    """Of a counter without `_total`."""
    help: str
    labels: tuple[str, ...]
    samples: Iterable[tuple[_Labels, Any]]
    """A number for each, or of a histogram a `Histogram`."""
    values: tuple[str, ...] = ()
    """All that the last label may be, where these are Headgate's own words."""
    first: float = 1 / TICKS_PER_S
    """A histogram's first bound …"""
    bounds: int = BOUNDS
    """… and how many it has, each twice the one before."""


def own(measurement: Measurement, table: RoutingTable) -> dict[str, Iterator[Family]]:
    """Every metric of Headgate's own, under the headings of `docs/reference/metrics.md`, whose tables are made of this."""
    return {
        "Requests": _of_requests(measurement),
        "Where the time goes": _of_calls(measurement.backends),
        "Replicas and traffic": _of_replicas(measurement, table),
        "Processes": _of_processes(measurement),
    }


def families(measurement: Measurement, table: RoutingTable) -> Iterator[Metric]:
    """Every metric with its samples."""
    for each in own(measurement, table).values():
        yield from map(_metric, each)
    yield from _of_users(measurement.replicas)


def _of_requests(measurement: Measurement) -> Iterator[Family]:
    counters = measurement.counters
    yield Family(COUNTER, "headgate_requests", "Requests that ended.", _PER_REQUEST, _counts(counters.requests))
    took = "Time from the arrival of a whole request to its end."
    yield Family(HISTOGRAM, "headgate_request_duration_seconds", took, _PER_REQUEST, _times(counters.requests))

    def events(event: str, labels: tuple[str, ...]) -> _Samples:
        summed: dict[_Labels, int] = {}
        for count in counters.events:
            if count.event == event:
                key = tuple(getattr(count, label if label != "stage" else "reason") for label in labels)
                summed[key] = summed.get(key, 0) + count.count
        return summed.items()

    for event, name, what, labels, values in (
        (SHED, "headgate_shed", "Requests refused with 503, by the rule that refused them.", (*_PER_ENDPOINT, "reason"), SHED_REASONS),
        (EXPIRED, "headgate_expired", "Requests out of time after admission.", (*_PER_ENDPOINT, "stage"), (QUEUED, RUNNING)),
        (CANCELLED, "headgate_cancelled", "Requests that their callers gave up.", _PER_ENDPOINT, ()),
        (RETRIED, "headgate_retried", "Requests sent to another replica, since theirs had died.", _PER_ENDPOINT, ()),
        (SHADOW_DROPPED, "headgate_shadows_dropped", "Copies for shadows that were not sent.", _PER_ENDPOINT, ()),
    ):
        yield Family(COUNTER, name, what, labels, events(event, labels), values)
    yield Family(COUNTER, "headgate_shadow_requests", "Copies for shadows that ended.", _PER_REQUEST, _counts(counters.shadows))
    took = "Time from the arrival of a whole request to the end of its copy for a shadow."
    yield Family(HISTOGRAM, "headgate_shadow_request_duration_seconds", took, _PER_REQUEST, _times(counters.shadows))
    waiting = (((q.backend,), q.queued) for q in counters.queues)
    yield Family(GAUGE, "headgate_queued", "Requests waiting in routers.", _PER_BACKEND, waiting)
    in_flight = (((q.backend,), q.in_flight) for q in counters.queues)
    yield Family(GAUGE, "headgate_in_flight", "Requests under way, queued ones included.", _PER_BACKEND, in_flight)


def _of_calls(backends: dict[str, ReplicaCounters]) -> Iterator[Family]:
    def each(name: str) -> _Histograms:
        found = (((tag,), getattr(counters, name)) for tag, counters in sorted(backends.items()))
        return ((labels, histogram) for labels, histogram in found if histogram.buckets)

    waited = "Time that requests waited; for batch handlers, in their routers."
    yield Family(HISTOGRAM, "headgate_queue_seconds", waited, _PER_BACKEND, each("queue"))
    waited = "Time that requests for batch handlers waited in their replicas for their batch."
    yield Family(HISTOGRAM, "headgate_batch_wait_seconds", waited, _PER_BACKEND, each("batch_wait"))
    ran = "Run time of calls of user code; a batch is one."
    yield Family(HISTOGRAM, "headgate_execution_seconds", ran, _PER_BACKEND, each("execution"))
    took = "Time to turn what user code returned into bytes, where it was none."
    yield Family(HISTOGRAM, "headgate_serialisation_seconds", took, _PER_BACKEND, each("serialisation"))
    sizes = "Requests in a batch."
    yield Family(HISTOGRAM, "headgate_batch_size", sizes, _PER_BACKEND, each("batch_sizes"), first=1.0, bounds=SIZE_BOUNDS)


def _of_replicas(measurement: Measurement, table: RoutingTable) -> Iterator[Family]:
    ready = (((tag,), len(entry.replicas)) for tag, entry in sorted(table.backends.items()))
    yield Family(GAUGE, "headgate_replicas_ready", "Replicas that take requests.", _PER_BACKEND, ready)
    unhealthy = (((tag,), tag in measurement.unhealthy) for tag in sorted(table.backends))
    yield Family(GAUGE, "headgate_backend_unhealthy", "1 where replicas fail and are missing.", _PER_BACKEND, unhealthy)
    starts, failures = measurement.replica_starts, measurement.replica_start_failures
    begun = (((tag,), starts[tag]) for tag in sorted(starts))
    yield Family(COUNTER, "headgate_replica_starts", "Replicas that began to start, whatever came of them.", _PER_BACKEND, begun)
    failed = (((tag,), failures.get(tag, 0)) for tag in sorted(starts))
    yield Family(COUNTER, "headgate_replica_start_failures", "Starts that failed.", _PER_BACKEND, failed)
    took = (((tag,), histogram) for tag, histogram in sorted(measurement.replica_start_times.items()))
    help_text = "Time from the start of a replica until it was ready."
    yield Family(HISTOGRAM, "headgate_replica_start_seconds", help_text, _PER_BACKEND, took, first=1 / START_TICKS_PER_S)
    # Also those that have not been: where a series begins with 1, Prometheus sees no increase.
    reasons = measurement.replica_death_reasons
    deaths = (((tag, cause), reasons.get(tag, {}).get(cause, 0)) for tag in sorted(starts) for cause in CAUSES_OF_DEATH)
    help_text = "Ready replicas that ended unasked."
    yield Family(COUNTER, "headgate_replica_deaths", help_text, (*_PER_BACKEND, "reason"), deaths, CAUSES_OF_DEATH)
    endpoints = sorted(table.endpoints.items())
    weights = (((name, tag), weight) for name, endpoint in endpoints for tag, weight in sorted(endpoint.weights.items()))
    help_text = "Share of an endpoint's requests that a backend is to get."
    yield Family(GAUGE, "headgate_traffic_ratio", help_text, _PER_ENDPOINT, weights)
    shadows = (((name, tag), share) for name, endpoint in endpoints for tag, share in sorted(endpoint.shadows.items()))
    help_text = "Share of an endpoint's requests that a backend is to get copies of."
    yield Family(GAUGE, "headgate_shadow_ratio", help_text, _PER_ENDPOINT, shadows)


def _of_processes(measurement: Measurement) -> Iterator[Family]:
    yield Family(GAUGE, "headgate_routers", "Routers that were asked and answered.", (), [((), measurement.routers)])
    each = [((process.role, process.id, process.backend), process.usage) for process in measurement.processes]
    cpu = ((labels, used.cpu_seconds) for labels, used in each)
    yield Family(COUNTER, "headgate_process_cpu_seconds", "CPU time that a process has used.", _PER_PROCESS, cpu)
    resident = ((labels, used.rss_bytes) for labels, used in each)
    yield Family(GAUGE, "headgate_process_resident_memory_bytes", "Memory that a process has resident.", _PER_PROCESS, resident)


def _of_users(replicas: Iterable[ReplicaReport]) -> Iterator[Metric]:
    """The metrics of the user's own. Of those of one name but of several kinds, as of two versions of a backend, the first is shown."""
    from prometheus_client.metrics_core import Metric

    families: dict[str, Metric] = {}
    for replica in sorted(replicas, key=lambda replica: (replica.backend, replica.id)):
        for metric in replica.metrics:
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = Metric(metric.name, metric.help or f"A metric of backend {replica.backend}.", metric.kind)
            if family.type == metric.kind:
                for series in metric.series:
                    labels = dict(zip(metric.labels, series.labels, strict=True)) | {"backend": replica.backend, "replica": replica.id}
                    _add_series(family, metric, labels, series.values)
    yield from (family for _, family in sorted(families.items()))


def _add_series(family: Metric, metric: UserMetric, labels: dict[str, str], values: tuple[float, ...]) -> None:
    from prometheus_client.utils import floatToGoString

    if metric.kind != "histogram":
        family.add_sample(f"{metric.name}_total" if metric.kind == "counter" else metric.name, labels, values[0])
        return
    count = 0.0
    for bound, more in zip((*metric.bounds, float("inf")), values, strict=False):  # behind them stands the sum
        count += more
        le = floatToGoString(bound)  # type: ignore[no-untyped-call]
        family.add_sample(f"{metric.name}_bucket", labels | {"le": le}, count)
    family.add_sample(f"{metric.name}_count", labels, count)
    family.add_sample(f"{metric.name}_sum", labels, values[-1])


def _counts(requests: Iterable[RequestCount]) -> _Samples:
    return (((count.endpoint, count.backend, str(count.status)), count.count) for count in requests)


def _times(requests: Iterable[RequestCount]) -> _Histograms:
    timed = (count for count in requests if count.buckets)
    return (((count.endpoint, count.backend, str(count.status)), Histogram(count.buckets, count.seconds)) for count in timed)


def _metric(family: Family) -> Metric:
    """As prometheus-client has it."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    if family.kind == HISTOGRAM:
        told = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for values, histogram in family.samples:
            buckets = [
                (floatToGoString(bound), count)  # type: ignore[no-untyped-call]
                for bound, count in histograms.cumulative(histogram, family.first, family.bounds)
            ]
            told.add_metric(values, buckets, histogram.sum)
        return told
    made = (CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily)(family.name, family.help, labels=family.labels)
    for values, value in family.samples:
        made.add_metric(values, value)
    return made
