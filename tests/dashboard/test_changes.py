"""Who may change what an instance does by a request, and is that what the controller is told?"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from headgate.core.messages import SetTraffic, UpdateBackendConfig, VerbDone
from headgate.core.strangers import MOST_OF_ONE
from headgate.errors import ErrorInfo, NotRunningError
from headgate.ingress.changes import MOST_BYTES, Change, Changes, Verb
from headgate.ingress.problems import Refusal
from headgate.router import admin
from tests.ingress_server import TABLE, Answer, Client, IngressServer, ingress
from tests.support import wait_until

TOKEN = "the-token-of-this-test"
CHECK = admin.check_of(admin.key_of(TOKEN))
TRAFFIC = {"endpoint": "e", "weights": {"a": 0.25, "b": 0.75}}
CHANGED = SetTraffic("e", {"a": 0.25, "b": 0.75})


class Controller:
    """What the ingress tells, played by the test."""

    def __init__(self) -> None:
        self.verbs: list[Verb] = []
        self.given_up = 0
        self.holds = False
        self.done = VerbDone("")
        self.error: Exception | None = None

    async def call(self, verb: Verb) -> VerbDone:
        self.verbs.append(verb)
        if self.error is not None:
            raise self.error
        try:
            while self.holds:  # noqa: ASYNC110  # the test's own thread ends it
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return self.done


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def server(controller: Controller) -> Iterator[IngressServer]:
    with ingress(changes=Changes(CHECK, controller.call)) as server:
        yield server


def request(page: str, body: object = b"", *headers: str, method: str = "POST") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} /-/{page} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def ask(client: Client, page: str, body: object = b"", token: str = TOKEN) -> Answer:
    return client.ask(request(page, body, f"Authorization: Bearer {token}"))


def problem(answer: Answer) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(answer.body)
    assert found["status"] == answer.status
    return found


def test_what_is_asked_for_with_the_token_is_the_verb_and_its_warnings_are_told(server: IngressServer, controller: Controller):
    controller.done = VerbDone("", warnings=("one handle doesn't answer",))
    with server.client() as client:
        answer = ask(client, "traffic", TRAFFIC)
        assert (answer.status, json.loads(answer.body)) == (200, {"warnings": ["one handle doesn't answer"]})
        ask(client, "traffic", TRAFFIC | {"based_on": {"a": 1}})
        ask(client, "replicas", {"backend": "b", "num_replicas": 3})
        ask(client, "replicas", {"backend": "b", "num_replicas": 3, "based_on": 2})
        assert client.ask(request("token", b"", f"authorization: bearer  {TOKEN}")).status == 204
    assert controller.verbs == [
        CHANGED,
        msgspec.structs.replace(CHANGED, based_on={"a": 1.0}),
        UpdateBackendConfig("b", {"num_replicas": 3}, None),
        UpdateBackendConfig("b", {"num_replicas": 3}, None, {"num_replicas": 2}),
    ]
    assert server.no_bytes_held()


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Authorization: Bearer",),
        ("Authorization: Bearer not-the-token-of-this-test",),
        (f"Authorization: Basic {TOKEN}",),
        (f"Authorization: {TOKEN}",),
        (f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"),
        (f"Cookie: token={TOKEN}", f"X-Token: {TOKEN}"),
    ],
)
@pytest.mark.parametrize("page", ["traffic", "replicas", "token"])
def test_without_the_token_nothing_is_read_and_nobody_is_told(
    server: IngressServer, controller: Controller, page: str, headers: tuple[str, ...]
):
    with server.client() as client:
        answer = client.ask(request(page, TRAFFIC, *headers))
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "admin token" in problem(answer)["detail"]
        assert client.ask(request("token", b"x" * 2 * MOST_BYTES, *headers)).status == 401, "its body is not looked at"
    assert controller.verbs == []
    assert server.no_bytes_held()


def test_a_token_may_have_letters_of_all_languages():
    token = "schlüssel zum tor 鍵"
    with ingress(changes=Changes(admin.check_of(admin.key_of(token)))) as server, server.client() as client:
        assert ask(client, "token", token=token).status == 204
        assert ask(client, "token", token=token[:-1]).status == 401


def test_an_instance_without_a_token_takes_no_changes_and_says_how_one_does(controller: Controller):
    with ingress() as server, server.client() as client:
        answer = ask(client, "traffic", TRAFFIC)
        assert answer.status == 403
        assert "--admin-token-file" in problem(answer)["detail"]


@pytest.mark.parametrize("client", ["10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", ""])
def test_beyond_its_own_machine_it_takes_changes_over_tls_alone(client: str):
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    refused = Changes(CHECK).admit("traffic", headers, client)
    assert isinstance(refused, Refusal)
    assert (refused.status, "HTTPS" in refused.detail) == (403, True)
    assert isinstance(Changes(CHECK, encrypted=True).admit("traffic", headers, client), Change)
    for own in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert isinstance(Changes(CHECK).admit("traffic", headers, own), Change)


def test_behind_a_proxy_of_its_own_machine_it_takes_changes_of_clients_that_came_over_tls():
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    assert isinstance(Changes(CHECK).admit("traffic", [*headers, (b"x-forwarded-proto", b"https")], "127.0.0.1"), Change)
    refused = Changes(CHECK).admit("traffic", [*headers, (b"x-forwarded-proto", b"http")], "127.0.0.1")
    assert isinstance(refused, Refusal)
    assert refused.status == 403


def test_over_tls_they_are_taken(controller: Controller):
    with ingress(changes=Changes(CHECK, controller.call, encrypted=True), tls=True) as server, server.client() as client:
        assert ask(client, "traffic", TRAFFIC).status == 200
    assert controller.verbs == [CHANGED]


@pytest.mark.parametrize("page", ["traffic", "replicas", "token"])
def test_other_methods_are_refused_with_what_is_taken_also_with_the_token(server: IngressServer, controller: Controller, page: str):
    with server.client() as client:
        for method in ("GET", "PUT", "DELETE"):
            answer = client.ask(request(page, TRAFFIC, f"Authorization: Bearer {TOKEN}", method=method))
            assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        asked_first = client.ask(request(page, b"", "Origin: http://elsewhere", "Access-Control-Request-Method: POST", method="OPTIONS"))
        assert asked_first.status == 204
        assert not [name for name in asked_first.headers if name.startswith("access-control")], "pages of other sites may not ask"
    assert controller.verbs == []


@pytest.mark.parametrize(
    ("page", "body", "why"),
    [
        ("traffic", b"", "truncated"),
        ("traffic", b"{", "truncated"),
        ("traffic", b"\xff", "malformed"),
        ("traffic", b'{"endpoint": "\xff", "weights": {}}', "utf"),
        ("traffic", b'{"endpoint": "\\ud800", "weights": {}}', "surrogate"),
        ("traffic", b"[" * 10_000, "array"),
        ("traffic", {"endpoint": "e"}, "weights"),
        ("traffic", {"endpoint": 1, "weights": {}}, "endpoint"),
        ("traffic", {"endpoint": "e", "weights": {"a": "1"}}, "weights"),
        ("traffic", b'{"endpoint": "e", "weights": {"a": NaN}}', "malformed"),
        ("traffic", TRAFFIC | {"weight": 1}, "unknown field `weight`"),
        ("replicas", {"backend": "b", "num_replicas": 1.5}, "num_replicas"),
        ("replicas", {"backend": "b", "num_replicas": True}, "num_replicas"),
        ("replicas", b'{"backend": "b", "num_replicas": 1%b}' % (b"0" * 30), "num_replicas"),
        ("replicas", {"backend": "b", "num_replicas": 1, "based_on": 10**30}, "based_on"),
        ("replicas", {"backend": "b", "num_replicas": -(10**30)}, "num_replicas"),
        ("replicas", {"num_replicas": 1}, "backend"),
    ],
)
def test_a_body_that_can_not_be_meant_is_refused_with_what_is_wrong(
    server: IngressServer, controller: Controller, page: str, body: object, why: str
):
    with server.client() as client:
        answer = ask(client, page, body)
        assert answer.status == 400
        assert why in problem(answer)["detail"].lower()
    assert controller.verbs == []


def test_a_body_that_is_too_large_is_refused_by_its_head_or_as_its_chunks_add_up(server: IngressServer, controller: Controller):
    head = f"POST /-/traffic HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with server.client() as client:
        assert client.ask(f"{head}Content-Length: {MOST_BYTES + 1}\r\n\r\n".encode()).status == 413
    with server.client() as client:
        client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        client.send(b"%x\r\n%b\r\n" % (MOST_BYTES, b" " * MOST_BYTES) + b"1\r\n \r\n")
        assert client.answer().status == 413
    with server.client() as client:
        body = json.dumps(TRAFFIC).encode().ljust(MOST_BYTES)
        client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        client.send(b"%x\r\n%b\r\n" % (len(body), body) + b"0\r\n\r\n")
        assert client.answer().status == 200
    assert controller.verbs == [CHANGED]
    assert wait_until(server.no_bytes_held)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ErrorInfo("InvalidValueError", "traffic: weights must sum to 1, these sum to 2.0"), 400),
        (ErrorInfo("NotFoundError", "there is no backend 'c'"), 404),
        (ErrorInfo("ChangedMeanwhileError", "it was changed by others meanwhile"), 409),
        (ErrorInfo("InsufficientResourcesError", "1 replica does not fit"), 409),
        (ErrorInfo("ReplicaStartError", "a replica did not start", "Traceback: why"), 500),
        (ErrorInfo("NotRunningError", "the instance is shutting down"), 503),
    ],
)
def test_the_errors_of_verbs_are_told_with_their_words_and_statuses(
    server: IngressServer, controller: Controller, error: ErrorInfo, status: int
):
    controller.done = VerbDone("", error=error)
    with server.client() as client:
        answer = ask(client, "traffic", TRAFFIC)
        found = problem(answer)
        assert (answer.status, found["error"], found["detail"]) == (status, error.kind, error.message)
        assert found.get("traceback", "") == error.traceback


def test_where_the_controller_can_not_be_reached_it_is_said_that_nobody_knows(server: IngressServer, controller: Controller):
    controller.error = NotRunningError("its controller could not be reached for 15 s")
    with server.client() as client:
        answer = ask(client, "traffic", TRAFFIC)
        assert (answer.status, problem(answer)["reason"]) == (503, "no controller")
        assert "isn't known" in problem(answer)["detail"]
        controller.error = OverflowError("what nobody has thought of")
        assert ask(client, "traffic", TRAFFIC).status == 500


def test_guesses_are_few_and_told_in_the_log_once_without_the_token(
    server: IngressServer, controller: Controller, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    with server.client() as client:
        answers = [ask(client, "traffic", TRAFFIC, token=f"wrong-{number}-wrong-wrong") for number in range(2 * MOST_OF_ONE)]
        statuses = [answer.status for answer in answers]
        assert statuses[:MOST_OF_ONE] == [401] * MOST_OF_ONE
        assert 429 in statuses[MOST_OF_ONE:]
        late = next(answer for answer in answers if answer.status == 429)
        assert late.headers["retry-after"] == "1"
        wait_until(lambda: ask(client, "traffic", TRAFFIC).status == 200, what="others may try again")
    assert controller.verbs == [CHANGED]
    said = [record.getMessage() for record in caplog.records]
    assert said.count("refused a change that 127.0.0.1 asked for: its admin token is wrong") == 1
    assert not [line for line in said if "wrong-" in line or TOKEN in line]


def test_the_right_token_is_taken_any_number_of_times(server: IngressServer):
    with server.client() as client:
        assert {ask(client, "token").status for _ in range(10 * MOST_OF_ONE)} == {204}


def test_who_leaves_gives_up_what_has_not_been_answered(server: IngressServer, controller: Controller):
    controller.holds = True
    with server.client() as client:
        client.send(request("traffic", TRAFFIC, f"Authorization: Bearer {TOKEN}"))
        wait_until(lambda: controller.verbs)
    wait_until(lambda: controller.given_up == 1)
    assert wait_until(server.no_bytes_held)


def test_an_ingress_that_ends_answers_what_is_under_way(server: IngressServer, controller: Controller):
    controller.holds = True
    with server.client() as client:
        client.send(request("traffic", TRAFFIC, f"Authorization: Bearer {TOKEN}"))
        wait_until(lambda: controller.verbs)
        draining = asyncio.run_coroutine_threadsafe(server.service.drain(600.0), server.loop)
        controller.holds = False
        assert client.answer().status == 200
        draining.result(10)


def test_an_endpoint_at_the_root_never_sees_a_change(controller: Controller):
    endpoint = msgspec.structs.replace(TABLE.endpoints["post"], name="root", route="/")
    table = msgspec.structs.replace(TABLE, endpoints={"root": endpoint})
    with ingress(table=table, changes=Changes(CHECK, controller.call)) as server, server.client() as client:
        assert ask(client, "traffic", TRAFFIC).status == 200
        assert ask(client, "other", TRAFFIC).status == 404
        assert server.router.calls == []
