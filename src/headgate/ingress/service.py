"""What do all connections of one ingress share?

The latest routing table and its routes, the router, the books of bytes held, the limits, the source of request ids, and
one coarse sweep for every time limit.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

import msgspec

from headgate.config import DEFAULT_MAX_BODY_BYTES
from headgate.core.messages import RoutingTable
from headgate.core.reports import SHED, SHUTTING_DOWN, STARTING, Counters, Description, EventCount, Measurement, RequestCount
from headgate.ingress import files, metrics, pages
from headgate.ingress.access import AccessLog, NotedExchange
from headgate.ingress.admission import Admission
from headgate.ingress.changes import Changes
from headgate.ingress.dashboard import Dashboard
from headgate.ingress.exchange import Exchange
from headgate.ingress.memory import Memory
from headgate.ingress.problems import Refusal, Reply, phrase
from headgate.ingress.routes import Routes
from headgate.router.call import Call

if TYPE_CHECKING:
    from headgate.ingress.http1 import Connection

_log = logging.getLogger("headgate.ingress")

MEASURE_S = 5.0
"""How long `/-/metrics` waits for the controller."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may do to a connection. Times are checked once a second."""

    head_bytes: int = 64 * 1024
    """Request line and headers; also trailers, and chunk extensions between two bytes of a body."""
    headers: int = 100
    pipelined: int = 16
    """Requests of one connection that are with the router at once; what else was read waits."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its headers."""
    idle_s: float = 75.0
    """Without any request."""
    body_s: float = 60.0
    """For a body, and …"""
    body_bytes_per_s: float = 4096.0
    """… the time at this rate for the bytes that have arrived."""
    send_s: float = 60.0
    """Without the client taking any byte of an answer that it was sent."""
    linger_s: float = 2.0
    """After a refusal that ends the connection: for the client to read it before the connection is cut."""
    connections: int = 1 << 30


class Router(Protocol):
    """What an ingress needs of its router; `headgate.router.router.Router` says what each does."""

    def submit(self, call: Call) -> None: ...
    def cancel(self, call: Call) -> None: ...
    def enough(self, call: Call, status: int) -> None: ...
    def credit(self, call: Call, count_bytes: int) -> None: ...
    def reaches(self, tag: str) -> bool: ...
    def served(self) -> tuple[int, float]: ...


class StatusLines(dict[int, bytes]):
    """Status -> status line and `Date` header, for as long as the date is right."""

    def __init__(self) -> None:
        super().__init__()
        self._date = b""

    def set_date(self, unix_s: float) -> None:
        """Forget what carries an older date."""
        self._date = formatdate(unix_s, usegmt=True).encode()
        self.clear()

    def __missing__(self, status: int) -> bytes:
        line = self[status] = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (status, phrase(status).encode(), self._date)
        return line


def request_ids(prefix: str) -> Callable[[], str]:
    """A source of ids with this prefix, in which no Python runs."""
    return map(prefix.__add__, map(str, itertools.count(1))).__next__


