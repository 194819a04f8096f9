"""A program: an instance on a cluster of two nodes with Ray's tokens and TLS on. Prints what it finds, for a test to read."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from headgate import serve
from headgate.engines.ray import launch, records, security
from headgate.engines.ray.records import InstanceRecord
from headgate.errors import WireError
from headgate.router import remote

PATIENCE_S = 30.0


class Where:
    """Says on which node it is; so does the one that it asks in turn."""

    async def __call__(self, *, asks: bool = False) -> list[str]:
        node = ray.get_runtime_context().get_node_id()
        return [node, *(await serve.get_handle("e").remote() if asks else [])]


async def refusal(address: str, secret: bytes, *, tls: bool) -> str:
    """How what listens there sends away who comes like that; empty where it doesn't."""
    try:
        (await remote.connect(address, secret, tls=tls)).close()
    except (WireError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def nodes_that_answer() -> tuple[list[str], list[tuple[str, str]]]:
    """All that answer the driver, and who has reached whom."""
    handle, deadline = serve.get_handle("e"), time.monotonic() + PATIENCE_S
    seen: set[str] = set()
    across: set[tuple[str, str]] = set()
    while (len(seen) < 2 or len(across) < 4) and time.monotonic() < deadline:
        for nodes in serve.get([handle.remote(asks=True) for _ in range(20)], timeout_s=PATIENCE_S):
            seen.add(nodes[0])
            across.add((nodes[0], nodes[1]))
    return sorted(seen), sorted(across)


def files_with(secret: bytes, folder: Path) -> list[str]:
    """The files of the cluster's session that have the secret in them, in any of the ways in which it may be written."""
    written = [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()]
    return [str(path) for path in folder.rglob("*") if path.is_file() and any(each in path.read_bytes() for each in written)]


def main() -> dict[str, Any]:
    """What the test looks at."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    try:
        with serve.init("secure", engine="ray", http_port=0):
            serve.create_backend("b", Where, config={"num_replicas": 2}, ray_actor_options={"num_cpus": 1})
            serve.create_endpoint("e", backend="b")
            nodes, across = nodes_that_answer()
            record = records.read_as(records.instance_key("secure"), InstanceRecord)
            assert record is not None
            ids = [name.partition(":")[2] for name in launch.actors("secure") if name.startswith("replica:")]
            known = [records.read_as(records.actor_key("secure", id), records.ActorRecord) for id in ids]
            gates = [remote.as_seen_from("nowhere", address) for address in (record.controller, *(each.address for each in known if each))]
            return {
                "nodes": nodes,
                "across": across,
                "gates": len(gates),
                "plain": [asyncio.run(refusal(gate, record.secret, tls=False)) for gate in gates],
                "secure": [asyncio.run(refusal(gate, record.secret, tls=True)) for gate in gates],
                "uses TLS": security.tls() is not None,
                "repr": repr(record),
                "secret": [record.secret.hex(), repr(record.secret)],
                "logged": files_with(record.secret, Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"),
            }
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(main())}\n")
