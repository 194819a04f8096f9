"""Does an instance live as long as it should on a Ray cluster, however its program was started?"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import headgate
from tests.ray_cluster import CLUSTER_VARIABLE
from tests.support import leave_out, wait_until

RAY = str(Path(sys.executable).with_name("ray"))
SOURCE = str(Path(headgate.__file__).parents[1])
STARTED_WITHIN_S = 90.0

SERVES = """
import sys
from headgate import serve
def hello(request=None):
    return "hello from a job"
instance = serve.init("job", engine="ray", http_port=0, detached=True)
serve.create_backend("b", hello)
serve.create_endpoint("e", "/e", backend="b")
print("URL", instance.http_url, flush=True)
"""

CONNECTS = """
import requests
from headgate import serve
with serve.init("job", engine="ray", address="auto") as instance:
    print(requests.get(instance.http_url + "/e", timeout=10).text)
    print(serve.get_handle("e").remote().result(10))
serve.init("job", engine="ray").shutdown()
"""

ON_ITS_OWN = """
import ray, requests
from headgate import serve
from headgate.engines.ray import launch
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
with serve.init(engine="ray", http_port=0) as instance:
    serve.create_backend("b", lambda request=None: "hello from a script")
    serve.create_endpoint("e", "/e", backend="b")
    print(requests.get(instance.http_url + "/e", timeout=10).text)
    print(len(launch.actors("default")))
print(launch.actors("default"))
"""


class Cluster:
    """One node that `ray start --head` has started, with Ray's own authentication by token on; it ends with the `with` block."""

    def __init__(self, folder: Path) -> None:
        self._temp = tempfile.TemporaryDirectory(prefix="hg-ray-", dir="/tmp")  # short, for the sockets in it
        self._token = folder / "token"
        self._token.write_text("0123456789abcdef" * 4)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.dashboard = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._output = (folder / "output").open("w+")
        self._head: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        port = self.dashboard.rpartition(":")[2]
        command = [
            *("start", "--head", "--block", "--port=0", f"--dashboard-port={port}", f"--temp-dir={self._temp.name}", "--num-cpus=2"),
            *("--object-store-memory=100000000", "--disable-usage-stats", "--dashboard-agent-listen-port=0"),  # beside other clusters
        ]
        # Its processes are told from what instances leave behind by a variable.
        environ = {**self.environ(), CLUSTER_VARIABLE: "1"}
        self._head = subprocess.Popen([RAY, *command], env=environ, stdout=self._output, stderr=subprocess.STDOUT)
        wait_until(self._address.exists, STARTED_WITHIN_S, "the cluster has started")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._head is not None
        self._head.send_signal(signal.SIGTERM)
        self._head.wait(60)
        self._output.close()
        self._temp.cleanup()

    @property
    def _address(self) -> Path:
        return Path(self._temp.name, "ray_current_cluster")

    def environ(self) -> dict[str, str]:
        """The environment of a program that knows the cluster's token, and its address once there is one."""
        environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # which may be another one's
        environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token), "PYTHONPATH": SOURCE}
        if self._address.exists():
            environ["RAY_ADDRESS"] = self._address.read_text().strip()
        return environ


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("aiohttp") is None:
        leave_out("Ray isn't installed with what its jobs need")
    with Cluster(tmp_path) as running:
        yield running


def run(program: Path, code: str, environ: dict[str, str]) -> str:
    program.write_text(code)
    return subprocess.check_output([sys.executable, str(program)], text=True, env=environ, timeout=120)


@pytest.mark.timeout(300)
def test_a_detached_instance_outlives_its_job_and_another_program_connects_by_name_and_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "app.py").write_text(SERVES)
    command = ["job", "submit", f"--address={cluster.dashboard}", f"--working-dir={folder}", "--", sys.executable, "app.py"]
    environ = cluster.environ()
    del environ["RAY_ADDRESS"]  # the job's is the cluster's own

    def submitted() -> str:
        """What the job has said, once the cluster takes jobs."""
        done = subprocess.run([RAY, *command], capture_output=True, text=True, env=environ, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = wait_until(submitted, STARTED_WITHIN_S)
    assert re.search(r"URL http://\S+", said), said
    assert "succeeded" in said
    answers = run(tmp_path / "second.py", CONNECTS, cluster.environ())
    assert answers.splitlines() == ["hello from a job", "hello from a job"]


@pytest.mark.timeout(200)
def test_a_script_brings_a_cluster_of_its_own() -> None:
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "PYTHONPATH": SOURCE, CLUSTER_VARIABLE: "1"}
        environ.pop("RAY_ADDRESS", None)
        said = run(Path(folder, "script.py"), ON_ITS_OWN, environ).splitlines()
    assert said == ["hello from a script", "3", "[]"]