class Service:
    """Made on the running loop. `measure` and `describe` ask the controller what was counted, and what runs; by `changes` it is told."""

    def __init__(
        self,
        router: Router,
        measure: Callable[[], Awaitable[Measurement]],
        describe: Callable[[], Awaitable[Description]],
        *,
        server: str = "",
        scheme: str = "http",
        limits: Limits | None = None,
        access: AccessLog | None = None,
        changes: Changes | None = None,
        exchange: type[Exchange] | None = None,
    ) -> None:
        self.router = router
        self.limits = limits or Limits()
        self.access = access
        self.exchange: type[Exchange] = exchange or (Exchange if access is None else NotedExchange)
        """What connections make of requests."""
        self.noted = self.exchange is not Exchange
        """Whether something is said of each request, so that what is known of it is kept also where it is refused here."""
        self.server = server
        self.scheme = scheme
        self.admission = Admission()
        self.memory = Memory()
        self.table: RoutingTable | None = None
        self.routes = Routes(())
        self.max_body_bytes = DEFAULT_MAX_BODY_BYTES
        self.debug = False
        self.closing: Refusal | None = Refusal(503, "the instance is starting; try again", reason=STARTING)
        self.connections: set[Connection] = set()
        self.status_lines = StatusLines()
        self.loop = asyncio.get_running_loop()
        # Drawn here, after the fork: no two processes make the same ids.
        self.next_id = request_ids(os.urandom(8).hex() + "-")
        """Makes a request id that no other process makes."""
        self.changes = changes or Changes()
        self.dashboard = Dashboard(describe, measure, takes_changes=self.changes.taken)
        self._measure = measure
        self._measuring: asyncio.Task[None] | None = None
        self._wait_for_measurement: list[Exchange] = []
        self._refused: dict[tuple[int, str], int] = {}
        self._empty: asyncio.Event = asyncio.Event()
        self._draining = False
        self._sweeper: asyncio.TimerHandle | None = None
        self.set_date(time.time())

    def start(self) -> None:
        """Begin to sweep, once a second."""
        self._sweeper = self.loop.call_later(1.0, self._sweep_and_again)

    def apply(self, table: RoutingTable) -> None:
        """Follow this table from the next request on."""
        before, self.table = self.table, table
        if before is None or table.endpoints is not before.endpoints or table.max_body_bytes != before.max_body_bytes:
            self.routes = Routes(table.endpoints.values())
            self.memory.clear()
        self.max_body_bytes = table.max_body_bytes
        self.debug = self.dashboard.debug = table.debug
        self.admission.share(table.max_inflight_bytes, table.num_ingresses)
        self.closing = _SHUTTING_DOWN if table.closing or self._draining else None

    def set_date(self, unix_s: float) -> None:
        """Date all answers from now on."""
        self.status_lines.set_date(unix_s)
        self.ok_line = self.status_lines[200]

    def sweep(self, now: float) -> None:
        """End what has waited too long. `now` is the loop's time."""
        self.set_date(time.time())
        for connection in list(self.connections):
            connection.check(now)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, wait for the answers of the others, then end every connection.

        Returns when none is left; those that are not over after `grace_s` are cut.
        """
        self._draining = True
        self.closing = _SHUTTING_DOWN
        self.memory.clear()
        self.dashboard.end()
        for connection in list(self.connections):
            connection.finish()
        self._empty.clear()
        if self.connections:
            try:
                await asyncio.wait_for(self._empty.wait(), grace_s)
            except TimeoutError:
                _log.warning("%d connections were cut: their answers took longer than %g s", len(self.connections), grace_s)
        for connection in list(self.connections):
            connection.abort()
        self.changes.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._measuring is not None:
            self._measuring.cancel()

    def opened(self, connection: Connection) -> bool:
        """Take note of a new connection; False where there are too many, or none is taken any more."""
        if len(self.connections) >= self.limits.connections or self._draining:
            return False
        self.connections.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def show(self, page: str, exchange: Exchange) -> None:
        """Answer with a page under `/-/`."""
        if page == "healthz":
            exchange.reply(pages.healthz())
        elif page in files.FILES:
            exchange.reply(files.reply(page))
        elif page == "events":
            self.dashboard.show(exchange)
        elif page == "readyz" or self.table is None:
            exchange.reply(pages.readyz(self.table, self.router.reaches))
        elif page == "routes":
            exchange.reply(pages.routes(self.table))
        else:
            self._wait_for_measurement.append(exchange)
            if self._measuring is None:
                self._measuring = self.loop.create_task(self._show_metrics(), name="headgate metrics")

    def count_refusal(self, status: int, reason: str) -> None:
        """Take note of an answer that no router counts; with 503 by the rule that `reason` names."""
        key = (status, reason)
        self._refused[key] = self._refused.get(key, 0) + 1

    def with_refusals(self, counters: Counters) -> Counters:
        """A router's counters, and with them what this ingress refused by itself."""
        refused: dict[int, int] = {}
        for (status, _), count in sorted(self._refused.items()):
            refused[status] = refused.get(status, 0) + count
        requests = tuple(RequestCount("", "", status, count, 0.0) for status, count in refused.items())
        shed = tuple(EventCount(SHED, "", "", reason, count) for (status, reason), count in self._refused.items() if status == 503)
        return msgspec.structs.replace(counters, requests=counters.requests + requests, events=counters.events + shed)

    async def _show_metrics(self) -> None:
        shown: Reply | Refusal
        try:
            measurement = await asyncio.wait_for(self._measure(), MEASURE_S)
            assert self.table is not None
            shown = await asyncio.to_thread(metrics.page, measurement, self.table)
        except Exception as error:  # noqa: BLE001  # the root of a task: whatever it was, the page must be answered
            _log.warning("the counters could not be read: %r", error)
            shown = Refusal(503, "the controller does not answer; try again", reason="no controller")
        self._measuring = None
        waiting, self._wait_for_measurement = self._wait_for_measurement, []
        for exchange in waiting:
            exchange.reply(shown)

    def _sweep_and_again(self) -> None:
        self._sweeper = self.loop.call_later(1.0, self._sweep_and_again)
        self.sweep(self.loop.time())


_SHUTTING_DOWN = Refusal(503, "the instance is shutting down", reason=SHUTTING_DOWN)
