"""Does the doctor find what is wrong, and say what to do?"""

from __future__ import annotations

import msgspec
import pytest

from headgate.cli import findings
from headgate.cli.findings import PROBLEM, WARNING, Machine
from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.reports import (
    BackendInfo,
    Counters,
    Description,
    EndpointInfo,
    EventCount,
    Measurement,
    QueueDepth,
    ReplicaStatus,
    RequestCount,
    Waiting,
)

WELL = Description(
    name="default",
    http_urls=("http://127.0.0.1:8000",),
    backends={"a:v1": BackendInfo("a:v1", "f", BackendConfig(), ReplicaOptions())},
    endpoints={"a": EndpointInfo("a", "/a", ("GET",), {"a:v1": 1.0}, {})},
    processes=(),
    resources={},
    free={},
    waiting=(),
    ready=True,
)
QUIET = Measurement(Counters(), {"a:v1": 1})


def counted(status: int, count: int) -> Measurement:
    requests = (RequestCount("a", "a:v1", 200, 100, 1.0), RequestCount("a", "a:v1", status, count, 1.0))
    return msgspec.structs.replace(QUIET, counters=Counters(requests))


def test_where_no_instance_runs_that_is_a_problem_here_and_at_an_address():
    here, there = findings.missing("canary", None, "why"), findings.missing("", "tcp://host:8100", "why")
    assert (here.level, here.subject, there.level, there.subject) == (PROBLEM, "instance canary", PROBLEM, "instance at tcp://host:8100")


def test_where_all_is_well_there_is_nothing_to_say() -> None:
    assert findings.of_instance(WELL, QUIET) == []
    assert findings.of_machine(Machine()) == []


@pytest.mark.parametrize(
    ("shed", "what", "do"),
    [
        ({"queue full": 4, "deadline": 1}, "5 of 105 requests were refused: queue full, deadline (503)", "headgate scale a:v1 MORE"),
        ({"deadline": 1, "no replica": 4}, "5 of 105 requests were refused: no replica, deadline (503)", "see why its replicas die"),
    ],
)
def test_what_was_refused_is_told_with_its_reasons_and_what_helps_against_the_first(shed: dict[str, int], what: str, do: str) -> None:
    events = tuple(EventCount("shed", "a", "a:v1", reason, count) for reason, count in shed.items())
    counters = msgspec.structs.replace(counted(503, 5).counters, events=events)
    [finding] = findings.of_instance(WELL, msgspec.structs.replace(QUIET, counters=counters))
    assert finding.what == what
    assert finding.do.startswith(do)


@pytest.mark.parametrize(
    ("changes", "measured", "level", "said"),
    [
        ({"certificate_days": 13.2}, QUIET, WARNING, "expires in 13 days"),
        ({"certificate_days": 0.0}, QUIET, PROBLEM, "can't be used, or not any more"),
        (
            {"backends": {"a:v1": msgspec.structs.replace(WELL.backends["a:v1"], state="unhealthy", reason="Traceback\nKeyError")}},
            QUIET,
            PROBLEM,
            "KeyError",
        ),
        (
            {"backends": {"a:v1": msgspec.structs.replace(WELL.backends["a:v1"], replicas=(ReplicaStatus("1", "starting", 7, (), 99.0),))}},
            QUIET,
            WARNING,
            "(pid 7) has been starting for 99 s",
        ),
        ({"waiting": (Waiting("a:v1", 2, "asks for CPU 4, CPU 1 is free", 9.0),)}, QUIET, PROBLEM, "2 replicas wait for room"),
        ({"http_urls": ("http://10.0.0.1:8000",)}, QUIET, WARNING, "no password"),
        ({}, counted(503, 5), WARNING, "5 of 105 requests were refused"),
        ({}, counted(504, 5), WARNING, "ran out of time"),
        ({}, counted(499, 12), WARNING, "12 of 112 requests were given up by their callers"),
        ({}, counted(502, 5), PROBLEM, "were lost"),
        ({}, counted(500, 5), PROBLEM, "failed in its code"),
        ({}, msgspec.structs.replace(QUIET, replica_deaths={"a:v1": 4}), WARNING, "have died 4 times"),
        ({}, msgspec.structs.replace(QUIET, counters=Counters(queues=(QueueDepth("a:v1", 700, 701),))), WARNING, "700 requests wait"),
    ],
)
def test_what_an_instance_suffers_from_is_found(changes: dict[str, object], measured: Measurement, level: str, said: str) -> None:
    [finding] = findings.of_instance(msgspec.structs.replace(WELL, **changes), measured)
    assert finding.level == level
    assert said in finding.what
    assert finding.do


def test_what_leads_nowhere_is_found() -> None:
    lonely = msgspec.structs.replace(WELL, endpoints={"a": msgspec.structs.replace(WELL.endpoints["a"], traffic={})})
    assert {finding.subject for finding in findings.of_instance(lonely, QUIET)} == {"endpoint a", "backend a:v1"}


@pytest.mark.parametrize(
    ("machine", "subject"),
    [
        (Machine(open_files_limit=1024), "open files"),
        (Machine(memory_bytes=100, memory_available_bytes=5), "memory"),
        (Machine(state_dir="/x", disk_bytes=100, disk_free_bytes=1), "disk"),
        (Machine(kernel=(4, 18)), "kernel"),
        (Machine(python=(3, 9)), "Python"),
        (Machine(stale_folders=("/tmp/headgate-0/old",)), "runtime folder"),
    ],
)
def test_what_a_machine_lacks_is_found(machine: Machine, subject: str) -> None:
    [finding] = findings.of_machine(machine)
    assert finding.subject == subject
