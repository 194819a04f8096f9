"""Do the pages and problem documents say what is so, and nothing that a client must not see?"""

from __future__ import annotations

import json

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headgate.core.messages import EndpointEntry, RoutingTable
from headgate.core.replica_life import CAUSES_OF_DEATH
from headgate.core.reports import Counters, Measurement, QueueDepth, RequestCount
from headgate.errors import ErrorInfo
from headgate.ingress import metrics, pages
from headgate.ingress.problems import Refusal, from_error
from tests.ingress_server import TABLE, backend


def reached(tag: str) -> bool:
    return True


def _table(*, ready: bool, weight: float = 1.0, closing: bool = False) -> RoutingTable:
    endpoints = {"e": EndpointEntry("e", "/e", ("GET",), {"b": weight})}
    return RoutingTable(version=1, endpoints=endpoints, backends={"b": backend("b", ready=ready)}, closing=closing)


def test_routes_lists_what_has_a_route() -> None:
    listed = json.loads(pages.routes(TABLE).body)
    assert listed == {"/echo": ["echo", ["GET", "POST"]], "/post": ["post", ["POST"]], "/tree/": ["tree", ["GET"]]}


@pytest.mark.parametrize(
    ("table", "status"),
    [
        (_table(ready=True), 200),
        (_table(ready=False), 503),
        (_table(ready=False, weight=0.0), 200),
        (_table(ready=True, closing=True), 503),
        (None, 503),
    ],
)
def test_ready_means_that_every_backend_with_traffic_has_a_ready_replica(table: RoutingTable | None, status: int) -> None:
    reply = pages.readyz(table, reached)
    assert reply.status == status
    assert (b"retry-after" in reply.lines) == (status == 503)


def test_a_backend_whose_replicas_this_ingress_has_all_lost_is_not_ready_whatever_the_table_still_says() -> None:
    reply = pages.readyz(_table(ready=True), lambda tag: tag != "b")
    assert (reply.status, json.loads(reply.body)["backends"]) == (503, ["b"])


def test_what_is_not_ready_is_named() -> None:
    assert json.loads(pages.readyz(_table(ready=False), reached).body)["backends"] == ["b"]


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_who_has_too_few_replicas_is_named_with_the_reason_also_where_some_are_ready(ready: bool, status: int) -> None:
    table = _table(ready=ready)
    broken = msgspec.structs.replace(table.backends["b"], fault="Traceback: no model")
    reply = pages.readyz(msgspec.structs.replace(table, backends={"b": broken}), reached)
    assert reply.status == status
    assert json.loads(reply.body)["unhealthy"] == {"b": "Traceback: no model"}
    assert "unhealthy" not in json.loads(pages.readyz(table, reached).body)


def test_metrics_are_read_by_prometheus_whatever_the_names_are() -> None:
    strange = 'a"b\\c\nd'
    counters = Counters((RequestCount(strange, "b", 200, 7, 1.5),), (QueueDepth("b", 3, 4),))
    measurement = Measurement(counters, {"b": 2}, {"b": 1}, 3, {"b": "no model"}, replica_death_reasons={"b": {"signal": 1}})
    text = metrics.page(measurement, TABLE).body.decode()
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    labels = (("backend", "b"), ("endpoint", strange), ("status", "200"))
    of_b = (("backend", "b"),)
    deaths = {("headgate_replica_deaths_total", (*of_b, ("reason", cause))): int(cause == "signal") for cause in CAUSES_OF_DEATH}
    assert {sample: value for sample, value in found.items() if "_ratio" not in sample[0]} == deaths | {
        ("headgate_requests_total", labels): 7,
        ("headgate_queued", of_b): 3,
        ("headgate_in_flight", of_b): 4,
        ("headgate_replicas_ready", of_b): 1,
        ("headgate_backend_unhealthy", of_b): 1,
        ("headgate_replica_starts_total", of_b): 2,
        ("headgate_replica_start_failures_total", of_b): 0,
        ("headgate_routers", ()): 3,
    }


def test_what_user_code_said_and_its_traceback_stay_in_the_log_unless_debugging() -> None:
    error = ErrorInfo("UserCodeError", "ValueError: secret", "Traceback: secret")
    plain = from_error(error, "id-1", debug=False)
    assert plain.status == 500
    assert b"secret" not in plain.body
    assert "ValueError" in json.loads(plain.body)["detail"]
    shown = json.loads(from_error(error, "id-1", debug=True).body)
    assert shown["traceback"] == "Traceback: secret"
    assert shown["detail"] == "ValueError: secret"


def test_a_problem_document_has_the_members_of_its_rfc_and_the_request_id() -> None:
    document = json.loads(from_error(ErrorInfo("DeadlineExceededError", "too late"), "id-1", debug=False).body)
    assert document == {
        "type": "about:blank",
        "title": "Gateway Timeout",
        "status": 504,
        "detail": "too late",
        "request_id": "id-1",
        "error": "DeadlineExceededError",
    }


@pytest.mark.parametrize(("given", "said"), [(None, b"1"), (0.01, b"1"), (1.2, b"2"), (30.0, b"30")])
def test_every_503_says_when_to_come_again_in_whole_seconds(given: float | None, said: bytes) -> None:
    assert b"retry-after: " + said + b"\r\n" in from_error(ErrorInfo("QueueFullError", "full", retry_after_s=given), "i", debug=False).lines
    assert b"retry-after: " + said + b"\r\n" in Refusal(503, "full", retry_after_s=given).reply("i").lines
