"""What do the bytes on a link between a router and a replica mean?

A frame is a fixed head, a short piece of metadata and a body. Nothing here does I/O: a decoder hands out the buffer to
receive into, and returns the frames that are complete. Any bytes that are not of the protocol raise `WireError`.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec

from headgate.errors import WireError

VERSION: Final = 3

# Kinds of frames. A router sends those up to CREDIT, and CALLS; a replica the others. From CALLS on they are lists.
HELLO: Final = 1  # metadata: `Hello`
CALL: Final = 2  # metadata: `Call` without its body, which follows
CANCEL: Final = 3  # number: nobody waits for this call any more
CREDIT: Final = 4  # number, millis: that many more bytes of the stream may be sent
WELCOME: Final = 5  # the replica accepts the link
ANSWER: Final = 6  # metadata: `Answer` without its body, which follows
CHUNK: Final = 7  # number; a part of a stream; the first one also has code and metadata like an answer
END: Final = 8  # number, micros, place (load): the stream is complete
FAIL: Final = 9  # number, code, micros, place (load); metadata: `errors.ErrorInfo`
GIVE_BACK: Final = 10  # number, place (load), millis (it is held for so long yet; 0: it isn't): not started, send it elsewhere
STARTED: Final = 11  # number, place: user code is entered for this call; only over TCP, where there is no shared page
CALLS: Final = 12  # body: a list of `Call`, each with its body
ANSWERS: Final = 13  # body: a list of `Answer`, each with its body; or with a small part of a stream, where its code is PART
LAST_KIND: Final = ANSWERS

# Flags.
FIRST: Final = 2  # on CHUNK: the first of its stream
DROPPED: Final = 8  # on GIVE_BACK: it was cancelled or too late, so it must not be sent elsewhere
RAN: Final = 16  # on FAIL: user code was entered
SHADOW: Final = 32  # on CANCEL: nobody has ever waited for it, so neither does a replica that is to end

PART: Final = 0
"""In place of an answer's code: not the first part of its stream. Over HTTP/1.1 it is in chunked coding already."""
NO_LIMIT: Final = 0xFFFFFFFF
MAX_MICROS: Final = 0xFFFFFFFF
STREAM_CREDIT: Final = 256 * 1024
"""Bytes of a stream that may be under way before its reader has taken any."""
PLACES: Final = 16384
"""Places in the shared page of a link, so also the largest window."""
MAX_META_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 0xFFFFFFFF

HEAD: Final = struct.Struct("<IIIIIHHBBxx")
"""meta_bytes, body_bytes, number, micros, millis, place, code, kind, flags."""
HEAD_BYTES: Final = HEAD.size

_SCRATCH_BYTES = 256 * 1024
_IN_PLACE_BYTES = 64 * 1024
_AT_ONCE_BYTES = 64 << 20
"""A larger body gets a buffer that grows with what arrives of it: gigabytes that are merely announced cost no memory."""
_ZEROS = bytes(1 << 20)

