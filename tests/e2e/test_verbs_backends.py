"""Do the verbs about backends do what the contract's table says, and refuse what it says they refuse?"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from headgate import serve
from headgate.errors import (
    AlreadyExistsError,
    ConfigError,
    ConfigTypeError,
    InsufficientResourcesError,
    InUseError,
    InvalidTypeError,
    InvalidValueError,
    NotFoundError,
    ReplicaStartError,
)
from headgate.serve import BackendConfig, Instance
from tests.support import wait_until


def hello(request: Any) -> str:
    return "hello"


def add(a: int, b: int = 10) -> int:
    return a + b


class Greeter:
    def __init__(self, greeting: str = "hello", *, mark: str = "!") -> None:
        self.greeting, self.mark = greeting, mark

    def __call__(self, name: str = "you") -> str:
        return f"{self.greeting} {name}{self.mark}"

    def whisper(self, name: str = "you") -> str:
        return f"psst {name}"


class Sick:
    def __call__(self) -> str:
        return "sick"

    def check_health(self) -> None:
        raise ValueError("lost the GPU")


class AsyncSick:
    async def __call__(self) -> str:
        return "sick"

    async def check_health(self) -> None:
        raise ValueError("lost the GPU")


class WhoAmI:
    """Answers with its process, its version and how often it was called."""

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.calls = 0

    def __call__(self, request: Any = None) -> list[int]:
        self.calls += 1
        return [self.version, os.getpid(), self.calls]


class Slow:
    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)

    def __call__(self, request: Any) -> str:
        return "slow"


class Waits:
    """Says by a file that it is being constructed, and is so until another file is there."""

    def __init__(self, folder: Path) -> None:
        (folder / "begun").touch()
        wait_until((folder / "go").exists, 30)

    def __call__(self, request: Any) -> str:
        return "at last"


class Meeting:
    """Answers with how many calls were in it, once there were `of` at least."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.change = threading.Condition()

    def __call__(self, of: int = 1) -> int:
        with self.change:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.change.notify_all()
            self.change.wait_for(lambda: self.most >= of, 10)
        time.sleep(0.01)  # for others to come in, where they may
        with self.change:
            self.inside -= 1
            return self.most


class Broken:
    def __init__(self, request: Any = None) -> None:
        raise RuntimeError("no such model file")

    def __call__(self, request: Any) -> str:
        return "never"


class HeldAgain:
    """Says its version. The first one is ready at once, later ones only while the file is there."""

    def __init__(self, version: int, folder: Path) -> None:
        try:
            (folder / f"first of {version}").touch(exist_ok=False)
        except FileExistsError:
            wait_until((folder / "go").exists, 30)
        self.version = version

    def __call__(self, request: Any = None) -> int:
        return self.version


def pids(instance: Instance, tag: str) -> set[int | None]:
    return {replica.pid for replica in instance.list_backends()[tag].replicas if replica.state == "ready"}


