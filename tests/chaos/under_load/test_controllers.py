"""Do traffic and verbs go on while controllers are killed?"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from headgate import serve
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import Load
from tests.chaos.moments import every, process, ready
from tests.chaos.workers import Worker, begun


class Verbs(threading.Thread):
    """Changes an instance again and again. A verb applied twice would be refused the second time, and after a lost one the next."""

    def __init__(self, instance: Instance, journal: str) -> None:
        super().__init__(name="verbs")
        self.done = 0
        self.failure: BaseException | None = None
        self.slowest_s = 0.0
        self._instance = instance
        self._journal = journal
        self._stopping = threading.Event()

    def run(self) -> None:
        number = 0
        try:
            while not self._stopping.is_set():
                number += 1
                self._round(f"b{number}", f"e{number}")
        except BaseException as error:
            self.failure = error
            raise

    def _round(self, tag: str, name: str) -> None:
        instance, url = self._instance, f"{self._instance.http_url}/{name}"
        self._do(lambda: instance.create_backend(tag, Worker, self._journal, 0.0))
        self._do(lambda: instance.create_endpoint(name, f"/{name}", ["POST"]))
        self._do(lambda: instance.set_traffic(name, {tag: 1.0}))
        assert requests.post(url, "old", timeout=10).text == "old"
        self._do(lambda: instance.update_backend_config(tag, {"num_replicas": 2}))
        self._do(lambda: instance.update_backend(tag, Worker, self._journal, 0.0, "new"))
        assert requests.post(url, "new", timeout=10).text == "new new"
        assert (instance.list_backends()[tag].state, len(ready(instance, tag))) == ("ready", 2)
        self._do(lambda: instance.delete_endpoint(name))
        self._do(lambda: instance.delete_backend(tag))
        assert tag not in instance.list_backends()

    def _do(self, verb: Callable[[], object]) -> None:
        began = time.monotonic()
        verb()
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.done += 1

    def stop(self) -> None:
        """Finish the round and end."""
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


@serve.accept_batch
def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


class Calls(threading.Thread):
    """Calls a batch backend by a handle, 20 calls at once, again and again."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(name="calls")
        self.done = 0
        self.failure: BaseException | None = None
        self._handle = instance.get_handle("double")
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.wait(0.01):
                numbers = range(self.done, self.done + 20)
                assert serve.get([self._handle.remote(number) for number in numbers], 10) == [2 * number for number in numbers]
                self.done += 20
        except BaseException as error:
            self.failure = error
            raise

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


@pytest.mark.timeout(700)
def test_a_controller_is_killed_every_2_seconds_under_load_with_verbs_going_on(
    instance: Instance, tmp_path: Path, figure: Figures, long: bool
):
    seconds = 600.0 if long else 14.0
    journal = str(tmp_path / "journal")
    instance.create_backend("steady", Worker, journal, config={"num_replicas": 3})
    instance.create_endpoint("steady", "/steady", ["POST"], backend="steady")
    instance.create_backend("double", double, config={"max_batch_size": 8, "batch_wait_timeout": 0.005})
    instance.create_endpoint("double", backend="double")
    calls = Calls(instance)
    replicas = {replica.id for replica in instance.list_backends()["steady"].replicas}
    ingresses = process(instance, "ingress")
    verbs = Verbs(instance, str(tmp_path / "others"))
    kills = 0
    with Load(f"{instance.http_url}/steady", 150.0) as load:
        verbs.start()
        calls.start()
        try:
            for _ in every(2.0, seconds):
                (controller,) = process(instance, "controller")
                os.kill(controller, signal.SIGKILL)
                kills += 1
        finally:
            verbs.stop()
            calls.stop()
    load.check_definite()
    assert {replica.id for replica in instance.list_backends()["steady"].replicas} == replicas, "replicas were started again"
    assert process(instance, "ingress") == ingresses
    assert set(begun(journal).values()) == {1}
    assert list(instance.list_backends()) == ["steady", "double"]
    figure("requests that failed", len(load.bad()), at_most=0)
    figure("requests", len(load.outcomes))
    figure("calls by handle, in batches, none of which failed", calls.done, at_least=1)
    figure("verbs, each applied once", verbs.done, at_least=kills)
    figure("the slowest verb took", verbs.slowest_s)
    figure("kills", kills)
