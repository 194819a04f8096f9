"""Does `/-/metrics` tell all that the whole instance has counted, whichever process counted it, and whatever has died since?"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from headgate import serve
from headgate.serve import Instance
from tests.docs.pages import blocks
from tests.support import leave_out, wait_until

ROOT = Path(__file__).parents[2]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


ANSWERS = serve.metrics.Counter("answers", "Answers that were given.", labelnames=("kind",))


def answer(request: Any = None) -> dict[str, str]:
    ANSWERS.labels(kind="plain").inc()
    return {"an": "answer"}


@serve.accept_batch
def together(requests: list[Any]) -> list[str]:
    return ["together"] * len(requests)


def stream(request: Any = None) -> Iterator[str]:
    yield "streamed"


def fails(request: Any = None) -> str:
    raise ValueError("it fails")


@pytest.fixture(scope="module")
def counted(shared_instance: Instance) -> Instance:
    """An instance with requests of every kind behind it."""
    serve.create_backend("plain", answer)
    serve.create_backend("batch", together, config={"max_batch_size": 4})
    serve.create_endpoint("plain", "/plain", backend="plain")
    serve.create_endpoint("batch", "/batch", backend="batch")
    serve.create_endpoint("idle", "/idle")
    for handler in (stream, fails):
        serve.create_backend(handler.__name__, handler)
        serve.create_endpoint(handler.__name__, f"/{handler.__name__}", backend=handler.__name__)
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


def test_a_stream_of_which_only_the_head_is_wanted_counts_as_answered(counted: Instance) -> None:
    serve.create_backend("in vain", lambda request: serve.Response(iter(["nothing", "of", "this"]), status=204))
    serve.create_endpoint("in vain", "/in-vain", backend="in vain")
    assert requests.head(f"{counted.http_url}/stream", timeout=10).status_code == 200
    assert requests.get(f"{counted.http_url}/in-vain", timeout=10).status_code == 204
    found = samples(counted)
    assert value(found, "headgate_requests_total", endpoint="stream", status="200") == 1
    assert value(found, "headgate_requests_total", endpoint="in vain", status="204") == 1
    assert value(found, "headgate_requests_total", status="499") == value(found, "headgate_cancelled_total") == 0


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


def test_the_reference_lists_every_metric_that_an_instance_shows(counted: Instance) -> None:
    documented = set(re.findall(r"^\| `(headgate_\w+)` \|", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE))
    assert set(re.findall(r"^# TYPE (headgate_\w+)", page(counted), re.MULTILINE)) == documented


# `Server-Timing`.


def timings(answer: requests.Response) -> dict[str, float]:
    """What `Server-Timing` says, in milliseconds."""
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers.get("server-timing", ""))}


def ask(instance: Instance, path: str, timing: str) -> requests.Response:
    return requests.get(f"{instance.http_url}{path}", headers={"X-Serve-Timing": timing}, timeout=10)


@pytest.mark.parametrize("times", [1, 2])  # the second time its head is known
def test_an_answer_says_where_its_time_went_where_it_is_asked_to(counted: Instance, times: int) -> None:
    for path, named in (("/plain", {"queue", "execution"}), ("/batch", {"queue", "batch", "execution"}), ("/stream", {"queue"})):
        found = timings(ask(counted, path, "1"))
        assert found.keys() == named | {"total"}
        assert sum(ms for name, ms in found.items() if name != "total") <= found["total"]
        assert timings(ask(counted, path, "0")) == timings(requests.get(f"{counted.http_url}{path}", timeout=10)) == {}


def test_what_is_refused_or_fails_says_how_long_that_took(counted: Instance) -> None:
    refused, failed = ask(counted, "/idle", "1"), ask(counted, "/fails", "1")
    assert (refused.status_code, timings(refused).keys()) == (503, {"total"})
    assert (failed.status_code, timings(failed).keys()) == (500, {"total"})
    odd = ask(counted, "/plain", "yes")
    assert (odd.status_code, "x-serve-timing must be 1" in odd.json()["detail"]) == (400, True)


# What comes with it for Prometheus and Grafana, in docs/how-to/prometheus.


FILES = ROOT / "docs/how-to/prometheus"
STAND_INS = {"$__rate_interval": "1m", "$job": ".*", "$endpoint": ".*", "$backend": ".*"}
"""What Grafana puts in place of its variables, where everything is chosen."""


@pytest.fixture(scope="module")
def prometheus(counted: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has scraped the instance, with the alert rules."""
    need("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = (FILES / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:8000", counted.http_url.removeprefix("http://")).replace("15s", "200ms")
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(FILES / "headgate.rules.yml", folder)
    log = folder / "log"
    with log.open("w") as file:
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stdout=file, stderr=file)
    try:
        (address,) = wait_until(lambda: re.findall(r'"Listening on" address=(\S+)', log.read_text()), 30)
        url = f"http://{address}"
        wait_until(lambda: requests.get(f"{url}/-/ready", timeout=10).ok, 30, "Prometheus is ready")
        # A rate needs two scrapes.
        wait_until(lambda: query(url, "min(count_over_time(headgate_requests_total[1m])) > 2"), 30, "it has scraped the instance")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def need(program: str) -> None:
    if shutil.which(program) is None:
        leave_out(f"{program} is not installed")


