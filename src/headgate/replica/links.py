"""How does a replica receive calls and send answers?

Its I/O thread takes the routers' links: it reads frames and hands the calls over. Answers are written by the threads that
made them, through the outbox.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from typing import TYPE_CHECKING, cast

import msgspec

from headgate.core import wire
from headgate.errors import EncodeError, ErrorInfo, WireError
from headgate.replica.member import Member
from headgate.replica.outbox import Outbox

if TYPE_CHECKING:
    from headgate.replica.runner import Runner

_FIRST_BODY_BYTES = 0
_hello_decoder = msgspec.msgpack.Decoder(wire.Hello)
_error_encoder = msgspec.msgpack.Encoder()


class ReplicaLink(asyncio.BufferedProtocol):
    """One router's link. Reading is the I/O thread's; `answer`, `fail`, `give_back`, `chunk`, `end` may be called by any thread."""

    def __init__(self, links: Links) -> None:
        self.members: dict[int, Member] = {}
        """What this router has here and was not answered yet, by number."""
        self.page: mmap.mmap | bytearray = bytearray(wire.PLACES)
        self.newest_at = 0.0
        """When the youngest request for a batch handler was admitted of those that came over this link."""
        self._links = links
        self._decoder = wire.Decoder(_FIRST_BODY_BYTES)  # until the token has been seen
        self._welcomed = False
        self.outbox: Outbox
        self._transport: asyncio.Transport

    # The I/O thread.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not asserted: uvloop's has no such base
        self.outbox = Outbox(transport.get_extra_info("socket").fileno(), asyncio.get_running_loop())
        self._links.all.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            frames = self._decoder.received(nbytes)
            calls: list[Member] = []
            now = time.monotonic()
            for frame in frames:
                if frame.kind == wire.CALL and self._welcomed:
                    member = self.members[frame.number] = Member(self, frame, now)
                    calls.append(member)
                else:
                    if calls:
                        self._links.runner.submit(calls)
                        calls = []
                    self._receive(frame)
            if calls:
                self._links.runner.submit(calls)
        except (WireError, msgspec.DecodeError, OSError, ValueError):
            self._transport.abort()

    def _receive(self, frame: wire.Frame) -> None:
        if not self._welcomed:
            if frame.kind != wire.HELLO:
                raise WireError("the first frame of a link must be HELLO")
            self._greet(_hello_decoder.decode(frame.meta))
        elif frame.kind == wire.CANCEL:
            member = self.members.get(frame.number)
            if member is not None:
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
        descriptor = os.open(hello.page, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.page = mmap.mmap(descriptor, wire.PLACES)
        finally:
            os.close(descriptor)
        self._welcomed = True
        self._decoder.max_body_bytes = wire.MAX_BODY_BYTES
        self.outbox.put(wire.encode(wire.WELCOME, os.getpid()))
        self.outbox.flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._links.all.discard(self)
        self.outbox.close()
        # The router is gone: what has not started never starts, what runs is cancelled.
        for member in list(self.members.values()):
            self._links.runner.cancel(member)
        self.members.clear()

    # Any thread.

    def answer(self, member: Member, code: int, meta: bytes, body: bytes | memoryview | list[bytes], size: int, micros: int) -> None:
        """Answer in one piece. Raises `EncodeError` where no frame holds it; then it can still fail."""
        if size > wire.MAX_BODY_BYTES:
            raise EncodeError(f"the answer has {size} bytes, over the limit of {wire.MAX_BODY_BYTES}; send it in parts, as a generator")
        if self.members.pop(member.number, None) is None:
            return
        head = wire.HEAD.pack(len(meta), size, member.number, micros, 0, self._links.load(), code, wire.ANSWER, 0)
        if isinstance(body, list):
            self.outbox.put(head, meta, *body)
        elif meta:
            self.outbox.put(head, meta, body)
        else:
            self.outbox.put(head, body)

    def fail(self, member: Member, error: ErrorInfo, micros: int | None) -> None:
        """End without an answer; `micros` is None where user code was not entered."""
        if self.members.pop(member.number, None) is None:
            return
        meta = _error_encoder.encode(error)
        if len(meta) > wire.MAX_META_BYTES:
            meta = _error_encoder.encode(ErrorInfo(error.kind, error.message[:10000], error.traceback[-100000:], error.reason))
        flags, micros = (0, 0) if micros is None else (wire.RAN, micros)
        load = self._links.load()
        self.outbox.put(wire.encode(wire.FAIL, member.number, flags=flags, code=error.status, micros=micros, place=load, meta=meta))

    def give_back(self, member: Member, *, dropped: bool) -> None:
        """It was not started here: `dropped` says that nobody wants it any more."""
        if self.members.pop(member.number, None) is None:
            return
        flags = wire.DROPPED if dropped else 0
        self.outbox.put(wire.encode(wire.GIVE_BACK, member.number, flags=flags, place=self._links.load()))

    def chunk(self, member: Member, first: bool, code: int, meta: bytes, body: bytes | memoryview | list[bytes], size: int) -> None:
        """Send a part of a stream at once."""
        if member.number not in self.members:
            return
        head = wire.HEAD.pack(len(meta), size, member.number, 0, 0, 0, code, wire.CHUNK, wire.FIRST if first else 0)
        if isinstance(body, list):
            self.outbox.put(head, meta, *body)
        else:
            self.outbox.put(head, meta, body)
        self.outbox.flush()

    def end(self, member: Member, code: int, micros: int) -> None:
        """The stream is complete."""
        if self.members.pop(member.number, None) is None:
            return
        self.outbox.put(wire.encode(wire.END, member.number, code=code, micros=micros, place=self._links.load()))
        self.outbox.flush()

    def close(self) -> None:
        """End the link (I/O thread)."""
        self._transport.close()


class Links:
    """All links of a replica, and the socket that takes them. Made and closed on the I/O loop."""

    def __init__(self, path: str, token: str, runner: Runner) -> None:
        self.path = path
        self.token = token
        self.runner = runner
        self.all: set[ReplicaLink] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Take links from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: ReplicaLink(self), self.path)

    def load(self) -> int:
        """Calls that are here and not answered, over all routers; as it travels in frames."""
        all_links = self.all
        if len(all_links) == 1:
            for link in all_links:
                return min(len(link.members), 0xFFFF)
        return min(sum(len(link.members) for link in list(all_links)), 0xFFFF)

    def flush(self) -> None:
        """Write what waits on any link."""
        for link in list(self.all):
            link.outbox.flush()

    @property
    def settled(self) -> bool:
        """Nothing is unanswered, and every answer was written."""
        return all(not link.members and link.outbox.empty for link in list(self.all))

    async def close(self) -> None:
        """Close the socket and every link."""
        if self._server is not None:
            self._server.close()
        for link in list(self.all):
            link.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
