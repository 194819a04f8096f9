"""Do `init` and `shutdown` keep their promises: to whom an instance belongs, who may connect, what ends it and what outlives it?"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import headgate
from headgate import serve
from headgate.controller.lease import AWAY_S
from headgate.errors import (
    AddressInUseError,
    ConfigError,
    InReplicaError,
    NotRunningError,
    ReplicaStartError,
    StateDirInUseError,
    StateDirUnsafeError,
)
from headgate.serve import Instance
from tests import ray_cluster
from tests.leaks import processes
from tests.support import GONE_WITHIN_S, TIME_FACTOR, wait_until

ROOT = Path(__file__).parents[2]


def hello(request: Any = None) -> str:
    return "hello"


def bye(request: Any = None) -> str:
    return "bye"


ON_THE_ENGINE = "from tests import ray_cluster; ray_cluster.join()\n" if ray_cluster.in_use() else ""
"""Begins the programs of these tests, so that `init` means the engine that they are run on."""


KILLED_GONE_WITHIN_S = GONE_WITHIN_S + (AWAY_S if ray_cluster.in_use() else 0.0)
"""Nothing of an instance is left after its driver was killed, or has left it to itself."""
INTERRUPTED_STATUS = (-signal.SIGINT, 1) if ray_cluster.in_use() else (-signal.SIGINT,)
"""Of a program that an interruption has ended; Ray's own hook makes it 1."""


