"""Do the verbs about endpoints and traffic do what the contract's table says, and refuse what it says they refuse?"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests

from headgate import serve
from headgate.errors import AlreadyExistsError, InvalidTypeError, InvalidValueError, NotFoundError, UnavailableError
from headgate.serve import Instance
from tests.support import wait_until


def one(request: Any = None) -> str:
    return "one"


def two(request: Any = None) -> str:
    return "two"


@pytest.fixture(scope="module")
def backends(shared_instance: Instance) -> Instance:
    """The instance of this module, with the backends "one" and "two"."""
    shared_instance.create_backend("one", one)
    shared_instance.create_backend("two", two)
    return shared_instance


def get(instance: Instance, path: str, **more: Any) -> requests.Response:
    return requests.get(f"{instance.http_url}{path}", timeout=10, **more)


# create_endpoint


def test_an_endpoint_answers_as_soon_as_it_was_created(backends: Instance) -> None:
    serve.create_endpoint("fresh", "/fresh", backend="one")
    assert get(backends, "/fresh").text == "one"
    info = serve.list_endpoints()["fresh"]
    assert (info.route, info.methods, info.traffic, info.shadows) == ("/fresh", ("GET",), {"one": 1.0}, {})


def test_an_endpoint_without_traffic_answers_503(backends: Instance) -> None:
    serve.create_endpoint("idle", "/idle")
    answer = get(backends, "/idle")
    assert answer.status_code == 503
    assert answer.headers["retry-after"].isdigit()
    with pytest.raises(UnavailableError, match="traffic") as caught:
        serve.get_handle("idle").remote().result(10)
    assert caught.value.reason == "no traffic"
    serve.set_traffic("idle", {"two": 1})
    assert get(backends, "/idle").text == "two"


def test_an_endpoint_without_a_route_is_for_handles_only(backends: Instance) -> None:
    serve.create_endpoint("inside", backend="one")
    assert serve.get_handle("inside").remote().result(10) == "one"
    assert get(backends, "/inside").status_code == 404
    listed = get(backends, "/-/routes").json()
    assert not [route for route, (name, _) in listed.items() if name == "inside"]


def test_the_same_arguments_again_are_no_error_and_others_are(backends: Instance) -> None:
    for methods in (["GET", "post"], ["GET", "post"], ["POST", "GET"]):
        serve.create_endpoint("again", "/again", methods, backend="one")
    for other in ({"route": "/other"}, {"route": "/again"}, {"route": "/again", "methods": ["GET", "POST"], "backend": "two"}):
        with pytest.raises(AlreadyExistsError, match="again") as caught:
            serve.create_endpoint("again", **other)
        assert isinstance(caught.value, ValueError)
    assert serve.list_endpoints()["again"].methods == ("GET", "POST")
    with pytest.raises(AlreadyExistsError, match="/again"):
        serve.create_endpoint("again too", "/again")


BAD_ENDPOINTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = {
    "an empty name": (("", "/x"), {}, InvalidValueError),
    "a name with a control character": (("a\tb", "/x"), {}, InvalidValueError),
    "a name of another type": ((None, "/x"), {}, InvalidTypeError),
    "a route without a slash": (("x", "x"), {}, InvalidValueError),
    "an empty route": (("x", ""), {}, InvalidValueError),
    "a reserved route": (("x", "/-/mine"), {}, InvalidValueError),
    "a route of another type": (("x", b"/x"), {}, InvalidTypeError),
    "an unknown method": (("x", "/x", ["GETT"]), {}, InvalidValueError),
    "no methods": (("x", "/x", []), {}, InvalidValueError),
    "methods as a string": (("x", "/x", "GET"), {}, InvalidTypeError),
    "a method of another type": (("x", "/x", [1]), {}, InvalidTypeError),
    "an unknown backend": (("x", "/x"), {"backend": "nobody"}, NotFoundError),
    "a backend of another type": (("x", "/x"), {"backend": 3}, InvalidTypeError),
}


@pytest.mark.parametrize("what", BAD_ENDPOINTS)
def test_create_endpoint_refuses(backends: Instance, what: str) -> None:
    arguments, keywords, error = BAD_ENDPOINTS[what]
    before = serve.list_endpoints()
    with pytest.raises(error):
        serve.create_endpoint(*arguments, **keywords)
    assert serve.list_endpoints() == before


# delete_endpoint


def test_a_deleted_endpoint_is_gone_when_the_verb_returns(backends: Instance) -> None:
    serve.create_endpoint("gone", "/gone", backend="one")
    handle = serve.get_handle("gone")
    assert handle.remote().result(10) == "one"
    serve.delete_endpoint("gone")
    assert get(backends, "/gone").status_code == 404
    with pytest.raises(LookupError, match="gone"):
        handle.remote().result(10)
    assert "gone" not in serve.list_endpoints()
    serve.create_endpoint("gone", "/gone", backend="two")
    assert handle.remote().result(10) == "two"


def test_deleting_an_endpoint_waits_for_what_was_admitted(backends: Instance, tmp_path: Path) -> None:
    def held() -> str:
        wait_until((tmp_path / "go").exists, 30)
        return "finished"

    serve.create_backend("slow", held)
    serve.create_endpoint("slow", "/slow", backend="slow")
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(get(backends, "/slow").text))
    thread.start()
    reply = serve.get_handle("slow").remote()
    wait_until(lambda: sum(queue.in_flight for queue in serve.stat().counters.queues if queue.backend == "slow") == 2)
    deleting = threading.Thread(target=serve.delete_endpoint, args=["slow"])
    deleting.start()
    wait_until(lambda: "slow" not in serve.list_endpoints())
    assert deleting.is_alive()
    (tmp_path / "go").touch()
    deleting.join(10)
    assert not deleting.is_alive()
    assert reply.result(10) == "finished"
    thread.join(10)
    assert answers == ["finished"]


def test_deleting_an_unknown_endpoint_is_a_lookup_error(backends: Instance) -> None:
    with pytest.raises(LookupError, match="nobody"):
        serve.delete_endpoint("nobody")
    with pytest.raises(TypeError):
        serve.delete_endpoint(None)  # type: ignore[arg-type]  # that is the point


# set_traffic


def test_traffic_is_in_force_everywhere_when_set_traffic_returns(backends: Instance) -> None:
    serve.create_endpoint("switched", "/switched", backend="one")
    handle = serve.get_handle("switched")
    with requests.Session() as session:
        for tag in ("two", "one", "two", "one"):
            serve.set_traffic("switched", {tag: 1})
            assert {handle.remote().result(10) for _ in range(10)} == {tag}
            assert {session.get(f"{backends.http_url}/switched", timeout=10).text for _ in range(10)} == {tag}


def test_weight_0_is_never_chosen_and_the_rest_is_split(backends: Instance) -> None:
    serve.create_endpoint("split", backend="one")
    serve.set_traffic("split", {"one": 0.25, "two": 0.75})
    handle = serve.get_handle("split")
    counts = Counter(serve.get([handle.remote() for _ in range(400)], timeout_s=30))
    assert 60 < counts["one"] < 140  # 100 on average, with a deviation of 8.7
    serve.set_traffic("split", {"one": 0.0, "two": 1.0})
    assert set(serve.get([handle.remote() for _ in range(100)], timeout_s=30)) == {"two"}


BAD_TRAFFIC: list[tuple[Any, type[Exception], str]] = [
    ([("one", 1.0)], TypeError, "dict"),
    ("one", TypeError, "dict"),
    (None, TypeError, "dict"),
    ({}, ValueError, "empty"),
    ({"one": "1"}, TypeError, "number"),
    ({"one": True}, TypeError, "number"),
    ({"one": None}, TypeError, "number"),
    ({1: 1.0}, TypeError, "string"),
    ({"one": float("nan")}, ValueError, "one"),
    ({"one": float("inf")}, ValueError, "one"),
    ({"one": 1.5, "two": -0.5}, ValueError, "two"),
    ({"one": 0.5, "two": 0.4}, ValueError, r"0\.9"),
    ({"one": 0.5, "two": 0.500002}, ValueError, r"1\.00000[12]"),
    ({"one": 0}, ValueError, "0"),
    ({"one": 0.5, "three": 0.5}, LookupError, "three"),
]


@pytest.mark.parametrize(("weights", "error", "says"), BAD_TRAFFIC, ids=str)
def test_a_refused_policy_leaves_the_old_one(backends: Instance, weights: Any, error: type[Exception], says: str) -> None:
    if "kept" not in serve.list_endpoints():
        serve.create_endpoint("kept", backend="one")
        serve.set_traffic("kept", {"one": 0.5, "two": 0.5})
    with pytest.raises(error, match=says):
        serve.set_traffic("kept", weights)
    assert serve.list_endpoints()["kept"].traffic == {"one": 0.5, "two": 0.5}


def test_a_sum_within_a_millionth_is_taken_and_an_unknown_endpoint_is_not(backends: Instance) -> None:
    serve.create_endpoint("thirds", backend="one")
    serve.set_traffic("thirds", {"one": 0.3333334, "two": 0.6666666})
    with pytest.raises(LookupError, match="nobody"):
        serve.set_traffic("nobody", {"one": 1})
    with pytest.raises(TypeError):
        serve.set_traffic(3, {"one": 1})  # type: ignore[arg-type]  # that is the point


# shadow_traffic


class Recorder:
    """Counts what it is asked, and never hurries."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, text: str = "") -> str:
        self.seen.append(text)
        raise RuntimeError("nobody hears this")

    def count(self) -> int:
        return len(self.seen)


