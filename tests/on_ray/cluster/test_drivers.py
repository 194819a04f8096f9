"""When does an instance on a cluster end, on which nodes has it ingresses, and what does it leave behind?"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
import requests

from headgate.controller.lease import AWAY_S
from tests.figures import Figures
from tests.on_ray.cluster import programs
from tests.on_ray.cluster.nodes import Nodes
from tests.support import wait_until

pytestmark = pytest.mark.timeout(150)


def hosts_that_answer(urls: tuple[str, ...]) -> list[str]:
    """The addresses of the nodes whose ingresses answer."""
    for url in urls:
        assert requests.get(f"{url}/where", timeout=10).status_code == 200
    return [urlsplit(url).hostname or "" for url in urls]


def test_an_instance_ends_when_its_driver_was_killed_and_a_detached_one_lives_on(nodes: Nodes, figure: Figures) -> None:
    first, second = nodes.driver(), nodes.driver(nodes.workers[0])
    first.call(programs.start, "kept", 2, detached=True)
    first.call(programs.serve_where)
    first.call(programs.start, "owned", "head_only")
    first.call(programs.serve_where)

    kept, owned = (second.call(programs.connect, name) for name in ("kept", "owned"))  # side by side on one cluster
    assert hosts_that_answer(owned) == [nodes.head.host]
    assert len(set(hosts_that_answer(kept))) == 2
    assert nodes.head.host in hosts_that_answer(kept)
    pids = {name: second.call(programs.pids_of, name) for name in ("kept", "owned")}

    killed = time.monotonic()
    first.kill()
    wait_until(lambda: not second.call(programs.left_of, "owned"), AWAY_S + 15.0, "the instance has ended")
    took_s = time.monotonic() - killed
    figure("an instance whose driver was killed had ended after", took_s, at_most_s=AWAY_S + 5.0)
    assert took_s >= AWAY_S, "a driver that comes back in time should find it"
    wait_until(lambda: not running(nodes, pids["owned"]), 5.0, "its processes have ended")

    assert running(nodes, pids["kept"]) == pids["kept"]
    assert len(hosts_that_answer(kept)) == 2
    third = nodes.driver(nodes.workers[1])
    assert third.call(programs.connect, "kept") == kept
    third.call(programs.shutdown)
    assert third.call(programs.left_of, "kept") == []
    wait_until(lambda: not running(nodes, pids["kept"]), 5.0, "its processes have ended")
    second.leave()
    third.leave()


def running(nodes: Nodes, pids: set[int]) -> set[int]:
    """Those of them that run on any node."""
    return pids & {pid for node in nodes.all for pid in node.pids}
