"""What is noted of a request, when, and what does the access log say of it?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from headgate.core import wire
from headgate.ingress.access import AccessLog, NotedExchange, without_secrets
from headgate.logs.capture import Speaker
from headgate.logs.entry import Entry, as_text
from headgate.logs.output import Output
from headgate.router.call import Call
from tests.ingress_server import Answer, Client, answer, chunk, error_info, hold, ingress
from tests.recorder import SAMPLED


class Kept(Output):
    """Keeps what would be written."""

    def __init__(self) -> None:
        super().__init__(json=True)
        self.entries: list[Entry] = []

    def write_all(self, entries: Iterable[Entry], descriptor: int | None = None) -> None:
        self.entries += entries


class Ended:
    """As much of an exchange as is noted."""

    def __init__(self, target: bytes, **more: Any) -> None:
        head = wire.HttpHead("GET", target, "1.1", [(b"host", b"h")], "http", "h:1", "10.0.0.1")
        self.http = msgspec.msgpack.encode(head)
        self.endpoint, self.request_id = "e", "r1"
        self.__dict__.update(more)


def said_of(*noted: tuple[Any, int, int, bytes]) -> list[Entry]:
    """The entries of exchanges that ended with a status, so many bytes, and a trace."""
    kept = Kept()

    async def scene() -> None:
        log = AccessLog(Speaker(kept, "ingress", "i0"))
        for each in noted:
            log.note(*each)
        await log.close()

    asyncio.run(scene())
    return kept.entries


def test_an_entry_says_whose_request_it_was_what_became_of_it_and_its_trace() -> None:
    again = [(Ended(b"/e?a=1&sig=secret", backend="b:v1", request_id=id), 200, 7, SAMPLED) for id in ("r1", "r2")]
    lost = Ended(b"/nowhere\xff", endpoint="")
    first, second, third, unread = said_of(*again, (lost, 404, 0, b""), (Ended(b"", http=b"", endpoint=""), 400, 0, b""))
    assert as_text(first) == "[i0 e r1] 10.0.0.1 GET /e?a=1&sig=REDACTED 200 7 B 0.0 ms b:v1"
    assert as_text(second) == as_text(first).replace("r1", "r2")
    assert as_text(third) == "[i0 - r1] 10.0.0.1 GET /nowhere\\xff 404 0 B 0.0 ms"
    assert as_text(unread) == "[i0 - r1] - a request that could not be read 400 0 B 0.0 ms"
    assert [entry.trace_ids for entry in (first, second, third)] == [("11" * 16,), ("11" * 16,), ()]
    assert {(entry.role, entry.level, entry.logger) for entry in (first, third)} == {("ingress", "INFO", "headgate.access")}


def test_how_long_it_took_is_said_to_the_microsecond_and_when_it_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.ingress.access.monotonic", lambda: 100.0)
    monkeypatch.setattr("time.time", lambda: 5000.0)
    (entry,) = said_of((Ended(b"/", admitted_at=99.9876543), 200, 0, b""))
    assert (entry.time, entry.http and entry.http.duration_s) == (5000.0, 0.012345)


@pytest.mark.parametrize("name", ["sig", "Signature", "AWSAccessKeyId", "X-Goog-Signature"])
def test_what_is_a_secret_in_a_query_is_left_out_wherever_it_stands(name: str) -> None:
    assert without_secrets(f"{name}=s") == f"{name}=REDACTED"
    assert without_secrets(f"/x?{name}=s&a=1&{name}=s") == f"/x?{name}=REDACTED&a=1&{name}=REDACTED"
    assert without_secrets(f"/x?a={name}&un{name}=s&b") == f"/x?a={name}&un{name}=s&b"


def test_a_request_is_noted_when_its_answer_is_on_its_way() -> None:
    noted: list[tuple[int, int, bool]] = []

    class Noted(NotedExchange):
        __slots__ = ()

        def _note(self, status: int, sent_bytes: int) -> None:
            noted.append((status, sent_bytes, self not in self.connection.slots))

    def ask(client: Client, *steps: Callable[[Call], None]) -> Answer:
        before = len(server.router.calls)
        client.send(get % b"echo")
        call = server.calls(before + 1)[-1]
        for step in steps:
            server.call(lambda: step(call))  # noqa: B023  # it is called at once
        return client.answer()

    get = b"GET /%b HTTP/1.1\r\nhost: h\r\n\r\n"
    with ingress(hold, exchange=Noted) as server, server.client() as client:
        ask(client, lambda call: call.answered(answer(b"whole")))
        ask(client, lambda call: call.chunk(chunk(b"part", first=True)), lambda call: call.ended())
        failed = ask(client, lambda call: call.failed(error_info()))
        refused = client.ask(get % b"nowhere")
        broken = ask(client, lambda call: call.chunk(chunk(b"part", first=True)), lambda call: call.failed(error_info()))
        assert not broken.whole
    assert noted == [(200, 5, True), (200, 4, True), (500, len(failed.body), True), (404, len(refused.body), True), (200, 4, True)]
