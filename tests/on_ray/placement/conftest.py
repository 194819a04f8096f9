"""On which cluster are replicas placed?"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from headgate import serve
from headgate.serve import Instance
from tests import ray_cluster
from tests.leaks import Held
from tests.support import leave_out, wait_until


class Nodes:
    """A cluster of nodes on this machine: "head" has 2 CPUs, "a" 1 and a TPU, "b" 1 and a GPU; "a" and "b" are in zones of that name."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)
        self._nodes: dict[str, Any] = {}
        self.add("head", num_cpus=2)
        self.add("a", num_cpus=1, resources={"tpu": 1}, labels={"zone": "a"})
        self.add("b", num_cpus=1, num_gpus=1, labels={"zone": "b"})
        self.address = self._cluster.address

    def add(self, name: str, **options: Any) -> None:
        # Whoever looks for a cluster on this machine is not to find this one.
        with mock.patch("ray._private.utils.write_ray_address"), mock.patch.dict(os.environ, {ray_cluster.CLUSTER_VARIABLE: "1"}):
            self._nodes[name] = self._cluster.add_node(include_dashboard=False, **options)

    def remove(self, name: str) -> None:
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def end_one(self, name: str) -> None:
        """Remove it, and wait until the cluster knows: until then it may still put actors of the next test there, which die with it."""
        import ray

        id = self.id(name)
        self.remove(name)
        wait_until(
            lambda: all(node["NodeID"] != id or not node["Alive"] for node in ray.nodes()), 60.0, "the cluster knows that the node is gone"
        )

    def id(self, name: str) -> str:
        return str(self._nodes[name].node_id)

    def names_of(self, tag: str) -> list[str]:
        """The names of the nodes that the replicas of a backend are on."""
        import ray

        ids = {f"replica:{replica.id}" for replica in serve.status().backends[tag].replicas}
        found = [actor["Address"]["NodeID"] for actor in ray._private.state.actors().values() if actor["Name"] in ids]
        return sorted(name for node in found for name in self._nodes if self.id(name) == node)

    def end(self) -> None:
        with mock.patch("ray._common.utils.reset_ray_address"):
            self._cluster.shutdown()


@pytest.fixture(scope="package")
def nodes() -> Iterator[Nodes]:
    if ray_cluster.in_use():
        pytest.skip("these tests have a cluster of their own: run them without --engine ray")
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    found = Nodes()
    try:
        ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own
        yield found
    finally:
        ray.shutdown()
        found.end()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_by_module(nodes: Nodes) -> Iterator[None]:
    before = Held.now()
    yield

    def nothing_left() -> bool:
        now = Held.now()
        left = now._replace(descriptors=before.descriptors).more_than(before)  # Ray has connections with nodes that come
        assert not left, left
        return True

    wait_until(nothing_left, what="nothing is left behind")


@pytest.fixture(scope="module")
def shared_instance(_nothing_left_by_module: None, nodes: Nodes) -> Iterator[Instance]:
    with serve.init(engine="ray", http_port=0) as instance:
        yield instance