def test_shadows_get_copies_that_nobody_waits_for_until_they_are_set_to_0(backends: Instance) -> None:
    serve.create_backend("recorder", Recorder)
    serve.create_endpoint("recorder", backend="recorder")
    serve.create_endpoint("shadowed", backend="one")
    serve.shadow_traffic("shadowed", "recorder", 1.0)
    handle = serve.get_handle("shadowed")
    count = serve.get_handle("recorder").options(method_name="count")
    assert [handle.remote("x").result(10) for _ in range(10)] == ["one"] * 10
    wait_until(lambda: count.remote().result(10) == 10)
    assert serve.list_endpoints()["shadowed"].shadows == {"recorder": 1.0}
    serve.set_traffic("shadowed", {"two": 1})
    assert handle.remote("x").result(10) == "two"
    wait_until(lambda: count.remote().result(10) == 11)
    serve.shadow_traffic("shadowed", "recorder", 0)
    assert serve.list_endpoints()["shadowed"].shadows == {}
    assert [handle.remote("x").result(10) for _ in range(5)] == ["two"] * 5
    assert count.remote().result(10) == 11


@pytest.mark.parametrize(
    ("name", "tag", "proportion", "error"),
    [
        ("shadow errors", "two", "1", TypeError),
        ("shadow errors", "two", True, TypeError),
        ("shadow errors", "two", -0.1, ValueError),
        ("shadow errors", "two", 1.1, ValueError),
        ("shadow errors", "two", float("nan"), ValueError),
        ("shadow errors", "nobody", 0.5, LookupError),
        ("nobody", "two", 0.5, LookupError),
        (3, "two", 0.5, TypeError),
        ("shadow errors", 3, 0.5, TypeError),
    ],
)
def test_shadow_traffic_refuses(backends: Instance, name: Any, tag: Any, proportion: Any, error: type[Exception]) -> None:
    serve.create_endpoint("shadow errors", backend="one")
    with pytest.raises(error):
        serve.shadow_traffic(name, tag, proportion)
    assert serve.list_endpoints()["shadow errors"].shadows == {}


