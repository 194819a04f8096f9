"""What do the pages under `/-/` say, besides the metrics?

Pure: each takes what is known and returns a `Reply`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headgate.core.messages import RoutingTable
from headgate.ingress.problems import Reply

_JSON = b"content-type: application/json\r\n"


def routes(table: RoutingTable) -> Reply:
    """Route -> [endpoint, [methods]]."""
    listed = {entry.route: (entry.name, entry.methods) for entry in table.endpoints.values() if entry.route is not None}
    return Reply(200, _JSON, msgspec.json.encode(listed))


def healthz() -> Reply:
    """Liveness: that it is answered is the answer."""
    return Reply(200, _JSON, b'{"status":"ok"}')


def readyz(table: RoutingTable | None, reaches: Callable[[str], bool]) -> Reply:
    """200 where every backend with traffic has a ready replica, else 503 with the names of those that have none.

    Either names the backends that have fewer replicas than they should, and says why. `reaches` knows of replicas that were
    lost before the table does.
    """
    if table is None:
        return Reply(503, _JSON + b"retry-after: 1\r\n", b'{"status":"starting"}')
    used = {tag for entry in table.endpoints.values() for tag, weight in entry.weights.items() if weight > 0}
    missing = sorted(tag for tag in used if tag not in table.backends or not table.backends[tag].replicas or not reaches(tag))
    if table.closing:
        return Reply(503, _JSON + b"retry-after: 1\r\n", b'{"status":"shutting down"}')
    page: dict[str, object] = {"status": "not ready" if missing else "ready"}
    if missing:
        page["backends"] = missing
    unhealthy = {tag: entry.fault for tag, entry in table.backends.items() if entry.fault}
    if unhealthy:
        page["unhealthy"] = unhealthy
    return Reply(503 if missing else 200, _JSON + (b"retry-after: 1\r\n" if missing else b""), msgspec.json.encode(page))
