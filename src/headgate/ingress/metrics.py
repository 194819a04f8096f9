"""What does `/-/metrics` say? What the whole instance has counted, in Prometheus's text format.

`docs/reference/metrics.md` has the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from headgate.core import histograms
from headgate.core.histograms import BOUNDS, SIZE_BOUNDS, START_TICKS_PER_S, TICKS_PER_S, Histogram
from headgate.core.messages import RoutingTable
from headgate.core.replica_life import CAUSES_OF_DEATH
from headgate.core.reports import (
    CANCELLED,
    EXPIRED,
    RETRIED,
    SHADOW_DROPPED,
    SHED,
    Measurement,
    ReplicaCounters,
    ReplicaReport,
    RequestCount,
    UserMetric,
)
from headgate.ingress.problems import Reply

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

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


def families(measurement: Measurement, table: RoutingTable) -> Iterator[Metric]:
    """Every metric with its samples."""
    yield from _of_requests(measurement)
    yield from _of_calls(measurement.backends)
    yield from _of_replicas(measurement, table)
    yield from _of_traffic(table)
    yield from _of_processes(measurement)
    yield from _of_users(measurement.replicas)


def _of_requests(measurement: Measurement) -> Iterator[Metric]:
    counters = measurement.counters
    yield _counter("headgate_requests", "Requests that ended.", _PER_REQUEST, _counts(counters.requests))
    took = "Time from the arrival of a request to its end."
    yield _histogram("headgate_request_duration_seconds", took, _PER_REQUEST, _times(counters.requests))

    def events(event: str, labels: tuple[str, ...]) -> _Samples:
        summed: dict[_Labels, int] = {}
        for count in counters.events:
            if count.event == event:
                key = tuple(getattr(count, label if label != "stage" else "reason") for label in labels)
                summed[key] = summed.get(key, 0) + count.count
        return summed.items()

    for event, name, what, labels in (
        (SHED, "headgate_shed", "Requests refused with 503, by the rule that refused them.", (*_PER_ENDPOINT, "reason")),
        (EXPIRED, "headgate_expired", "Requests out of time after admission.", (*_PER_ENDPOINT, "stage")),
        (CANCELLED, "headgate_cancelled", "Requests that their callers gave up.", _PER_ENDPOINT),
        (RETRIED, "headgate_retried", "Requests sent to another replica, since theirs had died.", _PER_ENDPOINT),
        (SHADOW_DROPPED, "headgate_shadows_dropped", "Copies for shadows that were not sent.", _PER_ENDPOINT),
    ):
        yield _counter(name, what, labels, events(event, labels))
    yield _counter("headgate_shadow_requests", "Copies for shadows that ended.", _PER_REQUEST, _counts(counters.shadows))
    took = "Time from the arrival of a request to the end of its copy for a shadow."
    yield _histogram("headgate_shadow_request_duration_seconds", took, _PER_REQUEST, _times(counters.shadows))
    yield _gauge("headgate_queued", "Requests waiting in routers.", _PER_BACKEND, (((q.backend,), q.queued) for q in counters.queues))
    in_flight = (((q.backend,), q.in_flight) for q in counters.queues)
    yield _gauge("headgate_in_flight", "Requests under way, queued ones included.", _PER_BACKEND, in_flight)


def _of_calls(backends: dict[str, ReplicaCounters]) -> Iterator[Metric]:
    def each(name: str) -> _Histograms:
        found = (((tag,), getattr(counters, name)) for tag, counters in sorted(backends.items()))
        return ((labels, histogram) for labels, histogram in found if histogram.buckets)

    waited = "Time that requests waited; for batch handlers, in their routers."
    yield _histogram("headgate_queue_seconds", waited, _PER_BACKEND, each("queue"))
    waited = "Time that requests for batch handlers waited in their replicas for their batch."
    yield _histogram("headgate_batch_wait_seconds", waited, _PER_BACKEND, each("batch_wait"))
    yield _histogram("headgate_execution_seconds", "Run time of calls of user code; a batch is one.", _PER_BACKEND, each("execution"))
    took = "Time to turn what user code returned into bytes, where it was none."
    yield _histogram("headgate_serialisation_seconds", took, _PER_BACKEND, each("serialisation"))
    sizes = "Requests in a batch."
    yield _histogram("headgate_batch_size", sizes, _PER_BACKEND, each("batch_sizes"), first=1.0, bounds=SIZE_BOUNDS)


def _of_replicas(measurement: Measurement, table: RoutingTable) -> Iterator[Metric]:
    ready = (((tag,), len(entry.replicas)) for tag, entry in sorted(table.backends.items()))
    yield _gauge("headgate_replicas_ready", "Replicas that take requests.", _PER_BACKEND, ready)
    unhealthy = (((tag,), tag in measurement.unhealthy) for tag in sorted(table.backends))
    yield _gauge("headgate_backend_unhealthy", "1 where replicas fail and are missing.", _PER_BACKEND, unhealthy)
    starts, failures = measurement.replica_starts, measurement.replica_start_failures
    yield _counter(
        "headgate_replica_starts", "Replicas that began to start.", _PER_BACKEND, (((tag,), starts[tag]) for tag in sorted(starts))
    )
    failed = (((tag,), failures.get(tag, 0)) for tag in sorted(starts))
    yield _counter("headgate_replica_start_failures", "Starts that failed.", _PER_BACKEND, failed)
    took = (((tag,), histogram) for tag, histogram in sorted(measurement.replica_start_times.items()))
    help_text = "Time from the start of a replica until it was ready."
    yield _histogram("headgate_replica_start_seconds", help_text, _PER_BACKEND, took, first=1 / START_TICKS_PER_S)
    # Also those that have not been: where a series begins with 1, Prometheus sees no increase.
    reasons = measurement.replica_death_reasons
    deaths = (((tag, cause), reasons.get(tag, {}).get(cause, 0)) for tag in sorted(starts) for cause in CAUSES_OF_DEATH)
    yield _counter("headgate_replica_deaths", "Ready replicas that ended unasked.", ("backend", "reason"), deaths)


def _of_traffic(table: RoutingTable) -> Iterator[Metric]:
    endpoints = sorted(table.endpoints.items())
    weights = (((name, tag), weight) for name, endpoint in endpoints for tag, weight in sorted(endpoint.weights.items()))
    yield _gauge("headgate_traffic_ratio", "Share of an endpoint's requests that a backend is to get.", _PER_ENDPOINT, weights)
    shadows = (((name, tag), share) for name, endpoint in endpoints for tag, share in sorted(endpoint.shadows.items()))
    yield _gauge("headgate_shadow_ratio", "Share of an endpoint's requests that a backend is to get copies of.", _PER_ENDPOINT, shadows)


def _of_processes(measurement: Measurement) -> Iterator[Metric]:
    yield _gauge("headgate_routers", "Routers that were asked and answered.", (), [((), measurement.routers)])
    each = [((process.role, process.id, process.backend), process.usage) for process in measurement.processes]
    cpu = ((labels, used.cpu_seconds) for labels, used in each)
    yield _counter("headgate_process_cpu_seconds", "CPU time that a process has used.", _PER_PROCESS, cpu)
    resident = ((labels, used.rss_bytes) for labels, used in each)
    yield _gauge("headgate_process_resident_memory_bytes", "Memory that a process has resident.", _PER_PROCESS, resident)


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


def _counter(name: str, help_text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily

    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _gauge(name: str, help_text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str, help_text: str, labels: tuple[str, ...], samples: _Histograms, *, first: float = 1 / TICKS_PER_S, bounds: int = BOUNDS
) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    family = HistogramMetricFamily(name, help_text, labels=labels)
    for values, histogram in samples:
        buckets = [
            (floatToGoString(bound), count)  # type: ignore[no-untyped-call]
            for bound, count in histograms.cumulative(histogram, first, bounds)
        ]
        family.add_metric(values, buckets, histogram.sum)
    return family
