"""What does garbage achieve on the sockets inside an instance: between routers and replicas, and at the controller?"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import uvloop

from headgate.config import BackendConfig
from headgate.core import messages, wire
from headgate.core.messages import BrokenReplica, EndpointEntry, Message, ReplicaEntry, RoutingTable
from headgate.core.specs import ReplicaSpec
from headgate.engines.local import folders
from headgate.errors import ErrorInfo, WireError
from headgate.ingress.http1 import Connection
from headgate.ingress.service import Service
from headgate.router.link import CLOSED
from headgate.router.router import Router
from headgate.router.way import Way, link_path
from headgate.serve import Instance
from tests.chaos import hostile
from tests.chaos.conftest import Figures
from tests.chaos.siege import Case, Siege, Then
from tests.chaos.test_http_attacks import attacked, cut
from tests.chaos.upkeep import KEPT_BYTES, MEMORY_BYTES, Upkeep
from tests.support import until

DECODED, ON_LINKS, AT_CONTROLLER, ANSWERED = 30_000, 12_000, 4_000, 4_000
"""Cases of the normal form; the long one has ten times as many."""
WARM_UP: Final = 2000
FAILURES: Final = ("could not be read", "Exception in", "Fatal", "ended:")
"""What a replica's log has of failures other than those of requests, which may ask for what can't be."""
_pack: Final = msgspec.msgpack.encode
_HEAD: Final = struct.Struct("<IIIIIHHBBxx")


def frame(kind: int, number: int = 0, *, meta: bytes = b"", body: bytes = b"", **fields: int) -> bytes:
    """A frame as bytes, with a layout of its own."""
    rest = [fields.get(name, 0) for name in ("micros", "millis", "place", "code")]
    return _HEAD.pack(len(meta), len(body), number, *rest, kind, fields.get("flags", 0)) + meta + body


def mutated(chance: random.Random, data: bytes) -> bytes:
    """After a few changes: bytes flipped, set, deleted, doubled, cut off, and sizes changed."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        size = len(changed)
        if not size:
            break
        at = chance.randrange(min(size, 28)) if chance.random() < 0.3 else chance.randrange(size)
        what = chance.randrange(7)
        if what == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            changed[at] = chance.randrange(256)
        elif what == 2:
            changed[at] = chance.choice(b"\x00\x01\x7f\x80\x90\x9f\xc0\xc1\xc4\xc6\xcf\xd3\xd9\xdb\xdd\xdf\xff")
        elif what == 3:
            del changed[at : at + chance.randrange(1, 40)]
        elif what == 4:
            changed[at:at] = changed[at : at + chance.randrange(1, 40)]
        elif what == 5:
            del changed[at:]
        else:
            changed[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 0xFFFF, 1 << 20, (1 << 20) + 1, 1 << 31, 0xFFFFFFFF]))
    return bytes(changed)


def call_of(name: bytes, **fields: Any) -> list[Any]:
    """A call over HTTP with that name in it, as a router sends it."""
    http = wire.HttpHead("POST", b"/m/" + name, "1.1", [(b"host", b"a"), (b"content-length", b"18")], "http", "a:1", "127.0.0.1")
    call = {"number": 1, "place": 0, "micros": 50, "millis": 60_000, "endpoint": "m", "method": "", "id": "id", "http": _pack(http)}
    return list((call | {"positional": 0, "keywords": (), "body": name} | fields).values())