CALLABLES = {
    "a function": (hello, (), ("x",), "hello"),
    "a lambda": (lambda request: "lambda", (), ("x",), "lambda"),
    "a class": (Greeter, (), ("Ann",), "hello Ann!"),
    "a class with arguments": (functools.partial(Greeter, mark="."), ("hi",), ("Ann",), "hi Ann."),
    "a callable instance": (Greeter("hey"), (), ("Ann",), "hey Ann!"),
    "a bound method": (Greeter().whisper, (), ("Ann",), "psst Ann"),
    "a partial": (functools.partial(add, b=5), (), (1,), 6),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_a_backend_can_be(shared_instance: Instance, kind: str) -> None:
    target, init_args, args, expected = CALLABLES[kind]
    serve.create_backend(kind, target, *init_args)  # type: ignore[arg-type]  # of many types
    serve.create_endpoint(kind, backend=kind)
    assert serve.get_handle(kind).remote(*args).result(10) == expected


def test_create_backend_returns_when_all_replicas_are_ready(shared_instance: Instance) -> None:
    serve.create_backend("three", WhoAmI, 7, config=BackendConfig(num_replicas=3))
    info = serve.list_backends()["three"]
    assert (info.state, info.reason, info.config.num_replicas) == ("ready", "", 3)
    assert [replica.state for replica in info.replicas] == ["ready"] * 3
    assert len(pids(shared_instance, "three")) == 3
    assert info.definition.endswith("WhoAmI")


BAD_ARGUMENTS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "an empty tag": ("", {}, InvalidValueError, "empty"),
    "a tag with a control character": ("a\x07b", {}, InvalidValueError, "control"),
    "a tag with half a surrogate pair": ("a\ud800", {}, InvalidValueError, "UTF-8"),
    "a tag of another type": (3, {}, InvalidTypeError, "string"),
    "an unknown key": ("t", {"config": {"num_replica": 1}}, ConfigError, "num_replicas"),
    "a key of the options": ("t", {"config": {"num_gpus": 1}}, ConfigError, "num_gpus belongs in ray_actor_options"),
    "a key of the config": ("t", {"ray_actor_options": {"num_replicas": 1}}, ConfigError, "num_replicas belongs in config"),
    "a wrong type": ("t", {"config": {"num_replicas": "2"}}, ConfigTypeError, "num_replicas"),
    "a value out of range": ("t", {"config": {"num_replicas": 0}}, ConfigError, "num_replicas"),
    "a config that is no dict": ("t", {"config": [("num_replicas", 1)]}, ConfigTypeError, "dict"),
    "batches without accept_batch": ("t", {"config": {"max_batch_size": 2}}, ConfigError, "accept_batch"),
    "a window below a batch": ("t", {"config": {"max_batch_size": 4, "max_concurrent_queries": 2}}, ConfigError, "max_concurrent_queries"),
    "an HTTP method that it doesn't have": ("t", {"config": {"http_methods": ["nope"]}}, ConfigError, "nope"),
    "an unknown option": ("t", {"ray_actor_options": {"num_cpu": 1}}, ConfigError, "num_cpus"),
    "an option that is Headgate's own": ("t", {"ray_actor_options": {"max_restarts": 1}}, ConfigError, "max_restarts"),
    "a GPU and a half": ("t", {"ray_actor_options": {"num_gpus": 1.5}}, ConfigError, "num_gpus"),
    "an option of a wrong type": ("t", {"ray_actor_options": {"num_cpus": "1"}}, ConfigTypeError, "num_cpus"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_create_backend_refuses(shared_instance: Instance, what: str) -> None:
    tag, arguments, error, names = BAD_ARGUMENTS[what]
    before = serve.list_backends().keys()
    with pytest.raises(error, match=names):
        serve.create_backend(tag, hello, **arguments)
    assert serve.list_backends().keys() == before


def test_create_backend_refuses_what_cannot_be_a_backend(shared_instance: Instance) -> None:
    @serve.accept_batch
    def generator(items: list[int]) -> Any:
        yield from items

    with pytest.raises(TypeError, match="callable"):
        serve.create_backend("none", "hello")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="constructor"):
        serve.create_backend("none", hello, 3)
    with pytest.raises(TypeError, match="generator"):
        serve.create_backend("none", generator)
    assert "none" not in serve.list_backends()


def test_a_tag_that_is_taken_is_refused_and_the_error_says_what_to_do(shared_instance: Instance) -> None:
    serve.create_backend("taken", WhoAmI)
    before = pids(shared_instance, "taken")
    with pytest.raises(AlreadyExistsError, match=r"update_backend.*list_backends") as caught:
        serve.create_backend("taken", hello)
    assert isinstance(caught.value, ValueError)
    assert pids(shared_instance, "taken") == before


def test_a_constructor_that_raises_brings_its_traceback_and_leaves_nothing(shared_instance: Instance) -> None:
    with pytest.raises(ReplicaStartError, match="no such model file") as caught:
        serve.create_backend("broken", Broken, config={"num_replicas": 2})
    assert "in __init__" in caught.value.remote_traceback
    assert "RuntimeError: no such model file" in str(caught.value)
    assert "broken" not in serve.list_backends()
    serve.create_backend("broken", hello)
    assert serve.list_backends()["broken"].state == "ready"


def test_a_constructor_that_takes_too_long_leaves_nothing(shared_instance: Instance) -> None:
    began = time.monotonic()
    with pytest.raises(ReplicaStartError, match="startup_timeout"):
        serve.create_backend("too slow", Slow, 60, config={"startup_timeout": 0.3})
    assert time.monotonic() - began < 10
    assert "too slow" not in serve.list_backends()
    assert not [process for process in serve.status().processes if "too slow" in process.id]


def test_resources_that_are_not_free_are_refused_at_once_with_what_was_asked_and_what_is_free(instance: Instance) -> None:
    serve.create_backend("three cpus", hello, ray_actor_options={"num_cpus": 3})
    assert serve.status().free["CPU"] == 1
    began = time.monotonic()  # a cluster waits for room as long as a start may take
    with pytest.raises(InsufficientResourcesError, match=r"CPU") as caught:
        serve.create_backend("two more", hello, config={"startup_timeout": 2.0}, ray_actor_options={"num_cpus": 2})
    assert time.monotonic() - began < 5
    assert isinstance(caught.value, RuntimeError)
    assert "2" in str(caught.value)
    assert "1" in str(caught.value)
    assert "two more" not in serve.list_backends()
    with pytest.raises(InsufficientResourcesError):
        serve.create_backend(
            "two halves and one", hello, config={"num_replicas": 3, "startup_timeout": 2.0}, ray_actor_options={"num_cpus": 0.5}
        )
    assert serve.status().free["CPU"] == 1
    serve.delete_backend("three cpus")
    assert serve.status().free["CPU"] == 4


def test_a_handler_that_http_cannot_call_is_warned_of_and_created(shared_instance: Instance) -> None:
    with pytest.warns(UserWarning, match="b"):
        serve.create_backend("needs two", lambda a, b: a + b)
    serve.create_endpoint("needs two", backend="needs two")
    assert serve.get_handle("needs two").remote(1, b=2).result(10) == 3


def test_a_slow_create_backend_blocks_no_other_verb(shared_instance: Instance, tmp_path: Path) -> None:
    done = threading.Event()

    def create_slowly() -> None:
        serve.create_backend("slow", Waits, tmp_path)
        done.set()

    thread = threading.Thread(target=create_slowly)
    thread.start()
    wait_until((tmp_path / "begun").exists)
    serve.create_backend("quick", hello)
    serve.create_endpoint("quick", backend="quick")
    assert serve.get_handle("quick").remote(None).result(10) == "hello"
    assert not done.is_set()
    assert "slow" not in serve.list_backends()
    (tmp_path / "go").touch()
    thread.join(30)
    assert serve.list_backends()["slow"].state == "ready"


# update_backend


def test_update_backend_replaces_the_code_without_losing_a_request_and_keeps_the_config(shared_instance: Instance) -> None:
    serve.create_backend("versions", WhoAmI, 1, config={"num_replicas": 2, "request_timeout": 30})
    serve.create_endpoint("versions", "/versions", backend="versions")
    handle = serve.get_handle("versions")
    seen: list[int] = []
    failures: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                seen.append(handle.remote().result(10)[0])
                answer = session.get(f"{shared_instance.http_url}/versions", timeout=10)
                if answer.status_code != 200:
                    failures.append(answer.text)
                    return
                seen.append(answer.json()[0])

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: len(seen) > 20)
    old = pids(shared_instance, "versions")
    serve.update_backend("versions", WhoAmI, version=2)
    after = len(seen)
    wait_until(lambda: len(seen) > after + 20)
    stop.set()
    thread.join(20)
    assert not failures
    assert set(seen[after + 2 :]) == {2}  # two may have been on their way
    for of_one_router in (seen[::2], seen[1::2]):  # each follows at its own moment
        assert of_one_router == sorted(of_one_router)
    assert not old & pids(shared_instance, "versions")
    config = serve.get_backend_config("versions")
    assert (config.num_replicas, config.request_timeout) == (2, 30)


