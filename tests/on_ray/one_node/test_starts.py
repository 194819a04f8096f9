"""Does a start come to an end, whatever was left by an instance before it, and whoever dies over it?"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headgate import arguments, serve
from headgate.errors import ClusterUnreachableError, ConfigError, InstanceStartError
from tests import ray_cluster
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("cluster_of_one")

ENDED_WITHIN_S = 60.0


@pytest.fixture(autouse=True)
def _nothing_left_by_test(_nothing_left_by_module: None) -> Iterator[None]:
    """As of modules: Ray keeps connections of its own with the processes of actors."""
    yield
    assert not ray_cluster.actors()


def settings(name: str, http_port: int = 0) -> Any:
    """As `serve.init` makes them."""
    given = arguments.settings(
        name,
        engine="ray",
        address=None,
        http_host="127.0.0.1",
        http_port=http_port,
        num_ingresses=1,
        max_body_bytes=1,
        max_inflight_bytes=1,
        resources=None,
        state_dir=None,
        detached=False,
        debug=False,
        ssl_certfile=None,
        ssl_keyfile=None,
        access_log=False,
        log_format="text",
        log_dir=None,
        traces=False,
    )
    return msgspec.structs.replace(given, detached=True)


def test_what_another_version_has_kept_is_told_by_an_error_of_headgate() -> None:
    from headgate.engines.ray import records

    key = records.instance_key("of-another-version")
    records.write(key, msgspec.msgpack.encode({"settings": "as they were then"}))
    try:
        with pytest.raises(InstanceStartError, match="another version"):
            serve.init("of-another-version", engine="ray", http_port=0)
    finally:
        records.delete_all("of-another-version")


@pytest.mark.timeout(180)
def test_a_start_that_fails_and_whose_driver_has_died_leaves_nothing_and_frees_the_name() -> None:
    from headgate.engines.ray import launch, records
    from headgate.engines.ray.records import InstanceRecord

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asked = settings("orphan", taken.getsockname()[1])
        assert records.write_if_new(records.instance_key("orphan"), InstanceRecord(settings=asked, secret=b"secret"))
        made = launch._make_controller(importlib.import_module(launch.ROOT).controller, asked, time.monotonic() + 60)
        assert made is not None  # what a driver would ask next; it dies here
        wait_until(lambda: launch.has_ended("orphan", asked.id), ENDED_WITHIN_S, "what was left of the start is gone")
        assert launch.wait_ended("orphan", asked.id, ENDED_WITHIN_S)


@pytest.mark.timeout(180)
def test_an_instance_starts_where_the_controller_of_the_one_before_is_still_there() -> None:
    import ray

    from headgate.engines.ray import launch
    from headgate.engines.ray.engine import namespace

    class Left:
        pass

    options = {"name": launch.CONTROLLER, "namespace": namespace("again"), "lifetime": "detached", "num_cpus": 0}
    left = ray.remote(Left).options(**options).remote()
    ray.get(left.__ray_ready__.remote())
    with serve.init("again", engine="ray", http_port=0) as instance:
        assert instance.status().ready


@pytest.mark.timeout(180)
def test_a_start_that_fails_leaves_the_next_instance_of_its_name_alone() -> None:
    from headgate.engines.ray import launch

    with serve.init("mine", engine="ray", http_port=0) as instance:
        launch.remove("mine", "another")
        assert instance.status().ready


@pytest.mark.timeout(180)
def test_an_end_is_not_waited_for_longer_where_the_next_instance_of_the_name_runs() -> None:
    from headgate.engines.ray import launch

    with serve.init("next", engine="ray", http_port=0):
        assert launch.wait_ended("next", "the one before", 0.0)


@pytest.mark.timeout(180)
def test_a_port_in_use_is_told_without_a_traceback_of_the_controller(tmp_path: Path) -> None:
    import ray

    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from headgate import serve, errors\n"
        "try: serve.init('busy', engine='ray', address='auto', http_port=int(sys.argv[1]))\n"
        "except errors.AddressInUseError as error: print('told:', error)\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        command = [sys.executable, str(program), str(port)]
        said = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=True)
    assert f"told: 127.0.0.1:{port} on node " in said.stdout
    assert "Traceback" not in said.stdout + said.stderr


def test_another_cluster_than_the_one_that_a_process_is_connected_with_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9.*is connected with the cluster at"):
        serve.init(engine="ray", address="127.0.0.1:9", http_port=0)
    with pytest.raises(ConfigError, match="no node of the cluster"):
        serve.init(engine="ray", address="ray://127.0.0.1:9", http_port=0)


@pytest.mark.timeout(120)
def test_a_cluster_that_is_out_of_reach_is_told_by_an_error_of_headgate(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from headgate import serve\nserve.init(engine='ray', address='127.0.0.1:9')\n")
    said = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=30, check=False)
    assert f"headgate.errors.{ClusterUnreachableError.__name__}: no Ray cluster answers at '127.0.0.1:9'" in said.stderr


@pytest.mark.timeout(180)
def test_a_driver_on_a_cluster_exits_by_sigterm_as_on_one_machine(tmp_path: Path) -> None:
    import ray

    program = tmp_path / "program.py"
    program.write_text(
        "import time; from headgate import serve\n"
        "serve.init('told', engine='ray', address='auto', http_port=0); print('serves', flush=True)\n"
        "time.sleep(60)\n"
    )
    environ = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, str(program)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    while "serves" not in driver.stdout.readline():
        assert driver.poll() is None
    driver.terminate()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143
    assert "SIGTERM received" not in said
    assert not ray_cluster.actors()


def test_what_is_kept_of_one_instance_is_not_removed_with_another() -> None:
    from headgate.engines.ray import records

    for name in ("a/spec", "a/state", "a/actor"):
        records.write(records.instance_key(name), b"kept")
    records.delete_all("a")
    for name in ("a/spec", "a/state", "a/actor"):
        assert records.read(records.instance_key(name)) == b"kept"
        records.delete_all(name)
        assert records.read(records.instance_key(name)) is None


@pytest.mark.timeout(180)
def test_the_next_controller_forgets_what_ended_while_there_was_none() -> None:
    from headgate.engines.ray import records

    with serve.init("forgets", engine="ray", http_port=0) as instance:
        records.write(records.spec_key("forgets", "gone"), b"what it was started from")
        records.write(records.actor_key("forgets", "gone"), b"how far it had come")
        (ingress,) = records.ids("forgets") - {"gone"}
        (controller,) = [process.pid for process in instance.status().processes if process.role == "controller"]
        os.kill(controller, signal.SIGKILL)
        wait_until(lambda: records.ids("forgets") == {ingress}, ENDED_WITHIN_S, "only what runs is kept")
        assert records.read(records.actor_key("forgets", "gone")) is None
        assert instance.status().ready
