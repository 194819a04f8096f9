"""Does what is said of an instance's processes hold on a cluster, whose nodes have process ids of their own?"""

from __future__ import annotations

import os

from headgate.controller.describe import description
from headgate.core.desired import State
from headgate.core.reports import Description
from headgate.engines.base import INGRESS, Running
from tests.controller.rig import settings_in


def described(node: str, *ingresses: Running) -> Description:
    return description(
        settings_in("x"), (), State(), (), ingresses, updating=(), faults={}, waiting={}, resources=({}, {}), node=node, now=0.0
    )


def test_the_memory_of_a_process_of_another_node_is_not_that_of_the_one_here_with_its_number() -> None:
    here, there = (Running(id=node, role=INGRESS, pid=os.getpid(), state="ready", node=node) for node in ("here", "there"))
    found = {process.id: process for process in described("here", here, there).processes}
    assert (found["here"].node, found["there"].node) == ("here", "there")
    assert found["here"].rss_bytes > 0
    assert found["there"].rss_bytes == 0


def test_only_one_machine_has_a_supervisor() -> None:
    assert [process.role for process in described("").processes] == ["supervisor", "controller"]
    assert [process.role for process in described("here").processes] == ["controller"]
