"""How does Python code call an endpoint, and get its answer in whichever thread or event loop it waits?

`Handle.remote` makes a call and gives it to the connection, which sends it, or has its own thread do so. The answer is set as it
came, by whichever thread reads; whoever waits is woken, and opens the answer in the thread that asked for it.
"""

from __future__ import annotations

import _thread
import asyncio
import itertools
import math
import secrets
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast, overload

from headgate.core import wire
from headgate.errors import EncodeError, ErrorInfo, InvalidTypeError, InvalidValueError, ReplyTimeoutError, rebuild
from headgate.router import connections, payload
from headgate.router.call import Call
from headgate.router.context import current_call
from headgate.router.references import Lending

if TYPE_CHECKING:
    from headgate.router.connection import Connection
    from headgate.router.context import Asked

_PUBLIC: Final = "headgate.serve"
"""Where users find these classes, and where pickles refer to."""

_MOST_NAMES_CHARACTERS: Final = 128 * 1024
"""In the names of a call's arguments, together: they travel beside the body, where there is less room."""

_ids = partial(next, itertools.count(1))
_exact: Final = str.__str__
"""A string without what a subclass adds, such as NumPy's: on the wire there are only plain ones."""


class Handle:
    """Calls an endpoint from Python: `handle.remote(*args, **kwargs)`.

    Get one by `serve.get_handle`. Handles can be kept, shared between threads and event loops, used inside backends, and
    pickled: a pickle holds the names of the instance and the endpoint, and what was given to `options`.
    """

    __module__ = _PUBLIC
    __slots__ = ("_connection", "_endpoint", "_instance", "_method", "_new_call", "_prefix", "_shard_key", "_timeout_s")

    def __init__(
        self, instance: str, endpoint: str, method_name: str | None = None, shard_key: str | None = None, timeout_s: float | None = None
    ) -> None:
        self._instance = instance
        self._endpoint = _exact(endpoint)
        self._method = None if method_name is None else _exact(method_name)
        self._shard_key = shard_key
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._new_call: type[PyCall] = PyCall
        self._prefix = ""

    def remote(self, /, *args: Any, **kwargs: Any) -> Reply:
        """Call the endpoint with these arguments, and return at once. What becomes of the call is in the reply.

        The arguments are pickled before this returns, so they may be changed afterwards. Inside a backend, the time left
        of the request that is being answered limits this call too, and where nobody waits for that any more this is cancelled.
        On a Ray cluster an argument may be a `ray.ObjectRef`: the handler gets its object. Within an argument it stays a reference,
        which is good until the call is over.

        Raises `EncodeError` (a `TypeError`) for an argument that can't be pickled, or for more than a frame holds, and
        `NotRunningError` where there is no instance to send to.
        """
        connection = self._connection
        if connection is None or connection.over:
            connection = self._connect()
        call = self._new_call()
        call.connection = connection
        call.endpoint = self._endpoint
        call.method = self._method or ""
        call.request_id = f"{self._prefix}{_ids()}"
        call.shard_key = self._shard_key
        call.http = b""
        call.positional = len(args)
        call.keywords = tuple(sorted(map(_exact, kwargs))) if kwargs else ()
        if connection.objects is None:
            call.body = body = payload.dump_call(args, kwargs)
        else:
            lending = Lending(connection.objects)
            call.body = body = payload.dump_call(args, kwargs, lending)
            call.lent = lending.met
        call.body_bytes = len(body)
        if kwargs:
            _check_names(call.keywords)
        if call.body_bytes > wire.MAX_BODY_BYTES:
            raise EncodeError(f"the arguments have {call.body_bytes} bytes, over the limit of {wire.MAX_BODY_BYTES}; send them in parts")
        call.admitted_at = time.monotonic()
        limit = self._timeout_s
        under = current_call()
        if under is not None:
            left = max(under.deadline - call.admitted_at, 0.0)
            if left < (math.inf if limit is None else limit):
                limit = left
        call.caller_timeout_s = limit
        if under is None:
            connection.submit(call)
        elif under.gone:
            call.failed(ErrorInfo("RequestCancelledError", f"endpoint {call.endpoint!r} was not called: nobody waits for the answer"))
        else:
            connection.submit(call)
            under.ask(call)
        return Reply(call)

    def options(self, *, method_name: str | None = None, shard_key: str | None = None, timeout_s: float | None = None) -> Handle:
        """A new handle with these settings; what isn't given is taken from this one.

        Args:
            method_name: the method of the backend's class to call.
            shard_key: calls with the same key go to the same backend.
            timeout_s: seconds from `remote` to the answer, for streams to the first chunk; can only shorten the backend's
                `request_timeout`.

        Raises `InvalidTypeError` (a `TypeError`), or `InvalidValueError` (a `ValueError`) for a key that can't be encoded
        as UTF-8 and for a time that isn't above 0.
        """
        for what, text in (("method_name", method_name), ("shard_key", shard_key)):
            if text is None:
                continue
            if not isinstance(text, str):
                raise InvalidTypeError(f"{what} must be a string, got {type(text).__name__}: {text!r}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidValueError(f"{what} can't be encoded as UTF-8: {error}") from None
        if timeout_s is not None:
            if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
                raise InvalidTypeError(f"timeout_s must be a number of seconds, got {type(timeout_s).__name__}: {timeout_s!r}")
            if not (math.isfinite(timeout_s) and timeout_s > 0):
                raise InvalidValueError(f"timeout_s must be finite and above 0, got {timeout_s!r}")
        made = Handle(
            self._instance,
            self._endpoint,
            self._method if method_name is None else method_name,
            self._shard_key if shard_key is None else shard_key,
            self._timeout_s if timeout_s is None else timeout_s,
        )
        made._connection = self._connection
        made._new_call = self._new_call
        made._prefix = self._prefix
        return made

    def _connect(self) -> Connection:
        connection = connections.of(self._instance)
        self._new_call = PyCall if connection.new_call is None else connection.new_call
        self._prefix = f"{secrets.token_hex(6)}-"
        self._connection = connection  # last: whoever sees it uses the others
        return connection

    def _key(self) -> tuple[str, str, str | None, str | None, float | None]:
        return self._instance, self._endpoint, self._method, self._shard_key, self._timeout_s

    def __reduce__(self) -> tuple[type[Handle], tuple[str, str, str | None, str | None, float | None]]:
        return Handle, self._key()

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Handle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        given = {"method_name": self._method, "shard_key": self._shard_key, "timeout_s": self._timeout_s}
        settings = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
        return f"<Handle of endpoint {self._endpoint!r} at instance {self._instance!r}{settings}>"


class Reply:
    """The answer to one call, on its way. `result()` blocks, `await` doesn't; streams are read by `for` or `async for`.

    Cancelling the task that awaits it cancels its call, as with any future of asyncio (`asyncio.shield` keeps that from happening),
    and so does `cancel()`. Dropping a reply doesn't.
    """

    __module__ = _PUBLIC
    __slots__ = ("_call", "_value")

    def __init__(self, call: PyCall) -> None:
        self._call = call
        self._value: Any = _NOTHING

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the answer and return it; it can be asked for again.

        Args:
            timeout_s: seconds to wait at most. After them `ReplyTimeoutError` (a `TimeoutError`) is raised, and the call
                runs on.

        Raises what became of the call otherwise: `UserCodeError` where user code raised, which is also an instance of the
        class that it raised; `UnavailableError`, `DeadlineExceededError`, `ReplicaDiedError`, `RequestCancelledError`,
        `EndpointRemovedError`; `InvalidTypeError` where the answer is a stream.
        """
        call = self._call
        if not call.over:
            call.wait(timeout_s)
        return self._take()

    def __await__(self) -> Generator[_Wait, None, Any]:
        call = self._call
        while not (call.over or call.chunks):
            wait = _Wait(call)
            if call.add_waiter(wait):
                yield wait
        return self._take()

    def cancel(self) -> None:
        """Give the call up: it never starts where it has not, and `async` user code is cancelled.

        The reply then raises `RequestCancelledError`, unless the call has ended before.
        """
        self._call.cancel()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next chunk of a stream. Raises what ended the stream early, after the chunks that had come before that."""
        call = self._call
        while True:
            over = call.over  # first: a chunk may come between the two
            if call.chunks:
                return self._next_chunk()
            if over:
                self._check_end()
                raise StopIteration
            call.wait(None)

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> Any:
        """The next chunk of a stream, as in `for`."""
        call = self._call
        while True:
            over = call.over
            if call.chunks:
                return self._next_chunk()
            if over:
                self._check_end()
                raise StopAsyncIteration
            await _something_of(call)

    def _take(self) -> Any:
        if self._value is not _NOTHING:
            return self._value
        call = self._call
        if call.answer is not None:
            value = self._value = payload.load(call.answer.body)
            return value
        if call.error is not None and not call.streams:
            raise rebuild(call.error)
        raise InvalidTypeError(f"endpoint {call.endpoint!r} answers with a stream: read it by `for` or `async for` over the reply")

    def _next_chunk(self) -> Any:
        assert self._call.chunks is not None
        body = self._call.chunks.popleft()
        call = self._call
        call.owed_bytes += len(body)
        if call.owed_bytes >= wire.STREAM_CREDIT // 4 and not call.over:
            call.connection.credit(call, call.owed_bytes)
            call.owed_bytes = 0
        return payload.load(body)

    def _check_end(self) -> None:
        call = self._call
        if call.error is not None:
            raise rebuild(call.error)
        if call.answer is not None:
            raise InvalidTypeError(f"endpoint {call.endpoint!r} answers in one piece, not with a stream: take it by result() or await")

    def __repr__(self) -> str:
        call = self._call
        state = "waiting" if not call.over else "failed" if call.error is not None else "answered"
        return f"<Reply of endpoint {call.endpoint!r}, {state}>"


@overload
def get(reply_or_replies: Reply, timeout_s: float | None = None) -> Any: ...


@overload
def get(reply_or_replies: Iterable[Reply], timeout_s: float | None = None) -> list[Any]: ...


def get(reply_or_replies: object, timeout_s: float | None = None) -> Any:
    """Wait for one reply and return its answer, or for many and return the list of their answers, in order.

    Args:
        reply_or_replies: what `handle.remote` returned, or several of them.
        timeout_s: seconds to wait at most, for all of them together; then `ReplyTimeoutError` (a `TimeoutError`) is
            raised, and the calls run on.

    Raises what `Reply.result` raises; of many, the first in their order that failed. `InvalidTypeError` (a `TypeError`) for
    anything that isn't a reply.
    """
    if isinstance(reply_or_replies, Reply):
        return reply_or_replies.result(timeout_s)
    if not isinstance(reply_or_replies, Iterable):
        kind = type(reply_or_replies).__name__
        raise InvalidTypeError(f"serve.get waits for a reply or several of them, got {kind}: {reply_or_replies!r}")
    replies = list(reply_or_replies)
    for reply in replies:
        if not isinstance(reply, Reply):
            raise InvalidTypeError(f"serve.get waits for replies, got {type(reply).__name__}: {reply!r}")
    _check_timeout(timeout_s)
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    return [reply.result(None if timeout_s is None else max(until - time.monotonic(), 0.0)) for reply in replies]


def _check_names(names: tuple[str, ...]) -> None:
    """Raise `EncodeError` for names of arguments that can't travel beside the body."""
    text = "".join(names)
    if len(text) > _MOST_NAMES_CHARACTERS:
        raise EncodeError(f"{len(names)} arguments with such long names can't be sent; put them into one dict")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"the name of an argument can't be sent as UTF-8: {error}; put it into a dict") from None


