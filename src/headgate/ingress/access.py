"""What is said of each request, where that is asked for?

One entry for each that has ended, also for those that the ingress has refused by itself, and those whose client left. The loop takes
notes; they are written together, by a thread, so that a terminal or disk that takes nothing holds up no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from headgate.core import wire
from headgate.errors import CALLER_LEFT, ErrorInfo
from headgate.ingress.exchange import Exchange
from headgate.ingress.problems import Refusal, Reply
from headgate.logs.entry import Entry, HttpFacts
from headgate.traces import travel

if TYPE_CHECKING:
    from headgate.logs.capture import Speaker

WRITE_EVERY_S: Final = 0.1
CLOSE_WITHIN_S: Final = 2.0
MOST_BYTES: Final = 16 << 20
"""Of heads in notes that were not written yet; what comes beyond them is counted, and that is said."""
_NOTE_BYTES: Final = 300
_LOGGER: Final = "headgate.access"

_SECRET: Final = re.compile(r"(?<![^&?])(AWSAccessKeyId|Signature|sig|X-Goog-Signature)=[^&]*")

_head: Final = msgspec.msgpack.Decoder(tuple[str, bytes, str, msgspec.Raw, msgspec.Raw, msgspec.Raw, str])
"""A request's head as it stands on the wire: see `Connection.on_headers_complete`."""


class _Note(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request; the rest is worked out by the thread."""

    ended_at: float  # by `monotonic()`, as is …
    admitted_at: float
    http: bytes
    endpoint: str
    backend: str
    request_id: str
    trace: bytes
    status: int
    sent_bytes: int


class AccessLog:
    """Made on the running loop, which calls everything but what its thread does."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self._loop = asyncio.get_running_loop()
        self._notes: list[_Note] = []
        self._bytes = 0
        self._missing = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headgate access log")
        self._writing: asyncio.Future[None] | None = None

    def note(self, exchange: Exchange, status: int, sent_bytes: int, trace: bytes = b"") -> None:
        """A request has ended, which belongs to this trace."""
        http = getattr(exchange, "http", b"")  # none where its head could not be read
        size = len(http) + _NOTE_BYTES
        if self._bytes + size > MOST_BYTES:
            self._missing += 1
            return
        self._bytes += size
        now = monotonic()
        admitted_at = getattr(exchange, "admitted_at", now)
        backend = getattr(exchange, "backend", "")
        self._notes.append(_Note(now, admitted_at, http, exchange.endpoint, backend, exchange.request_id, trace, status, sent_bytes))
        if self._writing is None:
            self._writing = self._loop.create_future()
            self._loop.call_later(WRITE_EVERY_S, self._write)

    async def close(self) -> None:
        """Write what is left, unless that takes too long, and end the thread."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                while self._writing is not None:
                    await asyncio.shield(self._writing)
        self._thread.shutdown(wait=False)

    def _write(self) -> None:
        notes, self._notes = self._notes, []
        missing, self._missing = self._missing, 0
        self._bytes = 0
        self._loop.run_in_executor(self._thread, self._say, notes, missing).add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        done.exception()  # nobody is left to tell
        assert self._writing is not None
        self._writing.set_result(None)
        self._writing = None
        if self._notes:
            self._writing = self._loop.create_future()
            self._loop.call_later(WRITE_EVERY_S, self._write)

    # On the thread.

    def _say(self, notes: list[_Note], missing: int) -> None:
        self._speaker.say_all(self._entries(notes))
        if missing:
            text = f"{missing} requests are missing in the access log: what it is written to took too long"
            self._speaker.say(text, None, level="WARNING", logger=_LOGGER)

    def _entries(self, notes: list[_Note]) -> Iterator[Entry]:
        role, id = self._speaker.role, self._speaker.id
        clock = time.time() - monotonic()
        known: dict[bytes, tuple[str, str, str]] = {}  # who sends many requests sends few heads
        for note in notes:
            if (line := known.get(note.http)) is None:
                line = known[note.http] = _line_to_show(note.http)
            method, target, client = line
            http = HttpFacts(
                method=method,
                target=target,
                status=note.status,
                sent_bytes=note.sent_bytes,
                duration_s=int(1e6 * (note.ended_at - note.admitted_at)) / 1e6,
                client=client,
            )
            yield Entry(
                time=note.ended_at + clock,
                role=role,
                id=id,
                backend=note.backend,
                endpoint=note.endpoint,
                request_ids=(note.request_id,),
                trace_ids=(travel.trace_id(note.trace),) if note.trace else (),
                level="INFO",
                logger=_LOGGER,
                http=http,
                text=f"{http.text} {note.backend}" if note.backend else http.text,
            )


def without_secrets(query: str) -> str:
    """A query, or what ends with one, without what OpenTelemetry's conventions say holds secrets, such as signatures of URLs."""
    may = "ig=" in query or "ignature=" in query or "KeyId=" in query  # which costs a tenth of looking closely
    return _SECRET.sub(r"\1=REDACTED", query) if may else query


def _line_to_show(http: bytes) -> tuple[str, str, str]:
    method, target, client = line_of(http)
    return method, without_secrets(target.decode("utf-8", "backslashreplace")), client


def line_of(http: bytes) -> tuple[str, bytes, str]:
    """Method, target and client of a request, by its head as it stands on the wire; all empty where there is none."""
    if not http:
        return "", b"", ""
    method, target, _, _, _, _, client = _head.decode(http)
    return method, target, client


class NotedExchange(Exchange):
    """An exchange that is noted when it has ended, and its answer is on its way: nobody is to wait for what is said of it."""

    __slots__ = ("sent_bytes", "status")

    status: int
    sent_bytes: int

    def answered(self, answer: wire.Answer) -> None:
        """As `Exchange`."""
        super().answered(answer)
        self._note(answer.code, 0 if self.bare else len(answer.body))

    def chunk(self, frame: wire.Frame) -> None:
        """As `Exchange`."""
        was_over = self.complete
        if not was_over:
            if frame.flags & wire.FIRST:
                self.status, self.sent_bytes = frame.code, 0
            self.sent_bytes += len(frame.body)
        super().chunk(frame)
        if self.complete and not was_over:  # its head was all that was to be sent
            self._note(self.status, 0)

    def small_chunk(self, body: bytes) -> None:
        """As `Exchange`."""
        self.sent_bytes += int(body[: body.index(b"\r")], 16)  # it comes with its size before it
        super().small_chunk(body)

    def ended(self) -> None:
        """As `Exchange`."""
        was_over = self.complete
        super().ended()
        if not was_over:
            self._note(self.status, self.sent_bytes)

    def failed(self, error: ErrorInfo) -> None:
        """As `Exchange`; what fails before its stream has begun is noted by `reply`."""
        breaks_off = self.started_stream and not self.complete
        super().failed(error)
        if breaks_off:
            self._note(self.status, self.sent_bytes)

    def reply(self, reply: Reply | Refusal) -> None:
        """As `Exchange`."""
        if isinstance(reply, Refusal):
            reply = reply.reply(self.request_id)
        was_over = self.complete
        super().reply(reply)
        if not was_over:
            self._note(reply.status, 0 if self.bare else len(reply.body))

    def left(self) -> None:
        """As `Exchange`."""
        self._note(CALLER_LEFT, self.sent_bytes if self.started_stream else 0)

    def _note(self, status: int, sent_bytes: int) -> None:
        access = self.connection.service.access
        assert access is not None  # else it would be a plain exchange
        access.note(self, status, sent_bytes)
