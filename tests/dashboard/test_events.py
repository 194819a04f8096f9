"""Are lookers told what there is to see, while they look, and does nothing of the ingress wait for them?"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from headgate.core.reports import Counters, Description, Measurement, RequestCount
from headgate.ingress import dashboard
from headgate.ingress.files import FILES
from tests.ingress_server import TABLE, Client, IngressServer, ingress
from tests.support import wait_until

ASK = b"GET /-/events HTTP/1.1\r\nHost: x\r\n\r\n"


class Controller:
    """What the ingress asks, played by the test."""

    def __init__(self) -> None:
        self.name = "played"
        self.asked = 0
        self.is_away = False
        self.state_id = "1"

    async def describe(self) -> Description:
        self.asked += 1
        if self.is_away:
            await asyncio.Event().wait()
        return Description(self.name, (), {}, {}, (), {}, {}, (), ready=True, state_id=self.state_id)

    async def measure(self) -> Measurement:
        return Measurement(Counters(requests=(RequestCount("e", "b", 200, 10 * self.asked, 0.5),)))


class Looker:
    """Follows the events of an ingress."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._got = b""
        client.send(ASK)
        while b"\r\n\r\n" not in self._got:
            self._read()
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        self.head = head.decode()

    def next(self, name: str) -> Any:
        """What the next event of that name tells."""
        while True:
            found = re.search(rb"event: (\w+)\ndata: (.*)\n\n", self._got)
            if found is None:
                self._read()
                continue
            self._got = self._got[found.end() :]
            if found[1] == name.encode():
                return json.loads(found[2])

    def _read(self) -> None:
        data = self.client.socket.recv(1 << 16)
        assert data, "the stream has ended"
        self._got += data


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def server(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Iterator[IngressServer]:
    monkeypatch.setattr(dashboard, "PERIOD_S", 0.02)
    monkeypatch.setattr(dashboard, "ANSWER_S", 0.1)
    with ingress(measure=controller.measure, describe=controller.describe) as server:
        yield server


def lookers(server: IngressServer) -> int:
    return server.call(lambda: len(server.service.dashboard._lookers))


def test_a_looker_is_told_the_declared_state_once_and_then_again_and_again_what_there_is(server: IngressServer, controller: Controller):
    with server.client() as client:
        looker = Looker(client)
        assert looker.head.startswith("HTTP/1.1 200")
        assert "content-type: text/event-stream" in looker.head
        assert "cache-control: no-store" in looker.head
        first = looker.next("overview")
        assert (first["name"], first["rates"]) == ("played", None)
        assert looker.next("declared").startswith("# What is asked for")
        assert wait_until(lambda: looker.next("overview")["rates"])["per_s"] > 0
        controller.state_id = "2"
        looker.next("declared")


def test_the_controller_is_asked_once_for_all_lookers_and_not_at_all_when_nobody_looks(server: IngressServer, controller: Controller):
    clients = [server.client() for _ in range(5)]
    followed = [Looker(client) for client in clients]
    for looker in followed:
        for _ in range(10):
            looker.next("overview")
    asked = controller.asked
    assert asked < 5 * 10  # each by itself would have
    for client in clients:
        client.socket.close()
    wait_until(lambda: server.call(lambda: server.service.dashboard._task) is None, what="nobody asks any more")
    assert lookers(server) == 0
    assert server.no_bytes_held()
    with server.client() as client:
        Looker(client).next("overview")


def test_while_the_controller_is_away_lookers_are_told_so_and_it_goes_on_when_it_is_back(server: IngressServer, controller: Controller):
    with server.client() as client:
        looker = Looker(client)
        looker.next("overview")
        controller.is_away = True
        looker.next("away")
        with server.client() as another:
            Looker(another).next("away")
        controller.is_away = False
        assert looker.next("overview")["rates"] is not None  # of all the time since


def test_who_does_not_read_misses_what_lies_between_and_holds_no_more_than_one_event(server: IngressServer, controller: Controller):
    controller.name = "n" * (1 << 20)
    with server.client() as client, server.client() as other:
        client.send(ASK)
        wait_until(lambda: lookers(server) == 1)
        reader = Looker(other)
        wait_until(lambda: unsent_bytes(server) > 1 << 16 or not reader.next("overview"), what="the first takes nothing any more")
        for _ in range(10):
            reader.next("overview")
        assert unsent_bytes(server) < 1.5 * (1 << 20)
        assert server.call(lambda: server.service.admission.held_bytes) < 3 * (1 << 20)


def unsent_bytes(server: IngressServer) -> int:
    """What the looker that came first was sent and has not taken."""
    return server.call(server.service.dashboard._lookers[0].exchange.connection.transport.get_write_buffer_size)


def test_a_drain_ends_all_streams_at_once_also_those_that_nobody_reads(server: IngressServer, controller: Controller):
    controller.name = "n" * (1 << 20)
    with server.client() as stuck, server.client() as client:
        stuck.send(ASK)
        wait_until(lambda: lookers(server) == 1)
        looker = Looker(client)
        wait_until(lambda: unsent_bytes(server) > 1 << 16 or not looker.next("overview"), what="the first takes nothing any more")
        controller.name = "short"
        wait_until(lambda: looker.next("overview")["name"] == "short")
        draining = asyncio.run_coroutine_threadsafe(server.service.drain(600.0), server.loop)
        assert client.rest().endswith(b"0\r\n\r\n")
        draining.result(10)
    wait_until(lambda: server.call(lambda: server.service.dashboard._task) is None)


def test_no_more_than_so_many_may_look(server: IngressServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dashboard, "MOST_LOOKERS", 1)
    with server.client() as first, server.client() as second:
        looker = Looker(first)
        looker.next("overview")
        refused = second.ask(ASK)
        assert (refused.status, refused.headers["retry-after"]) == (503, "10")
        first.socket.close()
        wait_until(lambda: lookers(server) == 0)
        Looker(second).next("overview")


@pytest.mark.parametrize("path", ["", "events", *FILES])
def test_other_methods_are_answered_as_everywhere(server: IngressServer, controller: Controller, path: str):
    with server.client() as client:
        head = client.ask(f"HEAD /-/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), bare=True)
        assert (head.status, "content-type" in head.headers) == (200, True)
        assert client.ask(f"OPTIONS /-/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).headers["allow"] == "GET, HEAD, OPTIONS"
        assert client.ask(f"POST /-/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()).status == 405
        assert lookers(server) == controller.asked == 0


def test_an_old_client_gets_the_events_up_to_the_end_of_the_connection(server: IngressServer):
    with server.client() as client:
        client.send(b"GET /-/events HTTP/1.0\r\n\r\n")
        looker = Looker.__new__(Looker)
        looker.client, looker._got = client, b""
        assert looker.next("overview")["name"] == "played"


def test_over_tls_it_is_the_same():
    with ingress(tls=True) as server:
        with server.client() as client:
            assert client.ask(b"GET /-/ HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
            Looker(client).next("overview")
            draining = asyncio.run_coroutine_threadsafe(server.service.drain(600.0), server.loop)
            assert client.rest().endswith(b"0\r\n\r\n")
        draining.result(10)


def test_what_comes_behind_a_stream_on_its_connection_is_answered_when_that_has_ended_and_nothing_of_it_runs_before(server: IngressServer):
    with server.client() as client:
        looker = Looker(client)
        client.send(ASK.replace(b"events", b"healthz") + ASK)
        looker.next("overview")
        wait_until(lambda: lookers(server) == 2)
        asyncio.run_coroutine_threadsafe(server.service.drain(600.0), server.loop).result(10)
        rest = client.rest()
        assert rest.count(b"HTTP/1.1 200") == 2
        assert b'{"status":"ok"}' in rest
        assert rest.endswith(b"0\r\n\r\n")


def test_pages_take_nothing_from_elsewhere_and_give_nothing_to_others(server: IngressServer):
    with server.client() as client:
        for name in ("", *FILES):
            answer = client.ask(f"GET /-/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert answer.status == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-cache"
            assert "access-control-allow-origin" not in answer.headers
            text = answer.body.decode().replace("http://www.w3.org/", "")  # names, from which nothing is loaded
            assert not re.search(r"https?://|(src|href)=\"//", text)
            if name in ("", "index.html"):
                policy = answer.headers["content-security-policy"]
                assert policy.startswith("default-src 'none'; script-src 'self';")
                assert "unsafe" not in policy
                assert {*re.findall(r'(?:src|href)="([\w.]+)"', text)} <= {*FILES, "metrics", "routes", "readyz"}
                assert not re.search(r"<script(?! type=\"module\" src)|<style|\son\w+=|\sstyle=", text)


def test_an_endpoint_at_the_root_gets_nothing_of_the_dashboard_and_takes_nothing_from_it():
    endpoint = msgspec.structs.replace(TABLE.endpoints["echo"], name="root", route="/")
    with ingress(table=msgspec.structs.replace(TABLE, endpoints={"root": endpoint})) as server, server.client() as client:
        assert client.ask(b"GET /-/ HTTP/1.1\r\nHost: x\r\n\r\n").body.startswith(b"<!doctype html>")
        assert client.ask(b"GET /-/other HTTP/1.1\r\nHost: x\r\n\r\n").status == 404
        assert server.router.calls == []
        assert client.ask(b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n").body == b"/any"
