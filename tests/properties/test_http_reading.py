"""Whatever way the bytes of a client are cut, it gets the same answers in the same order; and no bytes break the ingress."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headgate.ingress.http1 import Connection
from headgate.ingress.memory import MOST_BYTES, PATIENCE, KnownHead, Memory
from headgate.ingress.service import Service, request_ids
from headgate.router.call import Call
from tests.ingress_server import TABLE, FakeRouter, answer, body_of, echo, head_of, hold


class FakeTransport:
    """Remembers what was written; `paused` says whether it would read."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.paused = self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the connection was closed"
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self.closed = True

    close = abort = write_eof

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return None


class Played:
    """What came of playing some reads to a connection."""

    def __init__(self, written: bytes, router: FakeRouter, held_bytes: int, most_given: int, known: int) -> None:
        self.written, self.held_bytes, self.most_given, self.known = written, held_bytes, most_given, known
        self.calls = [(head_of(c).target, body_of(c)) for c in router.calls]
        self.details = [
            (head_of(c), body_of(c), c.body_bytes, c.request_id, c.endpoint, c.method, c.shard_key, c.caller_timeout_s)
            for c in router.calls
        ]


def _service() -> Service:
    service = Service(FakeRouter(echo), _no_measure, _no_measure, server="here")
    service.apply(TABLE)
    service.set_date(0)
    service.next_id = request_ids("id-")
    return service


async def _play(reads: list[bytes], seed: int | None, service: Service | None = None) -> Played:
    """Feed the reads as a transport would. Without a seed calls are answered at once, else later and in any order."""
    service = service or _service()
    service.router = router = FakeRouter(echo if seed is None else hold)
    transport, connection = FakeTransport(), Connection(service)
    connection.connection_made(transport)  # type: ignore[arg-type]  # it has all that a connection uses
    order = random.Random(seed)
    most_given, pending = 0, list(reads)
    while True:
        if pending and not transport.paused:
            data = pending.pop(0)
            if not transport.closed:
                connection.data_received(data)
        given = [call for call in router.calls if not call.complete]  # type: ignore[attr-defined]  # an exchange
        most_given = max(most_given, len(given))
        if given and seed is not None and order.random() < 0.6:
            _answer(order.choice(given))
        elif not given and not pending:
            await asyncio.sleep(0)
            if all(call.complete for call in router.calls) and not transport.paused:  # type: ignore[attr-defined]  # an exchange
                break
        await asyncio.sleep(0)
    connection.connection_lost(None)
    return Played(bytes(transport.written), router, service.admission.held_bytes, most_given, len(service.memory.known))


async def _no_measure() -> Any:
    raise AssertionError("nothing asks for metrics here")


def _answer(call: Call) -> None:
    call.answered(answer(body_of(call) or head_of(call).target))


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    reads, at = [], 0
    for size in sizes:
        reads.append(data[at : at + size])
        at += size
    return [read for read in (*reads, data[at:]) if read]


bodies = st.one_of(st.binary(max_size=40), st.integers(4000, 20_000).map(lambda size: b"z" * size))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[bytes, bytes] | None, int]:
    """A request's bytes, the target and body that must reach the router (None: it is refused), and its status."""
    number = draw(st.integers(0, 999))
    kind = draw(st.sampled_from(["get", "length", "chunked", "missing", "upgrade", "trailers"]))
    target = b"/echo?%d" % number
    body = draw(bodies)
    if kind == "get":
        return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target, (target, b""), 200
    if kind == "missing":
        return b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), None, 404
    start = b"POST %b HTTP/1.1\r\nHost: a\r\n" % target
    if kind == "upgrade":
        start += b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    if kind in ("chunked", "trailers"):
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _cut(body, draw(st.lists(st.integers(1, 9), max_size=5))))
        trailers = b"Host: b\r\nX-Serve-Shard-Key: \xff\r\n" if kind == "trailers" else b""
        return start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n", (target, body), 200
    return start + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), (target, body), 200


def _statuses(written: bytes) -> list[tuple[int, bytes]]:
    """An oracle of its own: the answers in what was written."""
    found = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        (length,) = (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
        found.append((int(head[9:12]), rest[:length]))
        written = rest[length:]
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=40), st.lists(st.integers(1, 3000), max_size=60), st.none() | st.integers(0, 1000))
def test_a_stream_of_requests_is_answered_the_same_however_it_is_cut_and_in_order(
    given_requests: list[tuple[bytes, tuple[bytes, bytes] | None, int]], sizes: list[int], seed: int | None
) -> None:
    data = b"".join(request for request, _, _ in given_requests)
    played = asyncio.run(_play(_cut(data, sizes), seed))
    expected_calls = [call for _, call, _ in given_requests if call is not None]
    assert played.calls == expected_calls
    answers = _statuses(played.written)
    assert [status for status, _ in answers] == [status for _, _, status in given_requests]
    assert [body for status, body in answers if status == 200] == [body or target for target, body in expected_calls]
    assert played.most_given <= 16
    assert played.held_bytes == 0


PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"Host: a\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"Expect: 100-continue\r\n",
    b"X-SERVE-TIMEOUT-MS: 1\r\n",
    b"X-SERVE-SHARD-KEY: \xff\r\n",
    b"\r\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n",
    b"x" * 70_000,
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)), max_size=12), st.lists(st.integers(1, 200), max_size=20))
def test_no_bytes_break_the_ingress_and_any_cut_of_them_gives_the_same_answers(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    whole = asyncio.run(_play([data] if data else [], None))
    cut = asyncio.run(_play(_cut(data, sizes), None))
    assert whole.held_bytes == cut.held_bytes == 0
    assert cut.calls == whole.calls
    # A request whose body came with its head is not told to go on; else the answers are the same.
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert cut.written.replace(go_on, b"") == whole.written.replace(go_on, b"")


HEADS = [
    b"GET /echo?1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"POST http://b/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: keep-alive\r\nConnection: Keep-Alive, x\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nX-Serve-Shard-Key: \xc3\xa9\r\nX-Serve-Timeout-Ms: 10\r\nX-Serve-Call-Method: m\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: KEY\r\nX-SERVE-Shard-Key: KEY\r\nContent-Length: 5\r\n\r\n",
    b"GET /echo?KEY HTTP/1.1\r\nX-Serve-Shard-Key: KEY\r\nX-Y: KEY\r\nHost: a\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nX-Serve-Shard-Key:KEY\r\nX-Serve-Shard-Keys: KEY\r\nHost: a\r\n\r\n",
    # None of these may be remembered, or used before it is clear what they are.
    b"\r\n\r\n",
    b"\r\n",
    b"\n\n",
    b"\n\n\n",
    b"GET /echo HTTP/1.1\nHost: a\n\n",
    b"POS",
    b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
    b"DELETE /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /-/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /echo HTTP/1.1\r\n\r\n",
    b"GET /echo HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: own\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\nX-Serve-Timeout-Ms: 0\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\nX-Serve-Shard-Key: KEY\r\nX-Serve-Shard-Key: KEY\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nHost: b\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n",
]
KEYS = [
    b"a",
    b"user-1",
    b"~" * 128,
    b"",
    b" ",
    b" a",
    b"a b",
    b"a\t",
    b"k" * 129,
    b"\xc3\xa9",
    b"\xff",
    b"a\r",
    b"\x00",
    b"a\r\nX-Serve-Shard-Key: b",
]
"""Stand where a head says KEY."""


@st.composite
def repetitive_reads(draw: st.DrawFn) -> list[bytes]:
    """Few heads, again and again: mostly a request a read, some cut or together, now and then something odd."""
    few = draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=3))
    parts: list[bytes] = []
    for head in draw(st.lists(st.sampled_from(few), min_size=1, max_size=20)):
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
        head = head.replace(b"KEY", draw(st.sampled_from(KEYS[:3]) | st.sampled_from(KEYS)))
        request = head + (b"hello" * 1000)[:length]
        how = draw(st.sampled_from(["whole"] * 6 + ["cut", "together", "wrong"]))
        if how == "cut":
            at = draw(st.integers(0, len(request)))
            parts += [request[:at], request[at:]]
        elif how == "together" and parts:
            parts[-1] += request
        elif how == "wrong":
            parts.append(request + draw(st.sampled_from([b"\r\n", b"x", b"POS", b"GET /echo?2 HTTP/1.1\r\n"])))
        else:
            parts.append(request)
    return [part for part in parts if part]


class _Forgetful(Memory):
    def add(self, head: bytes, known: KnownHead) -> None:
        pass

    def add_keyed(self, head: bytes, known: KnownHead, client: bytes) -> None:
        pass


@settings(max_examples=600, deadline=None)
@example([[b"\n\n\n", HEADS[0], b"\n\n\n", HEADS[0]]], None, 0)  # empty lines that count as many as that head has
@given(st.lists(repetitive_reads(), min_size=2, max_size=4), st.none() | st.integers(0, 1000), st.sampled_from([0, 8_000]))
def test_an_ingress_that_remembers_heads_does_what_one_does_that_parses_each(
    clients: list[list[bytes]], seed: int | None, limit_bytes: int
) -> None:
    async def play(remember: bool) -> list[Played]:
        service = _service()
        if not remember:
            service.memory = _Forgetful()
        if limit_bytes:
            service.admission.limit_bytes = limit_bytes
        return [await _play(reads, seed, service) for reads in clients]

    for parsed, remembered in zip(asyncio.run(play(False)), asyncio.run(play(True)), strict=True):
        assert parsed.known == 0
        assert remembered.written == parsed.written
        assert remembered.details == parsed.details
        assert remembered.held_bytes == parsed.held_bytes == 0
        assert remembered.most_given == parsed.most_given


