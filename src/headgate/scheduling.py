"""Where on a cluster is a replica to be placed? Records that say it, and that travel without being opened.

Users give the words and objects that Ray has for it. They are told by their names, so that nothing of Ray is imported here;
`engines/ray` makes Ray's objects of these records again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from headgate.errors import ConfigError, ConfigTypeError

WORDS: Final = ("DEFAULT", "SPREAD")
"""Strategies that are only a word: pack first and then spread, or spread over the nodes."""
_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


class NodeAffinity(msgspec.Struct, frozen=True, kw_only=True, tag="node"):
    """On the node of this id; where that is gone or too small, `soft` ones go elsewhere."""

    node_id: str
    soft: bool
    spill_on_unavailable: bool = False
    fail_on_unavailable: bool = False


class LabelMatch(msgspec.Struct, frozen=True):
    """What a label of a node must be: "In" or "NotIn" some values; or whether there is one: "Exists", "DoesNotExist"."""

    operator: str
    values: tuple[str, ...] = ()


class NodeLabels(msgspec.Struct, frozen=True, kw_only=True, tag="labels"):
    """On a node whose labels match all that is `hard`, and, if there is one, all that is `soft`, too."""

    hard: dict[str, LabelMatch] = {}
    soft: dict[str, LabelMatch] = {}


class InPlacementGroup(msgspec.Struct, frozen=True, kw_only=True, tag="placement_group"):
    """Out of what a placement group has reserved: of one bundle, or of any (-1)."""

    id: str
    bundle_index: int = -1
    capture_child_tasks: bool | None = None


Strategy = str | NodeAffinity | NodeLabels | InPlacementGroup


def parse_strategy(given: object) -> Strategy | None:
    """Check what a user gave as `scheduling_strategy`. Raises `ConfigError` or `ConfigTypeError`."""
    if given is None or isinstance(given, NodeAffinity | NodeLabels | InPlacementGroup):
        return given
    if isinstance(given, str):
        if given not in WORDS:
            raise ConfigError(f"ray_actor_options: scheduling_strategy must be one of {', '.join(map(repr, WORDS))}, got {given!r}")
        return given
    kind = type(given).__name__ if type(given).__module__.startswith("ray.") else ""
    read: Any = given
    if kind == "NodeAffinitySchedulingStrategy":
        return NodeAffinity(
            node_id=read.node_id,
            soft=bool(read.soft),
            spill_on_unavailable=bool(read._spill_on_unavailable),
            fail_on_unavailable=bool(read._fail_on_unavailable),
        )
    if kind == "NodeLabelSchedulingStrategy":
        return NodeLabels(hard=_matches(read.hard), soft=_matches(read.soft))
    if kind == "PlacementGroupSchedulingStrategy":
        return parse_group(read.placement_group, read.placement_group_bundle_index, read.placement_group_capture_child_tasks)
    raise ConfigTypeError(f"ray_actor_options: scheduling_strategy must be a strategy of Ray's, or its name, got {given!r}")


def parse_group(group: object, bundle_index: object = -1, capture_child_tasks: object = None) -> Strategy | None:
    """Check a placement group, and which of its bundles is meant. None, as Ray has it, is outside of any: "DEFAULT"."""
    if group is None:
        return "DEFAULT"
    if type(group).__name__ != "PlacementGroup" or not type(group).__module__.startswith("ray."):
        raise ConfigTypeError(f"ray_actor_options: placement_group must be one of Ray's, got {group!r}")
    if isinstance(bundle_index, bool) or not isinstance(bundle_index, int):
        raise ConfigTypeError(f"ray_actor_options: placement_group_bundle_index must be a whole number, got {bundle_index!r}")
    found: Any = group
    return InPlacementGroup(
        id=found.id.hex(),
        bundle_index=bundle_index,
        capture_child_tasks=None if capture_child_tasks is None else bool(capture_child_tasks),
    )


def parse_labels(what: str, given: object) -> dict[str, str]:
    """Check a label selector: by label, `"x"`, `"!x"`, `"in(x,y)"` or `"!in(x,y)"`. What a value says is checked by who uses it."""
    if not isinstance(given, Mapping) or not all(isinstance(label, str) and isinstance(value, str) for label, value in given.items()):
        raise ConfigTypeError(f"ray_actor_options: {what} must map labels to strings such as 'x' or '!in(x,y)', got {given!r}")
    return dict(given)


def _matches(expressions: Any) -> dict[str, LabelMatch]:
    found = {}
    for expression in expressions:
        operator = type(expression.operator).__name__
        if operator not in _OPERATORS:
            raise ConfigTypeError(f"ray_actor_options: scheduling_strategy: {operator} is no operator; there are {', '.join(_OPERATORS)}")
        found[expression.key] = LabelMatch(operator, tuple(getattr(expression.operator, "values", ())))
    return found
