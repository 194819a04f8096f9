"""Does an instance on four nodes keep what it promises, while nodes come, die, or are cut off?"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests

from headgate.core.reports import Description
from tests.chaos.workers import begun
from tests.figures import Figures
from tests.on_ray.cluster import programs
from tests.on_ray.cluster.load import Loads
from tests.on_ray.cluster.nodes import GPUS, Driver, Node, Nodes
from tests.support import wait_until

pytestmark = pytest.mark.timeout(150)

WORK_S = 0.05
RATE = 8.0
"""Requests a second at each ingress for each backend: three or four of them leave replicas room, and mostly something runs."""
BACKENDS = ("once", "again")


@pytest.fixture(scope="module")
def driver(nodes: Nodes) -> Iterator[Driver]:
    """Of the instance that these tests share: an ingress on every node."""
    driver = nodes.driver()
    driver.call(programs.start, "nodes", "every_node")
    yield driver
    driver.call(programs.shutdown)
    assert driver.call(programs.left_of, "nodes") == []
    driver.leave()


@pytest.fixture
def journals(nodes: Nodes, driver: Driver, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Two backends with a replica on each node, of which one is idempotent; what they began is written there."""
    wait_all_there(nodes, driver)
    found = {}
    for tag in BACKENDS:
        found[tag] = f"{nodes.folder}/{request.node.name}-{tag}"
        driver.call(programs.serve_worker, tag, found[tag], WORK_S, {"num_replicas": 4, "idempotent": tag == "again"})
    yield found
    for tag in BACKENDS:
        driver.call(programs.remove, tag)


def hosts_of(urls: tuple[str, ...]) -> list[str]:
    return [urlsplit(url).hostname or "" for url in urls]


def placed(nodes: Nodes, status: Description, tag: str) -> list[Node]:
    """Where the ready replicas of a backend are."""
    where = {pid: node for node in nodes.all for pid in node.pids}
    return [where[replica.pid] for replica in status.backends[tag].replicas if replica.state == "ready" and replica.pid in where]


def wait_all_there(nodes: Nodes, driver: Driver) -> Description:
    """Until there is an ingress on every node."""

    def all_there() -> bool:
        return sorted(hosts_of(driver.call(programs.status).http_urls)) == sorted(node.host for node in nodes.all)

    wait_until(all_there, 40.0, "an ingress on every node")
    return driver.call(programs.status)


def wait_replaced(nodes: Nodes, driver: Driver, without: Node) -> None:
    """Until both backends have all their replicas, none of them on that node."""

    def replaced() -> bool:
        status = driver.call(programs.status)
        where = {pid: node for node in nodes.all for pid in node.pids}
        of = [where.get(replica.pid or 0) for tag in BACKENDS for replica in status.backends[tag].replicas if replica.state == "ready"]
        return len(of) == 8 and without not in of and None not in of

    wait_until(replaced, 40.0, f"replicas elsewhere than on node {without.number}")


def ran_more_than_once(journal: str) -> list[str]:
    return [name for name, times in begun(journal).items() if times > 1]


def test_replicas_spread_over_the_nodes_and_no_device_is_given_twice(nodes: Nodes, driver: Driver) -> None:
    status = wait_all_there(nodes, driver)
    assert status.resources["GPU"] == GPUS * 4
    for url in status.http_urls:
        assert requests.get(f"{url}/-/healthz", timeout=10).status_code == 200
    driver.call(programs.serve_devices, "whole", 4, 1.0)
    driver.call(programs.serve_devices, "halves", 8, 0.5)
    status = driver.call(programs.status)
    given: Counter[tuple[int, str]] = Counter()
    for tag, share, each in (("whole", 1.0, 1), ("halves", 0.5, 2)):
        assert Counter(node.number for node in placed(nodes, status, tag)) == dict.fromkeys(range(4), each)
        for replica in status.backends[tag].replicas:
            (device,) = replica.gpus
            assert replica.pid is not None
            given[nodes.node_of(replica.pid).number, device] += share  # type: ignore[assignment]  # sums of shares
    assert given == {(number, str(device)): 1.0 for number in range(4) for device in range(GPUS)}
    assert status.free["GPU"] == 0
    seen = driver.call(programs.devices_seen, ["whole", "halves"])
    assert seen == {str(device) for device in range(GPUS)}
    for tag in ("whole", "halves"):
        driver.call(programs.remove, tag)


def test_an_update_goes_over_the_nodes_and_no_request_fails(
    nodes: Nodes, driver: Driver, journals: dict[str, str], figure: Figures
) -> None:
    urls = wait_all_there(nodes, driver).http_urls
    with Loads(urls, BACKENDS, RATE) as loads:
        loads.wait_for_more(5)
        began = time.monotonic()
        driver.call(programs.update_worker, "once", journals["once"], WORK_S, "second")
        updated = time.monotonic()
        loads.wait_for_more(5)
    loads.check_definite()
    assert loads.bad("once") == loads.bad("again") == []
    assert all(body.endswith(" second") for body in loads.bodies("once", updated))
    assert ran_more_than_once(journals["once"]) == []
    assert {node.number for node in placed(nodes, driver.call(programs.status), "once")} == {0, 1, 2, 3}
    figure("an update of 4 replicas took", updated - began, at_most_s=30.0)
    figure("requests", loads.count())


