"""How is one client connection read and written? HTTP/1.1 on httptools, from bytes to calls and back.

Every request of a connection takes a place in one queue, refused ones too, and answers leave in that order. At most
`Limits.pipelined` of them are under way; what else was read waits here, and reading with it. The parser is fed in small
slices, because it can't be paused: what lies behind stays raw.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

import httptools
import msgspec

from headgate.core.reports import SHUTTING_DOWN, TOO_MANY_BYTES
from headgate.errors import describe
from headgate.ingress import changes
from headgate.ingress.body import BodyPieces
from headgate.ingress.changes import Change
from headgate.ingress.exchange import CLOSE, KEEP_ALIVE, Exchange
from headgate.ingress.heads import (
    NOT_FOUND,
    PLAIN,
    SPECIAL,
    InputRefused,
    check_coding,
    expects_continue,
    not_listed,
    origin_form,
    own_id,
    read_controls,
)
from headgate.ingress.memory import PATIENCE, KnownHead
from headgate.ingress.problems import Refusal
from headgate.ingress.routes import Target
from headgate.ingress.service import Service

_log = logging.getLogger("headgate.ingress")

SLICE_BYTES: Final = 4096
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_ESTABLISHED: Final = 1  # the first byte of TCP_INFO
_encode: Final = msgspec.msgpack.Encoder().encode
_BIN_8: Final = [b"\xc4%c" % size for size in range(256)]  # what stands before so many bytes in msgpack


class Connection(asyncio.Protocol):
    """One client. Callbacks of the transport and of the parser; `slots` are requests under way, in order."""

    __slots__ = (
        "_at_start",
        "_backlog",
        "_client",
        "_client_packed",
        "_continue_due",
        "_current",
        "_deaf",
        "_feed_data",
        "_going_on",
        "_head",
        "_headers",
        "_known",
        "_linger",
        "_mark",
        "_marked_at",
        "_messages",
        "_parser",
        "_patience",
        "_paused",
        "_pieces",
        "_quiet_bytes",
        "_special",
        "_unknown",
        "_unsent_bytes",
        "_upgraded",
        "_url",
        "_waiting",
        "gathered",
        "service",
        "slots",
        "transport",
        "writable",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.slots: deque[Exchange] = deque()
        self.writable = True
        self.gathered: list[bytes | bytearray] = []  # what leaves at the end of this turn of the loop
        self._waiting: deque[Exchange] = deque()  # parsed, and no slot is free yet
        self._backlog = b""  # read, and not parsed yet
        self._paused = False  # reading
        self._deaf = False  # what still arrives is dropped
        self._linger = False  # the client may be sending: let it read the last answer before the connection is cut
        self._going_on = False
        self._continue_due = False
        self._unsent_bytes = 0
        self._messages = 0
        self._mark: tuple[str, int] = ("", 0)
        self._marked_at = 0.0
        self._current: Exchange | None = None  # its body is being read
        self._upgraded: Exchange | None = None
        self._quiet_bytes = 0  # parsed since the last head or piece of a body was complete
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._special: list[tuple[bytes, bytes]] = []
        self._pieces: BodyPieces | None = None
        self._at_start = True  # the parser stands before the first byte of a request
        self._known = service.memory.known
        self._patience = PATIENCE
        self._head = b"?"  # the last that was looked for
        self._unknown = b""  # the head that is being parsed, where it may be remembered

    def __repr__(self) -> str:
        return f"<Connection of {self._client}: {len(self.slots)} under way, {len(self._waiting)} waiting>"

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self.transport = cast(asyncio.Transport, transport)  # not asserted: uvloop's has no such base
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) and peer else ""
        self._client_packed = _encode(self._client)
        self._use_parser(httptools.HttpRequestParser(self))
        self._marked_at = self.service.loop.time()
        if not self.service.opened(self):
            self._deaf = True
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse, unless what came before has to wait. A whole request whose head is known needs no parser."""
        if self._deaf:
            return
        if self._at_start and self._patience and not self._paused and not self._quiet_bytes:
            head, key = self._head, b""
            if data.startswith(head):  # most likely the same again
                known = self._known.get(head)
            else:
                known, key, head = self.service.memory.find(data)
                if head and not key:
                    self._head = head
            if known is None:
                self._patience -= 1
                if head and data[0] > 32:  # with no empty lines before it, which the parser skips
                    self._unknown = head
            elif len(data) == len(head) + known.length and self._take(known, key, data[len(head) :]):
                return
        if self._paused or self._quiet_bytes or len(data) > SLICE_BYTES:
            self._feed_backlog(data)
            return
        self._quiet_bytes = len(data)
        self._feed(data)

    def eof_received(self) -> None:
        """The client has closed its side, so it counts as gone."""
        self._drop()

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone: nothing of it runs on."""
        self._drop()
        self.service.admission.held_bytes -= self._unsent_bytes
        self._unsent_bytes = 0
        del self._parser, self._feed_data  # they hold our methods
        self.service.closed(self)

    def pause_writing(self) -> None:
        """The client takes answers slower than they come."""
        self.writable = False
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self.service.admission.held_bytes += self._unsent_bytes

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.writable = True
        self.service.admission.held_bytes -= self._unsent_bytes
        self._unsent_bytes = 0
        self._flush()

    def _take(self, known: KnownHead, key: bytes, body: bytes) -> bool:
        """Begin what the parser would make of a head that is known, and its body. False: leave it to the parser."""
        service, slots = self.service, self.slots
        if key:
            http = b"".join((known.http, _BIN_8[len(key)], key, known.http_rest, self._client_packed))
        else:
            http = known.http + self._client_packed
        admission, held_bytes = service.admission, len(http) + known.length
        if admission.held_bytes + held_bytes > admission.limit_bytes or self._waiting or len(slots) >= service.limits.pipelined:
            return False
        if self._patience < PATIENCE:
            self._patience += 1
        self._messages += 1
        admission.held_bytes += held_bytes
        exchange = service.exchange(self, known, service.next_id())
        exchange.http = http
        exchange.body = body
        exchange.body_bytes = known.length
        exchange.held_bytes = held_bytes
        exchange.admitted_at = monotonic()
        if key:
            exchange.shard_key = key.decode()
        slots.append(exchange)
        try:  # what `_begin` does, without the call
            service.router.submit(exchange)
        except Exception as error:  # noqa: BLE001  # as there
            self._failed(exchange, error)
        return True

    def _remember(self, exchange: Exchange) -> None:
        """Keep what came of a head, where the same must come of the same bytes."""
        head, self._unknown = self._unknown, b""
        plain = exchange.instead is None and not exchange.last and not exchange.http10 and all(name in PLAIN for name, _ in self._special)
        if not plain or head.count(b"\n") != len(self._headers) + 2:  # so it ends where the parser's head has ended
            return
        client = self._client_packed
        known = KnownHead.of(exchange, exchange.http[: -len(client)])
        if exchange.shard_key is None:
            self.service.memory.add(head, known)
        else:
            self.service.memory.add_keyed(head, known, client)

    # The parser.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._at_start = False

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer: those come after the head was made use of, and change nothing."""
        name = name.lower()
        pair = (name, value.rstrip(b" \t"))
        self._headers.append(pair)
        if name in SPECIAL:
            self._special.append(pair)

    def on_headers_complete(self) -> None:
        """Check the head, and make its exchange. What ends the connection is raised as `InputRefused`."""
        service, parser = self.service, self._parser
        self._quiet_bytes = 0
        exchange = self._current = service.exchange(self)
        keep_alive = parser.should_keep_alive()
        method, url, headers = parser.get_method(), self._url, self._headers
        version, hosts, unusual = "1.1", 0, not keep_alive
        for name, value in self._special:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                exchange.length = int(value)
            elif name == b"x-request-id":
                exchange.request_id = own_id(value) if not exchange.request_id else service.next_id()
            else:
                unusual = True
        if not exchange.request_id:
            exchange.request_id = service.next_id()
        if unusual:  # without a Connection header, only 1.1 is kept alive
            version = parser.get_http_version()
            if version == "1.0":
                exchange.http10 = True
            elif version != "1.1":
                raise InputRefused(Refusal(505, f"HTTP/{version} is not spoken here; send HTTP/1.1"))
            exchange.last = not keep_alive
            exchange.framing = CLOSE if exchange.last else KEEP_ALIVE if exchange.http10 else b""
        if hosts != 1 and (hosts > 1 or not exchange.http10):
            raise InputRefused(Refusal(400, f"exactly one Host header is needed, got {hosts}"))
        if len(headers) > service.limits.headers:
            raise InputRefused(Refusal(431, f"{len(headers)} headers are over the limit of {service.limits.headers}"))
        if method == b"CONNECT":
            raise InputRefused(Refusal(405, "CONNECT is not offered here: this is no proxy", b"allow: GET, HEAD, POST, OPTIONS\r\n"))
        if exchange.length > service.max_body_bytes:
            raise InputRefused(self._too_large())
        if not url.startswith(b"/"):
            url, headers = origin_form(url, headers)
        target = service.routes.find(url.partition(b"?")[0] if b"?" in url else url)
        if service.closing is not None and (target is None or not target.page):
            exchange.instead = service.closing
        elif target is None:
            exchange.instead = NOT_FOUND
        elif method not in target.methods:
            exchange.instead = not_listed(method, target.allow)
        elif target.page:
            exchange.instead = self._page(target, headers, exchange.length)
        else:
            exchange.endpoint = target.endpoint
        if method == b"HEAD":
            exchange.bare = True
        if unusual:
            self._on_unusual_head(exchange, version)
        if exchange.instead is None:
            # What `HttpHead` is on the wire; a tuple is made sooner than the record.
            exchange.http = http = _encode((method.decode(), url, version, headers, service.scheme, service.server, self._client))
            size = exchange.held_bytes = len(http)
            service.admission.held_bytes += size
        elif service.noted:
            exchange.http = _encode((method.decode(), url, version, headers, service.scheme, service.server, self._client))
        if self._unknown:
            self._remember(exchange)

    def on_body(self, piece: bytes) -> None:
        """A piece of a body. Small ones are put together, large ones kept apart, so that they aren't copied."""
        exchange = self._current
        assert exchange is not None
        self._quiet_bytes = 0
        count = len(piece)
        size = exchange.body_bytes = exchange.body_bytes + count
        if size > self.service.max_body_bytes:
            raise InputRefused(self._too_large())
        if exchange.instead is not None:
            if not isinstance(exchange.instead, Change):
                return
            if size > changes.MOST_BYTES:
                raise InputRefused(changes.TOO_LARGE)
        admission = self.service.admission
        admission.held_bytes += count
        exchange.held_bytes += count
        if admission.held_bytes > admission.limit_bytes:
            self._refuse_for_bytes(exchange)
        elif size == count:
            exchange.body = piece
        elif self._pieces is not None:
            self._pieces.add(piece)
        else:
            self._pieces = BodyPieces(cast(bytes, exchange.body))
            self._pieces.add(piece)

    def on_message_complete(self) -> None:
        """A whole request has arrived."""
        exchange = self._current
        if exchange is None:  # an upgrade that is ignored: its body is still to come
            return
        self._current = None
        self._at_start = True
        self._quiet_bytes = 0
        self._messages += 1
        self._url = b""
        self._headers = []
        self._special = []
        if self._pieces is not None:
            exchange.body, self._pieces = self._pieces.whole(), None
        if exchange.last:
            self._deaf = True
        exchange.admitted_at = monotonic()
        slots = self.slots
        if self._waiting or len(slots) >= self.service.limits.pipelined:
            self._waiting.append(exchange)
            self._pause_or_resume()
        else:
            slots.append(exchange)
            self._begin(exchange)

    # Answers.

    def flush_for(self, exchange: Exchange) -> None:
        """Write what this exchange has, if it is its turn."""
        if self.slots[0] is exchange:
            self._flush()

    def answer(self, exchange: Exchange, parts: list[bytes | bytearray]) -> None:
        """Take the whole answer of an exchange; it leaves now, with others of this turn, or in its turn."""
        if self.slots[0] is not exchange or not self.writable:
            exchange.keep(parts)
            return
        if len(self.slots) == 1 and not self.gathered:
            self.transport.writelines(parts)
        else:
            self._gather(parts)
        self.over()

    def over(self) -> None:
        """The head of the queue has been answered whole."""
        exchange = self.slots.popleft()
        self.service.admission.held_bytes -= exchange.held_bytes
        if exchange.last:
            self._hang_up(exchange)
        elif self.slots:
            self._flush()
        elif self._waiting or self._continue_due:
            self._settle()

    def finish(self) -> None:
        """Take no more requests; close when the last answer has been written."""
        if self._deaf:
            if not self.slots and not self._waiting:
                self.transport.close()
            return
        if self._current is not None or self._quiet_bytes or self._url:
            self._refuse_input(self.service.closing or Refusal(503, "the instance is shutting down", reason=SHUTTING_DOWN))
            return
        self._stop_reading_requests()
        last = self._waiting[-1] if self._waiting else self.slots[-1] if self.slots else None
        if last is None:
            self._send()
            self.transport.close()
        else:
            last.last = True
            last.framing = CLOSE

    def abort(self) -> None:
        """Cut the connection, so that the client can tell it from an end."""
        self._drop()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def check(self, now: float) -> None:
        """Called once a second: end what has been in the same state for too long."""
        if self._paused and self._client_is_gone():
            self.abort()
            return
        state, count, limit_s = self._state()
        if (state, count) != self._mark:
            self._mark, self._marked_at = (state, count), now
        elif now - self._marked_at >= limit_s:
            if state in ("idle", "lingering"):
                self._drop()
                self.transport.close()
            elif state in ("head", "body"):
                self._refuse_input(Refusal(408, f"the request's {state} took longer than {limit_s:g} s"))
            else:
                self.abort()

    def _client_is_gone(self) -> bool:
        """Ask the kernel: the loop doesn't tell while reading is paused."""
        sock = self.transport.get_extra_info("socket")
        return sock is not None and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED

    def _state(self) -> tuple[str, int, float]:
        """What is waited for, a number that changes with progress, and how long that may last."""
        limits = self.service.limits
        unsent = self.transport.get_write_buffer_size()
        if not self.writable or (unsent and self._deaf and not self.slots):
            return "sending", unsent, limits.send_s
        if self._deaf and not self.slots:
            return "lingering", 0, limits.linger_s
        if self._deaf or self._paused:
            return "answering", self._messages, float("inf")
        if self._current is not None:
            return "body", self._messages, limits.body_s + self._current.body_bytes / limits.body_bytes_per_s
        if self._quiet_bytes or self._url:
            return "head", self._messages, limits.head_s
        if self.slots:
            return "answering", self._messages, float("inf")
        return "idle", self._messages, limits.idle_s

    # Reading.

    def _use_parser(self, parser: httptools.HttpRequestParser) -> None:
        self._parser = parser
        self._feed_data: Callable[[bytes | memoryview], None] = parser.feed_data

    def _feed(self, data: bytes | memoryview) -> None:
        """Have the parser read on. It goes no further for good, or because of an upgrade, behind which another one does."""
        upgraded = False
        while True:
            try:
                if upgraded:
                    self._ignore_upgrade()
                    if self._deaf or not data:
                        return
                self._feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:  # ends here, since what is raised while it is handled loses its own cause
                data, upgraded = data[upgrade.args[0] :], True
            except httptools.HttpParserError as error:
                if not self._deaf:  # else it is about what follows the last request
                    self._refuse_input(_refusal_of(error))
                return

    def _feed_backlog(self, more: bytes = b"") -> None:
        limits, admission = self.service.limits, self.service.admission
        backlog, self._backlog = self._backlog + more, b""
        admission.held_bytes -= len(backlog) - len(more)
        view, offset = memoryview(backlog), 0
        while offset < len(backlog) and not self._waiting and not self._deaf:
            room = limits.head_bytes - self._quiet_bytes
            if room <= 0:
                what = "trailers, or a chunk's extension," if self._current is not None else "the request line and headers"
                self._refuse_input(Refusal(431, f"{what} took more than {limits.head_bytes} bytes"))
                break
            size = min(SLICE_BYTES, room)
            if self._current is not None and self._current.length:
                size = max(size, self._current.length - self._current.body_bytes)
            part = view[offset : offset + size]
            self._quiet_bytes += len(part)
            offset += len(part)
            self._feed(part)
        if not self._deaf:
            self._backlog = backlog[offset:]
            admission.held_bytes += len(self._backlog)
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        pause = bool(self._waiting or self._backlog) and not self._deaf
        if pause != self._paused and not self.transport.is_closing():
            self._paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _begin(self, exchange: Exchange) -> None:
        instead, service = exchange.instead, self.service
        if instead is None:
            try:
                service.router.submit(exchange)
            except Exception as error:  # noqa: BLE001  # the ingress's root: the client gets an answer whatever failed
                self._failed(exchange, error)
        elif isinstance(instead, Target):
            service.show(instead.page, exchange)
        elif isinstance(instead, Change):
            service.changes.begin(instead, exchange)
        else:
            if isinstance(instead, Refusal):
                service.count_refusal(instead.status, instead.reason)
            exchange.reply(instead)

    def _failed(self, exchange: Exchange, error: Exception) -> None:
        _log.error("the router failed on request %s", exchange.request_id, exc_info=error)
        exchange.failed(describe(error))

    def _go_on(self) -> None:
        self._going_on = False
        self._send()  # so that no more is gathered than one turn's answers
        waiting, slots = self._waiting, self.slots
        while waiting and len(slots) < self.service.limits.pipelined:
            exchange = waiting.popleft()
            slots.append(exchange)
            self._begin(exchange)
        if not waiting:
            self._feed_backlog()

    # The unusual.

    def _page(self, target: Target, headers: list[tuple[bytes, bytes]], length: int) -> Target | Change | Refusal:
        if target.page not in changes.PAGES:
            return target
        found = self.service.changes.admit(target.page, headers, self._client)
        if length > changes.MOST_BYTES and isinstance(found, Change):
            raise InputRefused(changes.TOO_LARGE)
        return found

    def _on_unusual_head(self, exchange: Exchange, version: str) -> None:
        special = self._special
        chunked = check_coding(special, http10=exchange.http10)
        exchange.instead = exchange.instead or read_controls(exchange, special)
        if version == "1.1" and expects_continue(special) and (chunked or exchange.length):
            admission = self.service.admission
            if exchange.instead is None and admission.held_bytes + exchange.length > admission.limit_bytes:
                exchange.instead = self._too_many_bytes(exchange.length)
            if isinstance(exchange.instead, Refusal):  # say so before the body is sent
                raise InputRefused(exchange.instead)
            self._continue_due = True
            self._settle()
        if self._parser.should_upgrade():
            self._upgraded, self._current = exchange, None

    def _ignore_upgrade(self) -> None:
        """Read on as if no upgrade had been asked for: httptools takes its head for the end of HTTP on the connection."""
        self._current, self._upgraded = self._upgraded, None
        exchange = self._current
        assert exchange is not None
        kept = b"".join(b"%b: %b\r\n" % pair for pair in self._special if pair[0] in (b"content-length", b"transfer-encoding"))
        self._use_parser(httptools.HttpRequestParser(_AfterUpgrade(self)))
        self._feed_data(b"POST / HTTP/1.1\r\n" + kept + (CLOSE if exchange.last else b"") + b"\r\n")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is over the limit of {self.service.max_body_bytes} bytes")

    def _too_many_bytes(self, more_bytes: int) -> Refusal:
        service = self.service
        retry_after_s = service.admission.wait_estimate_s(more_bytes, *service.router.served(), service.loop.time())
        why = "too many bytes are held already (max_inflight_bytes); try again"
        return Refusal(503, why, reason=TOO_MANY_BYTES, retry_after_s=retry_after_s)

    def _refuse_for_bytes(self, exchange: Exchange) -> None:
        exchange.instead = self._too_many_bytes(0)  # they are counted already
        self.service.admission.held_bytes -= exchange.held_bytes
        exchange.held_bytes = 0
        exchange.body = b""
        self._pieces = None

    def _refuse_input(self, refusal: Refusal) -> None:
        """Answer, in turn, what can't be read on from, and close the connection after it."""
        exchange = self._current or self._upgraded
        if exchange is None:
            exchange = self.service.exchange(self)
            exchange.request_id = next((own_id(value) for name, value in self._special if name == b"x-request-id"), "")
        exchange.request_id = exchange.request_id or self.service.next_id()
        self._current = self._upgraded = None
        exchange.instead, exchange.last, exchange.framing = refusal, True, CLOSE
        self.service.admission.held_bytes -= exchange.held_bytes
        exchange.held_bytes = 0
        exchange.body = b""
        self._linger = True
        self._stop_reading_requests()
        if self._waiting or len(self.slots) >= self.service.limits.pipelined:
            self._waiting.append(exchange)
        else:
            self.slots.append(exchange)
            self._begin(exchange)

    def _stop_reading_requests(self) -> None:
        self._deaf = True
        self._continue_due = False
        self._url = b""
        self._headers, self._special, self._pieces = [], [], None
        self._quiet_bytes = 0
        self.service.admission.held_bytes -= len(self._backlog)
        self._backlog = b""
        self._pause_or_resume()

    # The end of things.

    def _flush(self) -> None:
        """Gather what is ready at the head of the queue."""
        slots, admission = self.slots, self.service.admission
        while slots and self.writable:
            exchange = slots[0]
            if exchange.out:
                self._gather(exchange.out)
                exchange.out = []
                admission.held_bytes -= exchange.out_bytes
                exchange.held_bytes -= exchange.out_bytes
                exchange.out_bytes = 0
            if not exchange.complete:
                if not self.gathered:
                    exchange.give_credit()
                break
            slots.popleft()
            admission.held_bytes -= exchange.held_bytes
            if exchange.last:
                self._hang_up(exchange)
                return
        self._settle()

    def _gather(self, parts: list[bytes | bytearray]) -> None:
        """Answers of one turn of the loop leave together: each write is a call of the system."""
        if not self.gathered:
            self.service.loop.call_soon(self._send)
        self.gathered += parts

    def _send(self) -> None:
        if self.gathered:
            parts, self.gathered = self.gathered, []
            self.transport.writelines(parts)
            if self.slots and self.writable:
                self.slots[0].give_credit()

    def _settle(self) -> None:
        """After an answer has left: others may begin, and a client may be told to send its body."""
        if self._waiting and not self._going_on:
            self._going_on = True
            self.service.loop.call_soon(self._go_on)
        if self._continue_due and not self.slots and not self._waiting:
            self._continue_due = False
            current = self._current or self._upgraded
            if current is not None and not current.body_bytes:  # else the client has not waited for it
                self._gather([b"HTTP/1.1 100 Continue\r\n\r\n"])

    def _hang_up(self, last: Exchange) -> None:
        self._send()
        if last.broken and last.http10:
            self.abort()  # nothing else would tell that the answer isn't whole
            return
        linger = self._linger
        self._drop()
        if not linger:
            self.transport.close()
        elif self.transport.can_write_eof():
            self.transport.write_eof()

    def _drop(self) -> None:
        """Nobody waits for anything of this connection any more."""
        self._stop_reading_requests()
        self.gathered = []
        router, held = self.service.router, 0
        for exchange in (*self.slots, *self._waiting, self._current or self._upgraded):
            held += exchange.held_bytes if exchange is not None else 0
        given = [e for e in self.slots if not e.complete and e.instead is None]
        self.service.admission.held_bytes -= held
        for exchange in self.slots:
            if not exchange.complete:
                exchange.left()
            exchange.complete = True
        self.slots.clear()
        self._waiting.clear()
        self._current = self._upgraded = None
        for exchange in given:
            router.cancel(exchange)


class _AfterUpgrade:
    """What a parser calls that reads on behind an ignored upgrade: the first head is known already."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known = True
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        if not self._known:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._known:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._known:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._known:
            self._known = False
        else:
            self._connection.on_headers_complete()


def _refusal_of(error: httptools.HttpParserError) -> Refusal:
    cause = error.__context__
    if isinstance(cause, InputRefused):
        return cause.refusal
    if isinstance(error, httptools.HttpParserCallbackError):
        _log.error("a request could not be read", exc_info=cause)
        return Refusal(500, "internal error; see the log")
    return Refusal(400, f"not HTTP/1.1: {error}")
