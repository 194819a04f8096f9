"""Which bytes does an attacker send over HTTP, and what must come back?

Requests are made from drawn numbers, whole ones together with their answers, flawed ones with nothing but a refusal. Each has a name of
its own in it, with a checksum, so that what belongs to one client is known wherever else it turns up. The oracle reads answers by itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

SMUGGLED: Final = b"SMUGGLED"
"""Stands in what must never be dispatched."""
BLANK_NAME: Final = b"t" + b"X" * 16 + b"t"
"""In place of a name, and as long as one."""
_NAME: Final = re.compile(rb"t([0-9a-f]{8})([0-9a-f]{8})t")


class Mirror:
    """User code: gives back path and body, and notes down in a file whatever of it is marked as smuggled."""

    def __init__(self, journal: str) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, request: Any) -> bytes:
        path, data = request.path.encode(), request.data
        if SMUGGLED in path or SMUGGLED in data:
            os.write(self._journal, path + b" " + data[:100] + b"\n")
        return bytes(path + b"\n" + data)

    def all(self, request: Any) -> bytes:
        """As before, having looked at everything."""
        for name in ("args", "headers", "cookies", "form", "files", "url", "base_url", "host", "authorization", "user_agent", "mimetype"):
            str(getattr(request, name))
        request.get_json(force=True, silent=True)
        return self(request)

    def large(self, request: Any) -> bytes:
        """As many bytes as the body says."""
        return b"x" * int(request.data)

    def parts(self, request: Any) -> Iterator[bytes]:
        """A stream of so many parts of 10,000 bytes."""
        for _ in range(int(request.data)):
            yield b"y" * 10_000

    def length(self, request: Any) -> str:
        """How long the body is."""
        return str(len(request.data))


METHODS: Final = ["all", "large", "parts", "length"]
"""Of `Mirror`, for HTTP."""


def name(number: int) -> bytes:
    """The name of that case."""
    digits = b"%08x" % number
    return b"t%b%08xt" % (digits, zlib.crc32(digits))


def names_in(data: bytes) -> set[int]:
    """The cases whose names are in there, whole."""
    return {int(digits, 16) for digits, check in _NAME.findall(data) if zlib.crc32(digits) == int(check, 16)}


# Answers.


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    whole: bool


def read_answers(data: bytes, bare: Callable[[int, bytes], bool]) -> list[Answer]:
    """Take apart what a server sent; `bare(index, rest)` says of which answer only the head comes. Interim ones are left out."""
    answers: list[Answer] = []
    while data:
        head, ends, rest = data.partition(b"\r\n\r\n")
        if not ends:
            answers.append(Answer(0, {}, data, False))
            break
        first, *lines = head.split(b"\r\n")
        assert first.startswith(b"HTTP/1.1 "), f"not the beginning of an answer: {data[:200]!r}"
        status = int(first[9:12])
        headers: dict[bytes, bytes] = {}
        for line in lines:
            field, colon, value = line.partition(b": ")
            assert colon, f"not a header: {line!r}"
            assert field.lower() not in headers, f"{field!r} came twice"
            headers[field.lower()] = value
        data = rest
        if status == 100:
            continue
        body, whole = b"", True
        if status != 204 and not bare(len(answers), rest):
            assert b"transfer-encoding" not in headers, "an answer in one piece has a length"
            length = int(headers[b"content-length"])
            body, data = rest[:length], rest[length:]
            whole = len(body) == length
        answers.append(Answer(status, headers, body, whole))
    return answers


def check_problem(answer: Answer) -> None:
    """An error is a problem document, with the request's id."""
    assert answer.headers[b"content-type"] == b"application/problem+json", answer
    document = json.loads(answer.body)
    assert document["status"] == answer.status, answer
    assert document["request_id"].encode() == answer.headers[b"x-request-id"], answer


# Requests that are answered.


class Good(NamedTuple):
    """A whole request and its answer."""

    data: bytes
    status: int
    body: bytes | None  # of an answer; None for any
    bare: bool = False  # only its head comes
    last: bool = False  # the connection ends with it


def good(chance: random.Random, name: bytes, *, last: bool = False) -> Good:
    """One of a kind that is drawn."""
    kind = chance.choice(_GOOD)
    made = kind(chance, name)
    if last:
        first, _, rest = made.data.replace(b"Connection: keep-alive\r\n", b"").partition(b"\r\nHost")
        made = made._replace(data=first + b"\r\nConnection: close\r\nHost" + rest, last=True)
    return made


