"""Splits are fair, and a key stays where it belongs: over HTTP, by handles, and over restarts."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scipy import stats

from headgate import serve
from headgate.core.traffic import TrafficPolicy

KEYS = [f"session-{number}-é" for number in range(1000)]


def answers(tag: str) -> Callable[[], str]:
    """A backend's code that answers with its tag."""

    def handler() -> str:
        return tag

    return handler


def over_http(instance: serve.Instance, path: str, headers: list[dict[str, str]], connections: int = 8) -> list[str]:
    """Send one request for each set of headers, over some keep-alive connections; the answers in order."""
    host = instance.http_url.removeprefix("http://")

    def some(part: list[dict[str, str]]) -> list[str]:
        client = http.client.HTTPConnection(host, timeout=30)
        try:
            found = []
            for each in part:
                client.request("GET", path, headers={name: value.encode() for name, value in each.items()})
                response = client.getresponse()
                body = response.read().decode()
                assert response.status == 200, body
                found.append(body)
            return found
        finally:
            client.close()

    size = -(-len(headers) // connections)
    parts = [headers[at : at + size] for at in range(0, len(headers), size)]
    with ThreadPoolExecutor(connections) as pool:
        return [body for part in pool.map(some, parts) for body in part]


@pytest.fixture
def split(emptied_instance: serve.Instance) -> serve.Instance:
    """An endpoint "e" at "/e" with backends "a" and "b", 70 to 30."""
    instance = emptied_instance
    for tag in ("a", "b"):
        instance.create_backend(tag, answers(tag))
    instance.create_endpoint("e", "/e")
    instance.set_traffic("e", {"a": 0.7, "b": 0.3})
    return instance


def test_ten_thousand_requests_split_as_the_weights_say(split: serve.Instance) -> None:
    counts = Counter(over_http(split, "/e", [{}] * 10_000))
    assert sum(counts.values()) == 10_000
    assert stats.chisquare([counts["a"], counts["b"]], [7000, 3000]).pvalue > 0.001


def test_a_backend_of_weight_zero_is_never_chosen(split: serve.Instance) -> None:
    split.set_traffic("e", {"a": 0.0, "b": 1.0})
    assert set(over_http(split, "/e", [{}] * 500)) == {"b"}


def test_a_key_goes_to_one_backend_by_header_and_by_handle_before_and_after_a_restart(tmp_path: Path) -> None:
    def mapped(instance: serve.Instance) -> dict[str, str]:
        by_header = over_http(instance, "/e", [{"X-SERVE-SHARD-KEY": key} for key in KEYS])
        handle = instance.get_handle("e")
        by_handle = serve.get([handle.options(shard_key=key).remote() for key in KEYS])
        assert by_header == by_handle
        return dict(zip(KEYS, by_header, strict=True))

    with serve.init("first", http_port=0, state_dir=str(tmp_path / "state")) as instance:
        for tag in ("a", "b"):
            instance.create_backend(tag, answers(tag))
        instance.create_endpoint("e", "/e")
        instance.set_traffic("e", {"a": 0.7, "b": 0.3})
        before = mapped(instance)
    with serve.init("first", http_port=0, state_dir=str(tmp_path / "state")) as instance:
        after = mapped(instance)
    assert before == after
    policy = TrafficPolicy("e", {"a": 0.7, "b": 0.3})
    assert before == {key: policy.choose(0.0, key) for key in KEYS}
    assert stats.chisquare([list(before.values()).count("a"), list(before.values()).count("b")], [700, 300]).pvalue > 0.001


def test_a_changed_split_moves_the_least_possible_share_of_keys_all_one_way() -> None:
    keys = [f"user {number}" for number in range(20_000)]
    before = TrafficPolicy("e", {"a": 0.7, "b": 0.3})
    after = TrafficPolicy("e", {"a": 0.6, "b": 0.4})
    moves = Counter((before.choose(0.0, key), after.choose(0.0, key)) for key in keys)
    assert 0.09 <= moves["a", "b"] / len(keys) <= 0.11
    assert moves["b", "a"] == 0


def test_set_traffic_is_in_force_when_it_returns(split: serve.Instance) -> None:
    handle = split.get_handle("e")
    for turn in range(20):
        tag = "ab"[turn % 2]
        split.set_traffic("e", {tag: 1.0})
        assert set(over_http(split, "/e", [{}] * 10, connections=2)) == {tag}
        assert set(serve.get([handle.remote() for _ in range(10)])) == {tag}
