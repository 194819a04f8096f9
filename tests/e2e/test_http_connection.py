"""Are the connection rules of the ingress kept? Each over a raw socket, with the router played by the test."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Iterator

import pytest

from headgate.core import wire
from headgate.errors import ErrorInfo
from headgate.ingress.service import Limits
from headgate.router.call import Call
from tests.ingress_server import (
    TABLE,
    Client,
    FakeRouter,
    IngressServer,
    body_of,
    chunk,
    echo,
    echo_later,
    error_info,
    head_of,
    hold,
    ingress,
)
from tests.ingress_server import (
    answer as an_answer,
)
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("no engine takes part")

GET = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes, headers: bytes = b"", path: bytes = b"/echo") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, headers, len(body), body)


@pytest.fixture
def server() -> Iterator[IngressServer]:
    """One whose endpoints echo the body, or the target of a request without one."""
    with ingress(echo_later) as running:
        yield running
        wait_until(running.no_bytes_held, what="no bytes held")


@pytest.fixture
def holding() -> Iterator[IngressServer]:
    """One whose requests wait for the test to answer them."""
    with ingress(hold) as running:
        yield running


# One request.


def test_a_request_goes_to_the_router_with_all_that_the_client_said(server: IngressServer) -> None:
    with server.client() as client:
        answer = client.ask(
            b"POST /%65cho?q=1 HTTP/1.1\r\nHost: a.example\r\nX-Twice: 1 \t\r\nx-twice:  2\r\n"
            b"X-SERVE-SHARD-KEY: \t caf\xc3\xa9 \r\nX-SERVE-CALL-METHOD: other\r\nX-SERVE-TIMEOUT-MS: 1500\r\n"
            b"X-Request-Id: my.id_1-2\r\nContent-Length: 5\r\n\r\nhello"
        )
    (call,) = server.router.calls
    head = head_of(call)
    assert (call.endpoint, call.method, call.shard_key, call.caller_timeout_s) == ("echo", "other", "café", 1.5)
    assert (call.request_id, body_of(call), call.body_bytes) == ("my.id_1-2", b"hello", 5)
    assert (head.method, head.target, head.version, head.client, head.scheme) == ("POST", b"/%65cho?q=1", "1.1", "127.0.0.1", "http")
    assert head.headers[:3] == [(b"host", b"a.example"), (b"x-twice", b"1"), (b"x-twice", b"2")]
    assert (answer.status, answer.body, answer.headers["x-request-id"]) == (200, b"hello", "my.id_1-2")
    assert answer.headers["content-type"] == "text/plain"
    assert "date" in answer.headers


def test_without_the_headers_of_the_contract_there_is_no_key_no_method_and_no_limit(server: IngressServer) -> None:
    with server.client() as client:
        client.ask(GET)
    (call,) = server.router.calls
    assert (call.shard_key, call.method, call.caller_timeout_s, call.body, call.body_bytes) == (None, "", None, b"", 0)


def test_an_empty_shard_key_is_the_empty_key(server: IngressServer) -> None:
    with server.client() as client:
        client.ask(b"GET /echo HTTP/1.1\r\nHost: a\r\nX-SERVE-SHARD-KEY:  \r\n\r\n")
    assert server.router.calls[0].shard_key == ""


@pytest.mark.parametrize(
    "header",
    [
        b"X-SERVE-SHARD-KEY: \xff",
        b"X-SERVE-SHARD-KEY: a\r\nx-serve-shard-key: a",
        b"X-SERVE-CALL-METHOD:",
        b"X-SERVE-CALL-METHOD: a.b",
        b"X-SERVE-CALL-METHOD: a\r\nX-SERVE-CALL-METHOD: b",
        b"X-SERVE-TIMEOUT-MS:",
        b"X-SERVE-TIMEOUT-MS: 0",
        b"X-SERVE-TIMEOUT-MS: -1",
        b"X-SERVE-TIMEOUT-MS: 1.5",
        b"X-SERVE-TIMEOUT-MS: 1e3",
        b"X-SERVE-TIMEOUT-MS: " + b"9" * 5000,
        b"X-SERVE-TIMEOUT-MS: 1\r\nX-SERVE-TIMEOUT-MS: 1",
    ],
)
def test_a_bad_control_header_is_400_and_the_connection_goes_on(server: IngressServer, header: bytes) -> None:
    with server.client() as client:
        answer = client.ask(b"POST /echo HTTP/1.1\r\nHost: a\r\n%b\r\nContent-Length: 3\r\n\r\nabc" % header)
        assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
        assert header.split(b":")[0].decode().lower() in json.loads(answer.body)["detail"]
        assert not server.router.calls
        assert client.ask(GET).status == 200


@pytest.mark.parametrize("own", [b"", b"a b", b"x" * 129, "é".encode(), b"a/b", b"a\r\nX-Request-Id: b"])
def test_a_request_id_of_another_shape_is_replaced(server: IngressServer, own: bytes) -> None:
    with server.client() as client:
        ids = {client.ask(b"GET /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: %b\r\n\r\n" % own).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert {given.rpartition("-")[0] for given in ids} == {server.service.next_id().rpartition("-")[0]}


def test_head_has_the_head_of_get_and_no_body(server: IngressServer) -> None:
    with server.client() as client:
        got = client.ask(GET)
        head = client.ask(b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n", bare=True)
        missing = client.ask(b"HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", bare=True)
        page = client.ask(b"HEAD /-/healthz HTTP/1.1\r\nHost: a\r\n\r\n", bare=True)
        assert head.headers["content-length"] == got.headers["content-length"] == "5"
        assert (head.status, missing.status, page.status) == (200, 404, 200)
        assert client.ask(GET).body == b"/echo"
    assert head_of(server.router.calls[1]).method == "HEAD"


def test_an_unknown_path_is_404_and_an_unlisted_method_405_with_allow(server: IngressServer) -> None:
    with server.client() as client:
        assert client.ask(post(b"x" * 10_000, path=b"/nowhere")).status == 404
        answer = client.ask(b"GET /post HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert client.ask(b"HEAD /post HTTP/1.1\r\nHost: a\r\n\r\n", bare=True).status == 405
        assert client.ask(b"TRACE /echo HTTP/1.1\r\nHost: a\r\n\r\n").status == 405
        assert client.ask(post(b"", path=b"/-/healthz")).status == 405
        assert client.ask(GET).status == 200
    assert len(server.router.calls) == 1


def test_options_is_204_with_allow(server: IngressServer) -> None:
    with server.client() as client:
        answer = client.ask(b"OPTIONS /echo HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
        assert "content-length" not in answer.headers
        assert client.ask(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").status == 204
        assert client.ask(b"OPTIONS /nowhere HTTP/1.1\r\nHost: a\r\n\r\n").status == 404


def test_an_absolute_target_is_its_path_and_its_authority_the_host(server: IngressServer) -> None:
    with server.client() as client:
        assert client.ask(b"GET http://b.example:81/echo?x HTTP/1.1\r\nHost: a\r\n\r\n").body == b"/echo?x"
        assert client.ask(b"GET HTTP://b.example HTTP/1.1\r\nHost: a\r\n\r\n").status == 404
    assert (b"host", b"b.example:81") in head_of(server.router.calls[0]).headers


def test_the_pages_answer_in_their_turn(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET + b"GET /-/metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /-/healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        (call,) = holding.calls(1)
        holding.call(lambda: call.answered(an_answer(b"first")))
        assert client.answer().body == b"first"
        metrics = client.answer()
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b"headgate_requests_total" in metrics.body
        assert json.loads(client.answer().body) == {"status": "ok"}


def test_metrics_without_a_controller_are_503() -> None:
    async def fails() -> None:
        raise ConnectionError("no controller")

    with ingress(measure=fails) as server, server.client() as client:  # type: ignore[arg-type]  # it never gives a measurement
        assert client.ask(b"GET /-/metrics HTTP/1.1\r\nHost: a\r\n\r\n").status == 503
        assert client.ask(GET).status == 200


def test_before_the_first_table_everything_is_503_and_alive() -> None:
    with ingress(table=None) as server, server.client() as client:
        answer = client.ask(post(b"hello"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert client.ask(b"GET /-/healthz HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        assert client.ask(b"GET /-/readyz HTTP/1.1\r\nHost: a\r\n\r\n").status == 503


# What can't be read as one request and nothing else.


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"GET /echo HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, id="two Hosts"),
        pytest.param(b"GET /echo HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two Hosts in 1.0"),
        pytest.param(b"GET /echo HTTP/2.0\r\nHost: a\r\n\r\n", 505, id="2.0"),
        pytest.param(b"GET /echo HTTP/0.9\r\nHost: a\r\n\r\n", 505, id="0.9"),
        pytest.param(b"GET /echo\r\n\r\n", 505, id="no version"),
        pytest.param(b"GET /echo HTTP/1.2\r\nHost: a\r\n\r\n", 400, id="1.2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="preface of HTTP/2"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, id="gzip, chunked"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 501, id="gzip"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501, id="identity"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, id="xchunked"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            id="two, last chunked",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="chunked twice",
        ),
        pytest.param(b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="chunked in 1.0"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, id="both lengths"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="both, swapped"
        ),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400, id="length twice"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", 400, id="length list"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400, id="length signed"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", 400, id="length hexadecimal"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", 400, id="length beyond all"),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n", 400, id="folded header"),
        pytest.param(b"GET /echo HTTP/1.1\nHost: a\n\n", 400, id="bare LF"),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n", 400, id="bare LF in a header"),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", 400, id="bare CR in a header"),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", 400, id="NUL in a header"),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400, id="blank before the colon"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", 400, id="bare LF after a chunk size"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400, id="bad chunk size"
        ),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405, id="CONNECT"),
        pytest.param(b"GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="another scheme"),
        pytest.param(b"GET echo HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="no path"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 200-ok\r\n\r\nx", 417, id="unknown expectation"),
    ],
)
def test_what_is_not_plainly_one_request_is_refused_in_a_problem_document_and_ends_the_connection(
    server: IngressServer, request_bytes: bytes, status: int
) -> None:
    with server.client() as client:
        # What follows must never be taken for a request.
        answer = client.ask(GET + request_bytes + GET)
        assert (answer.status, answer.body) == (200, b"/echo")
        refused = client.answer()
        assert (refused.status, refused.headers["connection"]) == (status, "close")
        assert refused.headers["content-type"] == "application/problem+json"
        document = json.loads(refused.body)
        assert document["status"] == status
        assert document["request_id"] == refused.headers["x-request-id"]
        assert client.at_end()
    assert len(server.router.calls) == 1


def test_a_parser_error_carries_the_clients_own_request_id(server: IngressServer) -> None:
    with server.client() as client:
        answer = client.ask(b"GET /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nX: b\r\n folded\r\n\r\n")
        assert (answer.status, answer.headers["x-request-id"]) == (400, "mine")


def test_http_1_0_needs_no_host_and_closes_unless_asked_to_keep_alive(server: IngressServer) -> None:
    with server.client() as client:
        kept = client.ask(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (kept.body, kept.headers["connection"]) == (b"/echo", "keep-alive")
        last = client.ask(b"GET /echo HTTP/1.0\r\n\r\n")
        assert (last.body, last.headers["connection"]) == (b"/echo", "close")
        assert client.at_end()
    assert head_of(server.router.calls[0]).version == "1.0"


def test_connection_close_is_the_last_request(server: IngressServer) -> None:
    with server.client() as client:
        answer = client.ask(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
        assert (answer.body, answer.headers["connection"]) == (b"/echo", "close")
        assert client.at_end()
    assert len(server.router.calls) == 1


def test_trailers_and_chunk_extensions_change_nothing(server: IngressServer) -> None:
    with server.client() as client:
        answer = client.ask(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n"
            b"Host: evil\r\nX-Serve-Call-Method: evil\r\nExpect: evil\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\n" + GET
        )
        assert answer.body == b"abcde"
        assert client.answer().body == b"/echo"
    assert server.router.calls[0].method == ""
    assert all(b"evil" not in value for call in server.router.calls for _, value in head_of(call).headers)


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"])
@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_upgrade_is_ignored_and_its_body_is_kept(server: IngressServer, upgrade: bytes, framing: bytes) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %b\r\nX-SERVE-SHARD-KEY: k\r\n%b" % (upgrade, framing)
    with server.client() as client:
        client.send(request + GET + request)
        assert [client.answer().body for _ in range(3)] == [b"hello", b"/echo", b"hello"]
        client.send(request[:-3])
        client.send(request[-3:] + GET)
        assert [client.answer().body for _ in range(2)] == [b"hello", b"/echo"]
    first = server.router.calls[0]
    assert first.shard_key == "k"
    assert (b"upgrade", upgrade) in head_of(first).headers


def test_an_upgrade_without_a_body_is_one_request(server: IngressServer) -> None:
    request = b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with server.client() as client:
        client.send(request * 100)
        assert [client.answer().body for _ in range(100)] == [b"/echo"] * 100
        assert client.ask(request.replace(b"Upgrade\r\n", b"Upgrade, close\r\n", 1) + GET).headers["connection"] == "close"
        assert client.at_end()


@pytest.mark.parametrize("cut", [0, 30])
def test_what_is_refused_behind_an_ignored_upgrade_is_told_why(server: IngressServer, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello"
    with server.client() as client:
        client.send(upgrade[:cut])
        assert client.ask(upgrade[cut:] + b"GET /echo HTTP/1.1\r\n\r\n").body == b"hello"
        refused = client.answer()
    assert (refused.status, json.loads(refused.body)["detail"]) == (400, "exactly one Host header is needed, got 0")
    assert not caplog.records


def test_expect_100_continue_is_answered_before_the_body(server: IngressServer) -> None:
    with server.client() as client:
        assert client.ask(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n").status == 100
        assert client.ask(b"hello").body == b"hello"
        # One that does not wait, and one without a body, are not told.
        assert client.ask(post(b"hello", b"Expect: 100-continue\r\n")[:-5] + b"hello").status in (100, 200)


def test_expect_is_answered_in_its_turn(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET + b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        (call,) = holding.calls(1)
        holding.call(lambda: call.answered(an_answer(b"first")))
        assert client.answer().body == b"first"
        assert client.answer().status == 100
        client.send(b"hello")
        assert body_of(holding.calls(2)[1]) == b"hello"


def test_a_refusal_saves_the_client_a_body_it_would_have_waited_with(server: IngressServer) -> None:
    with server.client() as client:
        answer = client.ask(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert client.at_end()


# Limits.


def test_a_head_of_64_kib_is_read_and_one_byte_more_is_431(server: IngressServer) -> None:
    def head(size: int) -> bytes:
        start = b"GET /echo HTTP/1.1\r\nHost: a\r\nX: "
        return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"

    with server.client() as client:
        assert client.ask(head(65536)).status == 200
        answer = client.ask(head(65537))
        assert (answer.status, answer.headers["connection"]) == (431, "close")


def test_a_head_without_end_is_refused_before_it_costs_anything(server: IngressServer) -> None:
    with server.client() as client:
        client.send(b"GET /echo HTTP/1.1\r\nHost: a\r\nX: ")
        refused = False
        for _ in range(1000):
            try:
                client.send(b"x" * 10_000)
            except OSError:
                refused = True
                break
        answer = client.answer() if not refused else None
    assert refused or answer is not None
    assert answer is None or answer.status == 431


def test_more_than_100_headers_are_431(server: IngressServer) -> None:
    with server.client() as client:
        assert client.ask(b"GET /echo HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"X: y\r\n" * 99)).status == 200
        assert client.ask(b"GET /echo HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"X: y\r\n" * 100)).status == 431


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"1;x="])
def test_endless_trailers_and_chunk_extensions_are_refused(server: IngressServer, endless: bytes) -> None:
    with server.client() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n" + endless)
        answer = client.ask(b"x" * 70_000)
        assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert not server.router.calls


def test_a_body_over_the_limit_is_413_at_its_head(server: IngressServer) -> None:
    with server.client() as client:
        assert client.ask(post(b"x" * 1_000_000)).status == 200
        answer = client.ask(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000001\r\nExpect: 100-continue\r\n\r\n")
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert client.at_end()


def test_a_chunked_body_over_the_limit_is_413_as_it_adds_up(server: IngressServer) -> None:
    with server.client() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert server.call(lambda: server.service.admission.held_bytes) > 0
        assert client.ask(b"1\r\nx\r\n").status == 413
        assert client.at_end()
    assert not server.router.calls


def test_a_client_that_sends_on_can_read_why_it_was_refused(server: IngressServer) -> None:
    with server.client() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        assert client.answer().status == 413


def test_bodies_of_any_framing_and_size_arrive_whole(server: IngressServer) -> None:
    body = bytes(range(256)) * 3000
    with server.client() as client:
        assert client.ask(post(body)).body == body
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
        for start in range(100):
            client.send(b"1\r\n" + body[start : start + 1] + b"\r\n")
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 100, body[100:]))
        assert client.answer().body == body


def test_tiny_chunks_are_not_kept_one_by_one(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        (call,) = holding.calls(1)
        assert isinstance(call.body, list)
        assert len(call.body) < 10
        assert body_of(call) == b"x" * 50_000


# Bytes held.


def test_over_max_inflight_bytes_it_is_503_with_retry_after_until_something_has_ended(holding: IngressServer) -> None:
    holding.call(lambda: holding.service.admission.share(300_000, 2))
    with holding.client() as first, holding.client() as second:
        first.send(post(b"x" * 100_000))
        (call,) = holding.calls(1)
        answer = second.ask(post(b"x" * 60_000))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert json.loads(answer.body)["reason"] == "max_inflight_bytes"
        holding.router.has_served = (2, 50.0)
        second.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n")
        # Of 100,000 bytes and a head 10,000 are too many, and all of them leave within 25 s.
        answer = second.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        holding.call(lambda: call.answered(an_answer()))
        assert first.answer().status == 200
    with holding.client() as third:
        third.send(post(b"x" * 60_000))
        holding.calls(2)


def test_answers_that_a_client_does_not_take_count_as_held(holding: IngressServer) -> None:
    size = 8_000_000
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.answered(an_answer(b"x" * size)))
        assert holding.call(lambda: holding.service.admission.held_bytes) > size // 4
        assert len(client.answer().body) == size
        wait_until(holding.no_bytes_held)


def test_what_was_held_is_given_back_when_clients_vanish_at_any_point(holding: IngressServer) -> None:
    starts = [
        post(b"x" * 1000)[:-1],
        post(b"x" * 300_000)[:-1],
        post(b"x" * 1000),
        GET * 1000,
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"GET /ec",
    ]
    clients = [holding.client() for _ in starts]
    for client, start in zip(clients, starts, strict=True):
        client.send(start)
    holding.calls(17)
    assert not holding.no_bytes_held()
    for client in clients:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()

    def all_are_gone() -> bool:
        holding.pass_time(0)  # one whose reading is paused is seen by the sweep
        return holding.call(lambda: not holding.service.connections)

    wait_until(all_are_gone)
    assert holding.no_bytes_held()
    assert len(holding.router.cancelled) == 17


def test_a_client_that_closes_its_side_while_its_reading_is_paused_is_seen_by_the_sweep(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 1000)
        holding.calls(16)
        client.socket.shutdown(socket.SHUT_WR)

        def all_are_cancelled() -> bool:
            holding.pass_time(0)
            return len(holding.router.cancelled) == 16

        wait_until(all_are_cancelled)


# Pipelining.


def test_answers_leave_in_the_order_of_their_requests_whatever_order_they_are_made_in(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(
            b"".join(b"GET /echo?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(10))
            + b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        calls = holding.calls(10)
        for call in (*calls[5:], *reversed(calls[:5])):
            holding.call(lambda call=call: echo(holding.router, call))  # type: ignore[misc]  # a lambda's default
        assert [client.answer().body for _ in range(10)] == [b"/echo?%d" % number for number in range(10)]
        assert client.answer().status == 404


def test_no_more_than_16_requests_of_one_connection_are_with_the_router(holding: IngressServer) -> None:
    count = 6000
    with holding.client() as client:
        client.send(GET)
        holding.calls(1)
        client.send(b"".join(b"GET /echo?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1, count)))
        calls = holding.calls(16)

        def reading_is_paused() -> bool:
            (connection,) = holding.service.connections
            return connection._paused

        wait_until(lambda: holding.call(reading_is_paused), what="reading is paused")
        assert len(calls) == 16
        # Little of what was read has been parsed; all of it is counted.
        (connection,) = holding.service.connections
        assert holding.call(lambda: len(connection._waiting)) < 200
        assert holding.call(lambda: holding.service.admission.held_bytes) > 4096
        holding.router.on_submit = echo_later
        for call in list(calls):
            holding.call(lambda call=call: echo(holding.router, call))  # type: ignore[misc]  # a lambda's default
        bodies = [client.answer().body for _ in range(count)]
    assert bodies == [b"/echo"] + [b"/echo?%d" % number for number in range(1, count)]


def test_a_client_that_reads_nothing_gets_no_more_than_16_answers_made() -> None:
    with ingress(echo_later) as server, server.client() as client:
        body = b"x" * 500_000
        held = server.call(lambda: server.router)

        def big(router: FakeRouter, call: object) -> None:
            call.answered(an_answer(body))  # type: ignore[attr-defined]  # it is a Call

        held.on_submit = big
        client.send(GET * 1000)
        wait_until(lambda: server.call(lambda: any(connection._paused for connection in server.service.connections)))
        made = len(server.router.calls)
        # What the kernel's buffers took, and 16 more.
        assert made < 60
        assert server.call(lambda: server.service.admission.held_bytes) < 60 * len(body)
        for _ in range(1000):
            assert len(client.answer().body) == len(body)


def test_an_error_in_the_middle_is_answered_in_its_turn_and_the_last(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET + b"BROKEN\r\n\r\n" + GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.answered(an_answer(b"first")))
        assert client.answer().body == b"first"
        assert client.answer().status == 400
        assert client.at_end()


# Clients that go away.


def test_a_client_that_closes_its_side_counts_as_gone(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 3)
        calls = holding.calls(3)
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: holding.router.cancelled == calls, what="all are cancelled")
        assert client.at_end()


def test_a_client_that_resets_cancels_its_stream(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.chunk(chunk(b"a", first=True)))
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: holding.router.cancelled == [call])


def test_a_call_that_was_answered_is_not_cancelled(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 2)
        first, second = holding.calls(2)
        holding.call(lambda: second.answered(an_answer()))
    wait_until(lambda: holding.router.cancelled == [first])


# Failures.


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("UserCodeError", 500),
        ("EncodeError", 500),
        ("ReplicaDiedError", 502),
        ("UnavailableError", 503),
        ("QueueFullError", 503),
        ("DeadlineExceededError", 504),
        ("EndpointRemovedError", 404),
        ("BadRequestError", 400),
    ],
)
def test_a_failed_call_is_a_problem_document_with_the_status_of_its_error(holding: IngressServer, kind: str, status: int) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.failed(ErrorInfo(kind, "why it failed", "Traceback: secret", retry_after_s=2.5)))
        answer = client.answer()
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert answer.headers.get("retry-after") == ("3" if status == 503 else None)
        assert b"secret" not in answer.body
        assert json.loads(answer.body)["request_id"] == answer.headers["x-request-id"] == call.request_id


@pytest.mark.parametrize(
    ("retry_after_s", "header"), [(None, "1"), (-1.0, "1"), (0.2, "1"), (2.5, "3"), (1e300, "86400"), (math.inf, "86400"), (math.nan, "1")]
)
def test_retry_after_is_a_whole_number_of_seconds_whatever_a_replica_says(
    holding: IngressServer, retry_after_s: float | None, header: str
) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.failed(ErrorInfo("QueueFullError", "full", retry_after_s=retry_after_s)))
        answer = client.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, header)


def test_with_debug_the_client_sees_the_traceback(holding: IngressServer) -> None:
    holding.call(lambda: setattr(holding.service, "debug", True))
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.failed(error_info(traceback="Traceback: shown")))
        assert json.loads(client.answer().body)["traceback"] == "Traceback: shown"


def test_a_router_that_raises_costs_its_request_an_answer_of_500_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def raises(router: FakeRouter, call: object) -> None:
        if len(router.calls) == 1:
            raise RuntimeError("a bug")
        echo(router, call)  # type: ignore[arg-type]  # it is a Call

    with ingress(raises) as server, server.client() as client:
        assert client.ask(GET).status == 500
        assert client.ask(GET).status == 200
    assert "a bug" in caplog.text


# Answers.


def test_statuses_without_a_body_have_none_and_no_length(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 3)
        calls = holding.calls(3)
        for call, code in zip(calls, (204, 304, 201), strict=True):
            holding.call(lambda call=call, code=code: call.answered(an_answer(b"body", code=code)))  # type: ignore[misc]  # a lambda's default
        assert "content-length" not in client.answer().headers
        assert "content-length" not in client.answer().headers
        assert client.answer().body == b"body"


def test_header_lines_of_user_code_are_sent_as_they_are(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.answered(an_answer(b"", code=418, lines=b"x-a: b\r\n")))
        answer = client.answer()
        assert (answer.status, answer.headers["x-a"], answer.headers["content-length"]) == (418, "b", "0")


# Streams.


def test_a_stream_leaves_chunk_by_chunk_without_waiting_for_its_end(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.chunk(chunk(b"one", first=True)))
        client._got = b""
        wait_until(lambda: b"3\r\none\r\n" in client._got or not client._more(), what="the first chunk")
        assert b"transfer-encoding: chunked\r\n" in client._got
        holding.call(lambda: (call.chunk(chunk(b"")), call.chunk(chunk(b"two")), call.ended()))
        answer = client.answer()
        assert (answer.body, answer.whole) == (b"onetwo", True)
        assert client.ask(GET[:4] + b"/nowhere" + GET[9:]).status == 404


def test_small_parts_of_a_stream_leave_in_order_with_large_ones(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        large = b"y" * 50_000

        def stream() -> None:
            call.chunk(chunk(b"one", first=True))
            call.small_chunk(b"3\r\ntwo\r\n")
            call.chunk(chunk(large))
            call.small_chunk(b"5\r\nthree\r\n")
            call.ended()

        holding.call(stream)
        answer = client.answer()
        assert (answer.body, answer.whole) == (b"onetwo" + large + b"three", True)
        assert holding.call(lambda: holding.service.admission.held_bytes) == 0


def test_small_parts_of_a_stream_that_breaks_off_are_sent_before_the_end(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: (call.chunk(chunk(b"one", first=True)), call.small_chunk(b"3\r\ntwo\r\n"), call.failed(error_info())))
        answer = client.answer()
        assert (answer.body, answer.whole) == (b"onetwo", False)
        assert client.at_end()


def test_small_parts_of_a_stream_wait_for_its_turn_and_are_counted(holding: IngressServer) -> None:
    part = b"%x\r\n%b\r\n" % (10_000, b"x" * 10_000)
    with holding.client() as client:
        client.send(GET * 2)
        first, second = holding.calls(2)
        holding.call(lambda: (second.chunk(chunk(b"one", first=True)), *(second.small_chunk(part) for _ in range(10))))
        assert holding.router.credits == []
        assert holding.call(lambda: holding.service.admission.held_bytes) > 100_000
        holding.call(lambda: first.answered(an_answer(b"first")))
        assert client.answer().body == b"first"
        wait_until(lambda: sum(holding.router.credits) > 100_000)
        holding.call(second.ended)
        assert client.answer().body == b"one" + b"x" * 100_000
    wait_until(lambda: holding.call(lambda: holding.service.admission.held_bytes) == 0)


def test_a_stream_that_breaks_off_closes_the_connection_without_the_last_chunk(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 2)
        first, second = holding.calls(2)
        holding.call(lambda: (first.chunk(chunk(b"one", first=True)), first.failed(error_info())))
        answer = client.answer()
        assert (answer.status, answer.body, answer.whole) == (200, b"one", False)
        assert client.at_end()
        wait_until(lambda: holding.router.cancelled == [second])


def test_a_failure_before_the_first_chunk_is_answered_like_any_other(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.failed(ErrorInfo("DeadlineExceededError", "too late")))
        assert client.answer().status == 504


def test_a_stream_in_http_1_0_ends_with_the_connection(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        (call,) = holding.calls(1)
        holding.call(lambda: (call.chunk(chunk(b"one", first=True)), call.chunk(chunk(b"two")), call.ended()))
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"onetwo", "close")
        assert "transfer-encoding" not in answer.headers


def test_a_stream_in_http_1_0_that_breaks_off_is_reset(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(b"GET /echo HTTP/1.0\r\n\r\n")
        (call,) = holding.calls(1)
        holding.call(lambda: call.chunk(chunk(b"one", first=True)))
        while not client._got.endswith(b"one"):
            assert client._more()
        holding.call(lambda: call.failed(error_info()))
        with pytest.raises(ConnectionResetError):
            client.socket.recv(1)


def test_head_of_a_stream_is_its_head_and_of_the_rest_nothing_is_waited_for(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n")
        (call,) = holding.calls(1)
        holding.call(lambda: call.chunk(chunk(b"one", first=True)))
        assert client.answer(bare=True).headers["transfer-encoding"] == "chunked"
        assert holding.router.enough_of == [(call, 200)]
        assert holding.router.cancelled == []
        client.send(GET)
        holding.call(lambda: holding.calls(2)[1].answered(an_answer(b"next")))
        assert client.answer().body == b"next"


def test_a_stream_that_is_not_at_the_head_of_the_queue_waits_and_gets_no_credit(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 2)
        first, second = holding.calls(2)
        part = b"x" * 100_000
        holding.call(lambda: (second.chunk(chunk(part, first=True)), second.chunk(chunk(part))))
        assert holding.router.credits == []
        assert holding.call(lambda: holding.service.admission.held_bytes) > 200_000
        holding.call(lambda: first.answered(an_answer(b"first")))
        assert client.answer().body == b"first"
        holding.call(second.ended)
        assert client.answer().body == part * 2


def test_credit_follows_what_the_client_takes() -> None:
    with ingress(hold) as server, server.client() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.send(GET)
        (call,) = server.calls(1)
        part, sent = b"x" * 65536, 0
        server.call(lambda: call.chunk(chunk(b"x", first=True)))

        def send_within_credit() -> int:
            nonlocal sent
            while sent - sum(server.router.credits) < wire.STREAM_CREDIT:
                call.chunk(chunk(part))
                sent += len(part)
                if sent > 50_000_000:
                    break
            return sent

        # The client reads nothing: credit runs out when the kernel's buffers are full.
        wait_until(lambda: server.call(send_within_credit) == server.call(send_within_credit), what="credit runs out")
        stuck_at = sent
        assert stuck_at < 20_000_000
        # It reads, and there is credit again.
        wait_until(
            lambda: sum(len(client.socket.recv(1 << 16)) for _ in range(20)) and server.call(send_within_credit) > stuck_at,
            what="credit comes back",
        )


# Time.


def test_a_head_that_does_not_end_is_408(server: IngressServer) -> None:
    with server.client() as client:
        client.send(b"GET /echo HTTP/1.1\r\nHost:")
        wait_until(lambda: server.call(lambda: any(connection._quiet_bytes for connection in server.service.connections)))
        server.pass_time(9.9)
        server.pass_time(10)
        assert client.answer().status == 408
        assert client.at_end()


def test_a_body_that_does_not_end_is_408_and_one_that_comes_fast_enough_has_more_time(server: IngressServer) -> None:
    def body_bytes() -> int:
        return sum(c._current.body_bytes for c in server.service.connections if c._current is not None)

    with server.client() as client:
        client.send(post(b"x" * 409_601)[:-1])
        wait_until(lambda: server.call(body_bytes) == 409_600)
        server.pass_time(159)
        client.send(b"x")
        assert client.answer().status == 200
        client.send(post(b"x" * 409_601)[:-1])
        wait_until(lambda: server.call(body_bytes) == 409_600)
        server.pass_time(161)
        assert client.answer().status == 408
        assert client.at_end()


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(holding: IngressServer) -> None:
    with holding.client() as idle, holding.client() as busy, holding.client() as new:
        busy.send(GET)
        (call,) = holding.calls(1)
        idle.send(b"GET /-/healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.answer().status == 200
        new.socket.settimeout(5)
        wait_until(lambda: holding.call(lambda: len(holding.service.connections)) == 3)
        holding.pass_time(76)
        assert idle.at_end()
        assert new.at_end()
        holding.pass_time(100_000)
        holding.call(lambda: call.answered(an_answer(b"late")))
        assert busy.answer().body == b"late"


def test_a_client_that_takes_nothing_of_its_answer_is_cut(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        holding.call(lambda: call.answered(an_answer(b"x" * 20_000_000)))
        holding.pass_time(59)
        assert holding.call(lambda: len(holding.service.connections)) == 1
        holding.pass_time(61)
        wait_until(lambda: holding.call(lambda: not holding.service.connections))
        assert holding.no_bytes_held()
        client.rest()


def test_after_a_refusal_the_client_has_a_moment_to_read_it(server: IngressServer) -> None:
    with server.client() as client:
        assert client.ask(b"BROKEN\r\n\r\n").status == 400
        assert server.call(lambda: len(server.service.connections)) == 1
        server.pass_time(2)
        wait_until(lambda: server.call(lambda: not server.service.connections))


def test_time_does_not_run_against_a_client_whose_reading_is_paused(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET * 17 + b"GET /ec")
        calls = holding.calls(16)
        wait_until(lambda: holding.call(lambda: any(connection._paused for connection in holding.service.connections)))
        holding.pass_time(100_000)
        holding.router.on_submit = echo_later
        for call in list(calls):
            holding.call(lambda call=call: call.answered(an_answer()))  # type: ignore[misc]  # a lambda's default
        client.send(b"ho HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [client.answer().status for _ in range(18)] == [200] * 18


# TLS.


def test_over_tls_the_same_rules_hold() -> None:
    with ingress(echo_later, tls=True) as server:
        with server.client() as client:
            client.send(b"".join(b"GET /echo?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3000)))
            assert [client.answer().body for _ in range(3000)] == [b"/echo?%d" % number for number in range(3000)]
            body = bytes(range(256)) * 3000
            assert client.ask(post(body)).body == body
            assert client.ask(b"BROKEN\r\n\r\n").status == 400
            server.pass_time(2)
            assert client.at_end()
        assert head_of(server.router.calls[0]).method == "GET"
        wait_until(server.no_bytes_held)


def test_over_tls_a_client_that_goes_away_cancels_its_calls() -> None:
    with ingress(hold, tls=True) as server:
        with server.client() as client:
            client.send(GET * 3)
            calls = server.calls(3)
        wait_until(lambda: server.router.cancelled == calls)


def test_a_client_without_tls_is_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    with ingress(tls=True) as server, Client(server.port) as plain:
        plain.send(GET)
        plain.rest()
        with server.client() as client:
            assert client.ask(GET).status == 200


# Coming and going.


def _by_query(router: FakeRouter, call: Call) -> None:
    """Do with a request what its query says."""
    how = head_of(call).target.partition(b"?")[2]
    if how == b"hold":
        return
    if how.startswith(b"stream"):
        call.chunk(chunk(b"one", first=True))
        call.small_chunk(b"3\r\ntwo\r\n")
        if how == b"stream":
            call.ended()
        elif how == b"stream-breaks-off":
            call.failed(error_info())
    elif how == b"fail":
        call.failed(error_info())
    else:
        echo_later(router, call)


def _get(how: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % (how if how.startswith(b"/") else b"/echo?" + how)


CUT: list[bytes] = [
    b"",
    b"GET /ec",
    post(b"x" * 1000)[:-1],
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    _get(b"hold") * 40,
    _get(b"stream-goes-on"),
    _get(b"/-/metrics") * 3,
    b"BROKEN\r\n\r\n" + GET,
]
"""What a client has sent when it vanishes."""


@pytest.mark.parametrize("tls", [False, True])
def test_no_task_stays_of_connections_that_have_come_and_gone(tls: bool) -> None:
    def held(server: IngressServer) -> tuple[int, int]:
        server.pass_time(2)  # sees those whose reading is paused, and ends those that were refused
        return server.call(lambda: (len(asyncio.all_tasks()), len(server.service.connections)))

    def come_and_go(server: IngressServer, number: int) -> int:
        """Returns how many requests were answered."""
        with server.client() as client:
            client.send((_get(b"%d" % number) + _get(b"fail") + _get(b"stream")) * 10 + _get(b"/-/metrics") + _get(b"/-/readyz"))
            answers = [client.answer() for _ in range(32)]
            assert {answer.status for answer in answers} == {200, 500}
            client.send(_get(b"stream-breaks-off"))
            assert not client.answer().whole
        for start in CUT:
            with server.client() as client:
                client.send(start)
                if number % 2:  # with a reset
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if tls:
            Client(server.port).socket.close()  # before the handshake
        return len(answers)

    with ingress(_by_query, tls=tls) as server, server.client() as first, server.client() as second:
        assert first.ask(GET).status == second.ask(_get(b"/-/metrics")).status == 200
        before = held(server)
        assert before[1] == 2
        answered = sum(come_and_go(server, number) for number in range(70))
        wait_until(lambda: held(server) == before, what="there are as many tasks and connections as before")
        assert answered > 2000
        assert server.no_bytes_held()
        assert first.ask(GET).status == second.ask(GET).status == 200


# The end.


def _drain(server: IngressServer, grace_s: float) -> object:
    return asyncio.run_coroutine_threadsafe(server.service.drain(grace_s), server.loop)


def test_draining_answers_what_is_under_way_and_closes_what_is_idle(holding: IngressServer) -> None:
    with holding.client() as busy, holding.client() as idle, holding.client() as half:
        busy.send(GET)
        (call,) = holding.calls(1)
        half.send(post(b"hello")[:-2])
        wait_until(lambda: holding.call(lambda: len(holding.service.connections)) == 3)
        wait_until(lambda: holding.call(lambda: any(connection._current for connection in holding.service.connections)))
        done = _drain(holding, 10)
        assert idle.at_end()
        assert half.answer().status == 503
        assert not done.done()  # type: ignore[attr-defined]  # a concurrent future
        holding.call(lambda: call.answered(an_answer(b"last")))
        answer = busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"last", "close")
        assert busy.at_end()
        half.socket.close()
        done.result(5)  # type: ignore[attr-defined]  # a concurrent future


def test_draining_does_not_wait_for_clients_that_were_refused(holding: IngressServer) -> None:
    with holding.client() as client:
        assert client.ask(b"BROKEN\r\n\r\n").status == 400
        _drain(holding, 60).result(5)  # type: ignore[attr-defined]  # a concurrent future


def test_draining_ends_at_its_deadline(holding: IngressServer) -> None:
    with holding.client() as client:
        client.send(GET)
        (call,) = holding.calls(1)
        _drain(holding, 0.01).result(5)  # type: ignore[attr-defined]  # a concurrent future
        assert holding.router.cancelled == [call]
        assert client.at_end()


def test_a_table_that_says_closing_makes_everything_new_503(server: IngressServer) -> None:
    import msgspec

    with server.client() as client:
        server.call(lambda: server.service.apply(msgspec.structs.replace(TABLE, closing=True)))
        answer = client.ask(GET)
        assert (answer.status, json.loads(answer.body)["reason"]) == (503, "shutting down")
        assert "retry-after" in answer.headers


def test_too_many_connections_are_closed_at_once() -> None:
    with ingress(limits=Limits(connections=2)) as server, server.client() as first, server.client() as second:
        assert first.ask(GET).status == second.ask(GET).status == 200
        with server.client() as third:
            assert third.at_end()
        assert first.ask(GET).status == 200


def test_refusals_are_counted_for_the_metrics(server: IngressServer) -> None:
    from headgate.core.reports import Counters, RequestCount

    with server.client() as client:
        client.ask(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
        client.ask(b"BROKEN\r\n\r\n")
    counted = server.call(lambda: server.service.with_refusals(Counters())).requests
    assert counted == (RequestCount("", "", 400, 1, 0.0), RequestCount("", "", 404, 1, 0.0))
