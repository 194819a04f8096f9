"""What may `ray_actor_options` be, how do they travel, and what of them does one machine refuse?"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headgate.config import REFUSED_OPTIONS, ReplicaOptions, parse_options, refuse_for_one_machine
from headgate.errors import ConfigError
from headgate.scheduling import InPlacementGroup, LabelMatch, NodeAffinity, NodeLabels
from tests.support import leave_out

NODE = "e" * 56
GROUP = "ab" * 18

FOR_CLUSTERS: dict[str, Any] = {
    "scheduling_strategy": "SPREAD",
    "label_selector": {"zone": "in(a,b)"},
    "fallback_strategy": [{"label_selector": {"zone": "c"}}],
    "accelerator_type": "H100",
    "object_store_memory": 1000,
    "enable_task_events": False,
    "enable_tensor_transport": True,
    "max_pending_calls": 5,
    "allow_out_of_order_execution": True,
}


@pytest.mark.parametrize("name", FOR_CLUSTERS)
def test_an_option_for_clusters_is_kept_and_refused_by_one_machine(name: str) -> None:
    given = FOR_CLUSTERS[name]
    options = parse_options({name: given, "num_cpus": 1})
    assert getattr(options, name) == (tuple(given) if isinstance(given, list) else given)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=ReplicaOptions) == options
    assert parse_options(options) == options
    with pytest.raises(ConfigError, match=rf"{name}.*engine='ray'"):
        refuse_for_one_machine(options)


def test_every_option_for_clusters_is_tried_here() -> None:
    on_one_machine = {"num_cpus", "num_gpus", "memory", "resources", "runtime_env"}
    assert FOR_CLUSTERS.keys() | on_one_machine == set(ReplicaOptions.__struct_fields__)


def test_one_machine_takes_what_says_nothing_of_a_cluster() -> None:
    options = parse_options({"num_cpus": 2, "runtime_env": {"env_vars": {"A": "1"}, "pip": None}, "label_selector": None})
    assert refuse_for_one_machine(options) == ReplicaOptions(num_cpus=2, runtime_env={"env_vars": {"A": "1"}})


@pytest.mark.parametrize("key", ["working_dir", "py_modules", "pip", "conda", "container", "config"])
def test_one_machine_refuses_what_a_runtime_env_installs(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"runtime_env: '{key}'.*engine='ray'"):
        refuse_for_one_machine(parse_options({"runtime_env": {key: ["x"]}}))
    with pytest.raises(ConfigError, match="did you mean 'env_vars'"):
        refuse_for_one_machine(parse_options({"runtime_env": {"env_var": {}}}))


@pytest.mark.parametrize("name", sorted(REFUSED_OPTIONS))
def test_what_headgate_sets_itself_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*set by Headgate"):
        parse_options({name: 1})


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"scheduling_strategy": "PACK"}, ValueError),
        ({"scheduling_strategy": 5}, TypeError),
        ({"label_selector": ["zone"]}, TypeError),
        ({"label_selector": {"zone": 1}}, TypeError),
        ({"fallback_strategy": {"label_selector": {}}}, TypeError),
        ({"fallback_strategy": [{"label": {}}]}, ValueError),
        ({"fallback_strategy": [{}]}, ValueError),
        ({"accelerator_type": 1}, TypeError),
        ({"object_store_memory": 1.5}, TypeError),
        ({"enable_task_events": 1}, TypeError),
        ({"max_pending_calls": True}, TypeError),
        ({"allow_out_of_order_execution": "no"}, TypeError),
        ({"runtime_env": {"pip": object()}}, TypeError),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError),
        ({"placement_group_bundle_index": 1}, ValueError),
        ({"placement_group": "mine"}, TypeError),
        ({"placement_group": None, "scheduling_strategy": "SPREAD"}, ValueError),
        ({"label_selektor": {}}, ValueError),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match="|".join(given)) as caught:
        parse_options(given)
    assert isinstance(caught.value, ConfigError)


def test_paths_and_tuples_travel_as_what_records_have() -> None:
    options = parse_options({"runtime_env": {"working_dir": Path("/a"), "py_modules": ("x", Path("/b"))}})
    assert options.runtime_env == {"working_dir": "/a", "py_modules": ["x", "/b"]}


def strategies() -> Any:
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    from ray.util import scheduling_strategies

    return scheduling_strategies


def test_rays_objects_become_records_and_objects_again() -> None:
    ray = strategies()
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    from headgate.engines.ray.options import actor_options

    group = PlacementGroup(PlacementGroupID(bytes.fromhex(GROUP)))
    for given, record in (
        (ray.NodeAffinitySchedulingStrategy(NODE, soft=True), NodeAffinity(node_id=NODE, soft=True)),
        (
            ray.NodeAffinitySchedulingStrategy(NODE, soft=False, _fail_on_unavailable=True),
            NodeAffinity(node_id=NODE, soft=False, fail_on_unavailable=True),
        ),
        (
            ray.NodeLabelSchedulingStrategy({"zone": ray.In("a", "b"), "old": ray.DoesNotExist()}, soft={"disk": ray.Exists()}),
            NodeLabels(hard={"zone": LabelMatch("In", ("a", "b")), "old": LabelMatch("DoesNotExist")}, soft={"disk": LabelMatch("Exists")}),
        ),
        (ray.PlacementGroupSchedulingStrategy(group, 1, True), InPlacementGroup(id=GROUP, bundle_index=1, capture_child_tasks=True)),
    ):
        options = parse_options({"scheduling_strategy": given})
        assert options.scheduling_strategy == record
        travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=ReplicaOptions)
        again = actor_options(travelled)["scheduling_strategy"]
        assert type(again) is type(given)
        assert parse_options({"scheduling_strategy": again}).scheduling_strategy == record


def test_rays_older_words_for_a_placement_group_are_kept_as_a_strategy() -> None:
    strategies()
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    group = PlacementGroup(PlacementGroupID(bytes.fromhex(GROUP)))
    given = {"placement_group": group, "placement_group_bundle_index": 2, "placement_group_capture_child_tasks": True}
    assert parse_options(given).scheduling_strategy == InPlacementGroup(id=GROUP, bundle_index=2, capture_child_tasks=True)
    assert parse_options({"placement_group": None}).scheduling_strategy == "DEFAULT"


def test_what_ray_is_given_is_what_was_asked_for(tmp_path: Path) -> None:
    strategies()
    from headgate.engines.ray.options import actor_options, check

    assert actor_options(parse_options({})) == {"num_cpus": 0, "num_gpus": 0, "memory": 1, "scheduling_strategy": "SPREAD"}
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("one==1\ntwo\n")
    given = {**FOR_CLUSTERS, "num_gpus": 0.5, "memory": 5.0, "resources": {"tpu": 1.0}, "runtime_env": {"pip": str(requirements)}}
    with pytest.warns(DeprecationWarning, match="object_store_memory"):
        options = check(parse_options(given))
    assert options.runtime_env["pip"]["packages"] == ["one==1", "two"]  # read here, where the file is
    with pytest.warns(DeprecationWarning, match="object_store_memory"):
        assert check(options) == options
    assert actor_options(options) == {**given, "num_cpus": 0, "runtime_env": options.runtime_env}
