"""Which spans does a replica make of a call: its wait, its batch, and the run of user code?

Each request has a span for its wait in the queue, and one of a batch handler another from there to its answer. The run of user code is the
current span meanwhile, so what user code begins is a part of it. That of a batch belongs to the first of its requests that is recorded,
and is linked with all of them.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import context as contexts
from opentelemetry.trace import INVALID_SPAN, Link, Span, StatusCode, set_span_in_context

from headgate.errors import in_one_line
from headgate.replica import response
from headgate.replica.calls import Caller
from headgate.traces import spans, travel
from headgate.traces.spans import Travelled

if TYPE_CHECKING:
    from headgate.replica.calls import Arguments, Handler
    from headgate.replica.counting import Counts
    from headgate.replica.member import Member


class _Run(NamedTuple):
    """The run of user code for one request."""

    span: Span | None  # None where it isn't recorded
    token: Token[contexts.Context]


_run: Final[ContextVar[_Run | None]] = ContextVar("headgate_run", default=None)


class TracedCaller(Caller):
    """A caller that makes spans."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batched: dict[int, Span] = {}  # of members that are in a batch, by their identity

    # One request.

    def call(self, members: list[Member], slot: int) -> float:
        """As `Caller`."""
        try:
            return super().call(members, slot)
        finally:
            _end_run()

    async def call_async(self, members: list[Member]) -> None:
        """As `Caller`."""
        try:
            await super().call_async(members)
        finally:
            _end_run()

    def _invoke(self, handler: Handler | None, member: Member, opened: Arguments | None = None) -> Any:
        trace = member.trace
        span: Span | None = None
        if trace and not travel.is_sampled(trace):
            context = set_span_in_context(Travelled(trace))
        else:
            clock = spans.clock()
            above, began = spans.under(trace), spans.at(member.started_at, clock)
            attributes = self._attributes(member)
            if trace:
                spans.end(self._begin("queue", above, attributes, spans.at(member.admitted_at, clock)), began)
            span = self._begin("run", above, attributes, began)
            context = set_span_in_context(span)
            if not trace:  # it begins here: whoever looks for its name finds it where that of others is
                member.trace = spans.to_travel(span.get_span_context())
        _run.set(_Run(span, contexts.attach(context)))
        return super()._invoke(handler, member, opened)

    def _fail(self, member: Member, error: BaseException) -> None:
        run = _run.get()
        span = self._batched.get(id(member)) or (None if run is None else run.span)
        if span is not None:
            stands_for = response.answer_of(error, member.request_id) if member.web else None
            _say(span, error, is_failure=stands_for is None or stands_for.status >= 500)
        super()._fail(member, error)

    # Batches.

    async def _call_batch(self, members: list[Member], slot: int, *, here: bool = False) -> None:
        try:
            await super()._call_batch(members, slot, here=here)
        finally:
            for member in members:
                span = self._batched.pop(id(member), None)
                if span is not None:
                    spans.end(span)

    async def _open(self, members: list[Member], handler: Handler, *, here: bool) -> tuple[list[Member], list[Arguments]]:
        clock = spans.clock()
        for member in members:
            trace = member.trace
            if trace and not travel.is_sampled(trace):
                continue
            above, received = spans.under(trace), spans.at(member.received_at, clock)
            attributes = self._attributes(member)
            if trace:
                spans.end(self._begin("queue", above, attributes, spans.at(member.admitted_at, clock)), received)
            span = self._begin("batch", above, {**attributes, "headgate.batch.size": len(members)}, received)
            if not trace:
                member.trace = spans.to_travel(span.get_span_context())
            if span.is_recording():
                self._batched[id(member)] = span
        return await super()._open(members, handler, here=here)

    async def _run_together(
        self, handler: Handler, slot: int, members: list[Member], calls: list[Arguments], start: float, counts: Counts
    ) -> BaseException | None:
        batched = [self._batched[id(member)] for member in members if id(member) in self._batched]
        current: Span = INVALID_SPAN
        if batched:
            attributes = {**self._attributes(members[0]), "headgate.batch.size": len(members)}
            del attributes["headgate.request_id"]
            links = [Link(each.get_span_context()) for each in batched]
            current = spans.begin(f"run {self._backend}", set_span_in_context(batched[0]), attributes=attributes, links=links)
            for other in batched[1:]:
                other.add_link(current.get_span_context())
        elif members and members[0].trace:
            current = Travelled(members[0].trace)
        token = contexts.attach(set_span_in_context(current))
        error: BaseException | None = None
        try:
            error = await super()._run_together(handler, slot, members, calls, start, counts)
        finally:
            contexts.detach(token)
            if error is not None:
                _say(current, error)
            spans.end(current)
        return error

    def _fail_all(self, members: list[Member], error: BaseException) -> None:
        for member in members:
            span = self._batched.get(id(member))
            if span is not None:
                _say(span, error)
        super()._fail_all(members, error)

    def _begin(self, what: str, above: contexts.Context, attributes: dict[str, str | int], began_ns: int) -> Span:
        return spans.begin(f"{what} {self._backend}", above, attributes=attributes, began_ns=began_ns)

    def _attributes(self, member: Member) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            "headgate.endpoint": member.endpoint,
            "headgate.backend": self._backend,
            "headgate.replica": self._replica,
            "headgate.request_id": member.request_id,
        }
        if member.method:
            attributes["headgate.method"] = member.method
        return attributes


def _end_run() -> None:
    run = _run.get()
    if run is not None:
        _run.set(None)
        contexts.detach(run.token)
        if run.span is not None:
            spans.end(run.span)


def _say(span: Span, error: BaseException, *, is_failure: bool = True) -> None:
    """Say on a span what user code raised."""
    try:
        span.record_exception(error)
    except BaseException:  # noqa: BLE001 - its class is user code, and may raise wherever it is asked
        pass
    if is_failure:
        with spans.losing_spans_alone():
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(StatusCode.ERROR, in_one_line(error))
