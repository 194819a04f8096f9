"""Does `/-/metrics` tell all that the whole instance has counted, whichever process counted it, and whatever has died since?"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from headgate import serve
from headgate.serve import Instance
from tests.support import wait_until

ROOT = Path(__file__).parents[2]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


ANSWERS = serve.metrics.Counter("answers", "Answers that were given.", labelnames=("kind",))


def answer(request: Any = None) -> dict[str, str]:
    ANSWERS.labels(kind="plain").inc()
    return {"an": "answer"}


@serve.accept_batch
def together(requests: list[Any]) -> list[str]:
    return ["together"] * len(requests)


@pytest.fixture(scope="module")
def counted(shared_instance: Instance) -> Instance:
    """An instance with requests of every kind behind it."""
    serve.create_backend("plain", answer)
    serve.create_backend("batch", together, config={"max_batch_size": 4})
    serve.create_endpoint("plain", "/plain", backend="plain")
    serve.create_endpoint("batch", "/batch", backend="batch")
    serve.create_endpoint("idle", "/idle")
    serve.shadow_traffic("plain", "batch", 1.0)
    handle = serve.get_handle("plain")
    for _ in range(3):
        requests.get(f"{shared_instance.http_url}/plain", timeout=10).raise_for_status()
        requests.get(f"{shared_instance.http_url}/batch", timeout=10).raise_for_status()
        assert handle.remote().result(10) == {"an": "answer"}
    assert requests.get(f"{shared_instance.http_url}/idle", timeout=10).status_code == 503
    return shared_instance


def page(instance: Instance) -> str:
    return requests.get(f"{instance.http_url}/-/metrics", timeout=10).text


def samples(instance: Instance) -> Samples:
    families = text_string_to_metric_families(page(instance))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    """The sum of all samples of that name that have these labels."""
    return sum(value for (known, have), value in found.items() if known == name and set(labels.items()) <= have)


def test_requests_of_clients_and_of_handles_are_counted_with_their_times(counted: Instance) -> None:
    found = samples(counted)
    assert value(found, "headgate_requests_total", endpoint="plain", backend="plain", status="200") == 6
    assert value(found, "headgate_request_duration_seconds_count", endpoint="plain") == 6
    assert value(found, "headgate_request_duration_seconds_bucket", endpoint="plain", le="+Inf") == 6
    assert value(found, "headgate_shed_total", endpoint="idle", reason="no traffic") == 1


def test_replicas_count_where_the_time_went(counted: Instance) -> None:
    def told() -> bool:
        found = samples(counted)
        assert value(found, "headgate_execution_seconds_count", backend="plain") == 6
        assert value(found, "headgate_queue_seconds_count", backend="plain") == 6
        assert value(found, "headgate_serialisation_seconds_count", backend="plain") == 6
        assert value(found, "headgate_batch_size_sum", backend="batch") == 9  # with the copies
        assert value(found, "headgate_batch_wait_seconds_count", backend="batch") == 9
        assert value(found, "headgate_shadow_requests_total", endpoint="plain", backend="batch", status="200") == 6
        return True

    wait_until(told)


def test_what_user_code_counts_is_shown_by_backend_and_replica(counted: Instance) -> None:
    (replica,) = serve.list_backends()["plain"].replicas
    labels = {"kind": "plain", "backend": "plain", "replica": replica.id}
    assert samples(counted)["answers_total", frozenset(labels.items())] == 6


def test_every_process_tells_what_it_uses(counted: Instance) -> None:
    found = samples(counted)
    processes = {(process.role, process.id) for process in serve.status().processes}
    told = {(dict(labels)["role"], dict(labels)["process"]) for name, labels in found if name == "headgate_process_resident_memory_bytes"}
    assert told == processes
    assert all(value > 1 << 20 for (name, _), value in found.items() if name == "headgate_process_resident_memory_bytes")


def test_what_a_replica_had_counted_stays_when_it_is_killed(counted: Instance) -> None:
    before = samples(counted)
    (replica,) = serve.list_backends()["plain"].replicas
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    wait_until(lambda: [new.id for new in serve.list_backends()["plain"].replicas if new.state == "ready"] not in ([], [replica.id]))
    after = samples(counted)
    assert value(after, "headgate_replica_deaths_total", backend="plain") == 1
    assert value(after, "headgate_replica_starts_total", backend="plain") == 2
    counters = [
        key for key in before if re.search("_(total|bucket|count|sum)$", key[0]) and not {"process", "replica"} & dict(key[1]).keys()
    ]
    assert [key for key in counters if after[key] < before[key]] == []


def test_the_reference_lists_every_metric_with_its_labels(counted: Instance) -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text()
    documented = set(re.findall(r"`(headgate_\w+)`", text))
    kinds = dict(re.findall(r"^# TYPE (headgate_\w+) (\w+)$", page(counted), re.MULTILINE))
    assert set(kinds) == documented
    for name, labels in samples(counted):
        if not name.startswith("headgate_"):
            continue
        family = next(known for known in (name, re.sub("_(bucket|count|sum)$", "", name)) if known in kinds)
        line = next(line for line in text.splitlines() if f"`{family}`" in line)
        for label in dict(labels).keys() - {"le", "backend"}:
            section = text[: text.index(line)].rpartition("\n## ")[2] + line
            assert f"`{label}`" in section, f"{family} has a label {label}"
