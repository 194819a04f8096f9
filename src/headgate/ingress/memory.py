"""Which heads of requests has this ingress parsed before, and what came of them?

Most clients send the same head again and again. Parsing it a second time can give nothing new, as long as the routes and
limits are the same; so what came of it is kept under its bytes. Only what depends on nothing else is kept: no refusals, no
request ids of clients, nothing that ends the connection or changes how a body is read, other than by its plain length.
Heads that differ in nothing but their shard key are one: it is kept under its bytes without the key.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from headgate.core import wire

if TYPE_CHECKING:
    from headgate.ingress.exchange import Exchange

MOST_HEADS: Final = 1024
MOST_BYTES: Final = 1 << 20
"""Of all heads together. What is full begins anew: that costs a client one more parse of its head."""
LONGEST_BYTES: Final = 2048
PATIENCE: Final = 32
"""So many more unknown heads than known ones, and a connection asks no more."""
_PLAIN_KEY: Final = re.compile(rb"[!-~]{1,128}").fullmatch
_KEY_NAME: Final = b"x-serve-shard-key"
_KEY_HEADER: Final = b"\r\n%b: " % _KEY_NAME
_STAND_IN: Final = os.urandom(16)  # for the key, in what is prepared for any: nobody can have sent it
_PACKED_STAND_IN: Final = b"\xc4\x10" + _STAND_IN  # as msgpack has it
_head_decoder: Final = msgspec.msgpack.Decoder(wire.HttpHead)


class KnownHead:
    """What a head asks for. Never changed once it is made."""

    __slots__ = ("bare", "caller_timeout_s", "endpoint", "http", "http_rest", "length", "method", "timed")

    def __init__(self) -> None:
        self.endpoint = ""
        self.http = b""  # `wire.HttpHead` as msgpack, up to the client's address; or up to the shard key, …
        self.http_rest = b""  # … and on from there
        self.length = 0  # of the body
        self.method = ""
        self.caller_timeout_s: float | None = None
        self.bare = False  # HEAD
        self.timed = 0  # 1 where the answer is to say where its time went

    @classmethod
    def of(cls, exchange: Exchange, http: bytes) -> KnownHead:
        """What the exchange was made from, but for its shard key."""
        known = cls()
        known.endpoint, known.http, known.length = exchange.endpoint, http, exchange.length
        known.method, known.caller_timeout_s = exchange.method, exchange.caller_timeout_s
        known.bare, known.timed = exchange.bare, exchange.positional
        return known


class Memory:
    """The heads that one ingress knows, up to their empty line included."""

    __slots__ = ("_bytes", "_keyed", "_last", "known")

    def __init__(self) -> None:
        self.known: dict[bytes, KnownHead] = {}
        self._keyed: dict[bytes, KnownHead] = {}  # under what is left without the key
        self._last: tuple[bytes, bytes, KnownHead] | None = None  # of those: what is before the key, and behind it
        self._bytes = 0

    def add(self, head: bytes, known: KnownHead) -> None:
        """Keep what came of a head, unless it is long."""
        if self._has_room(head):
            self.known[head] = known

    def add_keyed(self, head: bytes, known: KnownHead, client: bytes) -> None:
        """Keep what came of a head with a shard key, for every key. `client` is what `known.http` lacks."""
        at = head.lower().find(_KEY_HEADER)
        start = at + len(_KEY_HEADER)
        stop = head.find(b"\r\n", start)
        key = head[start:stop]
        rest = head[:start] + head[stop:]
        if at < 0 or not _PLAIN_KEY(key) or rest in self._keyed or not self._has_room(head):  # it may be spelled in another way
            return
        whole = _head_decoder.decode(known.http + client)
        headers = [(name, _STAND_IN if name == _KEY_NAME else value) for name, value in whole.headers]
        http = msgspec.msgpack.encode(msgspec.structs.replace(whole, headers=headers))[: -len(client)]
        known.http, _, known.http_rest = http.partition(_PACKED_STAND_IN)
        self._keyed[rest] = known

    def find(self, data: bytes) -> tuple[KnownHead | None, bytes, bytes]:
        """What came of the head that `data` begins with, where that is known; its shard key, where it is known for any; and the head.

        The head is empty where there is none, or not all of it.
        """
        if self._last is not None:  # most likely the same again, but for the key
            before, after, known = self._last
            if data.startswith(before):
                start = len(before)
                stop = data.find(b"\r\n", start)
                key = data[start:stop]
                if data.startswith(after, stop) and _PLAIN_KEY(key):
                    return known, key, data[: stop + len(after)]
        ends = data.find(b"\r\n\r\n")
        if ends <= 0:
            return None, b"", b""
        head = data[: ends + 4]
        found = self.known.get(head)
        at = head.lower().find(_KEY_HEADER) if found is None and self._keyed else -1
        if at >= 0:
            start = at + len(_KEY_HEADER)
            stop = head.find(b"\r\n", start)
            key, before, after = head[start:stop], head[:start], head[stop:]
            found = self._keyed.get(before + after) if _PLAIN_KEY(key) else None
            if found is not None:
                self._last = (before, after, found)
                return found, key, head
        return found, b"", head

    def _has_room(self, head: bytes) -> bool:
        size = len(head)
        if size > LONGEST_BYTES:
            return False
        if len(self.known) + len(self._keyed) >= MOST_HEADS or self._bytes + size > MOST_BYTES:
            self.clear()
        self._bytes += size
        return True

    def clear(self) -> None:
        """Routes or limits have changed: what came of a head before need not come of it now."""
        self.known.clear()
        self._keyed.clear()
        self._last = None
        self._bytes = 0