def stream_of(chance: random.Random, name: bytes) -> bytes:
    """Frames such as a router and a replica send, of all kinds."""
    hello = _pack(wire.Hello(wire.VERSION, "router", "token", "/page"))
    answer = (1, 200, 5, 0, b"x: y\r\n", name)
    error = _pack(ErrorInfo("UserCodeError", "why", "Traceback"))
    kinds: list[Callable[[], bytes]] = [
        lambda: frame(wire.HELLO, meta=hello),
        lambda: frame(wire.CALL, meta=_pack(call_of(name)[:-1]), body=name * chance.choice([1, 100, 5000])),
        lambda: frame(wire.CALLS, body=_pack([call_of(name)] * chance.choice([0, 1, 5]))),
        lambda: frame(wire.CANCEL, 1),
        lambda: frame(wire.CREDIT, 1, millis=1000),
        lambda: frame(wire.WELCOME, 4711),
        lambda: frame(wire.ANSWER, meta=_pack(answer[:-1]), body=name * chance.choice([1, 100, 5000])),
        lambda: frame(wire.ANSWERS, body=_pack([answer] * chance.choice([0, 1, 5]))),
        lambda: frame(wire.CHUNK, 1, flags=wire.FIRST, code=200, meta=b"x: y\r\n", body=name),
        lambda: frame(wire.END, 1, code=200),
        lambda: frame(wire.FAIL, 1, flags=wire.RAN, meta=error),
        lambda: frame(wire.GIVE_BACK, 1),
    ]
    return b"".join(chance.choice(kinds)() for _ in range(chance.choice([1, 2, 3, 8])))


# The decoder.


@pytest.mark.timeout(1200)
def test_no_bytes_make_a_decoder_do_anything_but_give_frames_or_refuse_them(figure: Figures, long: bool):
    count = DECODED * 10 if long else DECODED
    chance = random.Random(10)
    refused = given = 0
    for number in range(count):
        data = mutated(chance, stream_of(chance, hostile.name(number))) if number % 8 else chance.randbytes(chance.randrange(200))
        decoder = wire.Decoder(chance.choice([0, 1000, wire.MAX_BODY_BYTES]))
        sizes = chance.choice([[1], [7, 100], [1 << 20]]) if len(data) < 2000 else [1000, 50_000]
        at = turn = 0
        try:
            while at < len(data):
                buffer = decoder.buffer()
                assert 0 < len(buffer) <= 65 << 20, "what was merely announced has memory already"
                size = min(len(buffer), len(data) - at, sizes[turn % len(sizes)])
                buffer[:size] = data[at : at + size]
                at, turn = at + size, turn + 1
                for got in decoder.received(size):
                    given += 1
                    assert 0 < got.kind <= wire.LAST_KIND
                    assert len(got.meta) <= wire.MAX_META_BYTES
                    assert len(got.body) <= min(len(data), decoder.max_body_bytes)
        except WireError:
            refused += 1
    figure("link cases, decoded alone", count)
    figure("of these refused", refused / count, at_least=0.1)
    figure("frames", given, at_least=count / 2)


# A replica.