def test_a_head_that_is_known_is_not_parsed_again_until_the_table_changes() -> None:
    request = HEADS[2] + b"hello"
    fed: list[bytes] = []

    async def serve() -> FakeRouter:
        service = _service()
        router = service.router = FakeRouter(echo)
        for _ in range(2):
            connection = Connection(service)
            connection.connection_made(FakeTransport())  # type: ignore[arg-type]  # it has all that a connection uses
            parse = connection._feed_data
            connection._feed_data = lambda data, parse=parse: (fed.append(bytes(data)), parse(data))[1]  # type: ignore[misc]
            for _ in range(5):
                connection.data_received(request)
        assert fed == [request]
        service.apply(msgspec.structs.replace(TABLE, max_body_bytes=4))
        connection.data_received(request)
        assert fed == [request, request]
        return router

    router = asyncio.run(serve())
    assert [body_of(call) for call in router.calls] == [b"hello"] * 10  # the last was refused: it is too large now


def test_heads_that_differ_in_their_shard_key_alone_are_parsed_once() -> None:
    fed: list[bytes] = []

    async def serve() -> FakeRouter:
        service = _service()
        router = service.router = FakeRouter(echo)
        connection = Connection(service)
        connection.connection_made(FakeTransport())  # type: ignore[arg-type]  # it has all that a connection uses
        parse = connection._feed_data
        connection._feed_data = lambda data: (fed.append(bytes(data)), parse(data))[1]
        for number in range(1000):
            connection.data_received(b"GET /echo?1 HTTP/1.1\r\nHost: a\r\nX-Serve-Shard-Key: user-%d\r\n\r\n" % number)
        return router

    router = asyncio.run(serve())
    assert len(fed) == 1
    assert [call.shard_key for call in router.calls] == [f"user-{number}" for number in range(1000)]
    assert [dict(head_of(call).headers)[b"x-serve-shard-key"].decode() for call in router.calls] == [c.shard_key for c in router.calls]


def _parses(requests: list[bytes]) -> int:
    """How many reads of one connection the parser gets."""
    fed: list[bytes] = []

    async def serve() -> None:
        connection = Connection(_service())
        connection.connection_made(FakeTransport())  # type: ignore[arg-type]  # it has all that a connection uses
        parse = connection._feed_data
        connection._feed_data = lambda data: (fed.append(bytes(data)), parse(data))[1]
        for request in requests:
            connection.data_received(request)

    asyncio.run(serve())
    return len(fed)


def test_a_head_that_came_in_two_reads_does_not_keep_others_from_being_known() -> None:
    request = HEADS[2] + b"hello"
    assert _parses([request[:3], request[3:]] + [request] * 100) == 3


def test_shard_keys_under_names_of_different_spelling_are_all_known() -> None:
    request = b"GET /echo?1 HTTP/1.1\r\nHost: a\r\n%b: user-%d\r\n\r\n"
    names = (b"X-Serve-Shard-Key", b"x-serve-shard-key", b"X-SERVE-SHARD-KEY")
    assert _parses([request % (names[number % 3], number) for number in range(300)]) == 3


def test_of_requests_whose_heads_are_known_no_more_are_under_way_than_of_others() -> None:
    async def serve() -> None:
        service = _service()
        router = service.router = FakeRouter(hold)
        transport, connection = FakeTransport(), Connection(service)
        connection.connection_made(transport)  # type: ignore[arg-type]  # it has all that a connection uses
        for _ in range(service.limits.pipelined + 1):
            connection.data_received(HEADS[2] + b"hello")
        assert len(router.calls) == service.limits.pipelined
        assert transport.paused
        connection.data_received(HEADS[2] + b"hello")  # what was read just before the pause
        _answer(router.calls[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(router.calls) == service.limits.pipelined + 1

    asyncio.run(serve())


def test_what_is_remembered_is_bounded_and_a_client_whose_heads_never_repeat_adds_little() -> None:
    async def flood(connections: int, each: int) -> tuple[int, int]:
        service, most, count = _service(), 0, 0
        for _ in range(connections):
            connection = Connection(service)
            connection.connection_made(FakeTransport())  # type: ignore[arg-type]  # it has all that a connection uses
            for _ in range(each):
                count += 1
                connection.data_received(b"GET /echo?%d HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (count, b"x" * 1500))
            most = max(most, len(service.memory.known))
        return most, sum(map(len, service.memory.known))

    most, _ = asyncio.run(flood(1, 1000))
    assert most <= PATIENCE
    most, _ = asyncio.run(flood(100, 50))
    assert most * 1500 <= MOST_BYTES
