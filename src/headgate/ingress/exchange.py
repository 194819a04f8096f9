"""How does one request's answer reach the client, in its turn?

An `Exchange` is a slot in its connection's queue of answers. The head of the queue writes; the others keep what they have
until it is their turn. What is kept is counted as held.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from headgate.core import wire
from headgate.errors import ErrorInfo
from headgate.ingress.changes import Change
from headgate.ingress.memory import KnownHead
from headgate.ingress.problems import Refusal, Reply, from_error
from headgate.ingress.routes import Target
from headgate.router.call import Call

if TYPE_CHECKING:
    from headgate.ingress.http1 import Connection

_JOIN_BYTES: Final = 32 * 1024  # bodies up to this are copied behind their head: one write
_SMALL_BYTES: Final = 4096
_CREDIT_BYTES: Final = wire.STREAM_CREDIT // 4
_UNKNOWN: Final = KnownHead()
_BODYLESS: Final = frozenset((204, 304))
CLOSE: Final = b"connection: close\r\n"
KEEP_ALIVE: Final = b"connection: keep-alive\r\n"


class _LengthLines(dict[int, bytes]):
    """Size of a body -> the end of its head; small ones are kept, and others while there is room."""

    def __missing__(self, size: int) -> bytes:
        line = b"\r\ncontent-length: %d\r\n\r\n" % size
        if size < _SMALL_BYTES or len(self) < 2 * _SMALL_BYTES:
            self[size] = line
        return line


_LENGTH_LINES: Final = _LengthLines()


class Exchange(Call):
    """One request of a connection and its answer. Made at the end of the request's head, from what is known of it then."""

    __slots__ = (
        "bare",
        "broken",
        "complete",
        "connection",
        "framing",
        "held_bytes",
        "http10",
        "instead",
        "last",
        "length",
        "out",
        "out_bytes",
        "owed_bytes",
    )

    def __init__(self, connection: Connection, known: KnownHead = _UNKNOWN, request_id: str = "") -> None:
        self.connection = connection
        self.request_id = request_id
        self.endpoint = known.endpoint
        self.shard_key = None
        self.method = known.method
        self.caller_timeout_s = known.caller_timeout_s
        self.positional = known.timed
        self.keywords = ()
        self.body = b""
        self.body_bytes = 0
        self.held_bytes = 0
        self.length = known.length  # content-length, where given
        self.instead: Refusal | Reply | Target | Change | None = None  # the ingress itself answers with this
        self.bare = known.bare  # HEAD: the head of the answer alone
        self.http10 = False
        self.framing = b""  # the `connection` header, where one is due
        self.last = False  # the connection ends with it
        self.out: list[bytes | bytearray] = []  # what could not be written yet …
        self.out_bytes = 0  # … and how much of `held_bytes` that is
        self.owed_bytes = 0  # of a stream: taken by the connection, not yet credited
        self.started_stream = False
        self.broken = False  # its stream broke off
        self.complete = False  # nothing will be added to `out`; also where nobody waits any more

    # From the router.

    def answered(self, answer: wire.Answer) -> None:
        """The answer, in one piece."""
        body = answer.body
        connection = self.connection
        self.complete = True
        if answer.code != 200 or self.bare or self.positional or len(body) > _JOIN_BYTES:
            connection.answer(self, self._parts(answer.code, answer.meta, body))
            return
        data = b"".join(
            (
                connection.service.ok_line,
                self.framing,
                answer.meta,
                b"x-request-id: ",
                self.request_id.encode(),
                _LENGTH_LINES[len(body)],
                body,
            )
        )
        if len(connection.slots) == 1 and connection.writable and not connection.gathered:  # what `answer` does, without the call
            connection.transport.write(data)
            connection.over()
        else:
            connection.answer(self, [data])

    def chunk(self, frame: wire.Frame) -> None:
        """A piece of a streamed answer; the first also brings its head."""
        out, body = self.out, cast("bytes | bytearray", frame.body)  # only CALLS and ANSWERS come as views
        if frame.flags & wire.FIRST:
            self.started_stream = True
            self._begin_stream(frame.code, frame.meta)
        if self.complete:
            return
        if body:  # an empty chunk would say that the stream is over
            if self.http10:
                out.append(body)
            else:
                out += (b"%x\r\n" % len(body), body, b"\r\n")
            self._hold(len(body))
            self.owed_bytes += len(body)
        self.connection.flush_for(self)

    def small_chunk(self, body: bytes) -> None:
        """A piece as it is to be sent; behind what leaves at the end of this turn of the loop already, where there is such."""
        if self.complete:
            return
        self.owed_bytes += len(body)
        connection = self.connection
        if connection.gathered and connection.writable and connection.slots[0] is self and not self.out:
            connection.gathered.append(body)
        else:
            self.out.append(body)
            self._hold(len(body))
            connection.flush_for(self)

    def ended(self) -> None:
        """The stream is complete."""
        if not self.complete:
            self.complete = True
            if not self.http10:
                self.out.append(b"0\r\n\r\n")
            self.connection.flush_for(self)

    def failed(self, error: ErrorInfo) -> None:
        """No answer, or no rest of a stream: then the connection is closed, so that the client can tell."""
        if self.complete:
            return
        if self.started_stream:
            self.complete = self.last = self.broken = True
            self.connection.flush_for(self)
        else:
            self.reply(from_error(error, self.request_id, debug=self.connection.service.debug))

    # From the ingress.

    def left(self) -> None:
        """Its client is gone, before it was answered."""
        if isinstance(self.instead, Change):
            self.instead.left()

    def reply(self, reply: Reply | Refusal) -> None:
        """Answer with something of the ingress's own. Nothing happens where nobody waits any more."""
        if isinstance(reply, Refusal):
            reply = reply.reply(self.request_id)
        if not self.complete:
            self.complete = True
            self.connection.answer(self, self._parts(reply.status, reply.lines, reply.body))

    def tell(self, piece: bytes, lines: bytes = b"") -> None:
        """A piece of a stream of the ingress's own; the first brings its head, with these lines. `ended` ends it."""
        self.chunk(wire.Frame(wire.CHUNK, 0 if self.started_stream else wire.FIRST, 0, 0, 200, 0, 0, lines, piece))
        self.owed_bytes = 0  # no replica waits for credit

    @property
    def caught_up(self) -> bool:
        """Whether its client takes more of a stream now; what it is told else has to be kept."""
        connection = self.connection
        return not self.complete and not self.out and connection.writable and connection.slots[0] is self

    def keep(self, parts: list[bytes | bytearray]) -> None:
        """It is not this exchange's turn, or the client takes nothing: keep what it has to say, and count it."""
        self.out += parts
        self._hold(sum(map(len, parts)))

    def give_credit(self) -> None:
        """Let the replica send as much more as the client has taken."""
        if self.owed_bytes >= _CREDIT_BYTES and not self.complete:
            owed, self.owed_bytes = self.owed_bytes, 0
            self.connection.service.router.credit(self, owed)

    def _parts(self, status: int, lines: bytes, body: bytes | bytearray) -> list[bytes | bytearray]:
        if status in _BODYLESS:
            return [self._head(status, lines, b"")]
        head = self._head(status, lines, b"content-length: %d\r\n" % len(body))
        if self.bare or not body:
            return [head]
        return [head, body]

    def _begin_stream(self, status: int, lines: bytes) -> None:
        bodyless = self.bare or status in _BODYLESS
        framing = b""
        if self.http10:
            self.last, self.framing = True, CLOSE
        elif status not in _BODYLESS:
            framing = b"transfer-encoding: chunked\r\n"
        self.out.append(self._head(status, lines, framing))
        if bodyless:
            self.complete = True
            if self.instead is None:  # else it is the ingress's own
                self.connection.service.router.enough(self, status)
            self.connection.flush_for(self)

    def _head(self, status: int, lines: bytes, framing: bytes) -> bytes:
        if self.positional and hasattr(self, "admitted_at"):  # else it was refused before all of it had come
            lines += b"server-timing: total;dur=%.3f\r\n" % (1e3 * (monotonic() - self.admitted_at))
        return b"%b%b%bx-request-id: %b\r\n%b\r\n" % (
            self.connection.service.status_lines[status],
            self.framing,
            lines,
            self.request_id.encode(),
            framing,
        )

    def _hold(self, count_bytes: int) -> None:
        self.out_bytes += count_bytes
        self.held_bytes += count_bytes
        self.connection.service.admission.held_bytes += count_bytes
