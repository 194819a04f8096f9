"""Which backend and which replica does a request go to, and how is it seen to its end?

The shell around the pure decisions: `core/traffic.py` chooses the backend, `core/dispatch.py` the replica and the moment,
`core/deadlines.py` knows what is too late. One router per ingress and per process with handles; it lives on one event
loop. Between a check and its act there is no `await`, so no locks are needed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from typing import TYPE_CHECKING, cast

import msgspec

from headgate.core import wire
from headgate.core.deadlines import DeadlineWheel
from headgate.core.labels import REMEMBERED, Labels
from headgate.core.messages import Applied, BackendEntry, Idle, Message, RoutingTable
from headgate.core.reports import (
    CANCELLED,
    DEADLINE,
    EXPIRED,
    NO_TRAFFIC,
    QUEUE_FULL,
    QUEUED,
    RUNNING,
    SHADOW_DROPPED,
    SHED,
    SHUTTING_DOWN,
    Counters,
    EventCount,
    QueueDepth,
    RequestCount,
)
from headgate.core.traffic import KeyMemory
from headgate.errors import CALLER_LEFT, ErrorInfo
from headgate.router.call import OVER, SENT, WAITING, Call
from headgate.router.link import Link, page_paths
from headgate.router.routes import MOST_DEATHS, BackendRoute, EndpointRoute, unavailable
from headgate.router.way import Way
from headgate.timings import MANY, Timings

if TYPE_CHECKING:
    from collections.abc import Callable

_SHADOW_S = 60.0
"""A copy is given up after that long where its backend has no limit."""


class Router:
    """Takes calls, and sees each to exactly one end. Made on a running event loop, and used only from it, or while it is borrowed.

    `report` takes messages for the controller; they may be dropped while it is away.
    """

    def __init__(self, name: str, way: Way, report: Callable[[Message], None]) -> None:
        self.name = name
        self.way = way
        self.table = RoutingTable(version=0)
        self.report = report
        self.next_page = page_paths(way.folder, name)
        self._loop = asyncio.get_running_loop()
        self.now = time.monotonic
        self.draw = random.Random(os.urandom(16)).random
        self._keys = KeyMemory()
        self._endpoints: dict[str, EndpointRoute] = {}
        self._backends: dict[str, BackendRoute] = {}
        self._old_endpoints: list[EndpointRoute] = []
        self._leaving: dict[str, BackendRoute] = {}  # deleted backends that the table still has, and …
        self._old_backends: list[BackendRoute] = []  # … those whose replicas end now; kept until the last call has ended
        self._idle = Idle(-1)
        self._wheel: DeadlineWheel[Call] = DeadlineWheel()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._times = _TimingsByEnd()  # of requests, …
        self._shadow_times = _TimingsByEnd()  # … and of copies
        self._events: dict[tuple[str, str, str, str], int] = {}  # see `EventCount`
        self._labels = Labels(2 * REMEMBERED)  # what these are kept of
        self._forgotten = (0, 0.0)  # what `served` has of the others
        self._shadows: set[Call] = set()
        self._closed = False
        self.link: type[Link] = Link
        """What it talks to replicas by."""
        self.shadow: type[Shadow] = Shadow
        """What it makes for backends that get copies."""

    # The table.

    def apply(self, table: RoutingTable) -> None:
        """Follow this table from now on, and say so. What the table no longer has is seen to its end."""
        if table.version < self.table.version:
            return
        self.table = table
        for name in [name for name in self._endpoints if name not in table.endpoints]:
            self._old_endpoints.append(self._endpoints.pop(name))
        for tag, entry in table.backends.items():
            known_backend = self._backends.get(tag)
            if known_backend is None:
                self._backends[tag] = BackendRoute(self, entry)
            elif known_backend.entry is not entry:  # where only changes came, most are the very same
                known_backend.update(entry)
        for name, endpoint in table.endpoints.items():
            known = self._endpoints.get(name)
            if known is None:
                self._endpoints[name] = EndpointRoute(endpoint, self._keys)
            elif known.entry != endpoint:
                known.update(endpoint)
        for tag in [tag for tag in self._backends if tag not in table.backends]:
            self._leaving[tag] = self._backends.pop(tag)
        for tag, backend in list(self._leaving.items()):
            leaving = table.leaving.get(tag)
            if leaving is None:
                self._old_backends.append(self._leaving.pop(tag))
                leaving = msgspec.structs.replace(backend.entry, replicas=(), starting=0)
            if leaving is not backend.entry:
                backend.update(leaving)
        self._drop_shadows(table)
        if self._labels.follow(table.endpoints, table.backends):
            self._forget_counts()
        self.report(Applied(table.version))
        self._report_idle(followed=True)

    def _report_idle(self, *, followed: bool = False) -> None:
        """Tell the controller what is still served of what is to go: after each table, and when it gets less."""
        self._old_endpoints = [route for route in self._old_endpoints if route.in_flight]
        for backend in self._old_backends:
            if not backend.in_flight:
                backend.close()
        self._old_backends = [route for route in self._old_backends if route.in_flight]
        backends = [*(route for route in self._leaving.values() if route.in_flight), *self._old_backends]
        idle = Idle(self.table.version, tuple(route.entry.name for route in self._old_endpoints), tuple(route.tag for route in backends))
        if followed or idle != self._idle:
            self._idle = idle
            self.report(idle)

    # One request.

    def in_flight(self, endpoint: str) -> int:
        """Calls to it that were admitted and have not ended."""
        route = self._endpoints.get(endpoint)
        return 0 if route is None else route.in_flight

    def reaches(self, tag: str) -> bool:
        """Whether some replica of a backend of the table has not been lost, as far as this router has seen."""
        backend = self._backends.get(tag)
        return backend is not None and bool(backend.links)

    def submit(self, call: Call) -> None:
        """Admit a call and send or queue it; or end it at once, by the rule that refuses it."""
        call.state = WAITING
        call.deaths = 0
        call.link = None
        call.shadow = False
        call.started_stream = False
        call.backend = ""
        endpoint = self._endpoints.get(call.endpoint)
        if endpoint is None:
            self._refuse_unknown(call)
            return
        if self.table.closing or self._closed:
            self._refuse(call, unavailable("the instance is shutting down", SHUTTING_DOWN, None))
            return
        tag = endpoint.only or endpoint.policy.choose(self.draw(), call.shard_key)
        if tag is None:
            why = f"endpoint {call.endpoint!r} has no traffic; send it to a backend by set_traffic"
            self._refuse(call, unavailable(why, NO_TRAFFIC, None))
            return
        backend = self._backends[tag]
        call.backend = tag
        entry = backend.entry
        if call.method and not self._method_allowed(call, entry):
            return
        now = self.now()
        limit = backend.timeout_s
        caller_limit = call.caller_timeout_s
        if caller_limit is not None and caller_limit < limit:
            limit = caller_limit
        deadline = call.deadline = call.admitted_at + limit
        if deadline <= now:
            self._refuse(call, unavailable("its time was over on arrival", DEADLINE, None))
            return
        dispatcher = backend.dispatcher
        replica = dispatcher.place(now, self.draw())
        if replica is None:
            error = self._refusal(backend, deadline, now)
            if error is not None:
                self._refuse(call, error)
                return
        call.backend_route = backend
        call.endpoint_route = endpoint
        endpoint.in_flight += 1
        backend.in_flight += 1
        if deadline != math.inf:
            call.bucket = self._wheel.add(call, deadline)
            if deadline < self._alarm_at:
                self._set_alarm()
        if replica is None:
            dispatcher.enqueue(call, now)
        else:
            call.state = SENT
            backend.links[replica].send(call, now)
        if endpoint.has_shadows:
            self._cast_shadows(endpoint, call, now)

    def _method_allowed(self, call: Call, entry: BackendEntry) -> bool:
        if call.http:
            if call.method in entry.http_methods or call.method == "__call__":
                return True
            listed = ", ".join(entry.http_methods) or "none"
            why = f"backend {entry.tag!r} has no HTTP method {call.method!r} (listed in its http_methods: {listed})"
            self._refuse(call, ErrorInfo("BadRequestError", why))
            return False
        if call.method in entry.methods or call.method == "__call__":
            return True
        known = ", ".join(name for name in entry.methods if name) or "none"
        why = f"backend {entry.tag!r} has no method {call.method!r} (it has: {known})"
        self._refuse(call, ErrorInfo("NotFoundError", why))
        return False

    def _refusal(self, backend: BackendRoute, deadline: float, now: float) -> ErrorInfo | None:
        """Why this call must not join the queue, if so."""
        dispatcher, entry = backend.dispatcher, backend.entry
        if not entry.replicas and not entry.starting:
            return backend.no_replica(now)
        wait = dispatcher.wait_estimate_s(now, backend.oldest_at)
        if dispatcher.full:
            why = f"{entry.max_queued_queries} requests wait for backend {entry.tag!r} already"
            return ErrorInfo("QueueFullError", why, reason=QUEUE_FULL, retry_after_s=wait or 1.0)
        if wait is not None and now + wait > deadline and not backend.more_come:
            why = f"backend {entry.tag!r} would take it in about {wait:.2f} s, after its deadline in {deadline - now:.2f} s"
            return unavailable(why, DEADLINE, wait)
        return None

    def _refuse(self, call: Call, error: ErrorInfo) -> None:
        if error.status == 503:
            self.note(SHED, call.endpoint, call.backend, error.reason)
        call.state = OVER
        self._times[call.endpoint, call.backend, error.status].take(self.now() - call.admitted_at)
        call.failed(error)

    def _refuse_unknown(self, call: Call) -> None:
        """It is counted without an endpoint: the name is whatever a caller has made up."""
        why = f"there is no endpoint {call.endpoint!r}; list_endpoints() shows those that are"
        error = ErrorInfo("EndpointRemovedError", why)
        call.state = OVER
        self._times["", "", error.status].take(self.now() - call.admitted_at)
        call.failed(error)

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more: queued work never starts. No method of the call is called after this."""
        if call.state == OVER:
            return
        if not call.shadow:
            self.note(CANCELLED, call.endpoint, call.backend)
        self.enough(call, CALLER_LEFT)

    def enough(self, call: Call, status: int) -> None:
        """All of its answer that is wanted has come: what makes the rest is given up. As with `cancel`, no method of the call follows."""
        if call.state != OVER:
            self._abandon(call)
            self.over(call, status, self.now())

    def credit(self, call: Call, count_bytes: int) -> None:
        """The reader of this call's stream has taken that many bytes."""
        if call.state == SENT and call.link is not None:
            call.link.credit(call, count_bytes)

    def _abandon(self, call: Call) -> None:
        if call.state == WAITING:
            call.backend_route.dispatcher.withdraw(call)
        elif call.link is not None:
            call.link.cancel(call)

    # Ends. Every admitted call, and every shadow, passes `over` exactly once.

    def over(self, call: Call, status: int, now: float) -> None:
        """Take note of a call's end. The caller of this tells the call."""
        call.state = OVER
        if call.deadline != math.inf:
            self._wheel.discard(call, call.bucket)
        if call.shadow:
            self._shadows.discard(call)
            self._shadow_times[call.endpoint, call.backend, status].take(now - call.admitted_at)
            return
        call.backend_route.in_flight -= 1
        call.endpoint_route.in_flight -= 1
        times = self._times[call.endpoint, call.backend, status]
        times.append(now - call.admitted_at)
        if len(times) >= MANY:
            times.settle()
        if self._old_endpoints or self._leaving or self._old_backends:
            self._loop.call_soon(self._report_idle)

    def fail(self, call: Call, error: ErrorInfo, now: float) -> None:
        """End a call without an answer."""
        if call.state == OVER:
            return
        self.over(call, error.status, now)
        call.failed(error)

    def shed(self, call: Call, error: ErrorInfo, now: float) -> None:
        """Refuse a call that was admitted: nobody will come to take it."""
        if call.state != OVER and not call.shadow:
            self.note(SHED, call.endpoint, call.backend, error.reason)
        self.fail(call, error, now)

    def extend(self, call: Call, now: float) -> None:
        """A chunk of its stream has come: the limit counts from now to the next. The wheel hears of it when it reports the call."""
        if call.deadline == math.inf:
            return
        deadline = now + call.backend_route.timeout_s
        if deadline < call.deadline or deadline == math.inf:  # the limit was changed
            self._wheel.discard(call, call.bucket)
            call.bucket = self._wheel.add(call, deadline)
            if deadline < self._alarm_at:
                self._set_alarm()
        call.deadline = deadline

    def note(self, event: str, endpoint: str, backend: str, reason: str = "") -> None:
        """Count what has befallen a call; see `EventCount`."""
        key = (event, endpoint, backend, reason)
        self._events[key] = self._events.get(key, 0) + 1

    # Time.

    def _set_alarm(self) -> None:
        due = self._wheel.next_due()
        if due is None:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = self._loop.call_later(due - self.now(), self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now = self.now()
        for call in self._wheel.expired(now):
            if call.state == OVER:
                continue
            if call.deadline > now:  # it has been extended
                call.bucket = self._wheel.add(call, call.deadline)
                continue
            link = call.link
            stage = QUEUED
            if call.state == WAITING:
                what = "it was still queued and never started"
            elif link is not None and (link.is_remote or link.has_begun(call)):
                what, stage = "it may still be running", RUNNING
            else:  # not begun, or dropped by its replica, which had seen first that it is too late
                what = "its replica had not begun it"
            if not call.shadow:
                self.note(EXPIRED, call.endpoint, call.backend, stage)
            self._abandon(call)
            limit = call.backend_route.timeout_s if call.started_stream else call.deadline - call.admitted_at
            self.fail(call, ErrorInfo("DeadlineExceededError", f"endpoint {call.endpoint!r}: no answer within {limit:.3g} s; {what}"), now)
        self._set_alarm()

    # Shadows.

    def _cast_shadows(self, endpoint: EndpointRoute, call: Call, now: float) -> None:
        for tag in endpoint.policy.shadows(self.draw):
            backend = self._backends.get(tag)
            if backend is None:
                continue
            dispatcher, entry = backend.dispatcher, backend.entry
            if call.http and call.method not in ("", "__call__", *entry.http_methods):
                continue  # a client may name only what this backend lists, also by way of another
            if not entry.replicas or dispatcher.half_full:
                self.note(SHADOW_DROPPED, call.endpoint, tag)
                continue
            shadow = self.shadow(call, tag, now + min(backend.timeout_s, _SHADOW_S))
            shadow.backend_route = backend
            shadow.endpoint_route = endpoint
            self._shadows.add(shadow)
            shadow.bucket = self._wheel.add(shadow, shadow.deadline)
            if shadow.deadline < self._alarm_at:
                self._set_alarm()
            replica = dispatcher.offer(shadow, now, self.draw())
            if replica is not None:
                shadow.state = SENT
                backend.links[replica].send(shadow, now)

    def _drop_shadows(self, table: RoutingTable) -> None:
        """Give up the copies that something which leaves would have to wait for: nobody has ever waited for them."""
        if not self._shadows:
            return
        stay = {replica.id for entry in table.backends.values() for replica in entry.replicas}
        for shadow in list(self._shadows):
            leaves = shadow.endpoint not in table.endpoints or shadow.backend not in table.backends
            if leaves or table.closing or (shadow.link is not None and shadow.link.replica not in stay):
                self.cancel(shadow)

    # For people and the end.

    def log_given_up(self, call: Call) -> None:
        """Name a request that met too many deaths."""
        logging.getLogger("headgate.router").error(
            "request %s to endpoint %r met the deaths of %d replicas of backend %r; it is given up",
            call.request_id,
            call.endpoint,
            call.deaths,
            call.backend,
        )

    def counters(self) -> Counters:
        """What this router counted since it started."""
        queues = tuple(QueueDepth(route.tag, route.dispatcher.queued, route.in_flight) for route in self._all_backends())
        events = tuple(EventCount(*key, count) for key, count in self._events.items())
        return Counters(self._times.told(), queues, events, self._shadow_times.told())

    def _forget_counts(self) -> None:
        """Of endpoints and backends that have gone only the latest are told of."""
        has, before = self._labels.has, self.served()
        for times in (self._times, self._shadow_times):
            for key in [key for key in times if not has(key[0], key[1])]:
                del times[key]
        for event in [key for key in self._events if not has(key[1], key[2])]:
            del self._events[event]
        left, (count, seconds) = self.served(), self._forgotten
        self._forgotten = (count + before[0] - left[0], seconds + before[1] - left[1])

    def served(self) -> tuple[int, float]:
        """How many calls came to an end other than a refusal, and how many seconds these took together."""
        count, seconds = self._forgotten
        for (_, backend, status), times in self._times.items():
            if backend and status != 503:
                more, took_s = times.total()
                count, seconds = count + more, seconds + took_s
        return count, seconds

    @property
    def active(self) -> int:
        """Calls that were admitted and have not ended."""
        return sum(route.in_flight for route in [*self._endpoints.values(), *self._old_endpoints])

    def forked(self) -> None:
        """In a forked child: let go of its copies of the links' sockets."""
        for backend in self._all_backends():
            for link in backend.links.values():
                link.forked()

    async def close(self, timeout_s: float) -> None:
        """Refuse new calls, wait for those under way for up to `timeout_s`, fail the rest, close all links."""
        self._closed = True
        for shadow in list(self._shadows):
            self.cancel(shadow)
        until = self.now() + timeout_s
        while self.active and self.now() < until:  # noqa: ASYNC110 - calls don't pay for telling
            await asyncio.sleep(0.005)
        if self._alarm is not None:
            self._alarm.cancel()
        now = self.now()
        for backend in self._all_backends():
            waiting = backend.dispatcher.drain()
            sent = [call for link in backend.links.values() for call in link.calls.values()]
            sent += [call for link in backend.dying for call in link.unstarted]
            for call in [*waiting, *sent]:
                self.shed(call, unavailable("its router was closed", SHUTTING_DOWN, None), now)
            backend.close()

    def _all_backends(self) -> list[BackendRoute]:
        return [*self._backends.values(), *self._leaving.values(), *self._old_backends]


class _TimingsByEnd(dict[tuple[str, str, int], Timings]):
    """By endpoint, backend and status. Those of a key are made when first asked for."""

    def __missing__(self, key: tuple[str, str, int]) -> Timings:
        times = self[key] = Timings()
        return times

    def told(self) -> tuple[RequestCount, ...]:
        told = ((key, times.told()) for key, times in self.items())
        return tuple(RequestCount(*key, histogram.count, histogram.sum, histogram.buckets) for key, histogram in told)


class Shadow(Call):
    """A copy of a call whose answer nobody reads."""

    __slots__ = ("_lent", "_owed_bytes")

    def __init__(self, call: Call, tag: str, deadline: float) -> None:
        self.endpoint, self.backend, self.method = call.endpoint, tag, call.method
        self.request_id, self.shard_key, self.http = call.request_id, call.shard_key, call.http
        self.positional, self.keywords = call.positional, call.keywords
        self.body, self.body_bytes = call.body, call.body_bytes
        self.admitted_at, self.caller_timeout_s, self.deadline = call.admitted_at, None, deadline
        self._lent = getattr(call, "lent", None)  # its arguments' references, for as long as this lives
        self._owed_bytes = 0
        self.state, self.deaths, self.link, self.shadow, self.started_stream = WAITING, MOST_DEATHS, None, True, False

    def answered(self, answer: wire.Answer) -> None:
        pass

    def chunk(self, frame: wire.Frame) -> None:
        self.small_chunk(cast(bytes, frame.body))

    def small_chunk(self, body: bytes) -> None:
        self._owed_bytes += len(body)
        if self._owed_bytes >= wire.STREAM_CREDIT // 4 and self.link is not None:
            self.link.credit(self, self._owed_bytes)
            self._owed_bytes = 0

    def ended(self) -> None:
        pass

    def failed(self, error: ErrorInfo) -> None:
        pass
