"""What does user code know about the call that it is answering?

`context` is what users see as `serve.context`. The replica enters one small record per call, in a context variable, so that it
is right in every thread and task; what is asked of it is worked out only then.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Generic, Protocol, TypeVar

import msgspec

from headgate.errors import NoCallError
from headgate.traces import travel


class Member(Protocol):
    """One request of a call; only a batch has several. They are read when user code asks, never before."""

    @property
    def request_id(self) -> str:
        """Its id."""
        ...

    @property
    def trace(self) -> bytes:
        """The span that it is a part of; empty where nothing is traced."""
        ...

    @property
    def endpoint(self) -> str:
        """The name that it was addressed to."""
        ...

    @property
    def web(self) -> bool:
        """Whether it came over HTTP."""
        ...

    @property
    def deadline(self) -> float:
        """When its time is over, by `time.monotonic()`; infinity for no limit."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        ...


class Asked(Protocol):
    """A call that user code has made through a handle."""

    over: bool
    siblings: set[Asked] | None
    """What else was asked for the same call, and was not answered either; it leaves them when it is over."""

    def cancel(self) -> None:
        """Give it up; from any thread, and without effect once it is over."""
        ...


_asking = threading.Lock()
Member_co = TypeVar("Member_co", bound=Member, covariant=True)


class CallFacts(msgspec.Struct, Generic[Member_co], weakref=True):
    """One call of user code, as the replica enters it."""

    members: Sequence[Member_co]
    is_batch: bool
    backend: str
    replica: str
    over: bool = False
    """It has ended, so that what it has started and not waited for is on its own."""
    asked: set[Asked] | None = None
    """What it has asked of others through handles and was not answered yet; None until it asks."""

    @property
    def endpoint(self) -> str:
        """The name that its first member was addressed to."""
        return self.members[0].endpoint

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Of its members."""
        return tuple([member.request_id for member in self.members])

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """Of the traces that its members belong to."""
        return tuple([travel.trace_id(member.trace) for member in self.members if member.trace])

    @property
    def gone(self) -> bool:
        """Whether nobody waits for any of its members any more."""
        return all(member.cancelled for member in self.members)

    @property
    def deadline(self) -> float:
        """When the last of the members that somebody waits for is out of time; until then the call is worth going on with."""
        return max([member.deadline for member in self.members if not member.cancelled], default=-math.inf)

    def ask(self, call: Asked) -> None:
        """Take note of what was asked of others just now: it is given up when this call is `gone`."""
        with _asking:  # a call may have several threads
            if self.asked is None:
                self.asked = set()
        call.siblings = self.asked
        self.asked.add(call)
        if call.over:
            self.asked.discard(call)
        elif self.gone:  # asked after it was noted: who gives up takes note that it is gone first, and then looks here
            call.cancel()

    def give_up(self) -> None:
        """Cancel what was asked of others."""
        for call in list(self.asked or ()):
            call.cancel()


_current: ContextVar[CallFacts[Member] | None] = ContextVar("headgate_call", default=None)

enter = _current.set
"""Make a call the current one of this thread or task; `enter(None)` after it."""
leave = _current.reset
"""Give what `enter` has returned, to have again what was before."""


class Context:
    """What `serve.context` is. Outside a call every attribute raises `NoCallError` (a `RuntimeError`)."""

    __slots__ = ()

    @property
    def web(self) -> bool:
        """True for an HTTP request, False for a call from Python."""
        return _facts("web").members[0].web

    @property
    def batch_size(self) -> int:
        """How many requests this call answers; 1 where the handler doesn't take batches."""
        return len(_facts("batch_size").members)

    @property
    def request_id(self) -> str | list[str]:
        """The request's id; in a batch handler the list of them, in batch order."""
        facts = _facts("request_id")
        if facts.is_batch:
            return [member.request_id for member in facts.members]
        return facts.members[0].request_id

    @property
    def endpoint(self) -> str:
        """The name that the request was addressed to; in a batch, the first one's."""
        return _facts("endpoint").members[0].endpoint

    @property
    def backend(self) -> str:
        """The tag of the backend that answers."""
        return _facts("backend").backend

    @property
    def replica(self) -> str:
        """The id of the replica that answers."""
        return _facts("replica").replica

    @property
    def deadline_s(self) -> float | None:
        """Seconds left, never below 0; None for no limit, and once the call has ended. In a batch handler, until the earliest deadline."""
        facts = _facts("deadline_s")
        deadline = math.inf if facts.over else min([member.deadline for member in facts.members])
        return None if deadline == math.inf else max(0.0, deadline - time.monotonic())

    def cancelled(self) -> bool | list[bool]:
        """Whether nobody waits for the answer any more; in a batch handler a list, in batch order."""
        facts = _facts("cancelled()")
        if facts.is_batch:
            return [member.cancelled for member in facts.members]
        return facts.members[0].cancelled

    def __repr__(self) -> str:
        facts = _current.get()
        if facts is None:
            return "<serve.context outside a call>"
        return f"<serve.context of a call at {facts.backend!r}, {len(facts.members)} request(s)>"


context = Context()
"""The call that is being answered in this thread or task: the one `Context` there is."""


def current_call() -> CallFacts[Member] | None:
    """The call that is being answered here. None outside a call, and in what has outlived the one that started it."""
    facts = _current.get()
    return None if facts is None or facts.over else facts


def _facts(attribute: str) -> CallFacts[Member]:
    facts = _current.get()
    if facts is None:
        raise NoCallError(
            f"serve.context.{attribute} was read outside a call: it is set while a backend answers a request, "
            "and in what that call starts with a copy of its context (tasks, asyncio.to_thread), not in plain threads"
        )
    return facts
