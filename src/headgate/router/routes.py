"""What does a router know of an endpoint and of a backend?

An `EndpointRoute` has the traffic policy. A `BackendRoute` has the queue and the links to replicas: it follows the routing
table, sends what the dispatcher lets go, and sees to the calls of a replica that leaves or dies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headgate.core.dispatch import Dispatcher, Limits
from headgate.core.messages import BackendEntry, BrokenReplica, EndpointEntry, HadAnswered
from headgate.core.reports import NO_REPLICA, RETRIED
from headgate.core.traffic import KeyMemory, TrafficPolicy
from headgate.errors import ErrorInfo
from headgate.router.call import OVER, SENT, WAITING, Call
from headgate.router.link import CONNECTING, Link

if TYPE_CHECKING:
    from headgate.router.router import Router

MOST_DEATHS = 3
"""A request that met that many deaths of replicas is given up: it may be what kills them."""


class EndpointRoute:
    """An endpoint as this router sees it."""

    __slots__ = ("_keys", "entry", "has_shadows", "in_flight", "only", "policy")

    def __init__(self, entry: EndpointEntry, keys: KeyMemory) -> None:
        self.in_flight = 0
        self._keys = keys
        self.update(entry)

    def update(self, entry: EndpointEntry) -> None:
        self.entry = entry
        self.policy = TrafficPolicy(entry.name, entry.weights, entry.shadows, self._keys)
        self.has_shadows = bool(entry.shadows)
        self.only = self.policy.only


class BackendRoute:
    """A backend as this router sees it: its queue, and its links by replica id."""

    def __init__(self, router: Router, entry: BackendEntry) -> None:
        self.router = router
        self.tag = entry.tag
        self.dispatcher: Dispatcher[Call, str] = Dispatcher(_limits(entry), self.unbegun_since)
        self.links: dict[str, Link] = {}
        self.dying: set[Link] = set()
        """Links that are lost, whose replicas aren't seen dead yet."""
        self.in_flight = 0
        self._leaving: set[str] = set()  # replicas that get nothing new, but still have calls
        self._next_start_at: float | None = None  # while there is no replica: when the next one is to be started
        self.update(entry)

    def update(self, entry: BackendEntry) -> None:
        """Follow the table: limits, new replicas, and those that are no longer listed."""
        self.entry = entry
        self.timeout_s = math.inf if entry.request_timeout is None else entry.request_timeout
        self.dispatcher.set_limits(_limits(entry))
        listed = {replica.id: replica for replica in entry.replicas}
        for name, replica in listed.items():
            if name not in self.links:
                link = self.links[name] = self.router.link(self, replica, self.router.name, self.router.next_page(), self.router.way.node)
                link.connect()
            elif name in self._leaving:  # it stays after all: who had it leave died before it was told to
                self._leaving.remove(name)
                self.dispatcher.add_replica(name)
        for name in [name for name in self.links if name not in listed]:
            self.leave(name)
        if entry.replicas or entry.starting:
            self._next_start_at = None
        elif self._next_start_at is None:
            self._next_start_at = self.router.now() + entry.pause_s
        self._refuse_queued_in_vain()
        self.pump(self.router.now())  # a raised limit makes room

    def leave(self, replica: str) -> None:
        """Give this replica nothing new; close its link when it has nothing left."""
        link = self.links[replica]
        if link.calls:
            if replica not in self._leaving:
                self._leaving.add(replica)
                self.dispatcher.remove_replica(replica)
            return
        self._leaving.discard(replica)
        del self.links[replica]
        self.dispatcher.forget(replica)
        link.close()

    def opened(self, link: Link) -> None:
        """The replica accepted the link."""
        if link.replica not in self._leaving:
            self.dispatcher.add_replica(link.replica, near=not link.is_remote)
        self.pump(self.router.now())

    def pump(self, now: float) -> None:
        """Send what waits and fits; then close links that were only waiting for their last answer."""
        take = self.dispatcher.next
        while (found := take(now, self.router.draw())) is not None:
            call, chosen = found
            call.state = SENT
            self.links[chosen].send(call, now)
        if self._leaving:
            for replica in [replica for replica in self._leaving if not self.links[replica].calls]:
                self.leave(replica)

    def requeue(self, call: Call) -> None:
        """Not started: it takes its place in the queue again, by age."""
        call.state = WAITING
        call.link = None
        self.dispatcher.requeue(call, call.admitted_at, self.router.now())
        self._refuse_queued_in_vain()

    def _refuse_queued_in_vain(self) -> None:
        """End everything that waits, where nobody will come to take it."""
        if self.entry.replicas or self.entry.starting:
            return
        now = self.router.now()
        error = self.no_replica(now)
        for call in self.dispatcher.drain():
            self.router.shed(call, error, now)

    def no_replica(self, now: float) -> ErrorInfo:
        """What a call is told that nobody will come to take."""
        return unavailable(f"no replica of backend {self.tag!r} is ready or starting", NO_REPLICA, self.next_start_s(now))

    def next_start_s(self, now: float) -> float | None:
        """In how many seconds the next replica is to be started, while there is none; None where that isn't known."""
        at = self._next_start_at
        return at - now if at is not None and at > now else None

    def oldest_at(self, replica: str) -> float:
        """When the oldest call at a replica was sent there; infinity where there is none."""
        for call in self.links[replica].calls.values():
            return call.sent_at
        return math.inf

    def unbegun_since(self, replica: str) -> float:
        """When the oldest call at a replica that has not begun was sent there; infinity where there is none."""
        link = self.links[replica]
        for call in link.calls.values():
            if not link.has_begun(call):
                return call.sent_at
        return math.inf

    @property
    def more_come(self) -> bool:
        """Whether a replica is on its way, or its link is, so that what waits may leave sooner than those here can take it."""
        return self.entry.starting > 0 or any(link.state == CONNECTING for link in self.links.values())

    def report_broken(self, replica: str, reason: str) -> None:
        """Have the controller end a replica that can't be talked to."""
        self.router.report(BrokenReplica(replica, reason))

    def lost(self, link: Link, started: list[Call]) -> None:
        """The link died: what had started fails now, or runs again where that is allowed."""
        now = self.router.now()
        self._leaving.discard(link.replica)
        if self.links.get(link.replica) is link:
            del self.links[link.replica]
        self.dying.add(link)
        if self.dispatcher.has_answered(link.replica):
            self.router.report(HadAnswered(link.replica))
        self.dispatcher.forget(link.replica)
        self._send_elsewhere(link, self._not_failed(link, started, now), now)
        if link.is_remote:  # the connection was lost, and maybe nothing else: make another
            self.update(self.entry)

    def settled(self, link: Link, late: list[Call], rest: list[Call]) -> None:
        """The process is seen dead: what had not started runs elsewhere; what it started `late`, after its link had closed, has failed."""
        now = self.router.now()
        self.dying.discard(link)
        self._send_elsewhere(link, rest + self._not_failed(link, late, now), now)

    def _not_failed(self, link: Link, started: list[Call], now: float) -> list[Call]:
        """Fail what was started and may not run twice; return the others."""
        again: list[Call] = []
        for call in started:
            if self.entry.idempotent and not call.started_stream:
                again.append(call)
            else:
                self.router.fail(call, _died(self.tag, link, call), now)
        return again

    def _send_elsewhere(self, link: Link, calls: list[Call], now: float) -> None:
        """These met the death of a replica; all but those that have met too many have another try."""
        for call in calls:
            if call.state == OVER:
                continue
            call.deaths += 1
            if call.deaths < MOST_DEATHS:
                self.router.note(RETRIED, call.endpoint, call.backend)
                self.requeue(call)
            else:
                if not call.shadow:
                    self.router.log_given_up(call)
                self.router.fail(call, _died(self.tag, link, call), now)
        self.pump(now)

    def close(self) -> None:
        for link in (*self.links.values(), *self.dying):
            link.close()
        self.links.clear()
        self.dying.clear()


def unavailable(why: str, reason: str, retry_after_s: float | None) -> ErrorInfo:
    """A refusal on admission, by the rule that `reason` names."""
    return ErrorInfo("UnavailableError", why, reason=reason, retry_after_s=1.0 if retry_after_s is None else retry_after_s)


def _limits(entry: BackendEntry) -> Limits:
    return Limits(
        concurrency=entry.concurrency,
        max_batch_size=entry.max_batch_size,
        is_batch=entry.is_batch,
        batch_wait_timeout=entry.batch_wait_timeout,
        max_concurrent_queries=entry.max_concurrent_queries,
        max_queued_queries=entry.max_queued_queries,
    )


def _died(tag: str, link: Link, call: Call) -> ErrorInfo:
    end, what = "died", "was running, and may have had effects"
    if link.silent:
        end, what = "is out of reach", "may have been running, and have had effects"
    if call.deaths >= MOST_DEATHS:
        what = "met too many deaths of replicas and is given up"
    return ErrorInfo("ReplicaDiedError", f"replica {link.replica} of backend {tag!r} {end}; the request {what}")
