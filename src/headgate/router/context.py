"""What does user code know about the call that it is answering?

`context` is what users see as `serve.context`. The replica enters one small record per call, in a context variable, so that it
is right in every thread and task; what is asked of it is worked out only then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

import msgspec

from headgate.errors import NoCallError


class Member(Protocol):
    """One request of a call; only a batch has several. They are read when user code asks, never before."""

    @property
    def request_id(self) -> str:
        """Its id."""
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


class CallFacts(msgspec.Struct):
    """One call of user code, as the replica enters it."""

    members: Sequence[Member]
    is_batch: bool
    backend: str
    replica: str


_current: ContextVar[CallFacts | None] = ContextVar("headgate_call", default=None)

enter = _current.set
"""Make a call the current one of this thread or task; `enter(None)` after it."""


class Context:
    """The call that is being answered here. Outside a call every attribute raises `NoCallError` (a `RuntimeError`)."""

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
        """Seconds left, never below 0; None for no limit. In a batch handler, those of the earliest deadline."""
        deadline = _earliest(_facts("deadline_s"))
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
"""`serve.context`."""


def current_deadline() -> float | None:
    """When the current call's time is over, by `time.monotonic()`; None outside a call, or where it has no limit."""
    facts = _current.get()
    if facts is None:
        return None
    deadline = _earliest(facts)
    return None if deadline == math.inf else deadline


def _facts(attribute: str) -> CallFacts:
    facts = _current.get()
    if facts is None:
        raise NoCallError(
            f"serve.context.{attribute} was read outside a call: it is set while a backend answers a request, "
            "and in what that call starts with a copy of its context (tasks, asyncio.to_thread), not in plain threads"
        )
    return facts


def _earliest(facts: CallFacts) -> float:
    return min([member.deadline for member in facts.members])