_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Place = Annotated[int, msgspec.Meta(ge=0, lt=PLACES)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
_Status = Annotated[int, msgspec.Meta(ge=0, le=999)]


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame as it was received. `body` is a bytearray where it was large, so that it was received in place.

    That of CALLS and ANSWERS may be a view, which holds until the decoder is asked for its next buffer.
    """

    kind: int
    flags: int
    number: int
    place: int
    code: int
    micros: int
    millis: int
    meta: bytes
    body: bytes | bytearray | memoryview


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The first frame of a link: who calls, the replica's token as proof of permission, and the shared page's path; empty over TCP."""

    version: int
    router: str
    token: str
    page: str


class Call(msgspec.Struct, array_like=True, eq=False):  # told apart by identity
    """What a replica gets of a call. Small ones travel many to a frame."""

    number: _U32
    place: _Place
    micros: int  # age
    millis: int  # time left; NO_LIMIT for none
    endpoint: str
    method: str  # "" is the function itself, or __call__
    request_id: str
    http: bytes  # over HTTP: the encoded `HttpHead`; else empty
    positional: _Count  # Python calls: how many positional arguments (over HTTP: 1 where its answer is to say where the time went) …
    keywords: tuple[str, ...]  # … and the names of the others, sorted
    body: bytes = b""  # a bytearray where it was large, so that it was received in place
    trace: bytes = b""  # the span that it is a part of, as `traces/travel.py` has it; absent where nothing is traced


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a router gets for a call that is answered in one piece. Small ones travel many to a frame."""

    number: int
    code: _Status  # HTTP status
    micros: int  # run time of the call of user code
    load: int  # calls that are still there, over all routers
    meta: bytes  # HTTP: header lines
    body: bytes = b""  # a bytearray where it was large, so that it was received in place


class HttpHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The head of an HTTP request."""

    method: str
    target: bytes  # path and query, as sent
    version: str
    headers: list[tuple[bytes, bytes]]  # names in lower case, in order
    scheme: str
    server: str  # host:port that the ingress listens on
    client: str  # address, or "" where unknown; last, since the ingress remembers the rest


class Decoder:
    """Turns received bytes into frames, however they were cut.

    Receive into `buffer()`, then call `received` with the count. After a `WireError` the decoder is of no further use.
    """

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.max_body_bytes = max_body_bytes
        """Bodies over this are refused; a peer that has not proved who it is gets little."""
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._begin = self._filled = 0  # what is there and not handed out yet
        # A large body on its way: its frame's head and metadata, its buffer, what of that was handed out, and how much has arrived.
        self._large: tuple[tuple[int, ...], bytes, bytearray] | None = None
        self._large_view: memoryview | None = None
        self._large_filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._large is not None:
            with memoryview(self._large[2]) as whole:
                view = self._large_view = whole[self._large_filled :]
            return view
        if self._begin:
            if self._begin < self._filled:
                rest = self._view[self._begin : self._filled]
                self._view[: len(rest)] = rest
            self._begin, self._filled = 0, self._filled - self._begin
        return self._view[self._filled :]

    def received(self, count: int) -> list[Frame]:
        """Take note of `count` bytes in the last `buffer()`; return the frames that are now complete."""
        if self._large is not None:
            return self._received_large(count)
        end = self._filled = self._filled + count
        scratch, view = self._scratch, self._view
        frames: list[Frame] = []
        offset = 0
        while end - offset >= HEAD_BYTES:
            head = HEAD.unpack_from(scratch, offset)
            meta_bytes, body_bytes, number, micros, millis, place, code, kind, flags = head
            if not 0 < kind <= LAST_KIND or meta_bytes > MAX_META_BYTES or body_bytes > self.max_body_bytes:
                raise WireError(f"not a frame: kind {kind}, {meta_bytes} bytes of metadata, {body_bytes} bytes of body; close this link")
            meta_at = offset + HEAD_BYTES
            body_at = meta_at + meta_bytes
            stop = body_at + body_bytes
            if stop > end:
                if body_bytes > _IN_PLACE_BYTES and body_at <= end:
                    self._receive_in_place(head, bytes(view[meta_at:body_at]), view[body_at:end])
                    offset = end
                else:
                    self._grow_for(meta_bytes)
                break
            meta = bytes(view[meta_at:body_at]) if meta_bytes else b""
            body = view[body_at:stop] if kind >= CALLS else bytes(view[body_at:stop])
            frames.append(Frame(kind, flags, number, place, code, micros, millis, meta, body))
            offset = stop
        self._begin = offset
        return frames

    def _grow_for(self, meta_bytes: int) -> None:
        needed = HEAD_BYTES + meta_bytes + _IN_PLACE_BYTES + 1
        if needed > len(self._scratch):
            grown = bytearray(needed)
            grown[: len(self._scratch)] = self._scratch
            self._scratch, self._view = grown, memoryview(grown)

    def _receive_in_place(self, head: tuple[int, ...], meta: bytes, start: memoryview) -> None:
        body = bytearray(min(head[1], _AT_ONCE_BYTES))
        body[: len(start)] = start
        self._large, self._large_filled = (head, meta, body), len(start)

    def _received_large(self, count: int) -> list[Frame]:
        assert self._large is not None
        head, meta, body = self._large
        self._large_filled += count
        _, size, number, micros, millis, place, code, kind, flags = head
        if self._large_filled < len(body):
            return []
        if len(body) < size:
            if self._large_view is not None:
                self._large_view.release()  # what is looked at can't grow
            body += _ZEROS[: size - len(body)]
            return []
        self._large = self._large_view = None
        return [Frame(kind, flags, number, place, code, micros, millis, meta, body)]


def encode(
    kind: int,
    number: int,
    *,
    flags: int = 0,
    place: int = 0,
    code: int = 0,
    micros: int = 0,
    millis: int = 0,
    meta: bytes = b"",
    body: bytes = b"",
) -> bytes:
    """One small frame as bytes. Where bodies are large, send `HEAD.pack(...)`, metadata and body apart instead."""
    return HEAD.pack(len(meta), len(body), number, micros, millis, place, code, kind, flags) + meta + body
