"""Does `headgate bench` send what is due, and tell what came of it?"""

from __future__ import annotations

import json

import pytest

from headgate.serve import Instance
from tests.cli.console import NAME, piped, shown

pytestmark = pytest.mark.local_engine("the commands find instances of this machine")

HERE = ("--name", NAME)


def test_everything_that_is_due_is_sent_and_counted(running: Instance) -> None:
    said = piped("bench", *HERE, "/greet", "--rate", "200", "--duration", "0.5", "--json")
    told = json.loads(said.out)
    assert said.status == 0
    assert (told["due"], told["answered"], told["failed"], told["statuses"]) == (100, 100, 0, {"200": 100})
    assert told["latency_s"]["p50"] <= told["latency_s"]["p99"] <= told["latency_s"]["max"]
    assert sum(bar["requests"] for bar in told["histogram"]) == 100


def test_on_a_terminal_there_is_a_histogram_that_fits(running: Instance) -> None:
    said = shown("bench", *HERE, "/greet", "--rate", "100", "--duration", "0.3", width=60)
    assert said.status == 0
    assert "p99.9" in said.out
    histogram = [line for line in said.out.splitlines() if line.lstrip().startswith("< ")]
    assert any("█" in line for line in histogram)
    assert max(map(len, histogram)) <= 60  # what else there is may be longer, such as that this machine was late


def test_what_fails_is_counted_and_exits_with_1(running: Instance) -> None:
    said = piped("bench", *HERE, "/nobody", "--rate", "50", "--duration", "0.2")
    assert said.status == 1
    assert "statuses\t404\t10" in said.out
    said = piped("bench", "http://127.0.0.1:1/", "--rate", "50", "--duration", "0.1", "--json")
    assert said.status == 1
    assert json.loads(said.out)["errors"] == {"ConnectionRefusedError: Connection refused": 5}


def test_what_waits_for_a_connection_counts_from_when_it_was_due(running: Instance) -> None:
    running.create_backend("slow:v1", slow)
    running.create_endpoint("slow", "/slow", backend="slow:v1")
    try:
        told = json.loads(piped("bench", *HERE, "/slow", "--rate", "50", "--duration", "0.2", "--connections", "1", "--json").out)
    finally:
        running.delete_endpoint("slow")
        running.delete_backend("slow:v1")
    assert (told["answered"], told["connections"]) == (10, 1)
    assert told["latency_s"]["max"] > 0.25  # the tenth was due after 0.18 s, and had nine of 50 ms before it


def slow(request):
    import time

    time.sleep(0.05)
    return "done"