_NOTHING: Final = object()


class PyCall(Call):
    """A call from Python. Its end is set on the connection's loop, or while that is borrowed, and read anywhere.

    Whoever waits adds a function to `waiters`, looks once more whether something has come or `waiters` was swapped, and
    then sleeps; whoever sets something sets it first, then swaps `waiters` and calls them. So nobody sleeps through it.
    """

    __slots__ = ("answer", "chunks", "connection", "error", "lent", "over", "owed_bytes", "siblings", "streams", "waiters")

    def __init__(self) -> None:
        self.over = False
        self.answer: wire.Answer | None = None
        self.error: ErrorInfo | None = None
        self.streams = False
        self.owed_bytes = 0  # of a stream: read, and not yet credited
        self.chunks: deque[bytes | bytearray] | None = None  # of a stream
        self.waiters: list[Callable[[], object]] = []
        self.connection: Connection
        self.siblings: set[Asked] | None = None  # where the call that is answered keeps it, if there is one, until this is over
        self.lent: list[Any] | None = None  # references among the arguments, kept until this is over

    # On the loop, while it is borrowed, or on any thread once it has ended.

    def answered(self, answer: wire.Answer) -> None:
        self.answer = answer
        self.over = True
        self.lent = None
        if self.siblings is not None:
            self._leave()
        waiters = self.waiters
        if waiters:
            self.waiters = []
            for waiter in waiters:
                waiter()

    def chunk(self, frame: wire.Frame) -> None:
        self.small_chunk(cast("bytes | bytearray", frame.body))

    def small_chunk(self, body: bytes | bytearray) -> None:
        self.streams = True
        if self.chunks is None:
            self.chunks = deque()
        self.chunks.append(body)
        self._wake()

    def ended(self) -> None:
        self.streams = True
        self.over = True
        self._leave()
        self._wake()

    def failed(self, error: ErrorInfo) -> None:
        if self.over:
            return
        self.error = error
        self.over = True
        self._leave()
        self._wake()

    def _leave(self) -> None:
        self.lent = None
        siblings, self.siblings = self.siblings, None
        if siblings is not None:
            siblings.discard(self)

    def _wake(self) -> None:
        waiters = self.waiters
        if waiters:
            self.waiters = []
            for waiter in waiters:
                waiter()

    # Any thread.

    def cancel(self) -> None:
        """Give it up, unless it has ended."""
        if not self.over:
            self.connection.cancel(self)

    # In the thread that waits.

    def ready(self) -> bool:
        """Whether a chunk or the end has come."""
        return self.over or bool(self.chunks)

    def wait(self, timeout_s: float | None) -> None:
        """Block until a chunk or the end has come. Raises `ReplyTimeoutError`."""
        _check_timeout(timeout_s)
        self.connection.forbid_waiting()
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        read_for = self.connection.read_for
        while not self.ready():
            if read_for(self.ready, self.add_waiter, until) and (self.ready() or time.monotonic() < until):
                continue
            lock = _thread.allocate_lock()
            lock.acquire()
            if not self.add_waiter(lock.release):
                continue
            left = -1.0 if until == math.inf else min(max(until - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
            if not lock.acquire(True, left):
                raise ReplyTimeoutError(f"endpoint {self.endpoint!r}: no answer within {timeout_s:g} s; the call runs on")

    def add_waiter(self, waiter: Callable[[], object]) -> bool:
        """False where something has come in the meantime: look again instead of sleeping."""
        waiters = self.waiters
        waiters.append(waiter)
        return not (self.over or self.chunks) and self.waiters is waiters


class _Wait:
    """What a task waits for: that something has come for a call.

    It is as much of a future as tasks ask for. A real one would have the task go on in the next turn of the loop only, and cost
    more than all else on the way of an answer.
    """

    __slots__ = ("_asyncio_future_blocking", "_call", "_cancelled", "_context", "_go_on", "_message", "bell")
    _context: Context
    _message: object

    def __init__(self, call: PyCall) -> None:
        if call.connection.forked:
            call.connection.forbid_waiting()
        loop = asyncio.get_running_loop()
        bell = getattr(_of_thread, "bell", None)
        if bell is None or bell.loop is not loop:
            bell = _of_thread.bell = _Bell(loop)
        self.bell: _Bell = bell
        self._call = call
        self._go_on: Callable[[_Wait], object] | None = None  # the task's
        self._cancelled = False
        self._asyncio_future_blocking = True

    def __call__(self) -> None:
        """Something has come, as any thread says."""
        bell = self.bell
        bell.ready.append(self)
        if not bell.rung:
            bell.ring()

    # What tasks ask of a future.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Where it is awaited."""
        return self.bell.loop

    def add_done_callback(self, callback: Callable[[_Wait], object], *, context: Context) -> None:
        """Call this once, when something has come or the task is cancelled."""
        self._context = context
        self._go_on = callback

    def cancel(self, msg: object = None) -> bool:
        """The task is cancelled, and with it, as with any future, what it waits for. False where it goes on already."""
        if self._go_on is None or self._cancelled:
            return False
        self._cancelled = True
        self._message = msg
        self.bell.loop.call_soon(self.go_on)
        self._call.cancel()
        return True

    def result(self) -> None:
        """What the task asks when it goes on."""
        if self._cancelled:
            self._cancelled = False
            raise asyncio.CancelledError(*([] if self._message is None else [self._message]))

    def go_on(self) -> None:
        """Have the task go on, at once; on its loop. Nothing happens where it has gone on."""
        callback = self._go_on
        if callback is not None:
            self._go_on = None
            self._context.run(callback, self)


@types.coroutine
def _something_of(call: PyCall) -> Generator[_Wait, None, None]:
    """Wait for a chunk or the end."""
    while not (call.over or call.chunks):
        wait = _Wait(call)
        if call.add_waiter(wait):
            yield wait


class _Bell:
    """Wakes one event loop once for many answers."""

    __slots__ = ("loop", "ready", "rung")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ready: deque[_Wait] = deque()
        self.rung = False

    def ring(self) -> None:
        """Look at `ready` on the loop; from any thread."""
        self.rung = True  # as in `Connection._post`
        try:
            self.loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # that loop was closed: nobody waits on it any more
            self.ready.clear()

    def _answer(self) -> None:
        self.rung = False
        ready = self.ready
        try:
            for _ in range(len(ready)):
                ready.popleft().go_on()
        except BaseException:  # a task ends the loop by KeyboardInterrupt or SystemExit; the others go on when it runs again
            if ready:
                self.ring()
            raise


_of_thread = threading.local()


def _check_timeout(timeout_s: object) -> None:
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise InvalidTypeError(f"timeout_s must be a number of seconds, got {type(timeout_s).__name__}: {timeout_s!r}")
    if not timeout_s >= 0:
        raise InvalidValueError(f"timeout_s must be at least 0, got {timeout_s!r}")
