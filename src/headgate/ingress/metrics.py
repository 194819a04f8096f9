"""What does `/-/metrics` say? The counters of the whole instance, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from headgate.core.messages import RoutingTable
from headgate.core.reports import Measurement
from headgate.ingress.problems import Reply

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


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
    counters = measurement.counters
    of_requests = [((c.endpoint, c.backend, str(c.status)), c) for c in counters.requests]
    per_request, per_backend = ("endpoint", "backend", "status"), ("backend",)
    yield _counter("headgate_requests", "Requests answered.", per_request, ((labels, c.count) for labels, c in of_requests))
    seconds = ((labels, c.seconds) for labels, c in of_requests)
    yield _counter("headgate_request_seconds", "Time from arrival to answer, added up.", per_request, seconds)
    yield _gauge("headgate_queued", "Requests waiting in routers.", per_backend, (((q.backend,), q.queued) for q in counters.queues))
    in_flight = (((q.backend,), q.in_flight) for q in counters.queues)
    yield _gauge("headgate_in_flight", "Requests under way, queued ones included.", per_backend, in_flight)
    yield _counter("headgate_shadows_dropped", "Shadow copies that were not sent.", (), [((), counters.shadows_dropped)])
    yield _counter("headgate_retried", "Requests sent to another replica.", (), [((), counters.retried)])
    ready = (((tag,), len(entry.replicas)) for tag, entry in sorted(table.backends.items()))
    yield _gauge("headgate_replicas_ready", "Replicas that take requests.", per_backend, ready)
    unhealthy = (((tag,), tag in measurement.unhealthy) for tag in sorted(table.backends))
    yield _gauge("headgate_backend_unhealthy", "1 where replicas fail and are missing.", per_backend, unhealthy)
    starts, deaths = measurement.replica_starts, measurement.replica_deaths
    yield _counter("headgate_replica_starts", "Replicas started.", per_backend, (((tag,), starts[tag]) for tag in sorted(starts)))
    yield _counter("headgate_replica_deaths", "Replicas that died.", per_backend, (((tag,), deaths[tag]) for tag in sorted(deaths)))
    yield _gauge("headgate_routers", "Routers that were asked and answered.", (), [((), measurement.routers)])


_Samples = Iterable[tuple[tuple[str, ...], float]]


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
