"""Is anything lost that was admitted when SIGTERM ends an instance, whomever it was sent to?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

import headgate
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import NO_ANSWER, REFUSED, Load
from tests.chaos.moments import process
from tests.chaos.workers import begun
from tests.leaks import processes
from tests.support import GONE_WITHIN_S, wait_until

GRACE_S = 20.0
"""`graceful_shutdown_timeout`, where a backend doesn't say."""
ON_THE_WAY_S = 0.2
"""A request that was sent so shortly before SIGTERM may still be on its way to the ingress, and be refused there."""

SERVES = """
import os, signal, sys, threading
from headgate import serve
from tests.chaos.workers import Worker
def work(instance):
    instance.create_backend("b", Worker, {journal!r}, {work_s}, config={{"num_replicas": 3}})
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    print(instance.http_url, *(process.pid for process in instance.status().processes if process.role == "supervisor"), flush=True)
{then}
"""
IN_A_BLOCK = """
with serve.init("theirs", http_port=0) as instance:
    work(instance)
    signal.pause()
"""
WITHOUT_A_BLOCK = """
work(serve.init("theirs", http_port=0))
signal.pause()
"""
IN_AN_EVENT_LOOP = """
import asyncio
async def main():
    with serve.init("theirs", http_port=0) as instance:
        await asyncio.to_thread(work, instance)
        await asyncio.Event().wait()
asyncio.run(main())
"""
EXITED = 128 + signal.SIGTERM


@contextmanager
def running(program: str, *, ignores: str = "") -> Iterator[subprocess.Popen[str]]:
    """A Python program, which has ended when the block has."""
    search = os.pathsep.join([str(Path(headgate.__file__).parents[1]), str(Path(__file__).parents[2])])
    command = [sys.executable, "-u", "-c", program]
    if ignores:  # as a shell does with what it starts in the background
        command = ["sh", "-c", f'trap "" {ignores}; exec "$@"', "sh", *command]
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": search}
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()
        wait_until(lambda: not processes(), GONE_WITHIN_S)


def line(program: subprocess.Popen[str]) -> str:
    """What it says next."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


@pytest.mark.parametrize("who", ["driver in a block", "driver without a block", "driver in an event loop", "supervisor", "everybody"])
def test_no_admitted_request_is_lost_when_sigterm_comes(who: str, tmp_path: Path, figure: Figures):
    journal = str(tmp_path / "journal")
    bodies = {"driver without a block": WITHOUT_A_BLOCK, "driver in an event loop": IN_AN_EVENT_LOOP}
    if who == "supervisor":
        then = 'work(serve.init("theirs", http_port=0, detached=True))'
    else:
        then = bodies.get(who, IN_A_BLOCK)
    with running(SERVES.format(journal=journal, work_s=0.05, then=then)) as driver:
        url, supervisor = line(driver).split()
        if who == "supervisor":
            assert driver.wait(10) == 0
        with Load(f"{url}/e", 150.0) as load:
            wait_until(lambda: len(load.outcomes) >= 60)  # two and a half times as many have been sent
            told = {"supervisor": [int(supervisor)], "everybody": list(processes())}.get(who, [driver.pid])
            signalled_at = time.monotonic()
            for pid in told:
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not processes(), GRACE_S)
            ended_s = time.monotonic() - signalled_at
            status = driver.wait(GONE_WITHIN_S)
    answered = {outcome.name for outcome in load.outcomes if outcome.status == 200}
    assert set(begun(journal)) <= answered, "a request that had begun was not answered"
    for outcome in load.outcomes:
        if outcome.sent_at < signalled_at - ON_THE_WAY_S:
            assert outcome.status == 200, outcome
        elif outcome.status in (NO_ANSWER, REFUSED):
            assert outcome.sent_at > signalled_at, outcome
        elif outcome.status != 200:
            assert (outcome.status, outcome.retry_after != "") == (503, True), outcome
    assert status == (0 if who == "supervisor" else EXITED)
    figure("answered", len(answered))
    figure("of these, after SIGTERM", sum(o.status == 200 and o.ended_at > signalled_at for o in load.outcomes), at_least=60)
    figure("refused", load.by_status().get(503, 0))
    figure("no longer accepted", load.by_status().get(NO_ANSWER, 0) + load.by_status().get(REFUSED, 0))
    figure("ended after", ended_s, at_most_s=5.0)


@contextmanager
def one_request(driver: subprocess.Popen[str], journal: str) -> Iterator[list[int]]:
    """A request that has begun; in the list is its answer's status, 0 for none, once the block has ended."""
    url, _ = line(driver).split()
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(requests.post(f"{url}/e", b"one", timeout=20).status_code)
        except requests.ConnectionError:
            statuses.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: begun(journal))
    yield statuses
    thread.join()


def test_a_second_sigterm_ends_the_driver_at_once(tmp_path: Path):
    journal = str(tmp_path / "journal")
    with running(SERVES.format(journal=journal, work_s=60, then=IN_A_BLOCK)) as driver, one_request(driver, journal) as statuses:
        driver.send_signal(signal.SIGTERM)
        assert driver.stderr is not None
        assert "requests under way: 1" in driver.stderr.readline()
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(GONE_WITHIN_S) == -signal.SIGTERM
        wait_until(lambda: not processes(), GONE_WITHIN_S)
    assert statuses == [0]


@pytest.mark.parametrize("block", [True, False], ids=["a block", "the interpreter"])
def test_a_shutdown_that_goes_on_already_is_not_cut_short_by_sigterm(block: bool, tmp_path: Path):
    journal = str(tmp_path / "journal")
    then = (IN_A_BLOCK if block else WITHOUT_A_BLOCK).replace("signal.pause()", "input()")
    with running(SERVES.format(journal=journal, work_s=3, then=then)) as driver, one_request(driver, journal) as statuses:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert driver.stderr is not None
        assert "requests under way: 1" in driver.stderr.readline()
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(10) == (EXITED if block else 0)
        assert "Exception" not in driver.stderr.read()
    assert statuses == [200]


