"""Does a real instance go over to what is declared at once, under load, and when its controller is killed on the way?"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests

from headgate import serve
from headgate.core.declared import BY_VALUE
from headgate.errors import DeclaredStateError, InvalidTypeError, NotFoundError, ReplicaStartError
from headgate.serve import Instance
from tests.support import wait_until

HERE = __name__


def handler(request: Any = None) -> str:
    return "handler"


class Word:
    def __init__(self, word: str = "hi", gate: str = "") -> None:
        self.word = word
        while gate and not os.path.exists(gate):
            time.sleep(0.01)

    def __call__(self, request: Any = None) -> str:
        return self.word


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no weights")

    def __call__(self) -> None: ...


partly = Word("from a module's object")


@pytest.fixture
def instance(emptied_instance: Instance) -> Instance:
    """One for all, emptied after each test."""
    return emptied_instance


def declared(word: str, *, gate: str = "") -> dict[str, Any]:
    kwargs = {"gate": gate} if gate else {}
    return {
        "backends": {
            word: {"import_path": f"{HERE}:Word", "init_args": [word], "init_kwargs": kwargs, "config": {"num_replicas": 2}},
            "plain": {"import_path": f"{HERE}:handler"},
        },
        "endpoints": {"word": {"route": f"/{word}", "traffic": {word: 1}}, "always": {"route": "/always", "traffic": {word: 1}}},
    }


def test_what_is_declared_is_all_that_runs_and_the_same_again_changes_nothing(instance: Instance) -> None:
    instance.create_backend("old", handler)
    instance.create_endpoint("old", "/old", backend="old")
    plan = instance.plan(declared("one"))
    assert "- backend old" in str(plan).splitlines()
    assert instance.deploy(plan) is plan
    assert requests.get(f"{instance.http_url}/one", timeout=10).text == "one"
    assert requests.get(f"{instance.http_url}/old", timeout=10).status_code == 404
    assert instance.list_backends().keys() == {"one", "plain"}
    replicas = {replica.id for backend in instance.list_backends().values() for replica in backend.replicas}
    assert instance.deploy(declared("one")).steps == ()
    assert instance.deploy(instance.get_declared()).steps == ()
    assert {replica.id for backend in instance.list_backends().values() for replica in backend.replicas} == replicas


def test_clients_never_see_anything_between_the_old_and_the_new_state(instance: Instance) -> None:
    instance.deploy(declared("one"))
    seen: Counter[tuple[int, str]] = Counter()
    over = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not over.is_set():
                answer = session.get(f"{instance.http_url}/always", timeout=10)
                seen[answer.status_code, answer.text] += 1

    client = threading.Thread(target=ask)
    client.start()
    try:
        instance.deploy(declared("two"))
        wait_until(lambda: seen[200, "two"], what="the new state answers")
        with pytest.raises(ReplicaStartError, match="no weights"):
            instance.deploy({"backends": {"bad": {"import_path": f"{HERE}:Broken"}}})
        instance.deploy(declared("three"))
        wait_until(lambda: seen[200, "three"], what="the new state answers")
    finally:
        over.set()
        client.join()
    assert seen.keys() == {(200, "one"), (200, "two"), (200, "three")}


@pytest.mark.local_engine("the controller is a process of this machine")
def test_a_controller_that_is_killed_on_the_way_goes_on_and_the_call_returns(instance: Instance, tmp_path: Path) -> None:
    instance.deploy(declared("one"))
    gate = tmp_path / "gate"
    work = threading.Thread(target=lambda: instance.deploy(declared("two", gate=str(gate))))
    work.start()
    wait_until(lambda: instance.status().coming.get("two"), what="its replicas start")
    (controller,) = [process.pid for process in instance.status().processes if process.role == "controller"]
    os.kill(controller, signal.SIGKILL)
    wait_until(lambda: all(process.pid != controller for process in instance.status().processes), what="there is another controller")
    assert instance.list_backends().keys() == {"one", "plain"}
    assert requests.get(f"{instance.http_url}/always", timeout=10).text == "one"
    gate.touch()
    work.join(30)
    assert not work.is_alive()
    assert instance.list_backends().keys() == {"two", "plain"}
    assert requests.get(f"{instance.http_url}/always", timeout=10).text == "two"
    assert instance.status().coming == {}


def test_code_that_no_file_can_name_stays_where_it_is_and_is_refused_elsewhere(instance: Instance) -> None:
    instance.create_backend("local", lambda: 1)
    instance.create_backend("bytes", Word, b"no text")
    told = instance.get_declared()
    assert told.backends["local"].import_path.startswith(f"{BY_VALUE}test_code_that")
    assert told.backends["bytes"].import_path.startswith(f"{BY_VALUE}Word@")
    assert instance.deploy(told).steps == ()
    path = told.backends["local"].import_path
    with pytest.raises(DeclaredStateError, match="the backend doesn't run here"):
        instance.deploy({"backends": {"other": {"import_path": path}}})
    with pytest.raises(DeclaredStateError, match="can't be replaced by a file"):
        instance.plan(told, update=["local"])
    instance.update_backend("local", lambda: 2)
    with pytest.raises(DeclaredStateError, match=f"the backend runs '{BY_VALUE}"):
        instance.deploy({"backends": {"local": {"import_path": path}}})


def test_an_object_of_a_module_is_named_by_the_file_that_named_it(instance: Instance) -> None:
    instance.deploy(
        {"backends": {"object": {"import_path": f"{HERE}:partly"}}, "endpoints": {"e": {"route": "/e", "traffic": {"object": 1}}}}
    )
    assert requests.get(f"{instance.http_url}/e", timeout=10).text == "from a module's object"
    assert instance.get_declared().backends["object"].import_path == f"{HERE}:partly"
    assert instance.deploy(instance.get_declared()).steps == ()


def test_what_is_wrong_is_refused_and_changes_nothing(instance: Instance) -> None:
    before = instance.status().state_id
    wrong: list[tuple[Any, type[Exception]]] = [
        (3, InvalidTypeError),
        ({"backend": {}}, DeclaredStateError),
        ({"backends": {"a": {"import_path": f"{HERE}:handle"}}}, DeclaredStateError),
        ({"backends": {"a": {"import_path": f"{HERE}:handler", "init_args": [1]}}}, DeclaredStateError),
        ({"http": {"debug": True}}, DeclaredStateError),
    ]
    for given, error in wrong:
        with pytest.raises(error):
            instance.deploy(given)
    with pytest.raises(NotFoundError, match="did you mean 'plain'"):
        instance.plan(declared("one"), update=["plian"])
    with pytest.raises(InvalidTypeError, match="give update to plan"):
        instance.deploy(instance.plan({}), update=["plain"])
    with pytest.raises(InvalidTypeError, match="a list of backend tags"):
        serve.plan(declared("one"), update="plain")
    assert instance.status().state_id == before
