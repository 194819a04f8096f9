"""Which heads of requests has this ingress parsed before, and what came of them?

Most clients send the same head again and again. Parsing it a second time can give nothing new, as long as the routes and
limits are the same; so what came of it is kept under its bytes. Only what depends on nothing else is kept: no refusals, no
request ids of clients, nothing that ends the connection or changes how a body is read, other than by its plain length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from headgate.ingress.exchange import Exchange

MOST_HEADS: Final = 1024
MOST_BYTES: Final = 1 << 20
"""Of all heads together. What is full begins anew: that costs a client one more parse of its head."""
LONGEST_BYTES: Final = 2048
PATIENCE: Final = 32
"""So many more unknown heads than known ones, and a connection asks no more."""


class KnownHead:
    """What a head asks for. Never changed once it is made."""

    __slots__ = ("bare", "caller_timeout_s", "endpoint", "http", "length", "method", "shard_key")

    def __init__(self) -> None:
        self.endpoint = ""
        self.http = b""  # `wire.HttpHead` as msgpack, up to the client's address
        self.length = 0  # of the body
        self.method = ""
        self.shard_key: str | None = None
        self.caller_timeout_s: float | None = None
        self.bare = False  # HEAD

    @classmethod
    def of(cls, exchange: Exchange, http: bytes) -> KnownHead:
        """What the exchange was made from."""
        known = cls()
        known.endpoint, known.http, known.length = exchange.endpoint, http, exchange.length
        known.method, known.shard_key, known.caller_timeout_s = exchange.method, exchange.shard_key, exchange.caller_timeout_s
        known.bare = exchange.bare
        return known


class Memory:
    """The heads that one ingress knows, up to their empty line included."""

    __slots__ = ("_bytes", "known")

    def __init__(self) -> None:
        self.known: dict[bytes, KnownHead] = {}
        self._bytes = 0

    def add(self, head: bytes, known: KnownHead) -> None:
        """Keep what came of a head, unless it is long."""
        size = len(head)
        if size > LONGEST_BYTES:
            return
        if len(self.known) >= MOST_HEADS or self._bytes + size > MOST_BYTES:
            self.clear()
        self.known[head] = known
        self._bytes += size

    def clear(self) -> None:
        """Routes or limits have changed: what came of a head before need not come of it now."""
        self.known.clear()
        self._bytes = 0