def query(url: str, expression: str) -> list[Any]:
    """What Prometheus answers; raises where it can't."""
    answer = requests.get(f"{url}/api/v1/query", {"query": expression}, timeout=10).json()
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    return list(answer["data"]["result"])


def board_queries() -> list[str]:
    board = json.loads((FILES / "headgate-board.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    for name, stand_in in STAND_INS.items():
        expressions = [expression.replace(name, stand_in) for expression in expressions]
    return expressions


def page_queries() -> list[str]:
    """The queries that pages show, each from its comment on, of the endpoint that was asked here instead of theirs."""
    pages = [ROOT / "docs/how-to" / name for name in ("canary.md", "prometheus.md")]
    shown = [block.text for page in pages for block in blocks(page) if block.language == "promql"]
    return [re.sub('endpoint="[a-z]+"', 'endpoint="plain"', expression) for text in shown for expression in text.strip().split("\n\n")]


def test_the_page_is_as_promtool_wants_it(counted: Instance) -> None:
    need("promtool")
    checked = subprocess.run(["promtool", "check", "metrics"], input=page(counted), capture_output=True, text=True, timeout=30, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_alerts_go_off_when_they_should_and_only_then() -> None:
    need("promtool")
    for what, file in (("check", FILES / "headgate.rules.yml"), ("test", ROOT / "tests/data/prometheus/rules_test.yml")):
        checked = subprocess.run(["promtool", what, "rules", str(file)], capture_output=True, text=True, timeout=30, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_answers_every_query_of_the_board(prometheus: str) -> None:
    queries = board_queries()
    assert len(queries) > 30
    answered = [expression for expression in queries if query(prometheus, expression)]
    # What has not happened here has no samples: nothing was cancelled, expired, retried, or dropped.
    silent = ("headgate_expired", "headgate_cancelled", "headgate_retried", "headgate_shadows_dropped", "headgate_replica_deaths")
    assert [expression for expression in queries if expression not in answered and not any(name in expression for name in silent)] == []


def test_prometheus_answers_every_query_that_a_page_shows(prometheus: str) -> None:
    queries = page_queries()
    assert len(queries) == 5
    unanswered = [expression for expression in queries if not query(prometheus, expression)]
    assert len(unanswered) == 1  # the share that fails: of `plain` nothing has
    assert "5.." in unanswered[0]


def test_prometheus_evaluates_every_alert_and_none_goes_off(prometheus: str) -> None:
    def evaluated() -> list[Any]:
        (group,) = requests.get(f"{prometheus}/api/v1/rules", timeout=10).json()["data"]["groups"]
        assert {rule["name"]: rule["health"] for rule in group["rules"] if rule["health"] != "ok"} == {}
        return list(group["rules"])

    rules = wait_until(evaluated, 30)
    assert {rule["name"]: rule["state"] for rule in rules if rule["state"] == "firing"} == {}


def test_board_alerts_and_pages_name_only_metrics_that_there_are(counted: Instance) -> None:
    text = (FILES / "headgate-board.json").read_text() + (FILES / "headgate.rules.yml").read_text() + "".join(page_queries())
    known = set(re.findall(r"^# TYPE (\w+)", page(counted), re.MULTILINE))
    named = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"headgate_\w+", text)}
    assert named - known == set()
    assert known - named == {"answers_total"}