CALLS = """
serve.init("theirs", http_port=0)
serve.create_backend("b", lambda value: value)
serve.create_endpoint("e", backend="b")
handle = serve.get_handle("e")
print("ready", flush=True)
while True:
    handle.remote(1).result()
"""


@pytest.mark.parametrize("ignores", ["", "INT"], ids=["Ctrl-C is heard", "Ctrl-C is ignored"])
def test_sigterm_in_the_middle_of_calls_ends_the_driver_in_order(ignores: str):
    for _ in range(4):
        with running(SERVES.format(journal="", work_s=0, then=CALLS), ignores=ignores) as driver:
            assert line(driver) == "ready"
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(10) == EXITED
            assert not processes()


CONSTRUCTS = """
import time
class Waits:
    def __init__(self):
        print("constructing", flush=True)
        time.sleep(60)
    def __call__(self):
        pass
serve.init("theirs", http_port=0)
serve.create_backend("b", Waits)
"""


def test_sigterm_interrupts_a_verb_and_ends_the_driver():
    with running(SERVES.format(journal="", work_s=0, then=CONSTRUCTS)) as driver:
        assert line(driver).endswith("] constructing")
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(10) == EXITED
        assert not processes()


LEAVES_SIGTERM_ALONE = """
def own(number, frame):
    print("my own", flush=True)
{first}
print(signal.getsignal(signal.SIGTERM) is {expected}, flush=True)
"""
STARTS_AND_ENDS = """
with serve.init("theirs", http_port=0):
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
"""
IN_A_THREAD = """
thread = threading.Thread(target=serve.init, args=["theirs"], kwargs={"http_port": 0})
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("signal.signal(signal.SIGTERM, own); serve.init('theirs', http_port=0)", "own"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); serve.init('theirs', http_port=0)", "signal.SIG_IGN"),
        (IN_A_THREAD, "signal.SIG_DFL"),
        (STARTS_AND_ENDS, "signal.SIG_DFL"),
        ("serve.init('theirs', http_port=0); serve.shutdown()", "signal.SIG_DFL"),
        ("serve.init('theirs', http_port=0, detached=True); serve.init('theirs')", "signal.SIG_DFL"),
        ("serve.init('theirs', http_port=0); signal.signal(signal.SIGTERM, own); serve.shutdown()", "own"),
        ("serve.init('theirs', http_port=0); serve.init('other', http_port=0).shutdown(); serve.shutdown()", "signal.SIG_DFL"),
    ],
    ids=["a handler", "ignored", "in a thread", "after a block", "after a shutdown", "detached", "a later handler", "several"],
)
def test_what_a_program_says_about_sigterm_is_left_alone(first: str, expected: str):
    then = LEAVES_SIGTERM_ALONE.format(first=first, expected=expected) + "serve.init('theirs').shutdown()"
    with running(SERVES.format(journal="", work_s=0, then=then)) as driver:
        assert line(driver) == "True"
        assert driver.wait(10) == 0


CHILDREN = """
import multiprocessing, time
def wait():
    print("child", flush=True)
    time.sleep(60)
with serve.init("theirs", http_port=0):
    child = multiprocessing.get_context("fork").Process(target=wait)
    child.start()
    input()
    child.terminate()
    child.join()
    print(child.exitcode)
"""


def test_a_child_that_the_driver_forks_ends_by_sigterm():
    with running(SERVES.format(journal="", work_s=0, then=CHILDREN)) as driver:
        assert line(driver) == "child"
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert line(driver) == str(-signal.SIGTERM)
        assert driver.wait(10) == 0


class Signals:
    """User code that has to do with signals, in a replica."""

    def __init__(self, own: bool) -> None:
        self.heard = 0
        if own:
            signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.heard += 1

    def pid(self) -> int:
        return os.getpid()

    def killed(self) -> int:
        """How often its handler was called for a SIGTERM of its own."""
        os.kill(os.getpid(), signal.SIGTERM)
        return self.heard

    def children(self) -> list[int]:
        """How forks and a program end that get SIGTERM in their first moment."""
        ended = []
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            os.kill(pid, signal.SIGTERM)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        program = subprocess.Popen(["sleep", "60"])
        program.terminate()
        return [*ended, program.wait()]


@pytest.mark.parametrize("env", [{}, {"PYTHONHASHSEED": "7"}], ids=["forked", "in a fresh interpreter"])
def test_sigterm_does_nothing_in_a_replica_unless_user_code_says_what(env: dict[str, str], instance: Instance):
    for own in (False, True):
        name = f"own {own}"
        instance.create_backend(name, Signals, own, ray_actor_options={"runtime_env": {"env_vars": env}})
        instance.create_endpoint(name, backend=name)
        handle = instance.get_handle(name)
        pid = handle.options(method_name="pid").remote().result(5)
        assert handle.options(method_name="killed").remote().result(5) == int(own)
        assert handle.options(method_name="pid").remote().result(5) == pid
        if not own:
            assert handle.options(method_name="children").remote().result(5) == [-signal.SIGTERM] * 31


@pytest.mark.parametrize("role", ["controller", "ingress"])
def test_sigterm_does_nothing_in(role: str, instance: Instance):
    (before,) = process(instance, role)
    os.kill(before, signal.SIGTERM)
    for _ in range(3):
        assert requests.get(f"{instance.http_url}/-/healthz", timeout=5).status_code == 200
    assert process(instance, role) == [before]