class Script:
    """A Python program that runs as a process of its own; it says things line by line and reads what it is told."""

    def __init__(self, path: Path, code: str) -> None:
        path.write_text(ON_THE_ENGINE + code)
        search = os.pathsep.join([str(Path(headgate.__file__).parents[1]), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"},
        )

    def line(self) -> str:
        """The next line that it, or a replica, says; without whose it is."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if said := ray_cluster.said(line).strip():
                return re.sub(r"^\[[^]]*\] ", "", said)
        return ""

    def tell(self, text: str = "") -> None:
        """Give it a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def end(self, timeout_s: float = 20) -> str:
        """Wait for its end, which must be a good one; returns what it said last."""
        rest, _ = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, rest
        return ray_cluster.said(rest).strip()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Starts programs, each of which has ended when the test has."""
    started: list[Script] = []

    def start(code: str) -> Script:
        started.append(Script(tmp_path / f"script{len(started)}.py", code))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# Names and connections of one process


def test_init_returns_once_http_answers_and_says_where() -> None:
    port = free_port()
    with serve.init(http_port=port) as instance:
        assert instance.name == "default"
        assert instance.http_url == f"http://127.0.0.1:{port}"
        assert instance.http_urls == (instance.http_url,)
        assert instance.http_url in repr(instance)
        own = {"controller", "ingress"} if ray_cluster.in_use() else {"supervisor", "controller", "ingress"}
        assert {process.role for process in instance.status().processes} == own
        assert requests.get(f"{instance.http_url}/-/healthz", timeout=5).status_code == 200
    assert "over" in repr(instance)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/-/healthz", timeout=5)


def test_instances_of_several_names_run_side_by_side_and_functions_act_on_the_latest() -> None:
    with serve.init("first", http_port=0) as first, serve.init("second", http_port=0) as second:
        serve.create_backend("b", bye)
        first.create_backend("b", hello)
        for instance in (first, second):
            instance.create_endpoint("e", "/e", backend="b")
        assert requests.get(f"{first.http_url}/e", timeout=5).text == "hello"
        assert requests.get(f"{second.http_url}/e", timeout=5).text == "bye"
        assert first.get_handle("e").remote().result(5) == "hello"
        assert serve.get_handle("e").remote().result(5) == "bye"
        serve.shutdown()
        assert serve.status().name == "first"
        assert serve.get_handle("e").remote().result(5) == "hello"
        with pytest.raises(NotRunningError):
            second.status()
    with pytest.raises(NotRunningError):
        serve.status()


def test_a_second_init_connects_and_leaves_the_instance_to_who_started_it(instance: Instance) -> None:
    serve.create_backend("b", hello)
    with serve.init() as again:
        assert again.http_url == instance.http_url
        assert "b" in again.list_backends()
    with pytest.raises(NotRunningError):
        again.status()
    assert "b" in instance.list_backends()
    assert "b" in serve.list_backends()


def test_connecting_compares_what_was_given_and_nothing_else(instance: Instance) -> None:
    port = int(instance.http_url.rpartition(":")[2])
    for given in ({}, {"http_port": 0}, {"http_port": port}, {"num_ingresses": 1, "debug": False}, {"state_dir": None}):
        with serve.init("default", **given):
            pass
    with pytest.raises(ConfigError) as caught:
        serve.init(http_port=port + 1, num_ingresses=3, debug=True, state_dir="/tmp/elsewhere", detached=True)
    for name in ("http_port", "num_ingresses", "debug", "state_dir", "detached"):
        assert name in str(caught.value)
    assert "max_body_bytes" not in str(caught.value)
    assert serve.status().name == "default"


@pytest.mark.local_engine("a cluster's nodes say what they have")
def test_connecting_compares_resources(instance: Instance) -> None:
    with serve.init(resources={"GPU": 1, "CPU": 4.0}) as again:
        assert again.http_url == instance.http_url
    with pytest.raises(ConfigError, match="resources"):
        serve.init(resources={"CPU": 2})


def test_shutdown_leaves_nothing_and_the_name_can_be_used_again() -> None:
    threads = set(threading.enumerate())
    folder = f"{os.environ['HEADGATE_RUNTIME_DIR']}/headgate"
    for code in (hello, bye):
        serve.init(http_port=0)
        serve.create_backend("b", code)
        serve.create_endpoint("e", backend="b")
        assert serve.get_handle("e").remote().result(5) == code()
        serve.shutdown()
        assert set(threading.enumerate()) == threads
        assert not processes()
        assert not os.path.exists(folder)
        with pytest.raises(NotRunningError):
            serve.shutdown()


def test_shutdown_finishes_what_was_admitted(tmp_path: Path) -> None:
    def held(request: Any = None) -> str:
        wait_until((tmp_path / "go").exists, 30)
        return "finished"

    with serve.init(http_port=0) as instance:
        serve.create_backend("b", held)
        serve.create_endpoint("e", "/e", backend="b")
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(requests.get(f"{instance.http_url}/e", timeout=10).text))
        thread.start()
        reply = serve.get_handle("e").remote()
        wait_until(lambda: sum(queue.in_flight for queue in serve.stat().counters.queues) == 2)
        shutting_down = threading.Thread(target=serve.shutdown)
        shutting_down.start()
        wait_until(lambda: requests.get(f"{instance.http_url}/-/readyz", timeout=10).json()["status"] == "shutting down")
        assert shutting_down.is_alive()
        (tmp_path / "go").touch()
        shutting_down.join(10)
        assert not shutting_down.is_alive()
        thread.join(10)
        assert answers == ["finished"]
        assert reply.result(10) == "finished"
        with pytest.raises(NotRunningError):
            serve.get_handle("e")


class Held:
    """The first one is ready at once, later ones only when the file is there."""

    def __init__(self, folder: Path) -> None:
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            wait_until((folder / "go").exists, 30)

    def __call__(self, request: Any) -> str:
        return "finished"


@pytest.mark.parametrize("comes", [True, False], ids=["it comes", "it doesn't come in time"])
def test_what_waits_for_a_replica_when_shutdown_begins_is_served_or_refused(tmp_path: Path, comes: bool) -> None:
    with serve.init(http_port=0) as instance:
        serve.create_backend("b", Held, tmp_path, config={"graceful_shutdown_timeout": 20.0 if comes else 0.5})
        serve.create_endpoint("e", "/e", backend="b")
        (replica,) = serve.list_backends()["b"].replicas
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGKILL)
        wait_until(lambda: [replica.state for replica in serve.list_backends()["b"].replicas] == ["starting"])
        answers: list[requests.Response] = []
        thread = threading.Thread(target=lambda: answers.append(requests.get(f"{instance.http_url}/e", timeout=20)))
        thread.start()
        wait_until(lambda: any(queue.queued for queue in serve.stat().counters.queues))
        shutting_down = threading.Thread(target=serve.shutdown)
        shutting_down.start()
        wait_until(lambda: requests.get(f"{instance.http_url}/-/readyz", timeout=10).json()["status"] == "shutting down")
        if comes:
            (tmp_path / "go").touch()
        shutting_down.join(20)
        assert not shutting_down.is_alive()
        thread.join(10)
        (answer,) = answers
        if comes:
            assert (answer.status_code, answer.text) == (200, "finished")
        else:
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers


@pytest.mark.parametrize("by", ["itself", "a process that it has started"])
def test_a_replica_that_calls_another_endpoint_for_the_first_time_while_the_instance_shuts_down_is_answered(
    tmp_path: Path, by: str
) -> None:
    class Outer:
        def __init__(self, inner: serve.Handle) -> None:
            self.inner = inner

        def __call__(self, request: Any) -> str:
            (tmp_path / "begun").touch()
            wait_until((tmp_path / "go").exists, 30)
            if by == "itself":
                return str(self.inner.remote().result(10))
            code = f"{ON_THE_ENGINE}from headgate import serve; serve.init(); print(serve.get_handle('inner').remote().result(10), end='')"
            return subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, **environ, "PYTHONPATH": search})

    search, environ = os.pathsep.join([str(Path(headgate.__file__).parents[1]), str(ROOT)]), ray_cluster.environ()
    with serve.init(http_port=0) as instance:
        serve.create_backend("inner", hello)
        serve.create_endpoint("inner", backend="inner")
        serve.create_backend("outer", Outer, serve.get_handle("inner"))
        serve.create_endpoint("outer", "/outer", backend="outer")
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(requests.get(f"{instance.http_url}/outer", timeout=20).text))
        thread.start()
        wait_until((tmp_path / "begun").exists)
        shutting_down = threading.Thread(target=serve.shutdown)
        shutting_down.start()
        wait_until(lambda: requests.get(f"{instance.http_url}/-/readyz", timeout=10).json()["status"] == "shutting down")
        (tmp_path / "go").touch()
        shutting_down.join(20)
        thread.join(10)
        assert answers == ["hello"]


def test_neither_delete_endpoint_nor_shutdown_waits_for_copies_for_shadows(tmp_path: Path) -> None:
    def held(request: Any = None) -> None:
        (tmp_path / "began").touch()
        wait_until((tmp_path / "go").exists, 60)

    with serve.init(http_port=0):
        serve.create_backend("b", lambda: "done")
        serve.create_backend("s", held)
        serve.create_endpoint("e", backend="b")
        serve.create_endpoint("f", backend="b")
        for name in ("e", "f"):
            serve.shadow_traffic(name, "s", 1.0)
        assert serve.get_handle("e").remote().result(10) == "done"
        wait_until((tmp_path / "began").exists)
        assert serve.get_handle("f").remote().result(10) == "done"
        began = time.monotonic()
        serve.delete_endpoint("e")
        serve.shutdown()
        assert time.monotonic() - began < 5 * TIME_FACTOR
    assert not processes()


def test_an_exception_in_the_with_block_shuts_down_too() -> None:
    with pytest.raises(ZeroDivisionError), serve.init(http_port=0):
        raise ZeroDivisionError
    assert not processes()


def test_verbs_block_inside_a_running_event_loop_and_work() -> None:
    async def main() -> str:
        with serve.init(http_port=0):
            serve.create_backend("b", hello)
            await asyncio.to_thread(serve.create_endpoint, "e", backend="b")
            answer: str = await serve.get_handle("e").remote()
            return answer

    assert asyncio.run(main()) == "hello"


def test_two_threads_that_init_at_once_make_one_instance() -> None:
    made: list[Instance] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait()
        made.append(serve.init("raced", http_port=0))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({instance.http_url for instance in made}) == 1
    made[0].shutdown()
    for instance in made:
        with pytest.raises(NotRunningError):
            instance.status()


# What can't be started


def test_a_port_that_is_taken_is_named_and_nothing_is_left_running() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUseError, match=str(port)) as caught:
            serve.init(http_port=port)
    assert isinstance(caught.value, OSError)
    assert not processes()
    with pytest.raises(NotRunningError):
        serve.status()


def test_two_instances_cannot_share_a_port() -> None:
    with serve.init("one", http_port=0) as one:
        port = int(one.http_url.rpartition(":")[2])
        with pytest.raises(AddressInUseError, match=str(port)):
            serve.init("two", http_port=port)
        assert requests.get(f"{one.http_url}/-/healthz", timeout=5).status_code == 200


def test_a_state_dir_belongs_to_one_instance(tmp_path: Path) -> None:
    with serve.init("one", http_port=0, state_dir=tmp_path / "state"):
        with pytest.raises(StateDirInUseError, match="state") as caught:
            serve.init("two", http_port=0, state_dir=tmp_path / "state")
        assert isinstance(caught.value, OSError)
        assert serve.status().name == "one"


def test_a_state_dir_that_others_can_write_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(StateDirUnsafeError, match="chmod") as caught:
        serve.init(http_port=0, state_dir=state)
    assert isinstance(caught.value, PermissionError)
    assert not processes()


# What is kept


def kill(instance: Instance, role: str) -> None:
    for process in instance.status().processes:
        if process.role == role:
            os.kill(process.pid, signal.SIGKILL)


def fill() -> None:
    serve.create_backend("one", hello, config={"num_replicas": 2, "request_timeout": 7})
    serve.create_backend("two", bye)
    serve.create_endpoint("e", "/e", backend="one")
    serve.set_traffic("e", {"one": 0.25, "two": 0.75})
    serve.shadow_traffic("e", "two", 0.5)
    serve.create_endpoint("inside", backend="two")


def check_restored(instance: Instance) -> None:
    wait_until(lambda: instance.status().ready, 20)
    endpoint = instance.list_endpoints()["e"]
    assert (endpoint.route, endpoint.traffic, endpoint.shadows) == ("/e", {"one": 0.25, "two": 0.75}, {"two": 0.5})
    assert instance.get_backend_config("one").request_timeout == 7
    wait_until(lambda: len(instance.list_backends()["one"].replicas) == 2)
    assert {requests.get(f"{instance.http_url}/e", timeout=5).text for _ in range(60)} == {"hello", "bye"}
    assert instance.get_handle("inside").remote().result(5) == "bye"
    with pytest.raises(ValueError, match="update_backend"):
        instance.create_backend("one", hello)


def test_a_state_dir_restores_everything_after_a_shutdown(tmp_path: Path) -> None:
    with serve.init(http_port=0, state_dir=tmp_path):
        fill()
    assert not processes()
    with serve.init(http_port=0, state_dir=tmp_path) as instance:
        check_restored(instance)


def test_a_state_dir_restores_everything_after_a_crash(tmp_path: Path) -> None:
    crashed = serve.init(http_port=0, state_dir=tmp_path)
    fill()
    if ray_cluster.in_use():
        ray_cluster.kill_all_actors()
    else:
        kill(crashed, "supervisor")
    wait_until(lambda: not processes())
    with serve.init(http_port=0, state_dir=tmp_path) as instance:
        check_restored(instance)


def test_without_a_state_dir_nothing_is_kept() -> None:
    with serve.init(http_port=0):
        fill()
    with serve.init(http_port=0):
        assert serve.list_backends() == {}
        assert serve.list_endpoints() == {}


class FailsTheSecondTime:
    """A constructor that works until a file is there."""

    def __init__(self, marker: Path) -> None:
        if marker.exists():
            raise RuntimeError("the model is gone")

    def __call__(self, request: Any = None) -> str:
        return "constructed"


def test_a_restored_replica_that_fails_shows_in_status_and_fails_no_init(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    with serve.init(http_port=0, state_dir=tmp_path / "state"):
        serve.create_backend("fails", FailsTheSecondTime, marker)
        serve.create_backend("works", hello)
        serve.create_endpoint("works", backend="works")
    marker.touch()
    with serve.init(http_port=0, state_dir=tmp_path / "state") as instance:
        assert serve.get_handle("works").remote().result(10) == "hello"
        wait_until(lambda: "the model is gone" in instance.list_backends()["fails"].reason)
        assert instance.list_backends()["fails"].state == "unhealthy"
        assert ray_cluster.in_use() or "did not start: RuntimeError: the model is gone" in capfd.readouterr().err  # Ray has logs of its own
        marker.unlink()
        serve.update_backend("fails", FailsTheSecondTime, marker)
        assert instance.list_backends()["fails"].state == "ready"


# Several processes

CONNECTS = """
from headgate import serve
with serve.init("shared") as instance:
    print(instance.get_handle("e").remote().result(10))
    serve.create_backend("theirs", lambda request=None: "from the other process")
    serve.set_traffic("e", {"theirs": 1.0})
"""


def test_another_process_connects_changes_things_and_leaves(script: Callable[[str], Script]) -> None:
    with serve.init("shared", http_port=0) as instance:
        serve.create_backend("mine", hello)
        serve.create_endpoint("e", "/e", backend="mine")
        handle = serve.get_handle("e")
        assert handle.remote().result(5) == "hello"
        assert script(CONNECTS).end() == "hello"
        assert handle.remote().result(5) == "from the other process"
        assert requests.get(f"{instance.http_url}/e", timeout=5).text == "from the other process"


HOLDS_A_HANDLE = """
import time
from headgate import serve
with serve.init("shared") as instance:
    handle = instance.get_handle("e")
    first = handle.remote().result(10)
    print(first, flush=True)
    input()
    until = time.monotonic() + 10  # it follows when it has read what came meanwhile
    while (answer := handle.remote().result(10)) == first and time.monotonic() < until:
        pass
    print(answer, flush=True)
"""


def test_a_process_that_does_not_answer_is_named_in_a_warning_and_follows_later(script: Callable[[str], Script]) -> None:
    with serve.init("shared", http_port=0):
        serve.create_backend("one", hello)
        serve.create_backend("two", bye)
        serve.create_endpoint("e", backend="one")
        other = script(HOLDS_A_HANDLE)
        assert other.line() == "hello"
        other.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{other.process.pid}/stat").read_text().split()[2] == "T")  # until then its threads run on
        began = time.monotonic()
        with pytest.warns(RuntimeWarning, match=str(other.process.pid)) as warned:
            serve.set_traffic("e", {"two": 1.0})
        assert 1.5 < time.monotonic() - began < 10
        assert [warning.filename for warning in warned] == [__file__]
        other.process.send_signal(signal.SIGCONT)
        other.tell()
        wait_until(lambda: serve.list_endpoints()["e"].traffic == {"two": 1.0})
        assert other.end() == "bye"


def test_verbs_and_handles_go_on_over_the_death_of_the_controller(instance: Instance, tmp_path: Path) -> None:
    serve.create_backend("b", hello)
    serve.create_endpoint("e", backend="b")
    handle = serve.get_handle("e")
    begun, go = tmp_path / "begun", tmp_path / "go"

    class Waits:
        def __init__(self) -> None:
            begun.touch()
            wait_until(go.exists, 30)

        def __call__(self, request: Any = None) -> str:
            return "at last"

    thread = threading.Thread(target=lambda: serve.create_backend("slow", Waits))
    thread.start()
    wait_until(begun.exists)
    kill(instance, "controller")
    assert [handle.remote().result(5) for _ in range(20)] == ["hello"] * 20
    serve.create_endpoint("after", backend="b")
    assert serve.get_handle("after").remote().result(5) == "hello"
    go.touch()
    thread.join(30)
    assert not thread.is_alive()
    serve.set_traffic("e", {"slow": 1.0})
    assert handle.remote().result(5) == "at last"
    assert len(serve.list_backends()["slow"].replicas) == 1


ENDS_IT = """
from headgate import serve
serve.init("shared")
serve.shutdown()
try:
    serve.status()
except RuntimeError as error:
    print("serve.init" in str(error))
"""


def test_a_shutdown_from_another_process_ends_it_for_everybody(script: Callable[[str], Script]) -> None:
    serve.init("shared", http_port=0)
    serve.create_backend("b", hello)
    serve.create_endpoint("e", backend="b")
    handle = serve.get_handle("e")
    assert handle.remote().result(5) == "hello"
    assert script(ENDS_IT).end() == "True"
    with pytest.raises(NotRunningError):
        serve.status()
    wait_until(lambda: not processes())
    with pytest.raises(RuntimeError):
        handle.remote().result(5)


STARTS_IT_ANEW = """
from headgate import serve
serve.init("shared")
serve.shutdown()
with serve.init("shared", http_port=0) as instance:
    serve.create_backend("b", lambda request=None: "the second")
    serve.create_endpoint("e", backend="b")
    print("up", flush=True)
    input()
"""


def test_an_instance_that_was_started_anew_is_another_one(script: Callable[[str], Script]) -> None:
    first = serve.init("shared", http_port=0)
    serve.create_backend("b", hello)
    serve.create_endpoint("e", backend="b")
    handle = serve.get_handle("e")
    assert handle.remote().result(5) == "hello"
    other = script(STARTS_IT_ANEW)
    assert other.line() == "up"
    with pytest.raises(NotRunningError):
        first.set_traffic("e", {"b": 1.0})
    with serve.init("shared") as second:
        assert second.get_handle("e").remote().result(5) == "the second"
        assert handle.remote().result(5) == "the second"  # a handle goes by names
    other.tell()
    other.end()


STARTS_AND_EXITS = """
from headgate import serve
def f(request=None):
    return "main"
serve.init("theirs", http_port=0{more})
serve.create_backend("b", f)
serve.create_endpoint("e", backend="b")
print(serve.get_handle("e").remote().result(5), flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["", "raise SystemExit(0)", "import sys; sys.exit()"])
def test_the_exit_of_the_interpreter_shuts_down_what_it_started(script: Callable[[str], Script], then: str) -> None:
    assert script(STARTS_AND_EXITS.format(more="", then=then)).end() == "main"
    assert not processes()


def test_an_unhandled_error_in_the_script_shuts_down_too(script: Callable[[str], Script]) -> None:
    failing = script(STARTS_AND_EXITS.format(more="", then="import sys; sys.stderr = open('/dev/null', 'w'); 1 / 0"))
    failing.process.wait(20)
    assert failing.process.returncode == 1
    assert not processes()


def test_a_killed_driver_leaves_no_process_behind(script: Callable[[str], Script]) -> None:
    driver = script(STARTS_AND_EXITS.format(more="", then="input()"))
    assert driver.line() == "main"
    driver.process.kill()
    driver.process.wait(5)
    wait_until(lambda: not processes(), KILLED_GONE_WITHIN_S)


def test_a_detached_instance_outlives_its_driver_and_any_process_ends_it(script: Callable[[str], Script]) -> None:
    assert script(STARTS_AND_EXITS.format(more=", detached=True", then="")).end() == "main"
    assert processes()
    with serve.init("theirs") as instance:
        assert instance.get_handle("e").remote().result(5) == "main"
    assert processes()
    serve.init("theirs").shutdown()
    assert not processes()


FORKS = """
import os, sys
from headgate import serve
serve.init("theirs", http_port=0)
serve.create_backend("b", lambda request=None: "answer")
serve.create_endpoint("e", backend="b")
handle = serve.get_handle("e")
assert handle.remote().result(5) == "answer"
unanswered = handle.remote()
pid = os.fork()
if pid == 0:
    said = []
    for verb in (serve.status, lambda: serve.get_handle("e"), handle.remote, lambda: serve.init("theirs") and None):
        try:
            verb()
            said.append("fine")
        except RuntimeError as error:
            said.append("serve.init" in str(error) and "forked" in str(error))
    said.append(handle.remote().result(5))
    said.append(serve.get_handle("e").remote().result(5))
    print(said, flush=True)
    sys.exit(0)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), unanswered.result(5), handle.remote().result(5), sorted(serve.list_backends()))
"""


@pytest.mark.local_engine("Ray does not survive a fork")
def test_a_forked_process_is_told_to_init_again_and_can(script: Callable[[str], Script]) -> None:
    said = script(FORKS).end().splitlines()
    assert said == ["[True, True, True, 'fine', 'answer', 'answer']", "0 answer answer ['b']"]
    assert not processes()


FORKED_SOCKETS = """
import os
from headgate import serve
def sockets():
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link))
with serve.init("theirs", http_port=0):
    serve.create_backend("b", lambda: "x")
    serve.create_endpoint("e", backend="b")
    before = serve.get_handle("e").remote().result(5)
    held = sockets()
    if (child := os.fork()) == 0:
        print(held > 0, sockets(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(before, serve.get_handle("e").remote().result(5))
"""


@pytest.mark.local_engine("Ray does not survive a fork")
def test_a_forked_child_holds_none_of_its_parents_connections(script: Callable[[str], Script]) -> None:
    assert script(FORKED_SOCKETS).end().splitlines() == ["True 0", "x x"]
    assert not processes()


INTERRUPTED = """
import os, tempfile, time
from headgate import serve
class Waits:
    def __init__(self, folder):
        print("constructing", flush=True)
        while not os.path.exists(folder + "/go"):
            time.sleep(0.01)
    def __call__(self, request=None):
        return "constructed"
with tempfile.TemporaryDirectory() as folder, serve.init("theirs", http_port=0):
    try:
        serve.create_backend("b", Waits, folder)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    open(folder + "/go", "w").close()
    while "b" not in serve.list_backends():
        time.sleep(0.01)
    serve.create_endpoint("e", backend="b")
    print(serve.get_handle("e").remote().result(5))
"""


def test_ctrl_c_interrupts_a_verb_and_leaves_the_instance_usable(script: Callable[[str], Script]) -> None:
    running = script(INTERRUPTED)
    assert running.line() == "constructing"
    running.process.send_signal(signal.SIGINT)
    assert running.line() == "interrupted"
    assert running.end() == "constructed"
    assert not processes()


INTERRUPTED_AND_GONE = """
import time
from headgate import serve
class Waits:
    def __init__(self):
        print("constructing", flush=True)
        time.sleep(60)
    def __call__(self, request=None):
        return ""
serve.init("theirs", http_port=0)
serve.create_backend("b", Waits)
"""


def test_ctrl_c_ends_a_script_and_all_that_it_started(script: Callable[[str], Script]) -> None:
    running = script(INTERRUPTED_AND_GONE + "\n")
    assert running.line() == "constructing"
    running.process.send_signal(signal.SIGINT)
    running.process.wait(10)
    assert running.process.returncode in INTERRUPTED_STATUS
    wait_until(lambda: not processes())


INTERRUPTED_TWICE = """
import time
from headgate import serve
def waits(request=None):
    print("running", flush=True)
    time.sleep(60)
def work():
    serve.create_backend("b", waits)
    serve.create_endpoint("e", backend="b")
    serve.get_handle("e").remote().result()
"""
IN_A_BLOCK = (
    INTERRUPTED_TWICE
    + """
with serve.init("theirs", http_port=0):
    work()
"""
)
WITHOUT_A_BLOCK = (
    INTERRUPTED_TWICE
    + """
serve.init("theirs", http_port=0)
work()
"""
)


@pytest.mark.parametrize("code", [IN_A_BLOCK, WITHOUT_A_BLOCK], ids=["in a block", "without a block"])
def test_a_second_ctrl_c_does_not_wait_for_what_runs(code: str, script: Callable[[str], Script], capfd: pytest.CaptureFixture[str]) -> None:
    running = script(code)
    said = ""

    def told() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "requests under way: 1" in said

    assert running.line() == "running"
    running.process.send_signal(signal.SIGINT)
    wait_until(told, 10)
    running.process.send_signal(signal.SIGINT)
    running.process.wait(5)
    assert running.process.returncode in INTERRUPTED_STATUS
    assert "Exception ignored" not in capfd.readouterr().err
    wait_until(lambda: not processes(), KILLED_GONE_WITHIN_S)


# Inside a replica


def told_in_a_fork() -> str:
    """What a verb raises in a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            serve.status()
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        return said.read()


def inside(what: str) -> Any:
    """Uses the verbs from within a replica."""
    if what == "init":
        return serve.init("another", http_port=1).name
    if what == "shutdown":
        serve.shutdown()
    if what == "change":
        serve.create_endpoint("made inside", backend="inside")
        return sorted(serve.list_endpoints())
    if what == "fork":
        serve.status()
        return told_in_a_fork()
    if what == "url":
        return serve.init().http_url
    return serve.get_handle("inside").remote("url").result(5)


def test_verbs_in_a_replica_act_on_its_instance_which_it_cannot_shut_down() -> None:
    with serve.init("around", http_port=0) as instance:
        serve.create_backend("inside", inside, config={"num_replicas": 2})
        serve.create_endpoint("inside", backend="inside")
        handle = serve.get_handle("inside")
        assert handle.remote("init").result(5) == "around"
        assert handle.remote("url").result(5) == instance.http_url
        assert handle.remote("change").result(5) == ["inside", "made inside"]
        assert handle.remote("handle").result(5) == instance.http_url
        assert "forked" in handle.remote("fork").result(5)
        with pytest.raises(InReplicaError, match="__main__"):
            handle.remote("shutdown").result(5)
        assert serve.status().name == "around"


class SetsUp:
    def __init__(self, what: str) -> None:
        if what == "change":
            serve.create_endpoint("e")
        elif what == "shutdown":
            serve.shutdown()
        else:
            self.handle = serve.get_handle("answers")

    def __call__(self, request: Any = None) -> Any:
        return self.handle.remote().result(5)


def test_a_constructor_may_get_handles_but_not_change_the_instance(instance: Instance) -> None:
    serve.create_backend("answers", hello)
    serve.create_endpoint("answers", backend="answers")
    for what in ("change", "shutdown"):
        with pytest.raises(ReplicaStartError, match=r"InReplicaError.*__main__") as caught:
            serve.create_backend("sets up", SetsUp, what)
        assert "in __init__" in caught.value.remote_traceback
    serve.create_backend("sets up", SetsUp, "handle")
    serve.create_endpoint("asks", backend="sets up")
    assert serve.get_handle("asks").remote().result(5) == "hello"


SURROUNDINGS = """
import os
from headgate import serve
def f(request=None):
    return os.environ.get("PLAIN"), os.path.basename(os.getcwd())
os.environb[b"ODD"] = b"a" + bytes([255])
os.environ["PLAIN"] = "plain"
with serve.init("theirs", http_port=0):
    serve.create_backend("b", f)
    serve.create_endpoint("e", backend="b")
    print(*serve.get_handle("e").remote().result(5))
"""


@pytest.mark.local_engine("the driver's variables don't travel to other machines")
def test_a_variable_that_is_no_text_keeps_nobody_from_creating_a_backend(script: Callable[[str], Script]) -> None:
    assert script(SURROUNDINGS).end() == f"plain {os.path.basename(os.getcwd())}"


UNGUARDED = """
from headgate import serve
from {module} import answer
serve.init("theirs", http_port=0)
serve.create_backend("b", answer)
serve.create_endpoint("e", backend="b")
print(serve.get_handle("e").remote().result(5))
"""


def test_a_module_that_sets_up_when_imported_is_refused_with_the_remedy(script: Callable[[str], Script], tmp_path: Path) -> None:
    (tmp_path / "sets_up.py").write_text(
        "from headgate import serve\n"
        "serve.init('theirs', http_port=0)\n"
        "if 'b' not in serve.list_backends():\n"
        "    serve.create_endpoint('x')\n"
        "def answer(request=None):\n"
        "    return 'answered'\n"
    )
    failing = script("import sys; sys.stderr = open('/dev/null', 'w')\n" + UNGUARDED.format(module="sets_up"))
    failing.process.wait(20)
    assert failing.process.returncode == 1
    assert not processes()


def test_an_instance_that_others_can_reach_is_warned_of_where_it_is_started() -> None:
    with pytest.warns(UserWarning, match=r"http_host='0\.0\.0\.0'.* whoever can reach"), serve.init(http_port=0, http_host="0.0.0.0"):
        serve.init()  # which only connects, and warns of nothing


def is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while it is read
        return True


@pytest.mark.local_engine("it has a supervisor")
def test_an_init_in_the_moment_in_which_the_instance_is_killed_starts_another(tmp_path: Path) -> None:
    for _ in range(5):
        instance = serve.init("dying", http_port=0, detached=True, state_dir=tmp_path)
        (supervisor,) = [process.pid for process in instance.status().processes if process.role == "supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda pid=supervisor: is_dead(pid))  # type: ignore[misc]  # mypy can't type a lambda with a default
        began = time.monotonic()
    instance = serve.init("dying", http_port=0, detached=True, state_dir=tmp_path)
    assert instance.list_backends() == {}
    assert time.monotonic() - began < 3 * TIME_FACTOR, "it waited for an instance that was dead"
    instance.shutdown()