class LinkCases:
    """Cases for the socket of a replica, most of them with a token that it takes, and what came of them."""

    def __init__(self, chance: random.Random, token: str, page: str) -> None:
        self.kinds: Counter[int] = Counter()
        self._chance = chance
        self._token = token
        self._page = page
        self._number = 0

    def cases(self, count: int) -> Iterator[Case]:
        """So many more."""
        for _ in range(count):
            self._number += 1
            yield self._case(self._number)

    def _hello(self, **fields: Any) -> bytes:
        given = {"version": wire.VERSION, "router": "attacker", "token": self._token, "page": self._page, **fields}
        return frame(wire.HELLO, meta=_pack(wire.Hello(**given)))

    def _calls(self, name: bytes) -> bytes:
        chance = self._chance
        method = chance.choice(["", "", "all", "length", "parts", "none"])
        body = b"3" if method == "parts" else name
        records = [call_of(name, number=place + 1, place=place, method=method, body=body) for place in range(chance.choice([1, 1, 4]))]
        if chance.random() < 0.7:
            return frame(wire.CALLS, body=_pack(records))
        return b"".join(frame(wire.CALL, meta=_pack(record[:-1]), body=record[-1]) for record in records)

    def _case(self, number: int) -> Case:
        chance, name, hello = self._chance, hostile.name(number), self._hello()
        smuggled = chance.choice([b"", frame(wire.CALLS, body=_pack([call_of(hostile.SMUGGLED)]))])
        kind = chance.randrange(14)
        then: Then = chance.choice(["close its side later", "close its side", "reset"])
        judge, enough, after = self._is_told_nothing, _any, b""
        if kind == 0:
            data = chance.randbytes(chance.randrange(300)) + smuggled
        elif kind == 1:
            wrong = chance.choice(["", "x", self._token[:-1], self._token + "x", self._token.upper() + "x"])
            data, then = self._hello(token=wrong) + smuggled, "wait"
        elif kind == 2:
            data, then = self._hello(version=chance.choice([0, wire.VERSION + 1, -1, 1 << 40])) + smuggled, "wait"
        elif kind == 3:
            data = hello[: chance.randrange(len(hello))]
        elif kind == 4:
            meta, body = chance.choice([(wire.MAX_META_BYTES + 1, 0), (0xFFFFFFFF, 0), (10, 1), (0, 0xFFFFFFFF)])
            data, then = _HEAD.pack(meta, body, 0, 0, 0, 0, 0, wire.HELLO, 0) + smuggled, "wait"
        elif kind == 5:
            data, then = chance.choice([frame(wire.CALLS), frame(wire.CANCEL, 1), frame(wire.WELCOME, 1)]) + hello + smuggled, "wait"
        elif kind == 6:
            page = chance.choice(["/nowhere", "/", "", "a\0b", self._page + "/x", "p" * 5000])
            data, then = self._hello(page=page) + smuggled, "wait"
        else:
            judge, data = self._is_told_no_more_than_its_own, hello
            if kind == 7:
                data = mutated(chance, hello)
            elif kind == 8:
                after, judge, enough, then = self._calls(name), self._is_answered, self._all_answered, "close its side later"
            elif kind == 9:
                own = frame(chance.choice([wire.WELCOME, wire.ANSWERS, wire.CHUNK, wire.END, wire.HELLO]), body=_pack([]))
                after, then = own + smuggled, "wait"
            elif kind == 10 and chance.random() < 0.1:
                large = _HEAD.pack(100, 0xFFFFFFFF, 0, 0, 0, 0, 0, wire.CALL, 0)
                after = large + chance.randbytes(chance.randrange(5000))
            elif kind == 11:
                field = chance.choice(["number", "place", "micros", "millis", "positional"])
                odd = chance.choice([-1, 0, wire.PLACES, 0xFFFF, 1 << 32, (1 << 63) - 1, -(1 << 63)])
                after = frame(wire.CALLS, body=_pack([call_of(name, method=chance.choice(["", "none"]), **{field: odd})]))
            else:
                small = frame(wire.CANCEL, 1) + frame(wire.CREDIT, 1, millis=chance.randrange(1 << 32))
                after = mutated(chance, self._calls(name) + chance.choice([b"", small]))
        self.kinds[kind] += 1
        if after:
            return Case(number, [data, *cut(chance, after)], then, judge, enough, polite=True)
        return Case(number, cut(chance, data), then, judge, enough)

    def _is_told_nothing(self, case: Case) -> None:
        assert not case.got, case

    def _is_told_no_more_than_its_own(self, case: Case) -> None:
        for kind, _, _ in _frames_in(case):
            assert kind in (wire.WELCOME, wire.ANSWER, wire.ANSWERS, wire.CHUNK, wire.END, wire.FAIL, wire.GIVE_BACK), case
        assert hostile.names_in(case.got) <= {case.number}, f"{case} has got what is another's"

    def _all_answered(self, case: Case) -> bool:
        ends = {wire.FAIL, wire.END, wire.ANSWER, wire.ANSWERS, wire.GIVE_BACK}
        return any(kind in ends for kind, _, _ in _frames_in(case, cut_off=True))

    def _is_answered(self, case: Case) -> None:
        self._is_told_no_more_than_its_own(case)
        assert self._all_answered(case), case


def _any(case: Case) -> bool:
    return True


def _frames_in(case: Case, *, cut_off: bool = False) -> list[tuple[int, int, bytes]]:
    """Kind, number and contents of all that a replica sent; whole, but for the last one where the client cut the link."""
    found, data = [], case.got
    while data:
        if len(data) < _HEAD.size:
            assert cut_off or case.reset, case
            break
        meta_bytes, body_bytes, number, *_, kind, _ = _HEAD.unpack_from(data)
        stop = _HEAD.size + meta_bytes + body_bytes
        assert cut_off or case.reset or stop <= len(data), case
        found.append((kind, number, data[_HEAD.size : stop]))
        data = data[stop:]
    return found