def test_the_controller_is_killed_under_load_and_no_request_fails(
    nodes: Nodes, driver: Driver, journals: dict[str, str], figure: Figures
) -> None:
    urls = wait_all_there(nodes, driver).http_urls
    before = driver.call(programs.controller_pid)
    assert nodes.node_of(before).is_head  # so that no other node's loss takes it along
    with Loads(urls, BACKENDS, RATE) as loads:
        loads.wait_for_more(5)
        killed = time.monotonic()
        os.kill(before, signal.SIGKILL)
        after = driver.call(programs.controller_pid)  # a verb waits for the next one
        back_s = time.monotonic() - killed
        driver.call(programs.scale, "once", 5)
        loads.wait_for_more(5)
    assert after != before
    loads.check_definite()
    assert loads.bad("once") == loads.bad("again") == []
    status = driver.call(programs.status)
    assert (len(placed(nodes, status, "once")), len(placed(nodes, status, "again"))) == (5, 4)
    assert status.http_urls == urls
    figure("the controller was back after", back_s, at_most_s=10.0)
    figure("requests", loads.count())


def test_a_node_is_killed_under_load_and_comes_back(nodes: Nodes, driver: Driver, journals: dict[str, str], figure: Figures) -> None:
    urls = wait_all_there(nodes, driver).http_urls
    victim = nodes.workers[0]
    others = [url for url in urls if urlsplit(url).hostname != victim.host]
    with Loads(others, BACKENDS, RATE) as loads:
        loads.wait_for_more(5)
        killed = time.monotonic()
        nodes.kill(victim)
        wait_replaced(nodes, driver, victim)
        replaced_s = time.monotonic() - killed
        loads.wait_for_more(5)
    loads.check_definite()
    assert loads.bad("again") == []
    assert ran_more_than_once(journals["once"]) == []
    assert all(outcome.status == 502 for outcome in loads.bad("once")), loads.bad("once")
    figure("not idempotent: requests that failed", len(loads.bad("once")), at_most=1)  # one ran there at a time
    figure("replicas were elsewhere after", replaced_s, at_most_s=20.0)
    figure("requests", loads.count())
    assert sorted(hosts_of(driver.call(programs.status).http_urls)) == sorted(hosts_of(tuple(others)))
    nodes.start(victim)
    added = next(url for url in wait_all_there(nodes, driver).http_urls if urlsplit(url).hostname == victim.host)
    assert requests.post(f"{added}/once", data="from the new node", timeout=10).text == "from the new node"


def test_a_node_is_cut_off_under_load_and_heals(nodes: Nodes, driver: Driver, journals: dict[str, str], figure: Figures) -> None:
    urls = wait_all_there(nodes, driver).http_urls
    victim = nodes.workers[1]
    others = [url for url in urls if urlsplit(url).hostname != victim.host]
    with Loads(others, BACKENDS, RATE) as loads:
        loads.wait_for_more(5)
        there = {
            replica.pid for backend in driver.call(programs.status).backends.values() for replica in backend.replicas if replica.pid
        } & set(victim.pids)
        assert len(there) == 2
        cut = time.monotonic()
        nodes.unplug(victim)
        try:
            wait_replaced(nodes, driver, victim)
            replaced_s = time.monotonic() - cut
            found_by_ray = victim.host not in driver.call(programs.nodes_alive)
            assert there <= set(victim.pids)
            loads.wait_for_more(5)
        finally:
            healed = time.monotonic()
            nodes.plug_in(victim)
        wait_until(lambda: not there & set(victim.pids), 10.0, "what was cut off has ended")
        ended_s = time.monotonic() - healed
        wait_all_there(nodes, driver)
        all_there_s = time.monotonic() - healed
        loads.wait_for_more(5)
    loads.check_definite()
    assert loads.bad("again") == []
    assert ran_more_than_once(journals["once"]) == []
    assert all(outcome.status == 502 for outcome in loads.bad("once")), loads.bad("once")
    figure("not idempotent: requests that failed", len(loads.bad("once")), at_most=6)  # at most two of each ingress were there
    figure("replicas were elsewhere after", replaced_s, at_most_s=20.0)
    figure("and Ray itself had found the node by then", found_by_ray)
    figure("after healing, what was cut off had ended within", ended_s, at_most_s=5.0)
    figure("and its ingress was there again after", all_there_s, at_most_s=20.0)
    figure("requests", loads.count())
    status = driver.call(programs.status)
    assert {tag: len(placed(nodes, status, tag)) for tag in BACKENDS} == {"once": 4, "again": 4}
