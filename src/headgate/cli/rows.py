"""What is said of a backend, an endpoint, in a line of a table?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headgate.cli.output import Column

if TYPE_CHECKING:
    from headgate.core.reports import BackendInfo, EndpointInfo, Measurement

ENDPOINTS: Final = (
    Column("endpoint"),
    Column("route"),
    Column("methods", rank=2),
    Column("traffic", flexible=True),
    Column("shadows", rank=1, flexible=True, may_be_empty=True),
)
BACKENDS: Final = (
    Column("backend"),
    Column("state"),
    Column("ready", right=True),
    Column("running", rank=4, right=True),
    Column("queued", rank=2, right=True),
    Column("requests", rank=3, right=True),
    Column("failed", rank=1, right=True),
    Column("code", rank=5),
    Column("reason", flexible=True, may_be_empty=True),
)


def endpoint_row(endpoint: EndpointInfo) -> list[str]:
    """Its fields, as `ENDPOINTS` names them."""
    return [
        endpoint.name,
        endpoint.route or "-",
        ",".join(endpoint.methods),
        weights_text(endpoint.traffic) or "-",
        weights_text(endpoint.shadows),
    ]


def weights_text(weights: dict[str, float]) -> str:
    """As `headgate traffic` takes it: v1=0.9 v2=0.1."""
    return " ".join(f"{tag}={weight:g}" for tag, weight in weights.items())


def backend_row(backend: BackendInfo, measured: Measurement) -> list[str]:
    """Its fields, as `BACKENDS` names them."""
    ready = sum(replica.state == "ready" for replica in backend.replicas)
    depths = [depth for depth in measured.counters.queues if depth.backend == backend.tag]
    queued = sum(depth.queued for depth in depths)
    counts = [count for count in measured.counters.requests if count.backend == backend.tag]
    failed = sum(count.count for count in counts if count.status >= 500)
    return [
        backend.tag,
        backend.state,
        f"{ready}/{backend.config.num_replicas}",
        str(sum(depth.in_flight for depth in depths) - queued),
        str(queued),
        str(sum(count.count for count in counts)),
        str(failed),
        backend.definition,
        last_line(backend.reason),
    ]


def last_line(text: str) -> str:
    """What a traceback ends with, or all of what has one line."""
    return text.strip().rpartition("\n")[2]
