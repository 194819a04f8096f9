"""May nodes come that the cluster doesn't have yet?

Ray runs its autoscaler on every cluster, if only to watch the nodes that there are. Whether it may start any is not said
outright, so it is read from what it reports.
"""

from __future__ import annotations

import json
from typing import Final

import ray
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2
from ray.experimental import internal_kv

_STATUS_KEY: Final = b"__autoscaling_status"


def is_configured() -> bool:
    """Whether an autoscaler may add nodes. Blocks."""
    if is_autoscaler_v2():
        return _tells_of_groups(ray._private.worker.global_worker.gcs_client.get_cluster_status())
    status = internal_kv._internal_kv_get(_STATUS_KEY)
    return status is not None and _tells_of_types(status)


def _tells_of_types(status: bytes) -> bool:
    """The first version: one that only watches calls each node a type of its own."""
    report = json.loads(status).get("autoscaler_report") or {}
    own = {format_readonly_node_type(id) for id in report.get("node_type_mapping") or {}}
    types = [*(report.get("active_nodes") or {}), *(report.get("idle_nodes") or {}), *(report.get("pending_launches") or {})]
    return any(name not in own for name in types)


def _tells_of_groups(status: bytes) -> bool:
    """The second version: it has reported, and nodes belong to groups, as those do that it or an operator started."""
    reply = autoscaler_pb2.GetClusterStatusReply.FromString(status)
    if not reply.autoscaling_state.autoscaler_state_version:
        return False
    return any(node.ray_node_type_name for node in reply.cluster_resource_state.node_states)
