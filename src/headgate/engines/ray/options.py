"""What does Ray have to know of a replica to place it, and which of it does Ray take?"""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec
from ray._common.ray_option_utils import validate_actor_options
from ray._private.runtime_env.constants import RAY_RUNTIME_ENV_PLUGINS_ENV_VAR
from ray._private.utils import parse_runtime_env_for_task_or_actor
from ray._raylet import PlacementGroupID
from ray.runtime_env import RuntimeEnv
from ray.util import scheduling_strategies as strategies
from ray.util.placement_group import PlacementGroup

from headgate.config import HANDED_ON, RUNTIME_ENV_KEYS, ReplicaOptions, refuse_unknown
from headgate.engines.ray import placement
from headgate.errors import ConfigError
from headgate.scheduling import InPlacementGroup, LabelMatch, NodeAffinity, NodeLabels

SPREAD: Final = "SPREAD"
LIGHT: Final = {"num_cpus": 0, "memory": 1}
"""What an actor asks for that takes nothing. One that asked for nothing at all would be started by way of a node that Ray draws, be it
one that has just been lost; one that asks for a byte, by way of the node of who starts it."""
_OWN_KEYS: Final = ("_ray_commit", "_ray_release")
"""What Ray notes in a runtime environment for itself. It says so again, where it may be of another version by then."""


def check(options: ReplicaOptions) -> ReplicaOptions:
    """The options as they travel to the cluster's nodes: files of this machine that they name, such as requirements, are read.

    Raises `ConfigError` with what Ray says of them.
    """
    if not os.environ.get(RAY_RUNTIME_ENV_PLUGINS_ENV_VAR):
        refuse_unknown(options.runtime_env, (*RUNTIME_ENV_KEYS, *RuntimeEnv.known_fields), "runtime_env")
    try:
        validate_actor_options(actor_options(options), in_options=True)
        runtime_env = parse_runtime_env_for_task_or_actor(dict(options.runtime_env)) if options.runtime_env else {}
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"ray_actor_options: {error}") from error
    kept = {name: value for name, value in dict(runtime_env).items() if name not in _OWN_KEYS}
    return msgspec.structs.replace(options, runtime_env=msgspec.to_builtins(kept))


def actor_options(options: ReplicaOptions) -> dict[str, Any]:
    """As Ray wants them. Replicas that say nothing of where they want to be are spread over the nodes."""
    asked: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if not placement.in_group(options):  # which may have reserved no memory
        asked = LIGHT | asked
    asked["scheduling_strategy"] = _strategy(options)
    for name in ("memory", "resources", "runtime_env", "label_selector"):
        if getattr(options, name):
            asked[name] = getattr(options, name)
    if options.fallback_strategy:
        asked["fallback_strategy"] = list(options.fallback_strategy)
    default = ReplicaOptions()
    for name in HANDED_ON:
        if getattr(options, name) != getattr(default, name):
            asked[name] = getattr(options, name)
    return asked


def _strategy(options: ReplicaOptions) -> Any:
    given = options.scheduling_strategy
    match given:
        case NodeAffinity():
            return strategies.NodeAffinitySchedulingStrategy(
                given.node_id,
                soft=given.soft,
                _spill_on_unavailable=given.spill_on_unavailable,
                _fail_on_unavailable=given.fail_on_unavailable,
            )
        case NodeLabels():
            return strategies.NodeLabelSchedulingStrategy(
                {label: _operator(match) for label, match in given.hard.items()},
                soft={label: _operator(match) for label, match in given.soft.items()},
            )
        case InPlacementGroup():
            return strategies.PlacementGroupSchedulingStrategy(
                PlacementGroup(PlacementGroupID(bytes.fromhex(given.id))), given.bundle_index, given.capture_child_tasks
            )
        case None:
            return SPREAD
    return given


def _operator(match: LabelMatch) -> Any:
    return {"In": strategies.In, "NotIn": strategies.NotIn, "Exists": strategies.Exists, "DoesNotExist": strategies.DoesNotExist}[
        match.operator
    ](*match.values)
