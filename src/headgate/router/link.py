"""How does a router talk to one replica, and what becomes of its calls when the link dies?

A link is one Unix socket and one page of shared memory. The page has a byte for each place of the router's window; the
replica sets it just before it calls user code. So when the socket closes, the router knows which calls had started,
however suddenly the replica died. Those that had not are sent elsewhere, but only once the process is seen dead.

To a replica on another node it is a TCP connection, the page is the router's alone, and the replica has a frame in the kernel
that says what it starts before it does. Whether such a process is dead can't be seen: it is known to start nothing any more when it
has heard nothing of this router for a while.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from typing import TYPE_CHECKING

import msgspec

from headgate.core import wire
from headgate.core.messages import ReplicaEntry
from headgate.errors import ErrorInfo, WireError
from headgate.router import remote
from headgate.router.borrowing import SharedLoop
from headgate.router.call import OVER, Call
from headgate.router.channel import SMALL_BYTES, Channel, Part, channel_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate.router.routes import BackendRoute
    from headgate.router.tls import SecureSocket

_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(wire.Answer).decode
_decode_answers = msgspec.msgpack.Decoder(list[wire.Answer]).decode
_error_decoder = msgspec.msgpack.Decoder(ErrorInfo)
_LEAVE_TOGETHER = 32
"""So many calls leave before the turn of the loop is over, so that the replica begins while the rest is still read."""
_RETRY_S = 0.02
_LONGEST_RETRY_S = 0.5
_REFUSED_S = 2.0
"""A replica that has closed its links again and again for so long before it took one is reported."""
_DEATH_WAIT_S = 1.0
_STRANGER_S = 1.0
_log = logging.getLogger("headgate.router")

CONNECTING, OPEN, CLOSED = range(3)


class Link:
    """The link of one router to one replica. Everything here runs on the router's loop, or while that is borrowed."""

    def __init__(self, backend: BackendRoute, entry: ReplicaEntry, router: str, page_path: str, node: str = "") -> None:
        self.replica = entry.id
        self.entry = entry
        self.state = CONNECTING
        self.calls: dict[int, Call] = {}
        self._backend = backend
        self._router = router
        self._page_path = page_path
        self._loop = loop = asyncio.get_running_loop()
        self._watch: Callable[[int, Callable[[], None]], object] = loop.add_reader
        self._unwatch: Callable[[int], object] = loop.remove_reader
        self._finally_call: Callable[[Callable[[], None]], object] = loop.call_soon
        if isinstance(loop, SharedLoop):
            self._watch, self._unwatch, self._finally_call = loop.watch, loop.unwatch, loop.finally_call
        self._channel: Channel | None = None
        self._last = 0
        self._free: list[int] = []
        self._next_place = 0
        self._pid_fd = -1
        self._connecting: asyncio.Task[None] | None = None
        self._refused_at: float | None = None  # when the replica first closed it before it had taken it …
        self._retry_s = _RETRY_S  # … and how long to wait after the next time
        self._dead: asyncio.TimerHandle | None = None
        self.unstarted: list[Call] = []
        """What it had not started when it was lost, until its replica is seen dead."""
        self.silent = False
        """It was lost because nothing was heard of the replica any more."""
        self._address = remote.as_seen_from(node, entry.address)
        self._page: mmap.mmap | bytearray
        if not remote.is_path(self._address):
            self._page_path, self._page = "", bytearray(wire.PLACES)
            return
        descriptor = os.open(page_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, wire.PLACES)
            self._page = mmap.mmap(descriptor, wire.PLACES)
        finally:
            os.close(descriptor)

    # Opening and closing.

    def connect(self) -> None:
        """Connect, and try again until it succeeds or the link is closed: the replica may not listen yet."""
        self._connecting = self._loop.create_task(self._connect(0.0))

    async def _connect(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        hello = wire.Hello(wire.VERSION, self._router, self.entry.token, self._page_path)
        while (channel := await self._connected_by_tcp() if self.is_remote else self._connected()) is None:  # noqa: ASYNC110 - nobody tells when the replica listens
            await asyncio.sleep(_RETRY_S)
        self._channel = channel
        channel.put(wire.encode(wire.HELLO, 0, meta=_encode(hello)), self._backend.router.now())
        channel.flush()
        self._watch(channel.fd, self._readable)

    def _connected(self) -> Channel | None:
        """None where the replica doesn't listen yet, or no descriptor is to be had now."""
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return None
        try:
            sock.setblocking(False)
            sock.connect(self._address)
            return Channel(sock, self._loop, wire.Decoder(), wire.CALLS)
        except OSError:
            sock.close()
            return None

    async def _connected_by_tcp(self) -> Channel | None:
        try:
            sock = await self._connected_socket()
        except OSError:
            return None
        except WireError as error:  # what listens there now is none of ours
            _log.warning("replica %s can't be reached: %s", self.replica, error)
            await asyncio.sleep(_STRANGER_S)
            return None
        return channel_over(sock, self._loop, wire.Decoder(), wire.CALLS)

    async def _connected_socket(self) -> socket.socket | SecureSocket:
        way = self._backend.router.way
        sock = await remote.connect(self._address, way.secret, tls=way.tls is not None)
        if way.tls is None:
            return sock
        try:
            return await way.tls.begin(sock, server_side=False)
        except BaseException:
            sock.close()
            raise

    @property
    def is_remote(self) -> bool:
        """Whether the replica is on another node."""
        return not remote.is_path(self._address)

    def close(self) -> None:
        """End the link; calls still on it are the caller's affair."""
        self.state = CLOSED
        if self._connecting is not None:
            self._connecting.cancel()
        self._close_channel()
        self._release()

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._unwatch(channel.fd)
            channel.flush()
            channel.close()

    def forked(self) -> None:
        """In a forked child: let go of its copy of the socket, so that the replica sees the parent's end."""
        if self._channel is not None:
            self._channel.forked()

    def _release(self) -> None:
        if self._dead is not None:
            self._dead.cancel()
            self._dead = None
        if self._pid_fd >= 0:
            self._loop.remove_reader(self._pid_fd)
            os.close(self._pid_fd)
            self._pid_fd = -1
        if isinstance(self._page, mmap.mmap) and not self._page.closed:
            self._page.close()
        self._unlink_page()

    def _unlink_page(self) -> None:
        if self._page_path:
            try:
                os.unlink(self._page_path)
            except FileNotFoundError:
                pass
            self._page_path = ""

    # Sending.

    def send(self, call: Call, now: float, trace: bytes = b"") -> None:
        """Send a call; the dispatcher has found room for it in the window."""
        self._last = number = (self._last + 1) & 0xFFFFFFFF
        if self._free:
            place = self._free.pop()
        else:
            place = self._next_place
            self._next_place += 1
        self._page[place] = 0
        self.calls[number] = call
        call.link = self
        call.number = number
        call.place = place
        call.sent_at = now
        left, age = call.deadline - now, now - call.admitted_at
        millis = (int(left * 1000) + 1 if left > 0 else 1) if left < 4_000_000 else wire.NO_LIMIT
        micros = int(age * 1e6) if age < 4000 else wire.MAX_MICROS
        body = call.body
        # Nothing is sent before the replica has accepted the link, nor after it is closed.
        channel: Channel = self._channel  # type: ignore[assignment]
        frame: tuple[object, ...] | list[Part]
        if call.body_bytes <= SMALL_BYTES:
            if type(body) is list:
                body = body[0] if len(body) == 1 else b"".join(body)
            frame = (
                number,
                place,
                micros,
                millis,
                call.endpoint,
                call.method,
                call.request_id,
                call.http,
                call.positional,
                call.keywords,
                body,
            )
            if trace:
                frame = (*frame, trace)
        else:
            record: tuple[object, ...]
            record = (number, place, micros, millis, call.endpoint, call.method, call.request_id, call.http, call.positional, call.keywords)
            if trace:
                record = (*record, b"", trace)
            meta = _encode(record)
            head = wire.HEAD.pack(len(meta), call.body_bytes, 0, 0, 0, 0, 0, wire.CALL, 0)
            frame = [head + meta, *body] if isinstance(body, list) else [head + meta, body]
        if not channel.since:
            self._finally_call(self._flush)  # first: a signal's handler may raise, and what is put then must not stay
        if channel.put(frame, now) >= _LEAVE_TOGETHER:
            channel.flush()

    def cancel(self, call: Call) -> None:
        """Tell the replica that nobody waits for this call; its place stays taken until the replica answers."""
        self._send_small(wire.encode(wire.CANCEL, call.number, flags=wire.SHADOW if call.shadow else 0))

    def has_begun(self, call: Call) -> bool:
        """Whether a call that was sent here is seen to run, or to have run. On another node it may, and isn't seen to yet."""
        return bool(self._page[call.place])

    def credit(self, call: Call, count_bytes: int) -> None:
        """Let the replica send that many more bytes of this call's stream."""
        if call.number in self.calls:
            self._send_small(wire.encode(wire.CREDIT, call.number, millis=count_bytes))

    def _send_small(self, frame: bytes) -> None:
        channel = self._channel
        if self.state == OPEN and channel is not None:
            if not channel.since:
                self._finally_call(self._flush)
            channel.put(frame, self._backend.router.now())

    def _flush(self) -> None:
        """What was put in one turn of the loop leaves together."""
        if self._channel is not None:
            self._channel.flush()

    # Receiving.

    def _readable(self) -> None:
        # Where the peer has closed its end with something unread in it, libuv tells of the socket this once, whatever is left in
        # it. Mostly the process has died, which the pidfd tells; without one, all that there is must be read now.
        while self._read() and self._pid_fd < 0:
            pass

    def _read(self) -> bool:
        """Receive once, and say whether there may be more: nothing was there, or the link is over."""
        channel = self._channel
        if channel is None:
            return False
        try:
            frames = channel.read()
        except (OSError, WireError) as error:
            if isinstance(error, WireError):
                self._report_garbage(error)
            self._lost()
            return False
        if frames is None:
            return False
        now = self._backend.router.now()
        try:
            for frame in frames:
                self._receive(frame, now)
        except (WireError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
            self._report_garbage(error)
            self._lost()
            return False
        self._backend.pump(now)
        return True

    def _report_garbage(self, error: Exception) -> None:
        self._backend.report_broken(self.replica, f"garbage on its link: {error!r}")

    def _receive(self, frame: wire.Frame, now: float) -> None:
        kind = frame.kind
        if kind == wire.ANSWERS:
            self._answered(_decode_answers(frame.body), now)
        elif kind == wire.ANSWER:
            answer = _decode_answer(frame.meta)
            if answer.code == wire.PART:
                raise WireError("a part of a stream must come in a frame of parts, or of its own")
            self._answered([msgspec.structs.replace(answer, body=frame.body)], now)
        elif kind == wire.CHUNK:
            call = self.calls[frame.number]
            if call.state != OVER:
                if call.started_stream is bool(frame.flags & wire.FIRST):
                    raise WireError("a stream must have one first part, and begin with it")
                self._backend.router.extend(call, now)
                call.started_stream = True
                call.chunk(frame)
        elif kind == wire.END:
            call = self.calls[frame.number]
            if call.state != OVER and call.http and not call.started_stream:
                raise WireError("a stream of HTTP must have a first part before its end")
            self._take(frame.number)
            self._backend.dispatcher.answered(self.replica, frame.micros / 1e6, frame.place, now)
            if call.state != OVER:
                self._backend.router.over(call, frame.code or 200, now)
                call.ended()
        elif kind == wire.FAIL:
            error = _error_decoder.decode(frame.meta)
            call = self._take(frame.number)
            if frame.flags & wire.RAN:
                self._backend.dispatcher.answered(self.replica, frame.micros / 1e6, frame.place, now)
            else:
                self._backend.dispatcher.released(self.replica, frame.place, now)
            self._backend.router.fail(call, error, now)
        elif kind == wire.GIVE_BACK:
            call = self.calls[frame.number]
            if call.state != OVER and call.started_stream:
                raise WireError("a call whose stream has begun can't be given back")
            self._take(frame.number)
            if frame.flags & wire.DROPPED:
                self._backend.dispatcher.released(self.replica, frame.place, now)
                call.link = None  # this router has ended it, or is about to; nothing is left of it here, and maybe of the link
                return
            self._backend.dispatcher.returned(self.replica, frame.place, now, frame.millis / 1000)
            if call.state != OVER:
                self._backend.requeue(call)
        elif kind == wire.STARTED:
            call = self.calls[frame.number]
            if call.place != frame.place:
                raise WireError("a call starts in the place that it was given")
            self._page[frame.place] = 1
        elif kind == wire.WELCOME:
            self._welcomed(frame.number)
        else:
            raise WireError(f"a replica must not send frames of kind {kind}")

    def _answered(self, answers: list[wire.Answer], now: float) -> None:
        backend = self._backend
        router, dispatcher, replica, calls, free = backend.router, backend.dispatcher, self.replica, self.calls, self._free
        for answer in answers:
            code = answer.code
            if code == wire.PART:
                call = calls[answer.number]
                if call.state != OVER:
                    if not call.started_stream:
                        raise WireError("a part of a stream must not come before its first one")
                    router.extend(call, now)
                    call.small_chunk(answer.body)
                continue
            call = calls.pop(answer.number)
            free.append(call.place)
            dispatcher.answered(replica, answer.micros / 1e6, answer.load, now)
            if call.state != OVER:
                router.over(call, code, now)
                call.answered(answer)

    def _take(self, number: int) -> Call:
        call = self.calls.pop(number)
        self._free.append(call.place)
        return call

    def _welcomed(self, pid: int) -> None:
        if self.state != CONNECTING:
            return
        self.state = OPEN
        self._unlink_page()  # both sides have it open now
        if not self.is_remote:
            self._watch_process(pid)
        self._backend.opened(self)

    def _watch_process(self, pid: int) -> None:
        try:
            self._pid_fd = os.pidfd_open(pid)
            self._loop.add_reader(self._pid_fd, self._died)
        except (OSError, OverflowError, AttributeError):  # it is dead already, or none, or this system has no pidfd: the socket will tell
            self._pid_fd = -1

    # The end.

    def _lost(self) -> None:
        self.silent = silent = self._channel is not None and self._channel.fell_silent
        self._close_channel()
        if self.state == CONNECTING:
            self._refused()
            return
        self.state = CLOSED
        # What a node out of reach says that it starts doesn't arrive: there all that it has may have started.
        started = [call for call in self.calls.values() if silent or self._page[call.place]]
        rest = [call for call in self.calls.values() if not (silent or self._page[call.place])]
        self.calls.clear()
        self.unstarted = rest
        self._backend.lost(self, started)
        if self.is_remote and not self._backend.entry.idempotent:
            self._dead = self._loop.call_later(remote.DROPPED_AFTER_S, self._settle)
        elif self._pid_fd < 0:
            # Without a pidfd the closed socket is all the news there is; and what may run twice need not wait for more.
            self._settle()
        else:
            self._dead = self._loop.call_later(_DEATH_WAIT_S, self._still_alive)

    def _refused(self) -> None:
        """The replica has closed the link before it took it, for want of a descriptor perhaps: nothing is lost, so connect again."""
        now = self._backend.router.now()
        if self._refused_at is None:
            self._refused_at = now
        elif now - self._refused_at > _REFUSED_S:
            self._backend.report_broken(self.replica, f"it has not taken a router's link for {now - self._refused_at:.1f} s, but closes it")
        self._connecting = self._loop.create_task(self._connect(self._retry_s))
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _still_alive(self) -> None:
        # Again and again until it is dead: a report is lost where the controller is away.
        self._dead = self._loop.call_later(_DEATH_WAIT_S, self._still_alive)
        self._backend.report_broken(self.replica, "its link closed while the process lives")

    def _died(self) -> None:
        """The process is dead: take what it has still said."""
        while self._read():
            pass
        if self.state != CLOSED:  # a child of it holds the socket open
            self._lost()
        self._settle()

    def _settle(self) -> None:
        """The replica starts nothing more: what had not started runs elsewhere. It may have started some since its link closed."""
        rest, self.unstarted = self.unstarted, []
        late = [call for call in rest if self._page[call.place]]
        rest = [call for call in rest if not self._page[call.place]]
        self._release()
        self._backend.settled(self, late, rest)


def page_paths(folder: str, router: str) -> Callable[[], str]:
    """A source of names for pages: short, in the instance's folder, never used twice by this router."""
    count = 0

    def next_path() -> str:
        nonlocal count
        count += 1
        return f"{folder}/p-{router}-{count}"

    return next_path
