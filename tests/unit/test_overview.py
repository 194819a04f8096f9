"""Does the dashboard say what is so, and nothing that not everybody may see?"""

from __future__ import annotations

import msgspec
import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.histograms import Histogram
from headgate.core.overview import MOST_REPLICAS, Looked, Overview, declared_data, overview, without_frames
from headgate.core.reports import (
    SHED,
    BackendInfo,
    Coming,
    Counters,
    Description,
    EndpointInfo,
    EventCount,
    Failure,
    Measurement,
    ProcessReport,
    QueueDepth,
    ReplicaCounters,
    ReplicaStatus,
    RequestCount,
    Usage,
    Waiting,
)
from headgate.core.specs import Code

TRACEBACK = 'Traceback (most recent call last):\n  File "secret.py", line 1\nValueError: no model'


def description(**changes) -> Description:
    backend = BackendInfo(
        "b",
        "Model",
        BackendConfig(num_replicas=2, max_batch_size=8),
        ReplicaOptions(runtime_env={"env_vars": {"TOKEN": "hush"}}, num_cpus=1),
        state="unhealthy",
        reason=f"replica r2 did not start\n\n{TRACEBACK}",
        replicas=(ReplicaStatus("r1", "ready", 7, (), 3.0), ReplicaStatus("r2", "starting", 8)),
        code=Code("models:Model", ["hush"], {"key": "hush"}),
    )
    endpoint = EndpointInfo("e", "/e", ("GET",), {"b": 1.0}, {"c": 0.5})
    found = Description("i", ("http://here",), {"b": backend}, {"e": endpoint}, (), {}, {}, (), ready=True, http={"ssl_keyfile": "hush"})
    return msgspec.structs.replace(found, **changes)


def measurement(requests: int, sizes: tuple[int, ...] = (), **changes) -> Measurement:
    counters = Counters(
        requests=(RequestCount("e", "b", 200, requests, 0.1, (0, requests)), RequestCount("", "", 404, requests, 0.0)),
        queues=(QueueDepth("b", 2, 5),),
        shadows=(RequestCount("e", "c", 200, requests // 2, 0.1, (requests // 2,)),),
    )
    processes = (ProcessReport("replica", "r1", "b", Usage(requests / 100, 1000)),)
    batches = {"b": ReplicaCounters(batch_sizes=Histogram(sizes, float(sum(sizes))))}
    return Measurement(counters, backends=batches, processes=processes, **changes)


def seen(before: Measurement, after: Measurement, *, debug: bool = False, seconds: float = 5.0, **changes) -> Overview:
    return overview(description(**changes), Looked(10.0, before), Looked(10.0 + seconds, after), version="1", debug=debug, now=100.0)


def test_rates_are_differences_over_the_time_between_two_measurements():
    found = seen(measurement(100, (3,)), measurement(150, (3, 4)))
    (endpoint,), (backend,) = found.endpoints, found.backends
    assert found.rates is not None
    assert found.rates.per_s == 10.0
    assert endpoint.rates == found.rates == endpoint.traffic[0].rates == backend.rates
    assert endpoint.shadows[0].rates is not None
    assert endpoint.shadows[0].rates.per_s == 5.0
    assert found.refused == {"404": 50}
    assert (found.queued, found.in_flight, backend.queued, backend.in_flight) == (2, 5, 2, 5)
    assert (backend.batches, backend.mean_batch) == (((1, 0), (2, 4)), 1.0)
    assert (backend.ready, backend.wanted, backend.counts) == (1, 2, {"ready": 1, "starting": 1})
    assert (backend.replicas[0].cores, backend.replicas[0].rss_bytes, backend.replicas[1].cores) == (0.1, 1000, None)


def test_what_was_refused_is_told_by_the_rule_that_refused_it():
    before, after = (
        Measurement(Counters(events=(EventCount(SHED, "e", "b", "queue full", number), EventCount(SHED, "e", "", "no traffic", 3))))
        for number in (2, 7)
    )
    assert seen(before, after).endpoints[0].shed == {"queue full": 5}


def test_what_a_verb_is_about_to_create_is_told_with_what_it_waits_for():
    waiting = Waiting("new", 2, "asks for 1 GPU, 0 are free", 3.0)
    found = seen(measurement(0), measurement(0), coming={"new": Coming(3, 1)}, waiting=(waiting,))
    (coming,) = found.coming
    assert (coming.backend, coming.replicas, coming.ready) == ("new", 3, 1)
    assert "asks for 1 GPU" in coming.waits


def test_with_one_measurement_there_are_no_rates_and_nothing_else_is_missing():
    once = measurement(100, (3,))
    found = seen(once, once, seconds=0.0)
    assert (found.rates, found.cores, found.endpoints[0].rates, found.backends[0].rates, found.window_s) == (None, None, None, None, 0.0)
    assert found.backends[0].queued == 2


@pytest.mark.parametrize("debug", [False, True])
def test_tracebacks_and_what_user_code_said_are_there_only_with_debug(debug: bool):
    failures = (
        Failure("UserCodeError", "b", "e", "ValueError", 3, 90.0, "r1", "id-1", "ValueError: hush", TRACEBACK),
        Failure("ReplicaDiedError", "b", "", "signal", 1, 80.0, "r1", message="killed by SIGKILL"),
        Failure("ReplicaDiedError", "b", "", "health check", 1, 70.0, "r2", message="check_health() raised: no way to user:hush@host"),
    )
    found = seen(measurement(0), measurement(0, failures=failures), debug=debug)
    raised, died, unwell = found.failures
    assert (raised.error, raised.count, raised.ago_s, raised.request_id) == ("ValueError", 3, 10.0, "id-1")
    assert (raised.message, raised.traceback) == (("ValueError: hush", TRACEBACK) if debug else ("", ""))
    assert died.message == "killed by SIGKILL"
    assert unwell.message == f"check_health() raised{': no way to user:hush@host' if debug else ''}"
    assert ("secret.py" in found.backends[0].reason) == debug
    assert found.backends[0].reason.endswith("ValueError: no model")


def test_a_traceback_is_left_out_but_for_what_it_ends_with():
    assert without_frames(f"it did not start\n\n{TRACEBACK}") == "it did not start\nValueError: no model"
    assert without_frames(TRACEBACK) == "ValueError: no model"
    assert without_frames(f"it said: ValueError: no model\n\n{TRACEBACK}") == "it said: ValueError: no model"
    assert without_frames("killed by SIGSEGV") == "killed by SIGSEGV"


def test_of_very_many_replicas_those_that_are_not_ready_are_shown_first():
    many = tuple(ReplicaStatus(f"r{number:04}", "ready" if number < 500 else "starting") for number in range(510))
    backend = msgspec.structs.replace(description().backends["b"], replicas=many)
    (found,) = seen(measurement(0), measurement(0), backends={"b": backend}).backends
    assert len(found.replicas) == MOST_REPLICAS
    assert found.counts == {"ready": 500, "starting": 10}
    assert sum(replica.state == "starting" for replica in found.replicas) == 10


def test_the_declared_state_has_nothing_that_may_be_secret():
    data = declared_data(description())
    assert data == {
        "backends": {
            "b": {
                "import_path": "models:Model",
                "init_args": "(not shown here)",
                "init_kwargs": "(not shown here)",
                "config": {"num_replicas": 2, "max_batch_size": 8},
                "ray_actor_options": {"num_cpus": 1, "runtime_env": "(not shown here)"},
            }
        },
        "endpoints": {"e": {"route": "/e", "traffic": {"b": 1.0}, "shadows": {"c": 0.5}}},
    }
    assert "hush" not in str(data)