def spec_of(instance: Instance, backend: str) -> ReplicaSpec:
    """What the one replica of a backend was started from, with its token."""
    (replica,) = instance.list_backends()[backend].replicas
    folder = folders.find("default")
    return msgspec.msgpack.decode(Path(f"{folder}/spec-{replica.id}").read_bytes(), type=ReplicaSpec)


@pytest.mark.timeout(1200)
def test_garbage_on_the_socket_of_a_replica_ends_its_own_link_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], figure: Figures, long: bool
):
    count = ON_LINKS * 10 if long else ON_LINKS
    chance = random.Random(11)
    page = tmp_path / "page"
    page.write_bytes(bytes(wire.PLACES))
    with attacked(tmp_path / "journal", capfd, failures=FAILURES) as instance:
        spec = spec_of(instance, "m")
        attack = LinkCases(chance, spec.token, str(page))
        with Siege(instance.http_url, chance, path=link_path(instance._connection.way.folder, spec.id)) as siege:
            siege.play(attack.cases(WARM_UP), at_once=64)
            upkeep = Upkeep(instance)
            began = time.monotonic()
            cases = siege.play(attack.cases(count), at_once=64)
            seconds = time.monotonic() - began
            assert siege.answered >= cases // 5
            grown = upkeep.check()
    figure("link cases, at a replica", cases, at_least=count)
    figure("link cases a second", cases / seconds)
    figure("growth of the largest process, in MB", grown / 1e6, at_most=(MEMORY_BYTES + KEPT_BYTES) / 1e6)


# The controller.


class ControlCases:
    """Cases for the socket of a controller."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._number = 0

    def cases(self, count: int) -> Iterator[Case]:
        """So many more."""
        for _ in range(count):
            self._number += 1
            yield self._case(self._number)

    def _case(self, number: int) -> Case:
        chance = self._chance
        good = messages.encode(messages.Hello(messages.PROTOCOL, "client", f"attacker-{number}", 1))
        ask = messages.encode(messages.VerbCall(f"id-{number}", messages.Describe()))
        then: Then = chance.choice(["close its side later", "close its side", "reset"])
        judge: Callable[[Case], None] = _is_told_nothing
        kind = chance.randrange(8)
        if kind == 0:
            data, judge = chance.randbytes(chance.randrange(300)), _is_told_anything
        elif kind == 1:
            data = struct.pack(">I", chance.choice([1 << 20, 1 << 31, 0xFFFFFFFF])) + chance.randbytes(chance.randrange(5000))
        elif kind == 2:
            role = chance.choice(["emperor", "", "supervisor"])
            data, then = messages.encode(messages.Hello(messages.PROTOCOL, role, "x", 1)), "wait"
        elif kind == 3:
            role = chance.choice(["ingress", "replica"])
            data, then = messages.encode(messages.Hello(messages.PROTOCOL, role, "1", 1, "no token", routes=True)), "wait"
            judge = _is_told_to_end
        elif kind == 4:
            data, then = messages.encode(messages.Hello(messages.PROTOCOL + 1, "client", "x", 1)) + ask, "wait"
        elif kind == 5:
            data, then = ask + good, "wait"
        elif kind == 6:
            data, judge = good + mutated(chance, ask), _is_told_anything
        else:
            data, judge, then = good + ask + b"\0\0\0\1\xc1", _is_told_anything, "wait"
        return Case(number, cut(chance, data), then, judge)


def _is_told_nothing(case: Case) -> None:
    assert not case.got, case


def _is_told_to_end(case: Case) -> None:
    assert case.got in (b"", messages.encode(messages.Unwanted())), case


def _is_told_anything(case: Case) -> None:
    pass


@pytest.mark.timeout(1200)
def test_garbage_on_the_socket_of_a_controller_ends_its_own_connection_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], figure: Figures, long: bool
):
    count = AT_CONTROLLER * 10 if long else AT_CONTROLLER
    chance = random.Random(12)
    attack = ControlCases(chance)
    with attacked(tmp_path / "journal", capfd) as instance:
        path = instance._connection.way.control_path
        with Siege(instance.http_url, chance, path=path, cases_each=20) as siege:
            siege.play(attack.cases(WARM_UP), at_once=64)
            upkeep = Upkeep(instance)
            began = time.monotonic()
            cases = siege.play(attack.cases(count), at_once=64)
            seconds = time.monotonic() - began
            instance.create_endpoint("still", "/still", ["GET"], backend="m")
            instance.delete_endpoint("still")
            grown = upkeep.check()
    figure("control cases", cases, at_least=count)
    figure("control cases a second", cases / seconds)
    figure("growth of the largest process, in MB", grown / 1e6, at_most=MEMORY_BYTES / 1e6)


# A router.


class Transport:
    """What a connection writes to."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.written += b"".join(parts)

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        return None


