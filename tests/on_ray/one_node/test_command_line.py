"""Do the commands do on a cluster what they do on one machine?"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from headgate import serve
from tests import ray_cluster
from tests.cli.console import COMMAND, Said, environment, piped
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("cluster_of_one")

NAME = "cli-ray"
SHOP = """
class Greeter:
    def __init__(self, word="hello"):
        print(f"greeting with {word}", flush=True)
        self.word = word

    def __call__(self, request=None, who="world"):
        return f"{self.word} {who}"
"""
SET_UP = """
import sys, time
from headgate import serve
from shop_on_ray import Greeter

with serve.init():
    serve.create_backend("greet:v1", Greeter)
    serve.create_endpoint("greet", "/greet", backend="greet:v1")
if "stay" in sys.argv:
    open("waits", "w").close()
    time.sleep(1000)
"""
FILE = """
backends:
  greet:v2: {import_path: "shop_on_ray:Greeter", init_kwargs: {word: good day}, config: {num_replicas: 2}}
endpoints:
  greet: {route: /greet, traffic: {"greet:v2": 1}}
"""


@pytest.fixture
def where() -> tuple[str, ...]:
    import ray

    return ("--name", NAME, "--engine", "ray", "--address", ray.get_runtime_context().gcs_address)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop_on_ray.py").write_text(SHOP)
    (tmp_path / "app.py").write_text(SET_UP)
    (tmp_path / "app.yaml").write_text(FILE)
    return tmp_path


def answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def url_in(said: str) -> str:
    return str(re.findall(r"http://[\d.:]+/greet", said)[-1])


def fine(said: Said) -> str:
    """What a command that worked has printed."""
    assert said.status == 0, said
    return said.out


def test_an_instance_is_started_looked_at_changed_and_ended(where: tuple[str, ...], folder: Path) -> None:
    started = piped("start", *where, "--http-port", "0", "app.py", cwd=folder)
    try:
        fine(started)
        url = url_in(started.err)
        assert answer(url) == "hello world"
        told = json.loads(fine(piped("status", *where, "--json")))
        assert told["name"] == NAME
        assert fine(piped("call", *where, "greet", "who=Ada")).strip() == "hello Ada"
        assert fine(piped("call", *where, "greet", "--http")).strip() == "hello world"
        fine(piped("scale", *where, "greet:v1", "2"))
        with serve.connect(NAME, engine="ray") as instance:
            assert instance.get_backend_config("greet:v1").num_replicas == 2
            fine(piped("deploy", *where, "--yes", str(folder / "app.yaml")))
            assert list(instance.list_backends()) == ["greet:v2"]
            assert answer(url) == "good day world"
        printed = fine(piped("config", *where))
        (folder / "printed.yaml").write_text(printed)
        assert "nothing to do" in fine(piped("deploy", *where, "--yes", "printed.yaml", cwd=folder))
        assert "greet:v2" in fine(piped("backends", *where))
        assert "greet:v2" in fine(piped("endpoints", *where))
        fine(piped("traffic", *where, "greet"))
        assert json.loads(fine(piped("bench", *where, "/greet", "--rate", "20", "--duration", "0.5", "--json")))["failed"] == 0
        assert "Ray keeps what its actors say" in piped("logs", *where).err
        fine(piped("doctor", *where))
    finally:
        ended = piped("shutdown", *where)
    assert "is shut down" in fine(ended)
    assert fine(piped("stop", *where)) == f"no instance {NAME!r} is running\n"
    assert not ray_cluster.actors()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_it_is_told_to_end_and_leaves_nothing(where: tuple[str, ...], folder: Path, number: int) -> None:
    command = [*COMMAND, "run", *where, "--http-port", "0", "app.py"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stderr is not None
        said = ""
        while "greet:v1=1" not in said:
            said += process.stderr.readline()
            assert process.poll() is None, said
        assert answer(url_in(said)) == "hello world"
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not ray_cluster.actors()


def test_what_is_started_and_not_yet_set_up_leaves_nothing_by_sigterm(where: tuple[str, ...], folder: Path) -> None:
    command = [*COMMAND, "start", *where, "--http-port", "0", "app.py", "stay"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, cwd=folder) as process:
        wait_until((folder / "waits").exists, timeout_s=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not ray_cluster.actors()


def test_a_reload_changes_what_runs(where: tuple[str, ...], folder: Path) -> None:
    command = [*COMMAND, "run", *where, "--http-port", "0", "--reload", "app.py"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stderr is not None
        try:
            said = ""
            while "set up in" not in said:
                said += process.stderr.readline()
                assert process.poll() is None, said
            url = re.findall(r"http://[\d.:]+", said)[0]
            assert answer(f"{url}/greet") == "hello world"
            (folder / "app.py").write_text(SET_UP.replace("/greet", "/hi").replace("Greeter)", "Greeter, 'hi')"))
            said = ""
            while "set up in" not in said:
                said += process.stderr.readline()
                assert process.poll() is None, said
            assert answer(f"{url}/hi") == "hi world"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert not ray_cluster.actors()
