"""To which nodes may a replica go, and what does it take there?"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headgate.config import ReplicaOptions
from headgate.scheduling import InPlacementGroup, LabelMatch, NodeAffinity, NodeLabels


def may_go_to(options: ReplicaOptions, node: str, labels: Mapping[str, str]) -> bool:
    """Whether a node of that id and with these labels is one that the replica may be placed on, if there is room."""
    strategy = options.scheduling_strategy
    if isinstance(strategy, NodeAffinity) and not strategy.soft and strategy.node_id != node:
        return False
    if isinstance(strategy, NodeLabels) and not all(_matches(match, labels.get(label)) for label, match in strategy.hard.items()):
        return False
    selectors = [options.label_selector, *(fallback["label_selector"] for fallback in options.fallback_strategy)]
    return any(all(_is_selected(value, labels.get(label)) for label, value in selector.items()) for selector in selectors)


def is_anywhere(options: ReplicaOptions) -> bool:
    """Whether it says nothing of where it wants to be."""
    return options.scheduling_strategy is None and not options.label_selector and not options.fallback_strategy


def is_bound_to_a_node(options: ReplicaOptions) -> bool:
    """Whether no node that may come can be the one."""
    strategy = options.scheduling_strategy
    return isinstance(strategy, NodeAffinity) and not strategy.soft


def in_group(options: ReplicaOptions) -> bool:
    """Whether it is placed into what a placement group has reserved, and taken from the nodes already."""
    return isinstance(options.scheduling_strategy, InPlacementGroup)


def sets_up(options: ReplicaOptions) -> bool:
    """Whether its process can't begin before something has been fetched or installed."""
    return any(name != "env_vars" for name in options.runtime_env)


def taken(options: ReplicaOptions) -> ReplicaOptions:
    """What it takes of what a node has free: amounts, and nothing else."""
    if in_group(options):
        return ReplicaOptions()
    resources = options.resources
    if options.accelerator_type is not None:  # Ray asks so for a node that has one
        resources = {**resources, f"accelerator_type:{options.accelerator_type}": 0.001}
    return ReplicaOptions(num_cpus=options.num_cpus, num_gpus=options.num_gpus, memory=options.memory, resources=resources)


def amounts(options: ReplicaOptions) -> dict[str, float]:
    """What it asks for, by name."""
    asked = {"CPU": options.num_cpus, "GPU": options.num_gpus, "memory": options.memory, **options.resources}
    return {name: amount for name, amount in asked.items() if amount}


def in_words(options: ReplicaOptions) -> str:
    """What it asks for, and where it wants to be, for people."""
    asked = " and ".join(f"{amount:g} {name}" for name, amount in amounts(options).items()) or "a place"
    where = []
    strategy = options.scheduling_strategy
    if options.accelerator_type is not None:
        where.append(f"with accelerator_type {options.accelerator_type!r}")
    if options.label_selector:
        where.append(f"with label_selector {options.label_selector}")
    if options.fallback_strategy:
        where.append(f"or with fallback_strategy {list(options.fallback_strategy)}")
    if isinstance(strategy, NodeAffinity) and not strategy.soft:
        where.append(f"on node {strategy.node_id}")
    elif isinstance(strategy, NodeLabels) and strategy.hard:
        where.append(f"on a node with labels {msgspec.to_builtins(strategy.hard)}")
    elif isinstance(strategy, InPlacementGroup):
        where.append(f"in placement group {strategy.id}")
    return " ".join([asked, *where])


def _matches(match: LabelMatch, found: str | None) -> bool:
    if match.operator in ("Exists", "DoesNotExist"):
        return (found is not None) == (match.operator == "Exists")
    return (found in match.values) == (match.operator == "In")


def _is_selected(wanted: str, found: str | None) -> bool:
    """`wanted` is `x`, `!x`, `in(x,y)` or `!in(x,y)`; a label that a node doesn't have is none of them."""
    plain = wanted.removeprefix("!")
    values = [value.strip() for value in plain[3:-1].split(",")] if plain.startswith("in(") and plain.endswith(")") else [plain]
    return (found in values) != wanted.startswith("!")