class Liar(asyncio.Protocol):
    """A replica that takes so many calls, answers with what it is told to, and closes its link."""

    def __init__(self, welcome: bytes, takes: int, answers: Callable[[list[int]], bytes]) -> None:
        self._welcome = welcome
        self._takes = takes
        self._answers = answers
        self._got = b""
        self._numbers: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        transport.write(self._welcome)  # type: ignore[attr-defined]  # it is one of a socket

    def data_received(self, data: bytes) -> None:
        self._got += data
        while len(self._got) >= _HEAD.size:
            meta_bytes, body_bytes, *_, kind, _ = _HEAD.unpack_from(self._got)
            stop = _HEAD.size + meta_bytes + body_bytes
            if len(self._got) < stop:
                return
            if kind == wire.CALLS:
                self._numbers += [record[0] for record in msgspec.msgpack.decode(self._got[_HEAD.size : stop])]
            self._got = self._got[stop:]
        if len(self._numbers) >= self._takes:
            self._transport.write(self._answers(self._numbers))
            self.close()

    def close(self) -> None:
        self._transport.close()


REQUESTS: Final = [
    b"POST /m/ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    b"HEAD /m/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /m/ HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET /m/ HTTP/1.1\r\nHost: a\r\nX-Serve-Timeout-Ms: 60000\r\n\r\n",
]
NOBODY: Final = 0x7FFFFFF0
"""No process has this number."""


def lies(chance: random.Random, name: bytes, numbers: list[int]) -> bytes:
    """Answers to these calls: of every form, in any order, some twice or missing, and most of them damaged."""
    frames: list[bytes] = []
    for number in numbers:
        head = b"x-name: %b\r\n" % name
        info = ErrorInfo(
            chance.choice(["UserCodeError", "QueueFullError", "?"]), "why", retry_after_s=chance.choice([None, 0.5, float("inf")])
        )
        first = frame(wire.CHUNK, number, flags=wire.FIRST, code=chance.choice([200, 200, 204, 0, 65535]), meta=head, body=name)
        part = frame(wire.ANSWERS, body=_pack([(number, wire.PART, 0, 0, b"", b"%x\r\n%b\r\n" % (len(name), name))]))
        ends = [
            frame(wire.END, number, code=200),
            frame(wire.FAIL, number, flags=wire.RAN, meta=_pack(info)),
            frame(wire.GIVE_BACK, number),
        ]
        whole = [
            [frame(wire.ANSWERS, body=_pack([(number, chance.choice([200, 200, 404, 999]), 5, 0, head, name)]))],
            [frame(wire.ANSWER, meta=_pack((number, 200, 5, 0, head)), body=name * 1000)],
            [first, part, frame(wire.CHUNK, number, body=name), chance.choice(ends)],
            [part, first, first],
            [chance.choice(ends)],
            [],
        ]
        made = chance.choice(whole)
        frames += [mutated(chance, each) if chance.random() < 0.3 else each for each in made]
    if chance.random() < 0.2:
        chance.shuffle(frames)
    if chance.random() < 0.2:
        frames.append(
            chance.choice(
                [*frames, b"\xff" * 50, frame(wire.WELCOME, 1), frame(wire.HELLO), frame(wire.ANSWERS, body=b"\xdd" + b"\xff" * 4)]
            )
        )
    return b"".join(frames)


