"""What do the pages under `/-/` say?

Pure: each takes what is known and returns a `Reply`.
"""

from __future__ import annotations

import msgspec

from headgate.core.messages import RoutingTable
from headgate.core.reports import Measurement
from headgate.ingress.problems import Reply

_JSON = b"content-type: application/json\r\n"
_PROMETHEUS = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


def routes(table: RoutingTable) -> Reply:
    """Route -> [endpoint, [methods]]."""
    listed = {entry.route: (entry.name, entry.methods) for entry in table.endpoints.values() if entry.route is not None}
    return Reply(200, _JSON, msgspec.json.encode(listed))


def healthz() -> Reply:
    """Liveness: that it is answered is the answer."""
    return Reply(200, _JSON, b'{"status":"ok"}')


def readyz(table: RoutingTable | None) -> Reply:
    """200 where every backend with traffic has a ready replica, else 503 with the names of those that have none."""
    if table is None:
        return Reply(503, _JSON + b"retry-after: 1\r\n", b'{"status":"starting"}')
    used = {tag for entry in table.endpoints.values() for tag, weight in entry.weights.items() if weight > 0}
    missing = sorted(tag for tag in used if tag not in table.backends or not table.backends[tag].replicas)
    if table.closing:
        return Reply(503, _JSON + b"retry-after: 1\r\n", b'{"status":"shutting down"}')
    if missing:
        return Reply(503, _JSON + b"retry-after: 1\r\n", msgspec.json.encode({"status": "not ready", "backends": missing}))
    return Reply(200, _JSON, b'{"status":"ready"}')


def metrics(measurement: Measurement, table: RoutingTable) -> Reply:
    """All counters of the instance in Prometheus's text format."""
    counters = measurement.counters
    by_request = [({"endpoint": c.endpoint, "backend": c.backend, "status": str(c.status)}, c) for c in counters.requests]
    page = _Page()
    page.metric("headgate_requests_total", "counter", "Requests answered.", [(labels, c.count) for labels, c in by_request])
    page.metric(
        "headgate_request_seconds_total",
        "counter",
        "Time from arrival to answer, added up.",
        [(labels, c.seconds) for labels, c in by_request],
    )
    page.metric("headgate_queued", "gauge", "Requests waiting in routers.", [({"backend": q.backend}, q.queued) for q in counters.queues])
    page.metric(
        "headgate_in_flight",
        "gauge",
        "Requests under way, queued ones included.",
        [({"backend": q.backend}, q.in_flight) for q in counters.queues],
    )
    page.metric("headgate_shadows_dropped_total", "counter", "Shadow copies that were not sent.", [({}, counters.shadows_dropped)])
    page.metric("headgate_retried_total", "counter", "Requests sent to another replica.", [({}, counters.retried)])
    page.metric(
        "headgate_replicas_ready",
        "gauge",
        "Replicas that take requests.",
        [({"backend": tag}, len(entry.replicas)) for tag, entry in sorted(table.backends.items())],
    )
    page.metric("headgate_replica_starts_total", "counter", "Replicas started.", _by_backend(measurement.replica_starts))
    page.metric("headgate_replica_deaths_total", "counter", "Replicas that died.", _by_backend(measurement.replica_deaths))
    page.metric("headgate_routers", "gauge", "Routers that were asked and answered.", [({}, measurement.routers)])
    return Reply(200, _PROMETHEUS, page.text())


def _by_backend(counts: dict[str, int]) -> list[tuple[dict[str, str], float]]:
    return [({"backend": tag}, count) for tag, count in sorted(counts.items())]


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def metric(self, name: str, kind: str, help_text: str, samples: list[tuple[dict[str, str], float]]) -> None:
        if samples:
            self._lines += (f"# HELP {name} {help_text}", f"# TYPE {name} {kind}")
            self._lines += (f"{name}{_labels(labels)} {value!r}" for labels, value in samples)

    def text(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode()


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels.items())
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
