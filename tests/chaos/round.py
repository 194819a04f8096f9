"""Which verbs change an instance again and again, and what is there after each of them?

A round has every verb that changes something, and ends where it began. What is there is a model of its own, which asks no instance.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import requests

from headgate.config import BackendConfig
from headgate.core.reports import EndpointInfo
from headgate.serve import Instance
from tests.support import wait_until

ANSWER_WITHIN_S = 10.0


class Version:
    """A version of code, which answers with its text. Each construction is a line in the file `journal`, which no death takes back."""

    def __init__(self, journal: str, text: str) -> None:
        self._text = text
        file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, f"{text}\n".encode())
        os.close(file)

    def __call__(self, request: Any) -> str:
        return self._text


def constructed(journal: str) -> Counter[str]:
    """How often each version was constructed."""
    path = Path(journal)
    return Counter(path.read_text().split()) if path.exists() else Counter()


class There(NamedTuple):
    """What is asked for: by tag the text of the code and its config; by name the endpoints."""

    backends: dict[str, tuple[str, BackendConfig]]
    endpoints: dict[str, EndpointInfo]


class Step(NamedTuple):
    """One verb: what it does to an instance, and to what is there."""

    verb: str
    do: Callable[[Instance], object]
    model: Callable[[There], There]
    starts: Callable[[There], dict[str, int]] = lambda there: {}
    """How many replicas of which text it constructs, from what there is before."""


def begin(instance: Instance, journal: str) -> There:
    """Create what a round changes; it is there then."""
    instance.create_backend("a", Version, journal, "a1")
    instance.create_backend("b", Version, journal, "b1", config={"num_replicas": 2, "max_queued_queries": 50})
    instance.create_endpoint("e", "/e", ["POST"], backend="a")
    instance.create_endpoint("split", "/split/", ["POST", "GET"])
    instance.set_traffic("split", {"a": 0.25, "b": 0.75})
    instance.shadow_traffic("split", "b", 0.5)
    return There(
        {"a": ("a1", BackendConfig()), "b": ("b1", BackendConfig(num_replicas=2, max_queued_queries=50))},
        {
            "e": EndpointInfo("e", "/e", ("POST",), {"a": 1.0}, {}),
            "split": EndpointInfo("split", "/split/", ("POST", "GET"), {"a": 0.25, "b": 0.75}, {"b": 0.5}),
        },
    )


def steps(journal: str) -> list[Step]:
    """The verbs of one round."""

    def backend(text: str, **config: Any) -> Callable[[There], There]:
        return lambda there: there._replace(backends=there.backends | {"c": (text, BackendConfig(**config))})

    def without_backend(there: There) -> There:
        return there._replace(backends={tag: found for tag, found in there.backends.items() if tag != "c"})

    def endpoint(name: str, route: str, traffic: dict[str, float], shadows: dict[str, float]) -> Callable[[There], There]:
        return lambda there: there._replace(endpoints=there.endpoints | {name: EndpointInfo(name, route, ("POST",), traffic, shadows)})

    def without_endpoint(there: There) -> There:
        return there._replace(endpoints={name: found for name, found in there.endpoints.items() if name != "new"})

    return [
        Step(
            "create_backend",
            lambda instance: instance.create_backend("c", Version, journal, "c1", config={"num_replicas": 2}),
            backend("c1", num_replicas=2),
            lambda there: {"c1": 2},
        ),
        Step(
            "create_endpoint",
            lambda instance: instance.create_endpoint("new", "/new", ["POST"], backend="c"),
            endpoint("new", "/new", {"c": 1.0}, {}),
        ),
        Step("set_traffic", lambda instance: instance.set_traffic("e", {"c": 1.0}), endpoint("e", "/e", {"c": 1.0}, {})),
        Step("shadow_traffic", lambda instance: instance.shadow_traffic("e", "b", 0.5), endpoint("e", "/e", {"c": 1.0}, {"b": 0.5})),
        Step(
            "update_backend",
            lambda instance: instance.update_backend("c", Version, journal, "c2"),
            backend("c2", num_replicas=2),
            lambda there: {"c2": 2},
        ),
        Step(
            "update_backend_config, more replicas",
            lambda instance: instance.update_backend_config("c", {"num_replicas": 3}),
            backend("c2", num_replicas=3),
            lambda there: {"c2": 1},
        ),
        Step(
            "update_backend_config",
            lambda instance: instance.update_backend_config("c", {"request_timeout": 7}),
            backend("c2", num_replicas=3, request_timeout=7),
        ),
        Step(
            "update_backend_config, fewer replicas",
            lambda instance: instance.update_backend_config("c", {"num_replicas": 1}),
            backend("c2", num_replicas=1, request_timeout=7),
        ),
        Step("shadow_traffic", lambda instance: instance.shadow_traffic("e", "b", 0), endpoint("e", "/e", {"c": 1.0}, {})),
        Step("set_traffic", lambda instance: instance.set_traffic("e", {"a": 1.0}), endpoint("e", "/e", {"a": 1.0}, {})),
        Step("delete_endpoint", lambda instance: instance.delete_endpoint("new"), without_endpoint),
        Step("delete_backend", lambda instance: instance.delete_backend("c"), without_backend),
    ]


def asked_for(instance: Instance, there: There) -> bool:
    """Whether the instance says that this is there, but for the code, which only answers show."""
    found = instance.status()
    return {tag: backend.config for tag, backend in found.backends.items()} == {
        tag: config for tag, (_, config) in there.backends.items()
    } and found.endpoints == there.endpoints


def check_answers(instance: Instance, there: There) -> None:
    """Every endpoint answers, now, by the code that it should."""
    for name, endpoint in there.endpoints.items():
        texts = {there.backends[tag][0] for tag, weight in endpoint.traffic.items() if weight > 0}
        answer = requests.post(f"{instance.http_url}{endpoint.route}", timeout=ANSWER_WITHIN_S)
        assert answer.status_code == 200, (name, answer.status_code, answer.text)
        assert answer.text in texts, (name, answer.text, texts)


def whole(instance: Instance) -> bool:
    """Whether every backend has its replicas, and none more."""
    return all(
        backend.state == "ready" and [replica.state for replica in backend.replicas] == ["ready"] * backend.config.num_replicas
        for backend in instance.list_backends().values()
    )


def wait_whole(instance: Instance, there: There) -> None:
    """Until this, and nothing else, is asked for and runs."""
    wait_until(partial(whole, instance), ANSWER_WITHIN_S)
    assert asked_for(instance, there)


class Verb(threading.Thread):
    """A verb under way in a thread of its own."""

    def __init__(self, step: Step, instance: Instance) -> None:
        super().__init__(name=step.verb)
        self.over = threading.Event()
        self.error: BaseException | None = None
        self._step = step
        self._instance = instance

    def run(self) -> None:
        try:
            self._step.do(self._instance)
        except BaseException as error:  # noqa: BLE001  # whoever joins looks at it
            self.error = error
        finally:
            self.over.set()
