"""How do frames go over the socket of a link, when, and by which thread?

By the thread that made them: frames are put, and whoever flushes writes all of them in one call, without blocking. What the
socket doesn't take is left to the event loop. Whichever thread is to read does so by `read`, one at a time. Both ends of a
link are such channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import socket
import threading
from collections import deque
from typing import Final, cast

import msgspec

from headgate.core import wire
from headgate.router import remote
from headgate.router.tls import SecureSocket

Part = bytes | bytearray | memoryview

SMALL_BYTES: Final = 16 * 1024
"""Records with bodies up to this travel many to a frame; larger bodies have a frame of their own."""
_JOIN_BYTES: Final = 64 * 1024
_MOST_RECORDS: Final = 128  # in one frame: they are read when all of it has come
_encode_into: Final = msgspec.msgpack.Encoder().encode_into
_PUSH_LOOK_MS: Final = 20
_BUFFER_BYTES: Final = 4 << 20  # asked of the kernel, which gives as much as it may


class Channel:
    """One socket. Any thread may `put` and `flush`; frames leave in the order of their puts. `close` is the loop's."""

    __slots__ = (
        "_blocked",
        "_broken",
        "_closed",
        "_decoder",
        "_loop",
        "_out",
        "_pending",
        "_records_kind",
        "_recv_into",
        "_sock",
        "_writing",
        "fd",
        "fell_silent",
        "reading",
        "since",
    )

    def __init__(
        self, sock: socket.socket | SecureSocket, loop: asyncio.AbstractEventLoop, decoder: wire.Decoder, records_kind: int
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self.fd = sock.fileno()
        self.reading = threading.Lock()
        """For a replica, whose threads read in turns: held from `read` until what was read has been made use of.

        So frames keep their order, and lists are decoded before the next read overwrites them.
        """
        self.since = 0.0
        """When the oldest frame that waits was put (time.monotonic()); 0 where none waits."""
        self._sock = sock
        self._recv_into = sock.recv_into
        self._decoder = decoder
        self._records_kind = records_kind  # of the frames that records travel in
        self._loop = loop
        self._writing = threading.Lock()
        self._pending: deque[bytes | list[Part] | tuple[object, ...]] = deque()  # frames, whole or in parts, and records
        self._out: list[Part] = []  # what was taken from there to be written; the lock is held
        self._blocked = False
        self._broken = False  # a part of what was put is lost
        self.fell_silent = False
        """Its end came because nothing was heard of the peer: how much has arrived, either way, isn't known."""
        self._closed = False

    # Reading.

    def read(self) -> list[wire.Frame] | None:
        """Receive what has arrived, and return the frames that are whole now; None where nothing has. Never blocks.

        One thread at a time, and lists must be decoded before the next call: replicas hold `reading`, a router has its loop.

        Raises `ConnectionError` where the peer has closed its end, another `OSError` where it is out of reach, and `WireError` for what
        is not of the protocol.
        """
        try:
            count = self._recv_into(self._decoder.buffer())
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._note(error)
            raise
        if not count:
            raise ConnectionResetError("the peer has closed the link")
        return self._decoder.received(count)

    # Writing.

    def put(self, frame: bytes | list[Part] | tuple[object, ...], now: float) -> int:
        """Add one frame, whole or in parts, or a record, and return how many wait. `now` is by time.monotonic().

        They leave with the next flush. A record is the tuple of the fields of a `wire.Call` or `wire.Answer`; those that follow
        each other leave in one frame.
        """
        self._pending.append(frame)
        if not self.since:
            self.since = now
        return len(self._pending)

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        if self._pending or self.since:
            with self._writing:
                if not self._blocked and not self._closed:
                    self._write()

    def push(self) -> bool:
        """Write all that waits, and block until the kernel has it. False where that can't be, since the link is over."""
        self.flush()
        while self._waits():
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.poll(_PUSH_LOOK_MS)
            with self._writing:
                if self._waits():
                    self._blocked = False
                    self._write()
        return not (self._closed or self._broken)

    def _waits(self) -> bool:
        return self._blocked and not self._closed

    def _write(self) -> None:
        # Small parts are joined, large ones written as they are.
        pending, out = self._pending, self._out
        while True:
            self.since = 0.0
            records: list[tuple[object, ...]] = []
            while pending:
                frame = pending.popleft()
                if type(frame) is tuple:
                    records.append(frame)
                    if len(records) < _MOST_RECORDS:
                        continue
                if records:
                    out.append(self._frame_of(records))
                    records.clear()
                if type(frame) is list:
                    out += frame
                elif type(frame) is bytes:
                    out.append(frame)
            if records:
                out.append(self._frame_of(records))
            if not out:
                return
            count = len(out)
            if count > 1 and sum(map(len, out)) > _JOIN_BYTES:
                count = _as_many_as_join(out)
            data = out[0] if count == 1 else b"".join(out[:count])
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._break(error)
                continue
            if sent == len(data):
                del out[:count]
                continue
            out[:count] = [memoryview(data)[sent:]]
            self._block()
            return

    def _note(self, error: OSError) -> None:
        self.fell_silent = self.fell_silent or not isinstance(error, ConnectionError)

    def _block(self) -> None:
        """Go on when the socket takes more."""
        self._blocked = True
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it any more
            self._loop.call_soon_threadsafe(self._watch)

    def _break(self, error: OSError) -> None:
        """The peer is gone, or misses a part from now on; whoever reads finds out."""
        self._note(error)
        self._broken = True
        self._out.clear()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _frame_of(self, records: list[tuple[object, ...]]) -> bytearray:
        frame = bytearray(wire.HEAD_BYTES)
        _encode_into(records, frame, wire.HEAD_BYTES)
        wire.HEAD.pack_into(frame, 0, 0, len(frame) - wire.HEAD_BYTES, 0, 0, 0, 0, 0, self._records_kind, 0)
        return frame

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_writer(self.fd, self._writable)

    def _writable(self) -> None:
        with self._writing:
            if self._closed:
                return
            self._write_on()

    def _write_on(self) -> None:
        self._loop.remove_writer(self.fd)
        self._blocked = False
        self._write()

    def heard_ago_s(self) -> float:
        """How long ago the last packet came over a TCP connection; see `remote.heard_ago_s`."""
        try:
            return remote.heard_ago_s(cast("socket.socket", self._sock))  # as much of one as it asks for
        except OSError:  # closed just now
            return math.inf

    def rest(self) -> list[wire.Frame] | None:
        """As `read`, of what was received with that and isn't handed out yet: the socket won't tell of it again."""
        return None

    @property
    def empty(self) -> bool:
        """Whether nothing is being read, and all frames were written."""
        return not (self.reading.locked() or self._writing.locked() or self._pending or self._out)

    # The end.

    def close(self) -> None:
        """Close the socket, on the loop's thread; what waits is dropped. Can be called again."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            self._pending.clear()
            self._out.clear()
            self.since = 0.0
            self._loop.remove_writer(self.fd)
            self._sock.close()

    def forked(self) -> None:
        """In a forked child: let go of its copy of the socket, so that the peer sees the parent's end."""
        if not self._closed:
            let_go(self.fd)


class SecureChannel(Channel):
    """With TLS: some of what the socket took may wait in it."""

    __slots__ = ("_secure",)

    def __init__(self, sock: SecureSocket, loop: asyncio.AbstractEventLoop, decoder: wire.Decoder, records_kind: int) -> None:
        super().__init__(sock, loop, decoder, records_kind)
        self._secure = sock

    def rest(self) -> list[wire.Frame] | None:
        """What was received and isn't handed out yet."""
        count = self._secure.rest_into(self._decoder.buffer())
        return self._decoder.received(count) if count else None

    def _write(self) -> None:
        super()._write()
        if not (self._blocked or self._broken):
            try:
                if not self._secure.flush():
                    self._block()
            except OSError as error:
                self._break(error)

    @property
    def empty(self) -> bool:
        """Whether nothing is being read, and all frames were written."""
        return super().empty and self._secure.empty


def channel_over(sock: socket.socket | SecureSocket, loop: asyncio.AbstractEventLoop, decoder: wire.Decoder, records_kind: int) -> Channel:
    """The channel of a socket that came from another node, or of one that may have."""
    return (SecureChannel if isinstance(sock, SecureSocket) else Channel)(sock, loop, decoder, records_kind)  # type: ignore[arg-type]  # each takes its own


def _as_many_as_join(parts: list[Part]) -> int:
    size = 0
    for count, part in enumerate(parts):
        size += len(part)
        if count and size > _JOIN_BYTES:
            return count
    return len(parts)


def let_go(descriptor: int) -> None:
    """In a forked child: close its copy of a socket."""
    # The number stays taken, so that nothing which still believes in the socket can close another file.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)
