"""Does everything go on when the controller is stuck: alive, but doing nothing?"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from headgate.engines.local.supervisor import STUCK_AFTER_S
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import Load
from tests.chaos.moments import process
from tests.chaos.workers import Worker
from tests.support import TIME_FACTOR, wait_until


class Waits:
    """Notes each construction, and waits in it for a file."""

    def __init__(self, folder: Path) -> None:
        with open(folder / "constructed", "a") as file:
            file.write("x")
        wait_until((folder / "go").exists, 30)

    def __call__(self, request: Any = None) -> str:
        return "constructed"


def test_a_verb_that_waits_for_a_frozen_controller_is_applied_once_by_the_next(instance: Instance, tmp_path: Path, figure: Figures):
    instance.create_backend("steady", Worker, str(tmp_path / "journal"))
    instance.create_endpoint("steady", "/steady", ["POST"], backend="steady")
    (frozen,) = process(instance, "controller")
    creating = threading.Thread(target=instance.create_backend, args=("b", Waits, tmp_path))
    with Load(f"{instance.http_url}/steady", 50.0) as load:
        creating.start()
        wait_until((tmp_path / "constructed").exists)
        os.kill(frozen, signal.SIGSTOP)
        frozen_at = time.monotonic()
        changing = threading.Thread(target=instance.set_traffic, args=("steady", {"steady": 1.0}))  # is sent to one that doesn't hear it
        changing.start()
        (tmp_path / "go").touch()
        for verb in (creating, changing):
            verb.join((STUCK_AFTER_S + 5.0) * TIME_FACTOR)
        found_s = time.monotonic() - frozen_at
        assert not creating.is_alive()
        assert not changing.is_alive()
    load.check_definite()
    assert [controller != frozen for controller in process(instance, "controller")] == [True]
    assert (tmp_path / "constructed").read_text() == "x"
    instance.create_endpoint("e", backend="b")
    assert instance.get_handle("e").remote().result(5) == "constructed"
    figure("requests that failed", len(load.bad()), at_most=0)
    figure("verbs went on after", found_s, at_most_s=STUCK_AFTER_S + 2.0)


def test_an_instance_whose_controller_is_frozen_still_ends_by_sigterm(instance: Instance):
    (supervisor,) = process(instance, "supervisor")
    (frozen,) = process(instance, "controller")
    os.kill(frozen, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(instance._connection.way.folder), (STUCK_AFTER_S + 5.0) * TIME_FACTOR)
