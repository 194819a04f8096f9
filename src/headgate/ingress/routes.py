"""Which endpoint does a path belong to, and which methods does it take?

Pure. The percent-decoded path is looked up exactly, then the longest route that ends in `/` and is a prefix of it is
taken. What lies under `/-/` is the ingress's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from headgate.core.desired import RESERVED_PREFIX
from headgate.core.messages import EndpointEntry
from headgate.ingress import changes
from headgate.ingress.files import FILES

_RESERVED = RESERVED_PREFIX.encode()
PAGES: Final = {path: path for path in ("routes", "healthz", "readyz", "metrics", "events", *FILES)} | {"": "index.html"}
"""The pages of the ingress by their paths under the reserved prefix. Those at which changes are asked for are in `changes.PAGES`."""

_MOST_REMEMBERED = 4096
_LONGEST_REMEMBERED_BYTES = 256


class Target(msgspec.Struct, frozen=True):
    """Where a path leads: to an endpoint, or to a page of the ingress (where `page` is set)."""

    endpoint: str
    methods: frozenset[bytes]
    allow: bytes  # the value of an `Allow` header
    page: str = ""


class Routes:
    """The routes of one routing table."""

    def __init__(self, endpoints: Iterable[EndpointEntry]) -> None:
        self._exact: dict[bytes, Target] = {_RESERVED + path.encode(): _target("", ("GET",), page) for path, page in PAGES.items()}
        self._exact |= {_RESERVED + page.encode(): _target("", ("POST",), page) for page in changes.PAGES}
        every_method: set[str] = set()
        for endpoint in endpoints:
            if endpoint.route is not None:
                self._exact[endpoint.route.encode()] = _target(endpoint.name, endpoint.methods)
                every_method.update(endpoint.methods)
        by_length = sorted(self._exact.items(), key=lambda item: -len(item[0]))
        self._prefixes = [(route, target) for route, target in by_length if route.endswith(b"/") and not target.page]
        self._whole_server = Target("", frozenset(), _allow(sorted(every_method or {"GET"})))
        self._remembered: dict[bytes, Target | None] = {}

    def find(self, path: bytes) -> Target | None:
        """The target of a path as it was sent: percent-encoded, without its query. None: nothing is there."""
        try:
            return self._remembered[path]
        except KeyError:
            found = self._find(path)
        if len(path) <= _LONGEST_REMEMBERED_BYTES:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[path] = found
        return found

    def _find(self, path: bytes) -> Target | None:
        if path == b"*":
            return self._whole_server
        decoded = unquote_to_bytes(path)
        found = self._exact.get(decoded)
        if found is not None or decoded.startswith(_RESERVED):
            return found
        return next((target for route, target in self._prefixes if decoded.startswith(route)), None)


def _target(endpoint: str, methods: tuple[str, ...], page: str = "") -> Target:
    taken = {method.encode() for method in methods}
    if "GET" in methods:
        taken.add(b"HEAD")
    return Target(endpoint, frozenset(taken), _allow(methods), page)


def _allow(methods: Iterable[str]) -> bytes:
    names = list(methods)
    if "GET" in names and "HEAD" not in names:
        names.insert(names.index("GET") + 1, "HEAD")
    if "OPTIONS" not in names:
        names.append("OPTIONS")
    return ", ".join(names).encode()
