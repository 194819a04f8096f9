"""What does every test get? A runtime folder of the session's own, a check that nothing is left behind, and instances to use."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests import ray_cluster
from tests.leaks import RUNTIME_VARIABLE, Held, processes, stacks_of
from tests.support import wait_until

if TYPE_CHECKING:
    from headgate.serve import Instance

pytest_plugins = ["tests.figures", "tests.recorder"]

# Short, because paths of Unix sockets are; set before anything is started, so that all that tests start inherits it.
RUNTIME_DIR = tempfile.mkdtemp(prefix="hg-", dir="/tmp")
os.environ[RUNTIME_VARIABLE] = RUNTIME_DIR

# A job in the background of a shell may ignore interruptions, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first loop of a process opens a pipe that libuv keeps for all later ones: no test's leak.
uvloop.new_event_loop().close()

# What ends by itself just after the test is not a leak.
SETTLE_S = 3.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """What else the command line takes."""
    parser.addoption(
        "--long", action="store_true", help="the chaos suite in its long form: hours, with the figures that it prints and asserts"
    )
    parser.addoption(
        "--peers", action="store_true", help="run what pages show of other servers, too: each is installed where the benchmarks have it"
    )
    parser.addoption("--screenshots", metavar="FOLDER", help="have pictures there of each state of the dashboard that is looked at")
    parser.addoption("--engine", choices=["local", "ray"], default="local", help="what instances run on where a test doesn't say")


def pytest_configure(config: pytest.Config) -> None:
    """Have instances run on the engine that was asked for."""
    config.addinivalue_line("markers", "local_engine(why): what it tests is the local engine's own")
    only_deals_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")  # of pytest-xdist's processes
    if config.getoption("--engine") == "ray" and not only_deals_out:
        ray_cluster.use_ray()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can't be true of the engine that was asked for."""
    if config.getoption("--engine") == "local":
        return
    for item in items:
        mark = item.get_closest_marker("local_engine")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"only on the local engine: {mark.args[0]}"))


def pytest_unconfigure() -> None:
    """Remove what the tests have left behind, each of which has failed for it."""
    if ray_cluster.in_use():
        ray_cluster.stop()
    for pid in processes():
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(RUNTIME_DIR, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the stacks of the processes that a test has started, when it fails by its time limit."""
    report = yield
    if call.excinfo is not None and call.excinfo.typename == "Failed" and "Timeout" in str(call.excinfo.value):
        for pid, command in sorted(processes().items()):
            if pid > 0:
                report.sections.append((f"process {pid}: {command[:100]}", stacks_of(pid)))
    return report


def _check_nothing_left(before: Held, scope: str) -> None:
    left = Held.now().more_than(before)
    if not left:
        return

    def settled() -> bool:
        nonlocal left
        gc.collect()
        left = Held.now().more_than(before)
        return not left

    with contextlib.suppress(AssertionError):
        wait_until(settled, SETTLE_S)
    if left:
        pytest.fail(f"this {scope} has left behind:\n  " + "\n  ".join(sorted(left)), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_by_module() -> Iterator[None]:
    before = Held.now()
    yield
    _check_nothing_left(before, "module")


@pytest.fixture(autouse=True)
def _nothing_left_by_test(_nothing_left_by_module: None, request: pytest.FixtureRequest) -> Iterator[None]:
    before = Held.now()
    yield
    # Within an instance that the module shares, what a test has created is the module's to end.
    if not before.processes and "shared_instance" not in request.fixturenames:
        _check_nothing_left(before, "test")


@pytest.fixture
def instance() -> Iterator[Instance]:
    """An instance of the test's own, on a free port, with the resources that the contract's examples take."""
    from headgate import serve

    with serve.init(http_port=0, resources={"CPU": 4, "GPU": 1}) as running:
        yield running


@pytest.fixture
def emptied_instance(shared_instance: Instance) -> Iterator[Instance]:
    """The module's instance, with no endpoint and no backend; a test may leave some. It costs a tenth of an instance of the test's own."""
    yield shared_instance
    for name in shared_instance.list_endpoints():
        shared_instance.delete_endpoint(name)
    for tag in shared_instance.list_backends():
        shared_instance.delete_backend(tag)


@pytest.fixture(scope="module")
def shared_instance(_nothing_left_by_module: None, request: pytest.FixtureRequest) -> Iterator[Instance]:
    """An instance that the tests of a module share: give backends and endpoints names that no other test uses."""
    from headgate import serve

    with serve.init(f"shared-{request.module.__name__}", http_port=0, resources={"CPU": 4, "GPU": 1}) as running:
        yield running