def test_a_new_version_that_fails_to_start_leaves_the_old_one_serving(shared_instance: Instance) -> None:
    serve.create_backend("stays", WhoAmI, 1)
    serve.create_endpoint("stays", backend="stays")
    before = serve.get_handle("stays").remote().result(10)
    with pytest.raises(ReplicaStartError, match="no such model file"):
        serve.update_backend("stays", Broken)
    version, pid, calls = serve.get_handle("stays").remote().result(10)
    assert [version, pid] == before[:2]
    assert calls == before[2] + 1
    assert serve.list_backends()["stays"].state == "ready"


@pytest.mark.parametrize("sick", [Sick, AsyncSick])
def test_a_new_version_whose_health_check_fails_leaves_the_old_one_serving(shared_instance: Instance, sick: type) -> None:
    serve.create_backend(sick.__name__, WhoAmI, 1)
    serve.create_endpoint(sick.__name__, backend=sick.__name__)
    with pytest.raises(ReplicaStartError, match=r"check_health\(\) raised: ValueError: lost the GPU"):
        serve.update_backend(sick.__name__, sick)
    assert serve.get_handle(sick.__name__).remote().result(10)[0] == 1


def test_update_backend_refuses_what_create_backend_does(shared_instance: Instance) -> None:
    serve.create_backend("update me", hello)
    with pytest.raises(NotFoundError, match="update me") as caught:
        serve.update_backend("update mee", hello)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(TypeError):
        serve.update_backend("update me", 3)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError):
        serve.update_backend("update me", hello, 3)
    with pytest.raises(TypeError):
        serve.update_backend("update me", hello, allow_gap="yes")  # type: ignore[arg-type]  # that is the point


