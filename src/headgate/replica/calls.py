"""How is user code called, and how does what it returns become an answer?

One `Caller` per replica. `call` is for threads, `call_async` for the event loop; batches go the same way in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from time import monotonic
from typing import Any

import msgspec

from headgate.core import wire
from headgate.core.binding import Binder, gather
from headgate.core.bisection import Bisection
from headgate.core.specs import Definition, MethodInfo
from headgate.errors import (
    BatchResultError,
    EncodeError,
    ErrorInfo,
    RequestCancelledError,
    SignatureError,
    describe,
    describe_user_error,
    in_one_line,
)
from headgate.logs.capture import finish
from headgate.replica import response
from headgate.replica.counting import Counts, CountsBySlot
from headgate.replica.failures import FailedCalls
from headgate.replica.member import Member, Stream
from headgate.replica.request import PlaceholderRequest, Request
from headgate.replica.results import split_batch
from headgate.router import payload
from headgate.router.context import CallFacts, enter, leave
from headgate.router.references import NoLending, Objects, resolve, resolve_async

Arguments = tuple[Any, dict[str, Any]]
_log = logging.getLogger("headgate.replica")
_CANCELLED = (asyncio.CancelledError, GeneratorExit, RequestCancelledError)
_LONGEST_S = wire.MAX_MICROS / 1e6
_UNTOLD = ErrorInfo("UserCodeError", "user code raised an exception that can't be told: methods of its own class raise, too")
_head_decoder = msgspec.msgpack.Decoder(wire.HttpHead)


class Handler:
    """One callable of the definition, with what is known of it."""

    __slots__ = ("binder", "call", "http_error", "http_group", "info", "takes_request")

    def __init__(self, info: MethodInfo, call: Callable[..., Any], name: str) -> None:
        self.info = info
        self.call = call
        self.binder = Binder(name, info.parameters)
        self.takes_request = bool(self.binder.http.sources)
        self.http_error = self.binder.http.error
        self.http_group = (info.name, True, self.binder.http.layout)  # with whom an HTTP request may share a call


class Caller:
    """Calls user code for members, and answers them."""

    def __init__(
        self,
        definition: Definition,
        methods: dict[str, Callable[..., Any]],
        *,
        backend: str,
        replica: str,
        idempotent: bool,
        objects: Objects | None = None,
    ) -> None:
        self._handlers = {
            name: Handler(definition.methods[name], call, f"{definition.name}.{name}" if name else definition.name)
            for name, call in methods.items()
            if name in definition.methods
        }
        self._only = self._handlers[""] if list(self._handlers) == [""] else None
        self._check_health = methods.get("check_health")
        self.has_health_check = self._check_health is not None
        self.has_batches = any(handler.info.is_batch for handler in self._handlers.values())
        self.idempotent = idempotent
        self.running: dict[int, CallFacts[Member]] = {}
        """What runs now, by slot (threads) or by the call's identity (event loop)."""
        self.counts = CountsBySlot()
        self.failed = FailedCalls(backend, replica)
        self.ended = 0
        """Calls of user code that have ended; a count for people, not exact over threads."""
        self._backend = backend
        self._replica = replica
        self._objects = objects
        self._no_lending = None if objects is None else NoLending(objects)

    def running_since(self) -> list[float]:
        """When each call that runs now began; a stream's: when its last chunk left."""
        since: list[float] = []
        for facts in list(self.running.values()):
            member = facts.members[0]
            stream = member.stream
            since.append(member.started_at if stream is None else stream.last_chunk_at)
        return since

    def group_of(self, member: Member) -> object:
        """With whom a request may share a call: None for one that doesn't take batches, an `ErrorInfo` where it doesn't fit."""
        handler = self._handler_of(member)
        if handler is None or not handler.info.is_batch:
            return None
        if member.web:
            member.binding = handler.binder.http
            return describe(SignatureError(handler.http_error)) if handler.http_error else handler.http_group
        binding = member.binding = handler.binder.bind(member.positional, member.keywords)
        if binding.error:
            return describe_user_error(TypeError(binding.error))
        return (handler.info.name, False, binding.layout)

    def _handler_of(self, member: Member) -> Handler | None:
        if self._only is not None:
            return self._only
        method = member.method
        return self._handlers.get("" if method == "__call__" else method)

    # Threads.

    def call(self, members: list[Member], slot: int) -> float:
        """Run one call in this thread and answer its members. Returns the seconds that user code took."""
        member = members[0]
        if member.binding is not None:
            return self._call_batch_here(members, slot)
        start = monotonic()
        if member.cancelled or (member.millis != wire.NO_LIMIT and member.deadline <= start):
            member.link.give_back(member, dropped=True)
            return 0.0
        handler = self._only or self._handler_of(member)
        if not member.mark_started(start):
            member.link.give_back(member, dropped=False)
            return 0.0
        facts = self.running[slot] = CallFacts(members, False, self._backend, self._replica)
        counts = self.counts[slot]
        enter(facts)
        try:
            result = self._invoke(handler, member)
            if not isinstance(result, response.STREAMS):
                run_s = self._answer(member, result, start, counts)
                counts.ran(member, start, run_s)
                return run_s
            self._stream(member, result)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything; each is this request's failure
            self._fail(member, error)
        finally:
            del self.running[slot]
            self.ended += 1
            facts.over = True
            enter(None)
        run_s = monotonic() - start
        counts.ran(member, start, run_s)
        return run_s

    def _invoke(self, handler: Handler | None, member: Member, opened: Arguments | None = None) -> Any:
        if handler is None:
            raise SignatureError(_no_method(member))
        if member.http:
            if handler.http_error:
                raise SignatureError(handler.http_error)
            if handler.takes_request:
                return handler.call(Request(member.http, member.body))
            return handler.call()
        args, kwargs = opened or payload.load(member.body)
        if opened is None and self._objects is not None:
            args, kwargs = resolve(self._objects, args, kwargs, member)
        if not args and handler.binder.bind(0, member.keywords).placeholder:
            args = (PlaceholderRequest(),)
        return handler.call(*args, **kwargs)

    def _answer(self, member: Member, result: Any, start: float, counts: Counts) -> float:
        """Answer with what user code returned; returns the seconds since `start`."""
        now = monotonic()
        run_s = now - start
        self._send(member, result, _micros(run_s), now, counts)
        return run_s

    def _send(self, member: Member, result: Any, micros: int, now: float, counts: Counts) -> float:
        """Encode and send an answer, from `now` on; returns until when."""
        if member.http:
            if type(result) is bytes:  # as `encode_http` would, without its record
                member.link.answer(member, 200, response.OCTETS, result, micros, now)
                return now
            encoded = response.encode_http(result)
            done = monotonic()
            member.link.answer(member, encoded.status, encoded.header_lines, encoded.body, micros, done)
        else:
            body = payload.dump(result, lending=self._no_lending)
            done = monotonic()
            member.link.answer(member, 200, b"", body, micros, done)
        counts.encoded(done - now)
        return done

    def _stream(self, member: Member, result: Any) -> None:
        """Send what a generator yields, chunk by chunk; each waits for credit, none for the next."""
        chunks, encoder = response.open_stream(result, web=member.web, lending=self._no_lending)
        if isinstance(chunks, AsyncIterator):
            raise EncodeError("an async generator can only be streamed by an async handler; make the handler async")
        stream = member.stream = Stream(None, coded=_takes_coding(member))
        try:
            for chunk in chunks:
                body = encoder.encode(chunk)
                if stream.spent_bytes >= stream.granted_bytes:
                    stream.wait(member)
                if member.cancelled:
                    break
                _send_chunk(member, stream, encoder, body)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        _end_stream(member, stream, encoder)

    def _fail(self, member: Member, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            _exit(error)
        micros = _micros_since(member.started_at)
        if member.web and (member.stream is None or not member.stream.begun):
            stands_for = response.answer_of(error, member.request_id)
            if stands_for is not None:
                now = monotonic()
                member.link.answer(member, stands_for.status, stands_for.header_lines, stands_for.body, micros, now)
                return
        member.link.fail(member, self._describe(error, member), micros)

    def _describe(self, error: BaseException, member: Member, together: list[Member] | None = None) -> ErrorInfo:
        """What is told of a failure, which is logged as one of the call's: of this member, or of all that ran `together`."""
        if member.cancelled and isinstance(error, _CANCELLED):  # else it is user code's own
            return describe(RequestCancelledError("the request was cancelled while it ran"))
        try:
            info = response.raised(error)
        except BaseException:  # noqa: BLE001 - its class is user code, and may raise wherever it is asked; some answer must leave
            info = _UNTOLD
        if info.status >= 500:
            self.failed.note(member, info)
            why = info.traceback or info.message
            before = enter(CallFacts(together or [member], together is not None, self._backend, self._replica))
            with contextlib.suppress(BaseException):  # user code may have hung filters of its own into logging
                _log.error("request %s to endpoint %r failed in backend %r:\n%s", member.request_id, member.endpoint, self._backend, why)
            leave(before)
        return info

    # The event loop.

    async def call_async(self, members: list[Member]) -> None:
        """Run one call as this task and answer its members."""
        if members[0].binding is not None:
            await self._call_batch(members, id(members))
            return
        member = members[0]
        start = monotonic()
        member.started_at = start  # before the question, as `Runner._withdraw_unbegun` asks the other way round
        if member.withdrawn:
            member.link.give_back(member, dropped=False)
            return
        if member.cancelled or member.deadline <= start:
            member.link.give_back(member, dropped=True)
            return
        handler = self._only or self._handler_of(member)
        if not member.mark_started(start):
            member.link.give_back(member, dropped=False)
            return
        slot = id(members)
        facts = self.running[slot] = CallFacts(members, False, self._backend, self._replica)
        counts = self.counts[0]
        run_s: float | None = None
        enter(facts)
        try:
            opened = None if self._objects is None or member.http else await self._opened(self._objects, member)
            result = self._invoke(handler, member, opened)
            if isinstance(result, Coroutine):
                result = await result
            if isinstance(result, response.STREAMS):
                await self._stream_async(member, result)
            else:
                run_s = self._answer(member, result, start, counts)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything; each is this request's failure
            self._fail(member, error)
        finally:
            del self.running[slot]
            self.ended += 1
            facts.over = True
            counts.ran(member, start, monotonic() - start if run_s is None else run_s)

    async def _opened(self, objects: Objects, member: Member) -> Arguments:
        args, kwargs = payload.load(member.body)
        return await resolve_async(objects, args, kwargs, member)

    async def _stream_async(self, member: Member, result: Any) -> None:
        chunks, encoder = response.open_stream(result, web=member.web, lending=self._no_lending)
        stream = member.stream = Stream(asyncio.get_running_loop(), coded=_takes_coding(member))
        try:
            async for chunk in _each(chunks):
                body = encoder.encode(chunk)
                if stream.spent_bytes >= stream.granted_bytes:
                    await stream.wait_async(member)
                if member.cancelled:
                    break
                _send_chunk(member, stream, encoder, body)
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()
            elif hasattr(chunks, "close"):
                chunks.close()
        _end_stream(member, stream, encoder)

    def cancel_if_all_gone(self, task: asyncio.Task[None], member: Member) -> None:
        """Cancel the task of a call, once all of its members are gone."""
        for facts in self.running.values():
            if member in facts.members:
                if facts.gone:
                    task.cancel()
                return

    def give_up_if_all_gone(self, member: Member) -> None:
        """Give up what a call has asked of others through handles, once all of its members are gone; from any thread."""
        for facts in list(self.running.values()):
            if facts.asked and member in facts.members and facts.gone:
                facts.give_up()

    # Batches.

    def _call_batch_here(self, members: list[Member], slot: int) -> float:
        start = monotonic()
        run = self._call_batch(members, slot, here=True)
        try:
            run.send(None)
        except StopIteration:
            return monotonic() - start
        raise AssertionError("synchronous user code can't wait on an event loop")

    async def _call_batch(self, members: list[Member], slot: int, *, here: bool = False) -> None:
        """Call a batch handler; where it raises and may run again, split the batch to find the bad members. `here`: in a thread."""
        start = monotonic()
        live: list[Member] = []
        for member in members:
            if member.cancelled or member.deadline <= start:
                member.link.give_back(member, dropped=True)
            elif not member.mark_started(start):
                member.link.give_back(member, dropped=False)
            else:
                live.append(member)
        if not live:
            return
        counts = self.counts[slot if here else 0]
        counts.batch_began(live, start)
        handler = self._handler_of(live[0])
        assert handler is not None
        self.running[slot] = CallFacts(live, True, self._backend, self._replica)
        try:
            live, calls = await self._open(live, handler, here=here)
            error = await self._run_together(handler, slot, live, calls, start, counts)
            if error is None:
                return
            if len(live) == 1 or not self.idempotent or isinstance(error, BatchResultError) or not isinstance(error, Exception):
                self._fail_all(live, error)
                return
            search = Bisection(len(live))
            while (part := search.next()) is not None:
                chosen = live[part.start : part.stop]
                error = await self._run_together(handler, slot, chosen, calls[part.start : part.stop], start, counts)
                if error is not None:
                    search.failed(part)
                    if len(chosen) == 1:
                        self._fail(chosen[0], error)
        finally:
            del self.running[slot]
            self.ended += 1

    async def _run_together(
        self, handler: Handler, slot: int, members: list[Member], calls: list[Arguments], start: float, counts: Counts
    ) -> BaseException | None:
        """Call user code once for these members and answer them; or return what it raised, with nobody answered."""
        if not members:
            return None
        facts = self.running[slot] = CallFacts(members, True, self._backend, self._replica)
        if facts.gone:  # before it could be cancelled
            return asyncio.CancelledError()
        enter(facts)
        began_at = monotonic()
        try:
            args, kwargs = self._gather(members, calls)
            result = handler.call(*args, **kwargs)
            if isinstance(result, Coroutine):
                result = await result
            values = split_batch(result, len(members))
        except BaseException as error:  # noqa: BLE001 - user code may raise anything; it is the batch's failure
            return error
        finally:
            facts.over = True
            enter(None)
            counts.batch_ran(len(members), monotonic() - began_at)
        self._answer_all(members, values, start, counts)
        return None

    async def _open(self, members: list[Member], handler: Handler, *, here: bool) -> tuple[list[Member], list[Arguments]]:
        """Open each member's arguments; one that can't be opened fails by itself."""
        if members[0].web:  # then all are
            return members, [((_request_of(member),), {}) if handler.takes_request else ((), {}) for member in members]
        good: list[Member] = []
        calls: list[Arguments] = []
        for member in members:
            try:
                args, kwargs = payload.load(member.body)
                if self._objects is not None:
                    if here:
                        args, kwargs = resolve(self._objects, args, kwargs, member)
                    else:
                        args, kwargs = await resolve_async(self._objects, args, kwargs, member)
                calls.append((args, kwargs))
            except BaseException as error:  # noqa: BLE001 - opening runs user code: reducers, imports
                self._fail(member, error)
                continue
            good.append(member)
        return good, calls

    def _gather(self, members: list[Member], calls: list[Arguments]) -> tuple[list[list[Any]], dict[str, list[Any]]]:
        if members[0].web:  # then all are, and each brings its request or nothing
            return [list(column) for column in zip(*(args for args, _ in calls), strict=True)], {}
        bindings = [member.binding for member in members if member.binding is not None]
        placeholders = [PlaceholderRequest() for _ in members] if any(binding.placeholder for binding in bindings) else ()
        return gather(bindings, calls, placeholders)

    def _answer_all(self, members: list[Member], values: list[Any], start: float, counts: Counts) -> None:
        now = monotonic()
        micros = _micros(now - start)
        for member, value in zip(members, values, strict=True):
            try:
                if isinstance(value, Exception):
                    raise value
                now = self._send(member, value, micros, now, counts)
            except BaseException as error:  # noqa: BLE001 - the member's own failure: returned, or not to be encoded
                self._fail(member, error)

    def _fail_all(self, members: list[Member], error: BaseException) -> None:
        if isinstance(error, SystemExit):
            _exit(error)
        info = self._describe(error, members[0], members)
        micros = _micros_since(members[0].started_at)
        for member in members:
            member.link.fail(member, info, micros)

    # Health.

    def check_health(self) -> str:
        """Call the class's `check_health()`; the text of what it raises, or nothing."""
        assert self._check_health is not None
        try:
            self._check_health()
        except BaseException as error:  # noqa: BLE001 - whatever it raises says that the replica is not healthy
            return f"check_health() raised: {in_one_line(error)}"
        return ""

    async def check_health_async(self) -> str:
        """The same on the event loop."""
        assert self._check_health is not None
        try:
            result = self._check_health()
            if isinstance(result, Coroutine):
                await result
        except BaseException as error:  # noqa: BLE001 - as above; also `CancelledError`, of something that it waited for
            return f"check_health() raised: {in_one_line(error)}"
        return ""


def _request_of(member: Member) -> Request:
    return Request(member.http, member.body)


def _takes_coding(member: Member) -> bool:
    return member.web and _head_decoder.decode(member.http).version != "1.0"


def _send_chunk(member: Member, stream: Stream, encoder: response.StreamEncoder, body: bytes) -> None:
    member.link.chunk(member, encoder.first, encoder.status, encoder.header_lines if encoder.first else b"", body)
    encoder.first = False
    stream.begun = True


def _end_stream(member: Member, stream: Stream, encoder: response.StreamEncoder) -> None:
    if encoder.first and member.web:
        _send_chunk(member, stream, encoder, b"")
    member.link.end(member, encoder.status, _micros_since(member.started_at))


async def _each(chunks: Iterator[Any] | AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    if isinstance(chunks, AsyncIterator):
        async for chunk in chunks:
            yield chunk
        return
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)  # a plain generator must not keep the loop from the others


def _no_method(member: Member) -> str:
    if member.method:
        return f"this replica has no method {member.method!r}"
    by = "the header X-SERVE-CALL-METHOD, and http_methods must list it" if member.web else "options(method_name=…)"
    return f"the class has no __call__: give it one, or name another of its methods, by {by}"


def _micros_since(start: float) -> int:
    return _micros(monotonic() - start)


def _micros(seconds: float) -> int:
    return int(seconds * 1e6) if seconds < _LONGEST_S else wire.MAX_MICROS


def _exit(error: SystemExit) -> None:
    """User code asked this process to end, in whichever thread: it does, and is replaced."""
    try:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    finally:  # user code may have closed or replaced it
        exit_now(error.code if isinstance(error.code, int) else int(error.code is not None))


def exit_now(code: int) -> None:
    """End this process, whatever its threads are at; what was printed comes out."""
    try:
        finish()
    finally:
        os._exit(code & 0xFF)