def _body(chance: random.Random, name: bytes) -> bytes:
    size = chance.choice([0, 1, 10, 10, 300, 300, 300, 5000])
    filling = chance.choice([b"z", b"\0", b"\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n", b"\xff\xfe", b"0\r\n\r\n"])
    return name + (filling * size)[:size]


def _extras(chance: random.Random) -> bytes:
    """Headers that change nothing."""
    extras = [
        b"X-A: b\r\n",
        b"Accept: */*\r\nUser-Agent: curl/8\r\n",
        b"X-Empty:\r\n",
        b"X-Blanks: \t b \t\r\n",
        b"Cookie: a=b; c=\xff; =;;\r\n",
        b"X-Utf8: \xc3\xa9\r\n",
        b"X-Request-Id: own-1\r\n",
        b"X-Serve-Shard-Key: user-%d\r\n" % chance.randrange(50),
        b"X-SERVE-SHARD-KEY: \xc3\xa9\r\n",
        b"X-Serve-Shard-Key:\r\n",
        b"X-Serve-Timeout-Ms: 600000\r\n",
        b"X-Serve-Call-Method: all\r\n",
        b"Connection: keep-alive\r\n",
        b"Content-Type: application/json; charset=\xff\r\n",
        b"Content-Type: multipart/form-data; boundary=x\r\n",
        b"Content-Type: application/x-www-form-urlencoded\r\n",
        b"Authorization: Basic !!!\r\n",
        b"X-Long: " + b"l" * 3000 + b"\r\n",
        b"X-Many: y\r\n" * 60,
    ]
    return chance.choice(extras) if chance.random() < 0.5 else b""


def _target(chance: random.Random, name: bytes) -> tuple[bytes, bytes]:
    """A target under the mirror's route, and the path that it means."""
    path = b"/m/" + name + chance.choice([b"", b"", b"/x/../y", b"/%41%2f%00", b"//", b"/%ff%zz%", b"/%c3%a9", b"/;a=b"])
    query = chance.choice([b"", b"", b"?", b"?a=b&a=%ff", b"?x=?#", b"?%00=%"])
    return path + query.replace(b"#", b""), unquote_to_bytes(path).decode("utf-8", "replace").encode()


def _get(chance: random.Random, name: bytes) -> Good:
    target, path = _target(chance, name)
    return Good(b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, _extras(chance)), 200, path + b"\n")