def test_a_gap_is_refused_unless_it_is_allowed_and_requests_wait_for_its_end(instance: Instance) -> None:
    serve.create_backend("gpu", WhoAmI, 1, ray_actor_options={"num_gpus": 1})
    serve.create_endpoint("gpu", backend="gpu")
    handle = serve.get_handle("gpu")
    with pytest.raises(InsufficientResourcesError, match="allow_gap=True"):
        serve.update_backend("gpu", WhoAmI, 2)
    assert handle.remote().result(10)[0] == 1
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(handle.remote().result(20)[0])

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: answers)
    serve.update_backend("gpu", WhoAmI, 2, allow_gap=True)
    wait_until(lambda: answers[-1] == 2)
    stop.set()
    thread.join(20)
    assert answers == sorted(answers)
    assert set(answers) == {1, 2}


def test_several_replicas_that_do_not_fit_twice_are_replaced_one_at_a_time(instance: Instance) -> None:
    serve.create_backend("tight", WhoAmI, 1, config={"num_replicas": 2}, ray_actor_options={"num_cpus": 2})
    serve.create_endpoint("tight", backend="tight")
    serve.update_backend("tight", WhoAmI, 2)
    assert {serve.get_handle("tight").remote().result(10)[0] for _ in range(10)} == {2}
    assert len(pids(instance, "tight")) == 2
    assert serve.status().free["CPU"] == 0


def test_a_controller_that_dies_while_replicas_replace_others_one_at_a_time_costs_no_request(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    serve.create_backend("tight", HeldAgain, 1, tmp_path, config={"num_replicas": 2}, ray_actor_options={"num_cpus": 2})
    serve.create_endpoint("tight", "/tight", backend="tight")
    old = pids(instance, "tight")
    (tmp_path / "go").unlink()
    updating = threading.Thread(target=serve.update_backend, args=["tight", HeldAgain, 2, tmp_path])
    updating.start()

    def states() -> dict[str, bool]:
        return {replica.state: replica.pid in old for replica in serve.list_backends()["tight"].replicas}

    wait_until(lambda: states() == {"ready": False, "starting": False}, what="the first new one serves, and the second one starts")
    (controller,) = [process.pid for process in serve.status().processes if process.role == "controller"]
    os.kill(controller, signal.SIGKILL)
    answers = []

    def asked_of_the_next() -> bool:
        answers.append(requests.get(f"{instance.http_url}/tight", timeout=10))
        return len(answers) >= 50 and any(p.role == "controller" and p.pid != controller for p in serve.status().processes)

    wait_until(asked_of_the_next, 30)
    (tmp_path / "go").touch()
    updating.join(30)
    assert not updating.is_alive()
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, "2")}
    assert len(pids(instance, "tight") - old) == 2


# delete_backend


def test_a_backend_in_use_is_not_deleted_and_the_error_names_its_users(shared_instance: Instance) -> None:
    serve.create_backend("used", hello)
    serve.create_backend("instead", hello)
    serve.create_endpoint("user one", backend="used")
    serve.create_endpoint("user two", backend="instead")
    serve.shadow_traffic("user two", "used", 0.5)
    with pytest.raises(InUseError, match=r"user one.*user two") as caught:
        serve.delete_backend("used")
    assert isinstance(caught.value, ValueError)
    serve.set_traffic("user one", {"used": 0, "instead": 1})
    with pytest.raises(InUseError, match="user two"):
        serve.delete_backend("used")
    serve.shadow_traffic("user two", "used", 0)
    serve.delete_backend("used")
    assert "used" not in serve.list_backends()
    assert serve.list_endpoints()["user one"].traffic == {"instead": 1.0}


def test_deleting_drains_what_runs_and_the_tag_is_free_at_once(shared_instance: Instance, tmp_path: Path) -> None:
    def held() -> str:
        wait_until((tmp_path / "go").exists, 30)
        return "finished"

    serve.create_backend("drained", held)
    serve.create_backend("other", hello)
    serve.create_endpoint("drained", backend="drained")
    reply = serve.get_handle("drained").remote()
    wait_until(lambda: any(queue.in_flight for queue in serve.stat().counters.queues if queue.backend == "drained"))
    serve.set_traffic("drained", {"other": 1.0})
    deleting = threading.Thread(target=serve.delete_backend, args=["drained"])
    deleting.start()
    wait_until(lambda: "drained" not in serve.list_backends())
    assert deleting.is_alive()
    (tmp_path / "go").touch()
    deleting.join(10)
    assert not deleting.is_alive()
    assert reply.result(10) == "finished"
    serve.create_backend("drained", hello)