@pytest.mark.timeout(600)
def test_no_answer_of_a_replica_harms_its_router_and_every_request_comes_to_an_end(tmp_path: Path, figure: Figures, long: bool):
    count = ANSWERED * 10 if long else ANSWERED
    chance = random.Random(13)
    reported: list[Message] = []
    failures: list[dict[str, Any]] = []
    ended: Counter[str] = Counter()

    async def no_measure() -> Any:
        raise AssertionError("nothing asks for metrics here")

    async def siege() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        router = Router("t", Way(str(tmp_path)), reported.append)
        service = Service(router, no_measure, no_measure)
        for number in range(count + 1):
            await one(router, service, number)
            assert not failures, failures
        await router.close(1.0)

    async def one(router: Router, service: Service, number: int) -> None:
        name, address, last = hostile.name(number), str(tmp_path / f"{number}"), number == count
        welcome, takes = frame(wire.WELCOME, NOBODY), len(REQUESTS)
        if not last and chance.random() < 0.05:
            welcome = chance.choice([frame(wire.WELCOME, 0xFFFFFFFF), frame(wire.WELCOME, 0)])
        elif not last and chance.random() < 0.05:
            welcome, takes = welcome[:12] + mutated(chance, welcome[12:]), 0  # of a process that lives it would have to wait for the death
        honest = [(200, 5, 0, b"", name)] * len(REQUESTS)

        def answers(numbers: list[int]) -> bytes:
            if last:
                return frame(wire.ANSWERS, body=_pack([(each, *rest) for each, rest in zip(numbers, honest, strict=True)]))
            return lies(chance, name, numbers)

        liar = Liar(welcome, takes, answers)
        server = await asyncio.get_running_loop().create_unix_server(lambda: liar, address)
        transport, connection = Transport(), Connection(service)
        try:
            apply(router, service, 2 * number + 1, (ReplicaEntry("r", address, "secret"),))
            connection.connection_made(transport)  # type: ignore[arg-type]  # it has all that a connection uses
            for request in REQUESTS:
                connection.data_received(request)
            link = router._backends["b"].links["r"]
            # One that ends before it is welcome is tried again, until the table has no such replica.
            await until(
                lambda: link.state == CLOSED or link._refused_at is not None or failures or (last and not connection.slots),
                f"the end of the link in case {number}",
            )
            apply(router, service, 2 * number + 2, ())  # what was sent elsewhere ends now: there is no elsewhere
            await until(lambda: not connection.slots, f"the end of all requests in case {number}")
        finally:
            liar.close()
            server.close()
        ended["cut off" if transport.closed else "answered"] += 1
        if last:
            assert transport.written.count(b"HTTP/1.1 200 ") == len(REQUESTS)
            assert transport.written.count(name) == len(REQUESTS) - 1  # of HEAD there is no body
        assert hostile.names_in(bytes(transport.written)) <= {number}
        connection.connection_lost(None)
        assert service.admission.held_bytes == 0
        assert router.active == 0

    def apply(router: Router, service: Service, version: int, replicas: tuple[ReplicaEntry, ...]) -> None:
        config = BackendConfig()
        backend = messages.BackendEntry(
            tag="b",
            concurrency=len(REQUESTS),
            max_batch_size=1,
            is_batch=False,
            batch_wait_timeout=0.0,
            max_concurrent_queries=None,
            max_queued_queries=config.max_queued_queries,
            request_timeout=None,
            idempotent=version % 4 == 1,
            http_methods=(),
            methods=("",),
            replicas=replicas,
            starting=0,
        )
        table = RoutingTable(version, {"m": EndpointEntry("m", "/m/", ("GET", "POST"), {"b": 1.0})}, {"b": backend})
        service.apply(table)
        router.apply(table)

    began = time.monotonic()
    uvloop.run(siege())
    broken = sum(isinstance(message, BrokenReplica) for message in reported)
    figure("link cases, answers to a router", count)
    figure("link cases a second", count / (time.monotonic() - began))
    figure("of these reported as broken", broken / count, at_least=0.3)
    assert min(ended.values()) > count // 50, ended