def _get_absolute(chance: random.Random, name: bytes) -> Good:
    target, path = _target(chance, name)
    start = chance.choice([b"http://b.example", b"http://user@b:81", b"HTTP://[::1]:80", b"https://x"])
    return Good(b"GET %b%b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (start, target, _extras(chance)), 200, path + b"\n")


def _get_after_blank_lines(chance: random.Random, name: bytes) -> Good:
    made = _get(chance, name)
    return made._replace(data=b"\r\n" * chance.randint(1, 3) + made.data)


def _get_1_0(chance: random.Random, name: bytes) -> Good:
    return Good(b"GET /m/%b HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" % name, 200, b"/m/%b\n" % name)


def _post(chance: random.Random, name: bytes, more: bytes = b"") -> Good:
    body, length = _body(chance, name), chance.choice([b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
    head = b"POST /m/ HTTP/1.1\r\nHost: a\r\n%b%b%b: %d\r\n\r\n" % (_extras(chance), more, length, len(body))
    return Good(head + body, 200, b"/m/\n" + body)


def _post_of_known_head(chance: random.Random, name: bytes) -> Good:
    return Good(b"POST /m/ HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\n" + name, 200, b"/m/\n" + name)


def _post_chunked(chance: random.Random, name: bytes, more: bytes = b"") -> Good:
    body = _body(chance, name)
    cut = chance.randint(len(name), len(body))  # a name stays in one piece
    chunks = b""
    for part in (body[:cut], body[cut:]):
        if part:
            size = chance.choice([b"%x", b"%X", b"000%x"]) % len(part)
            extension = chance.choice([b"", b"", b";x", b";x=y", b';x="y z";q', b";" + b"e" * 200])
            chunks += size + extension + b"\r\n" + part + b"\r\n"
    trailers = chance.choice([b"", b"", b"X-T: u\r\n", b"Host: evil\r\nX-Serve-Shard-Key: \xff\r\n"])
    coding = chance.choice([b"chunked", b"Chunked", b"  chunked"])
    head = b"POST /m/ HTTP/1.1\r\nHost: a\r\n%b%bTransfer-Encoding: %b\r\n\r\n" % (_extras(chance), more, coding)
    return Good(head + chunks + b"0\r\n" + trailers + b"\r\n", 200, b"/m/\n" + body)


def _post_expecting(chance: random.Random, name: bytes) -> Good:
    return chance.choice([_post, _post_chunked])(chance, name, b"Expect: 100-continue\r\n")


def _post_upgrading(chance: random.Random, name: bytes) -> Good:
    to = chance.choice([b"h2c", b"websocket", b"TLS/1.0, HTTP/1.1"])
    return chance.choice([_post, _post_chunked])(chance, name, b"Connection: Upgrade\r\nUpgrade: %b\r\n" % to)


def _head(chance: random.Random, name: bytes) -> Good:
    return Good(b"HEAD /m/%b HTTP/1.1\r\nHost: a\r\n\r\n" % name, 200, None, bare=True)


def _options(chance: random.Random, name: bytes) -> Good:
    target = chance.choice([b"*", b"/m/" + name])
    return Good(b"OPTIONS %b HTTP/1.1\r\nHost: a\r\n\r\n" % target, 204, None)


def _page(chance: random.Random, name: bytes) -> Good:
    return Good(b"GET /-/healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200, None)


def _refused_alone(chance: random.Random, name: bytes) -> Good:
    """What is refused, and the connection goes on: where it ends is beyond doubt."""
    line, status = chance.choice(
        [
            (b"X-Serve-Shard-Key: \xff\xfe", 400),
            (b"X-Serve-Shard-Key: \xed\xa0\x80", 400),
            (b"X-Serve-Shard-Key: a\r\nx-serve-shard-key: a", 400),
            (b"X-Serve-Timeout-Ms: -1", 400),
            (b"X-Serve-Timeout-Ms: " + b"9" * 400, 400),
            (b"X-Serve-Call-Method: __init__", 400),
            (b"X-Serve-Call-Method: \xff", 400),
            (b"X-A: b", 405),
            (b"X-A: c", 404),
        ]
    )
    method, path = (b"DELETE" if status == 405 else b"POST"), (b"/nowhere" if status == 404 else b"/m/")
    return Good(b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\nContent-Length: 18\r\n\r\n%b" % (method, path, line, name), status, None)


_GOOD: Final = [
    _get,
    _get_absolute,
    _get_after_blank_lines,
    _get_1_0,
    _post,
    _post,
    _post_of_known_head,
    _post_chunked,
    _post_chunked,
    _post_expecting,
    _post_upgrading,
    _head,
    _options,
    _page,
    _refused_alone,
]


# Requests that must be refused.


def flawed(chance: random.Random, name: bytes) -> bytes:
    """One that no server may make a request of, with nothing missing from it that would tell so."""
    return chance.choice(_FLAWED)(chance, name)


def behind(name: bytes, chance: random.Random) -> bytes:
    """Well-formed requests that must not be dispatched behind a flawed one."""
    mark = SMUGGLED + name
    post = b"POST /m/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(mark), mark)
    return chance.choice([post, b"GET /m/%b HTTP/1.1\r\nHost: a\r\n\r\n" % mark, post + post, b"\r\n" + post, b"0\r\n\r\n" + post])


def _flawed_length(chance: random.Random, name: bytes) -> bytes:
    lines = [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked\r\nX-A: b\r\ncontent-length: 0",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5\r\nX-A: b\r\nContent-Length: 5",
        b"Content-Length: 5, 5",
        b"Content-Length: 5 5",
        b"Content-Length: -1",
        b"Content-Length: -0",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 5;",
        b"Content-Length: 5a",
        b"Content-Length: 5.0",
        b"Content-Length: 1_0",
        b"Content-Length: \xd9\xa5",
        b"Content-Length: five",
        b"Content-Length:",
        b"Content-Length: \x0b5",
        b"Content-Length: \x005",
        b"Content-Length : 5",
        b"Content-Length\t: 5",
        b"Content-Length: 999999999999999",
        b"Content-Length: 18446744073709551615",
        b"Content-Length: 18446744073709551616",
        b"Content-Length: 18446744073709551621",
        b"Content-Length: " + b"9" * 300,
        b"Content-Length: 5\r\n ,5",
        b"Content-Length:\r\n 5",
    ]
    return b"POST /m/ HTTP/1.1\r\nHost: a\r\n%b\r\n\r\nhello" % chance.choice(lines)


def _flawed_coding(chance: random.Random, name: bytes) -> bytes:
    codings = [
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked,",
        b", chunked",
        b"gzip",
        b"identity",
        b"xchunked",
        b"chunkedx",
        b"chunked;q=1",
        b'"chunked"',
        b"chunked\x0b",
        b"\x0cchunked",
        b"chunked\x00",
        b"chun ked",
        b"chunked\r\nTransfer-Encoding: identity",
        b"identity\r\nTransfer-Encoding: chunked",
        b"chunked\r\nTransfer-Encoding: chunked",
        b"\r\n chunked",
        b"",
    ]
    return b"POST /m/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % chance.choice(codings)


def _flawed_in_1_0(chance: random.Random, name: bytes) -> bytes:
    keep = chance.choice([b"", b"Connection: keep-alive\r\n"])
    return b"POST /m/ HTTP/1.0\r\n%bHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % keep


def _flawed_chunks(chance: random.Random, name: bytes) -> bytes:
    chunks = [
        b"g\r\nhello",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5;x\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhelloxx\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"6\r\nhello\r\n0\r\n\r\n",
        b"10000000000000000\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: y\nZ: a\r\n\r\n",
        b"5\r\nhello\r\n0\r\n folded\r\n\r\n",
        b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n",
        b"5\r\nhello\r\n0\nX: y\r\n\r\n",
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
        b"\x00\r\nhello\r\n0\r\n\r\n",
        b";x\r\nhello\r\n0\r\n\r\n",
    ]
    return b"POST /m/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chance.choice(chunks)


def _flawed_lines(chance: random.Random, name: bytes) -> bytes:
    rests = [
        b"Host: a\r\nX: b\r\n folded\r\n\r\n",
        b"Host: a\r\nX: b\r\n\tfolded\r\n\r\n",
        b"Host: a\r\n Content-Length: 5\r\n\r\n",
        b" folded: from the start\r\nHost: a\r\n\r\n",
        b"Host: a\r\nX: b\nY: c\r\n\r\n",
        b"Host: a\r\nX: b\r\n\n",
        b"Host: a\nX: b\r\n\r\n",
        b"Host: a\n\n",
        b"Host: a\r\nX: b\rY: c\r\n\r\n",
        b"Host: a\rX: b\r\n\r\n",
        b"Host: a\r\n\rX: b\r\n\r\n",
        b"Host: a\r\nX: b\x00\r\n\r\n",
        b"Host: a\r\nX\x00: b\r\n\r\n",
        b"Host: a\x00\r\n\r\n",
        b"\x00Host: a\r\n\r\n",
        b"Host: a\r\nX: \x01\r\n\r\n",
        b"Host: a\r\nX: \x7f\r\n\r\n",
        b"Host : a\r\n\r\n",
        b"Host: a\r\nX : b\r\n\r\n",
        b"Host: a\r\nX Y: b\r\n\r\n",
        b"Host: a\r\nX(: b\r\n\r\n",
        b"Host: a\r\nX\xc3\xa9: b\r\n\r\n",
        b"Host: a\r\n: b\r\n\r\n",
        b"Host: a\r\nno colon\r\n\r\n",
        b"Host: a\r\n@\r\n\r\n",
        b"X: b\r\n\r\n",
        b"\r\n",
        b"Host: a\r\nHost: a\r\n\r\n",
        b"Host: a\r\nX: y\r\nhost: b\r\n\r\n",
        b"Host: a\r\n" + b"X: y\r\n" * 100 + b"\r\n",
        b"Host: a\r\nX: " + b"x" * 75_000 + b"\r\n\r\n",
        b"Host: a\r\nContent-Length: 5\r\nExpect: 200-ok\r\n\r\nhello",
    ]
    return b"GET /m/%b HTTP/1.1\r\n" % name + chance.choice(rests)


def _flawed_first_line(chance: random.Random, name: bytes) -> bytes:
    path = b"/m/" + name
    firsts = [
        b"GET %b HTTP/1.2",
        b"GET %b HTTP/2.0",
        b"GET %b HTTP/3.0",
        b"GET %b HTTP/0.9",
        b"GET %b HTTP/1.10",
        b"GET %b HTTP/01.1",
        b"GET %b HTTP/1",
        b"GET %b HTTP/11",
        b"GET %b HTTP/1.1 x",
        b"GET %b http/1.1",
        b"GET %b HTTPS/1.1",
        b"GET %b HTCPCP/1.1",
        b"GET %b ICE/1.0",
        b"GET %b\x00 HTTP/1.1",
        b"GET %b\x01 HTTP/1.1",
        b"GET %b\xc3\xa9 HTTP/1.1",
        b"GET\x00 %b HTTP/1.1",
        b"GET\t%b HTTP/1.1",
        b"GET %b\tHTTP/1.1",
        b"GET %b",
        b"GET %b x HTTP/1.1",
        b"get %b HTTP/1.1",
        b"G T %b HTTP/1.1",
        b" GET %b HTTP/1.1",
        b"UNHEARD %b HTTP/1.1",
        b"\xffGET %b HTTP/1.1",
        b"GET ftp://a%b HTTP/1.1",
        b"GET m%b HTTP/1.1",
        b"CONNECT a:1%b HTTP/1.1",
        b"\x16\x03\x01\x02%b",
        b"%b",
    ]
    return chance.choice(firsts) % path + b"\r\nHost: a\r\n\r\n"


_FLAWED: Final = [_flawed_length, _flawed_coding, _flawed_in_1_0, _flawed_chunks, _flawed_chunks, _flawed_lines, _flawed_first_line]


def unfinished(chance: random.Random, name: bytes) -> bytes:
    """A request that lacks its end, so that what follows belongs to it; or may."""
    starts = [
        b"POST /m/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + name,
        b"POST /m/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n",
        b"POST /m/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + name,
        b"POST /m/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n" + name,
        b"POST /m/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5000\r\n\r\n" + name,
    ]
    return chance.choice(starts)


# Any bytes at all.

_PIECES: Final = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\xff",
    b"\x80",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"GET ",
    b"POST ",
    b"HEAD ",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 4294967296\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"Expect: 100-continue\r\n",
    b"X-Serve-Shard-Key: k\r\n",
    b"X-Serve-Timeout-Ms: 1\r\n",
    b"X-Serve-Call-Method: all\r\n",
    b"%00%ff%",
    b"x" * 5000,
]


def corpus(chance: random.Random, count: int) -> list[bytes]:
    """Requests to mutate, alone and pipelined, with `BLANK_NAME` in place of names."""
    made: list[bytes] = []
    for number in range(count):
        parts = [good(chance, BLANK_NAME).data for _ in range(chance.choice([1, 1, 1, 2, 4]))]
        if number % 4 == 0:
            parts.append(flawed(chance, BLANK_NAME))
        elif number % 4 == 1:
            parts.append(good(chance, BLANK_NAME, last=True).data)
        elif number % 16 == 2:
            parts.append(unfinished(chance, BLANK_NAME))
        made.append(b"".join(parts))
    return made


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds after a few changes: bytes flipped, set, deleted, inserted, doubled, cut off, or taken from another."""
    draw, below = chance.random, chance.randrange
    data = bytearray(chance.choice(seeds))
    for _ in range(1 if draw() < 0.6 else below(2, 6)):
        size = len(data)
        if not size:
            break
        # Mostly near the beginning, where the head is.
        at = below(min(size, 200)) if draw() < 0.6 else below(size)
        what = below(9)
        if what == 0:
            data[at] ^= 1 << below(8)
        elif what == 1:
            data[at] = below(256)
        elif what == 2:
            data[at] = b"\r\n\0 :;,0159afAF/%?#\x7f\xff"[below(21)]
        elif what == 3:
            del data[at : at + 1 + below(3)]
        elif what == 4:
            del data[at : at + below(60)]
        elif what == 5:
            data[at:at] = _PIECES[below(len(_PIECES))]
        elif what == 6:
            data[at:at] = data[at : at + below(60)]
        elif what == 7:
            del data[at:]
        else:
            other = chance.choice(seeds)
            data[at:] = other[below(len(other)) :]
    return bytes(data)