def test_what_waits_for_a_replica_of_a_deleted_backend_is_served(shared_instance: Instance, tmp_path: Path) -> None:
    serve.create_backend("leaving", HeldAgain, 1, tmp_path)
    serve.create_backend("staying", hello)
    serve.create_endpoint("left", backend="leaving")
    (pid,) = pids(shared_instance, "leaving")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: [replica.state for replica in serve.list_backends()["leaving"].replicas] == ["starting"])
    reply = serve.get_handle("left").remote()
    wait_until(lambda: any(queue.queued for queue in serve.stat().counters.queues if queue.backend == "leaving"))
    serve.set_traffic("left", {"staying": 1.0})
    deleting = threading.Thread(target=serve.delete_backend, args=["leaving"])
    deleting.start()
    wait_until(lambda: "leaving" not in serve.list_backends())
    (tmp_path / "go").touch()
    assert reply.result(10) == 1
    deleting.join(10)
    assert not deleting.is_alive()


def test_deleting_what_does_not_exist_is_a_lookup_error(shared_instance: Instance) -> None:
    with pytest.raises(LookupError, match="nobody"):
        serve.delete_backend("nobody")
    with pytest.raises(TypeError):
        serve.delete_backend(3)  # type: ignore[arg-type]  # that is the point


# update_backend_config


def test_a_dict_changes_its_keys_and_a_config_replaces_all(shared_instance: Instance) -> None:
    serve.create_backend("configured", WhoAmI, config={"max_queued_queries": 7, "request_timeout": 5})
    before = pids(shared_instance, "configured")
    serve.update_backend_config("configured", {"request_timeout": None})
    config = serve.get_backend_config("configured")
    assert (config.max_queued_queries, config.request_timeout) == (7, None)
    serve.update_backend_config("configured", BackendConfig(concurrency=3))
    assert serve.get_backend_config("configured") == BackendConfig(concurrency=3)
    assert pids(shared_instance, "configured") == before


@pytest.mark.parametrize(
    ("config", "error", "names"),
    [
        ({"request_timout": 1}, ConfigError, "request_timeout"),
        ({"request_timeout": "1"}, ConfigTypeError, "request_timeout"),
        ({"request_timeout": -1}, ConfigError, "request_timeout"),
        ({"num_replicas": 1.5}, ConfigTypeError, "num_replicas"),
        ({"max_batch_size": 3}, ConfigError, "accept_batch"),
        (None, InvalidTypeError, "None"),
        ("fast", ConfigTypeError, "dict"),
        ({3: 4}, ConfigTypeError, "strings"),
    ],
)
def test_a_refused_config_changes_nothing(shared_instance: Instance, config: Any, error: type[Exception], names: str) -> None:
    if "refusing" not in serve.list_backends():
        serve.create_backend("refusing", hello, config={"max_queued_queries": 5})
    before = serve.get_backend_config("refusing")
    with pytest.raises(error, match=names):
        serve.update_backend_config("refusing", config)
    assert serve.get_backend_config("refusing") == before


def test_the_config_of_an_unknown_backend_is_a_lookup_error(shared_instance: Instance) -> None:
    with pytest.raises(LookupError, match="nobody"):
        serve.update_backend_config("nobody", {"num_replicas": 2})
    with pytest.raises(LookupError, match="nobody"):
        serve.get_backend_config("nobody")


def test_scaling_starts_and_drains_replicas_and_keeps_the_others(shared_instance: Instance) -> None:
    serve.create_backend("scaled", WhoAmI)
    (first,) = pids(shared_instance, "scaled")
    serve.update_backend_config("scaled", {"num_replicas": 3})
    three = pids(shared_instance, "scaled")
    assert len(three) == 3
    assert first in three
    serve.update_backend_config("scaled", {"num_replicas": 1})
    wait_until(lambda: len(serve.list_backends()["scaled"].replicas) == 1)
    assert pids(shared_instance, "scaled") < three


def test_live_replicas_take_a_changed_concurrency_without_a_restart(shared_instance: Instance) -> None:
    serve.create_backend("wider", Meeting)
    serve.create_endpoint("wider", backend="wider")
    before = pids(shared_instance, "wider")
    handle = serve.get_handle("wider")
    assert serve.get([handle.remote() for _ in range(4)], timeout_s=20) == [1] * 4
    serve.update_backend_config("wider", {"concurrency": 4})
    assert serve.get([handle.remote(of=4) for _ in range(4)], timeout_s=20) == [4] * 4
    assert pids(shared_instance, "wider") == before
