"""What does the head of a request ask for, beyond its path? And which heads end their connection?

Pure. httptools has taken the head apart and refused what llhttp refuses; here is what it leaves to its user.
"""

from __future__ import annotations

import re
from typing import Final

from headgate.ingress.exchange import Exchange
from headgate.ingress.problems import Refusal, Reply

Headers = list[tuple[bytes, bytes]]

SPECIAL: Final = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"proxy-connection",
        b"expect",
        b"upgrade",
        b"x-request-id",
        b"x-serve-shard-key",
        b"x-serve-call-method",
        b"x-serve-timeout-ms",
        b"x-serve-timing",
    )
)
"""The headers that mean something to the ingress."""
_CONTROLS: Final = frozenset((b"x-serve-shard-key", b"x-serve-call-method", b"x-serve-timeout-ms", b"x-serve-timing"))
PLAIN: Final = _CONTROLS | {b"host", b"content-length", b"connection"}
"""Of those, the ones that mean the same each time, beyond which request it is."""
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LONGEST_TIMEOUT: Final = 12  # digits, so 30 years

NOT_FOUND: Final = Refusal(404, "no route leads to this path; GET /-/routes lists them, and /-/ shows what is served")


class InputRefused(Exception):  # noqa: N818  # it is no error of ours, but the end of what a client may say
    """Raised inside the parser's callbacks: nothing more is read from this connection."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def own_id(value: bytes) -> str:
    """The client's own request id, or an empty string where it isn't one."""
    return value.decode() if _REQUEST_ID.fullmatch(value) else ""


def not_listed(method: bytes, allow: bytes) -> Refusal | Reply:
    """What is answered to a method that an endpoint doesn't list."""
    lines = b"allow: %b\r\n" % allow
    if method == b"OPTIONS":
        return Reply(204, lines)
    return Refusal(405, f"{method.decode()} is not among the methods here: {allow.decode()}", lines)


def check_coding(special: Headers, *, http10: bool) -> bool:
    """Whether the body is chunked. Every other transfer coding raises `InputRefused`: where a body ends must be beyond doubt."""
    chunked = False
    for name, value in special:
        if name == b"transfer-encoding":
            if http10:
                raise InputRefused(Refusal(400, "HTTP/1.0 has no Transfer-Encoding; send Content-Length"))
            if value.lower() != b"chunked":
                raise InputRefused(Refusal(501, "the only Transfer-Encoding here is: chunked"))
            chunked = True
    return chunked


def read_controls(exchange: Exchange, special: Headers) -> Refusal | None:
    """Note shard key, method, time limit, and whether times are asked for, in the exchange; return why they can't be meant, if so."""
    given: dict[bytes, bytes] = {}
    for name, value in special:
        if name in _CONTROLS:
            if name in given:
                return Refusal(400, f"{name.decode()} was given twice")
            given[name] = value
    key, method, timeout = (given.get(name) for name in (b"x-serve-shard-key", b"x-serve-call-method", b"x-serve-timeout-ms"))
    if key is not None:
        try:
            exchange.shard_key = key.decode()
        except UnicodeDecodeError:
            return Refusal(400, "x-serve-shard-key must be UTF-8")
    if method is not None:
        exchange.method = method.decode(errors="replace")
        if not exchange.method.isidentifier():
            return Refusal(400, "x-serve-call-method must be the name of a method")
    if timeout is not None:
        if not timeout.isdigit() or len(timeout) > _LONGEST_TIMEOUT or not int(timeout):
            return Refusal(400, "x-serve-timeout-ms must be a whole number of milliseconds, above 0")
        exchange.caller_timeout_s = int(timeout) / 1000
    timing = given.get(b"x-serve-timing")
    if timing is not None:
        if timing not in (b"0", b"1"):
            return Refusal(400, "x-serve-timing must be 1, for an answer that says where its time went, or 0")
        exchange.positional = int(timing)
    return None


def expects_continue(special: Headers) -> bool:
    """Whether the client waits for `100 Continue`. Another expectation raises `InputRefused`."""
    expected = [value.lower() for name, value in special if name == b"expect"]
    if any(value != b"100-continue" for value in expected):
        raise InputRefused(Refusal(417, "the only expectation that can be met is: 100-continue"))
    return bool(expected)


def origin_form(url: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """Turn an absolute target into a path; its authority is the Host."""
    if url == b"*":
        return url, headers
    scheme, _, rest = url.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        raise InputRefused(Refusal(400, "the target must be a path, or an http URL"))
    authority_ends = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority = rest[:authority_ends].rpartition(b"@")[2]
    path = rest[authority_ends:]
    headers = [(name, authority if name == b"host" else value) for name, value in headers]
    return path if path.startswith(b"/") else b"/" + path, headers