# get_handle


def test_a_handle_of_an_unknown_endpoint_is_refused_unless_it_may_be_missing(backends: Instance) -> None:
    with pytest.raises(NotFoundError, match="later") as caught:
        serve.get_handle("later")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(TypeError):
        serve.get_handle(3)  # type: ignore[arg-type]  # that is the point
    handle = serve.get_handle("later", missing_ok=True)
    with pytest.raises(LookupError, match="later"):
        handle.remote().result(10)
    serve.create_endpoint("later", backend="one")
    assert handle.remote().result(10) == "one"


# status and stat


def test_stat_counts_what_http_and_handles_asked(backends: Instance) -> None:
    serve.create_endpoint("counted", "/counted", backend="one")
    for _ in range(3):
        assert get(backends, "/counted").text == "one"
    serve.get([serve.get_handle("counted").remote() for _ in range(4)], timeout_s=10)
    counted = [entry for entry in serve.stat().counters.requests if entry.endpoint == "counted"]
    assert sum(entry.count for entry in counted) == 7
    assert {(entry.backend, entry.status) for entry in counted} == {("one", 200)}


def test_status_shows_the_processes_and_the_resources(backends: Instance) -> None:
    status = serve.status()
    assert (status.name, status.http_urls) == (backends.name, backends.http_urls)
    roles = Counter(process.role for process in status.processes)
    assert roles["replica"] >= 2
    assert roles["ingress"] == 1
    assert (status.resources["CPU"], status.resources["GPU"]) == (4, 1)
