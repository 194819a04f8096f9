"""How does a replica receive calls and send answers?

Routers connect; what arrives on their links is read by the thread that `reading.py` says, and handed over to the runner.
Answers are written by the threads that made them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import mmap
import os
import socket
import time
from typing import TYPE_CHECKING, cast

import msgspec

from headgate.core import wire
from headgate.errors import EncodeError, ErrorInfo, WireError
from headgate.replica.member import Member
from headgate.router import remote
from headgate.router.channel import SMALL_BYTES, Part, channel_over
from headgate.router.listening import Listening
from headgate.router.reading import Reading
from headgate.router.tls import SecureSocket, Tls
from headgate.router.way import Way

if TYPE_CHECKING:
    from headgate.replica.runner import Runner

_FIRST_BODY_BYTES = 0
_BACKLOG = 100
_MOST_LOAD = 0xFFFF  # that a frame can tell
_CHUNKS_TOGETHER_S = 0.0005  # parts of streams that are made faster than this leave together, the last of them at the runner's tick
_log = logging.getLogger("headgate.replica")
_decode_calls = msgspec.msgpack.Decoder(list[Member]).decode
_decode_call = msgspec.msgpack.Decoder(Member).decode
_encode = msgspec.msgpack.Encoder().encode
_hello_decoder = msgspec.msgpack.Decoder(wire.Hello)


class ReplicaLink:
    """One router's link. `readable` is for the thread that reads; all from `answer` to `end` may be called by any thread."""

    def __init__(
        self, links: Links, sock: socket.socket | SecureSocket, loop: asyncio.AbstractEventLoop, *, is_remote: bool = False
    ) -> None:
        self.members: dict[int, Member] = {}
        """What this router has here and was not answered yet, by number."""
        self.page: mmap.mmap | bytearray | None = bytearray(wire.PLACES)
        """What the router sees of what has started; None where it is told, over TCP."""
        self.newest_at = 0.0
        """When the youngest request for a batch handler was admitted of those that came over this link."""
        self._links = links
        self._loop = loop
        self._is_remote = is_remote
        self._decoder = wire.Decoder(_FIRST_BODY_BYTES)  # until the token has been seen
        self._welcomed = False
        self._chunks_left_at = 0.0
        self._lost = False
        self.channel = channel_over(sock, loop, self._decoder, wire.ANSWERS)

    @property
    def stream_limit_s(self) -> float | None:
        """How long after one part of a stream the next may come, as the router counts it."""
        return self._links.runner.config.request_timeout

    # The thread that reads.

    def readable(self) -> None:
        """Read what has arrived, and hand the calls over."""
        with self.channel.reading:
            if self._lost:
                return
            try:
                frames = self.channel.read()
                if frames:
                    self._receive_all(frames)
                if self._is_remote:
                    while (frames := self.channel.rest()) is not None:
                        self._receive_all(frames)
            except Exception as error:  # noqa: BLE001 - whatever it is, this link can't be read on; the thread goes on for others
                if not isinstance(error, OSError | WireError | msgspec.DecodeError | ValueError):
                    _log.exception("a link could not be read and is closed")
                self._lost = True
                self._links.reading.remove(self.channel.fd)
                self._loop.call_soon_threadsafe(self.close)

    def _receive_all(self, frames: list[wire.Frame]) -> None:
        now = time.monotonic()
        calls: list[Member] = []  # of one read: they are handed over together
        for frame in frames:
            if frame.kind == wire.CALLS and self._welcomed:
                calls += _decode_calls(frame.body)
            elif frame.kind == wire.CALL and self._welcomed:
                member = _decode_call(frame.meta)
                member.body = cast(bytes, frame.body)
                calls.append(member)
            else:
                if calls:
                    self._submit(calls, now)
                    calls = []
                self._receive(frame)
        if calls:
            self._submit(calls, now)

    def _submit(self, calls: list[Member], now: float) -> None:
        members = self.members
        for member in calls:
            member.link = self
            member.received_at = now
            members[member.number] = member
        self._links.runner.submit(calls)

    def _receive(self, frame: wire.Frame) -> None:
        if not self._welcomed:
            if frame.kind != wire.HELLO:
                raise WireError("the first frame of a link must be HELLO")
            self._greet(_hello_decoder.decode(frame.meta))
        elif frame.kind == wire.CANCEL:
            member = self.members.get(frame.number)
            if member is not None:
                member.shadow = bool(frame.flags & wire.SHADOW)
                self._links.runner.cancel(member)
        elif frame.kind == wire.CREDIT:
            member = self.members.get(frame.number)
            if member is not None and member.stream is not None:
                member.stream.add(frame.millis)
        else:
            raise WireError(f"a router must not send frames of kind {frame.kind} here")

    def _greet(self, hello: wire.Hello) -> None:
        if hello.version != wire.VERSION or hello.token != self._links.token:
            raise WireError("a link of another version, or with a wrong token")
        if self._is_remote:
            self.page = None
        else:
            descriptor = os.open(hello.page, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self.page = mmap.mmap(descriptor, wire.PLACES)
            finally:
                os.close(descriptor)
        self._welcomed = True
        self._decoder.max_body_bytes = wire.MAX_BODY_BYTES
        self._put(wire.encode(wire.WELCOME, os.getpid()))
        self.channel.flush()

    # Any thread.

    def answer(self, member: Member, code: int, meta: bytes, body: bytes | list[bytes], micros: int, now: float) -> None:
        """Answer in one piece. Raises `EncodeError` where no frame holds it; then it can still fail."""
        size = sum(map(len, body)) if isinstance(body, list) else len(body)
        if size > wire.MAX_BODY_BYTES:
            raise EncodeError(f"the answer has {size} bytes, over the limit of {wire.MAX_BODY_BYTES}; send it in parts, as a generator")
        number, members, links = member.number, self.members, self._links
        if members.pop(number, None) is None:
            return
        if member.positional and member.http:
            meta += _timing(member) + b", execution;dur=%.3f\r\n" % (micros / 1e3)
        record = (number, code, micros, len(members) if links.only is self else links.load(), meta)
        if size <= SMALL_BYTES:
            self.channel.put((*record, b"".join(body) if isinstance(body, list) else body), now)
            return
        start = _encode(record)
        start = wire.HEAD.pack(len(start), size, 0, 0, 0, 0, 0, wire.ANSWER, 0) + start
        self.channel.put([start, *body] if isinstance(body, list) else [start, body], now)

    def tell_started(self, member: Member) -> bool:
        """Over TCP: have the kernel send that this call starts. False where its router may be about to send it elsewhere: give it back."""
        if self.channel.heard_ago_s() > remote.STARTS_UNTIL_S:
            return False
        self._put(wire.encode(wire.STARTED, member.number, place=member.place))
        return self.channel.push()

    def fail(self, member: Member, error: ErrorInfo, micros: int | None) -> None:
        """End without an answer; `micros` is None where user code was not entered."""
        if self.members.pop(member.number, None) is None:
            return
        meta = _encode(error)
        if len(meta) > wire.MAX_META_BYTES:
            meta = _encode(ErrorInfo(error.kind, error.message[:10000], error.traceback[-100000:], error.reason))
        flags, micros = (0, 0) if micros is None else (wire.RAN, micros)
        load = self._links.load()
        self._put(wire.encode(wire.FAIL, member.number, flags=flags, code=error.status, micros=micros, place=load, meta=meta))

    def give_back(self, member: Member, *, dropped: bool, held_s: float = 0.0) -> None:
        """It was not started here. `dropped`: nobody wants it any more. `held_s`: for so long nothing else is given back either."""
        if self.members.pop(member.number, None) is None:
            return
        flags = wire.DROPPED if dropped else 0
        self._put(wire.encode(wire.GIVE_BACK, member.number, flags=flags, place=self._links.load(), millis=math.ceil(held_s * 1000)))

    def chunk(self, member: Member, first: bool, code: int, meta: bytes, body: bytes) -> None:
        """Send a part of a stream: at once, or with what follows where another part has just left."""
        number, stream = member.number, member.stream
        if number not in self.members:
            return
        now = time.monotonic()
        if first and member.positional and member.http:
            meta += _timing(member) + b"\r\n"
        if body and not first and len(body) <= SMALL_BYTES and (stream.coded or not member.web):
            if stream.coded:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            self.channel.put((number, wire.PART, 0, 0, b"", body), now)
        else:
            head = wire.HEAD.pack(len(meta), len(body), number, 0, 0, 0, code, wire.CHUNK, wire.FIRST if first else 0)
            self.channel.put(head + meta + body if len(body) <= SMALL_BYTES else [head + meta, body], now)
        stream.spent_bytes += len(body)
        stream.last_chunk_at = now
        if first:
            self._links.runner.look_after()
        if now - self._chunks_left_at >= _CHUNKS_TOGETHER_S:
            self._chunks_left_at = now
            self.channel.flush()

    def end(self, member: Member, code: int, micros: int) -> None:
        """The stream is complete; that leaves as an answer does."""
        if self.members.pop(member.number, None) is None:
            return
        self._put(wire.encode(wire.END, member.number, code=code, micros=micros, place=self._links.load()))

    def _put(self, frame: bytes | list[Part]) -> None:
        self.channel.put(frame, time.monotonic())

    # The I/O thread.

    def close(self) -> None:
        """End the link. What has not started never starts, what runs is cancelled."""
        if not self._links.forget(self):
            return
        with self.channel.reading:
            if not self._lost:
                self._lost = True
                self._links.reading.remove(self.channel.fd)
        self.channel.close()
        for member in list(self.members.values()):
            self._links.runner.cancel(member)
        self.members.clear()


def _timing(member: Member) -> bytes:
    """Where the time of a request went before user code began, as the beginning of a header line."""
    queued_ms, here_ms = member.micros / 1e3, 1e3 * (member.started_at - member.received_at)
    if member.binding is None:
        return b"server-timing: queue;dur=%.3f" % (queued_ms + here_ms)
    return b"server-timing: queue;dur=%.3f, batch;dur=%.3f" % (queued_ms, here_ms)


class Links:
    """All links of a replica, and the socket that takes them. `listen` and `close` are the I/O loop's."""

    def __init__(self, way: Way, id: str, token: str, runner: Runner) -> None:
        self.path = path = way.link_path(id)
        self.token = token
        self.address = path
        """Where routers reach it, once it listens."""
        self.runner = runner
        self.all: set[ReplicaLink] = set()
        self.only: ReplicaLink | None = None
        """The one link, where there is but one."""
        self.reading: Reading
        self._listening: Listening | None = None
        self._node = way.node
        self._tls = way.tls
        self._gate = remote.Gate(way.host, way.secret, _BACKLOG, self._admitted, tls=way.tls is not None) if way.host else None
        """Where routers of other nodes come in."""
        self._beginning: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Take links from now on."""
        self._loop = asyncio.get_running_loop()
        self.reading = Reading(self._loop)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(_BACKLOG)
        self._listening = Listening(listener, lambda sock: self._begin(sock, is_remote=False))
        if self._gate is not None:
            self.address = remote.address_of(self._node, self._gate.open(), self.path)

    @property
    def deaf_since(self) -> float:
        """Since when no link could be taken, for want of a descriptor; 0 where they are."""
        return 0.0 if self._listening is None else self._listening.deaf_since

    def _admitted(self, sock: socket.socket) -> None:
        if self._tls is None:
            self._begin(sock, is_remote=True)
            return
        task = self._loop.create_task(self._begin_tls(sock, self._tls))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin_tls(self, sock: socket.socket, tls: Tls) -> None:
        try:
            secure = await tls.begin(sock, server_side=True)
        except BaseException as error:
            sock.close()
            if isinstance(error, WireError):
                _log.warning("refused a router: %s", error)
            elif not isinstance(error, OSError):
                raise
        else:
            self._begin(secure, is_remote=True)

    def _begin(self, sock: socket.socket | SecureSocket, *, is_remote: bool) -> None:
        link = ReplicaLink(self, sock, self._loop, is_remote=is_remote)
        self.all.add(link)
        self.only = link if len(self.all) == 1 else None
        self.reading.add(link.channel.fd, link.readable)

    def forget(self, link: ReplicaLink) -> bool:
        """This link is over; False where that is known already."""
        if link not in self.all:
            return False
        self.all.discard(link)
        self.only = next(iter(self.all)) if len(self.all) == 1 else None
        return True

    def load(self) -> int:
        """Calls that are here and not answered, over all routers; as it travels in frames."""
        only = self.only
        count = len(only.members) if only is not None else sum(len(link.members) for link in list(self.all))
        return min(count, _MOST_LOAD)

    def flush(self) -> None:
        """Write what waits on any link."""
        for link in list(self.all):
            link.channel.flush()

    @property
    def settled(self) -> bool:
        """Nothing is unread, nothing that anybody waits for unanswered, and every answer was written."""
        if self.reading.pending:
            return False
        links = list(self.all)
        return all(link.channel.empty and all(member.shadow for member in list(link.members.values())) for link in links)

    async def close(self) -> None:
        """Close the socket and every link."""
        if self._listening is not None:
            self._listening.close()
        if self._gate is not None:
            self._gate.close()
        for task in self._beginning:
            task.cancel()
        for link in list(self.all):
            link.close()
        if self._listening is not None:
            self.reading.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
