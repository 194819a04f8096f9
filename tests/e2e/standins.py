"""How do tests start instances of stand-ins, in this process or in a driver that they can kill?"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headgate.engines.base import InstanceSettings
from headgate.engines.local import launch
from tests.conformance import standin
from tests.conformance.harnesses import ROOT, settings_for
from tests.support import wait_until

DRIVER = """
import os, subprocess, sys, time
from tests.conformance.harnesses import ROOT, settings_for
from headgate.engines.local import launch
assert launch.launch(settings_for({name!r}, detached={detached!r}), root=ROOT)
if {forks!r}:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    if os.fork() == 0:
        time.sleep(600)
print("ready", flush=True)
{then}
"""


def start(settings: InstanceSettings, **how: float) -> bool:
    """Launch an instance of stand-ins from this process."""
    return launch.launch(settings, root=ROOT, **how)


@contextmanager
def started(name: str = "test", **how: object) -> Iterator[InstanceSettings]:
    """An instance of stand-ins, shut down afterwards."""
    settings = settings_for(name, **how)  # type: ignore[arg-type]  # passed on as they are
    assert start(settings)
    try:
        yield settings
    finally:
        shut_down(settings)


def shut_down(settings: InstanceSettings) -> None:
    """Tell the stand-in controller to end, and wait until all is gone."""
    standin.scratch("shutdown").touch()
    assert launch.wait_ended(settings.folder, 10.0)
    standin.scratch("shutdown").unlink()


def url() -> str:
    """Where the latest instance answers."""
    return standin.scratch("urls").read_text()


def fetch() -> str:
    """The id of the ingress that answers."""
    with urllib.request.urlopen(url(), timeout=10) as answer:
        return str(answer.read().decode())


def pid_of(id: str) -> int:
    """The process of a stand-in, or "controller"."""
    path = standin.scratch(id if id == "controller" else f"pid-{id}")
    return int(wait_until(lambda: path.exists() and path.read_text(), what=f"the pid of {id}"))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder by which stand-ins and test speak."""
    monkeypatch.setenv(standin.SCRATCH, str(tmp_path))
    return tmp_path


@contextmanager
def driver(name: str = "test", *, detached: bool = False, forks: bool = False, then: str = "time.sleep(600)") -> Iterator[int]:
    """A process that has started an instance of stand-ins; its pid. It is killed afterwards, and so is what it forked."""
    program = DRIVER.format(name=name, detached=detached, forks=forks, then=then)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environ, start_new_session=True)
    try:
        assert process.stdout is not None  # it is a pipe
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
