"""Which replicas have room on a Ray cluster, by what Ray has said of its nodes?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

pytest.importorskip("ray", reason="Ray isn't installed")

from headgate.config import ReplicaOptions
from headgate.engines.ray import autoscaler, cluster, placement, records
from headgate.engines.ray.cluster import Cluster, Seen
from headgate.scheduling import LabelMatch, NodeAffinity, NodeLabels
from tests.controller.rig import settings_in

HEAD: dict[str, Any] = {cluster.HEAD: 1}
ONE_CPU = ReplicaOptions(num_cpus=1)


def node(id: str, *, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": id,
        "Alive": True,
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerPort": 1,
        "Resources": resources,
        "Labels": dict(labels or {}),
    }


class Books:
    """A cluster, and what Ray says of it at each look."""

    def __init__(self, *nodes: dict[str, Any], grows: bool = False) -> None:
        self.cluster = Cluster(msgspec.structs.replace(settings_in("x"), num_ingresses=1))
        self.cluster._grows = grows
        self.nodes = {one["NodeID"]: one for one in nodes}
        self.at = 0.0
        self.look()

    def look(
        self, taken: Mapping[str, Mapping[str, float]] | None = None, *, placed: Mapping[str, str] | None = None, after_s: float = 0.5
    ):
        """Twice, so that it is believed. `taken` is by whomever, by node."""
        for _ in range(2):
            self.at += after_s
            free = {
                id: {name: amount - (taken or {}).get(id, {}).get(name, 0.0) for name, amount in one["Resources"].items()}
                for id, one in self.nodes.items()
            }
            self.cluster.take_note(Seen(list(self.nodes.values()), free, placed or {}, self.at))


def test_ingresses_stay_on_their_nodes_when_others_join() -> None:
    books = Books(node("m", CPU=1), node("x", CPU=1, **HEAD))
    books.cluster._settings = msgspec.structs.replace(books.cluster._settings, num_ingresses=2)
    assert books.cluster.places() == ["x", "m"]
    books.nodes["a"] = node("a", CPU=1)
    books.look()
    assert books.cluster.places() == ["x", "m"]
    del books.nodes["m"]
    books.look()
    assert books.cluster.places() == ["x", "a"]


def test_ingresses_stay_on_their_nodes_under_the_next_controller() -> None:
    books = Books(node("a", CPU=1), node("m", CPU=1), node("x", CPU=1, **HEAD))
    books.cluster._settings = msgspec.structs.replace(books.cluster._settings, num_ingresses=2)
    books.cluster.has_ingresses(["m", "x"])
    assert books.cluster.places() == ["x", "m"]
    books.look()
    assert books.cluster.places() == ["x", "m"]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.engines.ray.cluster.time.monotonic", lambda: 0.0)


def test_what_fits_is_what_one_node_has_free() -> None:
    books = Books(node("a", CPU=2), node("b", CPU=2)).cluster
    assert books.refusal(ReplicaOptions(num_cpus=2), 2) is None
    assert "at most 2 CPU" in str(books.refusal(ReplicaOptions(num_cpus=3), 1))
    assert "the cluster has 4 CPU, over 2 nodes" in str(books.refusal(ReplicaOptions(num_cpus=2), 3))
    books.take("r", ONE_CPU, "b")
    assert "asked for 2 CPU for each of 2 replicas; free 3 of 4 CPU, over 2 nodes" in str(books.refusal(ReplicaOptions(num_cpus=2), 2))
    assert books.refusal(ReplicaOptions(num_cpus=2), 2, ["r"]) is None


def test_who_has_no_room_waits_takes_nothing_and_goes_first_when_there_is() -> None:
    books = Books(node("a", CPU=2)).cluster
    books.take("r1", ReplicaOptions(num_cpus=2), "b")
    books.take("r2", ONE_CPU, "b")
    books.take("r3", ReplicaOptions(num_cpus=2), "b")
    assert books.waiting() == {
        "r2": "asked for 1 CPU; free 0 of 2 CPU, over 1 node",
        "r3": "asked for 2 CPU; free 0 of 2 CPU, over 1 node",
    }
    assert books.free()["CPU"] == 0
    books.give_back("r1")
    assert list(books.waiting()) == ["r3"]
    assert books.free()["CPU"] == 1


def test_others_than_this_instance_take_room_too() -> None:
    books = Books(node("a", CPU=2))
    books.look({"a": {"CPU": 2}})
    assert "free 0 of 2 CPU" in str(books.cluster.refusal(ONE_CPU, 1))
    books.cluster.take("r", ONE_CPU, "b")
    assert list(books.cluster.waiting()) == ["r"]
    books.look({"a": {"CPU": 1}})
    assert not books.cluster.waiting()
    books.look({"a": {"CPU": 2}}, placed={"r": "a"})
    assert books.cluster.free()["CPU"] == 0


def test_where_ray_places_nobody_though_there_was_room_others_have_taken_it() -> None:
    books = Books(node("a", CPU=1))
    books.cluster.take("r", ONE_CPU, "b")
    assert not books.cluster.waiting(), "it is on its way"
    books.look({"a": {"CPU": 1}})
    assert not books.cluster.waiting(), "this may be what it took itself"
    books.look({"a": {"CPU": 1}}, after_s=cluster._PLACED_WITHIN_S)
    assert list(books.cluster.waiting()) == ["r"]
    books.look({"a": {"CPU": 1}}, placed={"r": "a"})
    assert not books.cluster.waiting()


def test_what_is_being_installed_is_not_doubted() -> None:
    books = Books(node("a", CPU=1))
    books.cluster.take("r", ReplicaOptions(num_cpus=1, runtime_env={"pip": ["x"]}), "b")
    books.look({"a": {"CPU": 1}}, after_s=cluster._PLACED_WITHIN_S)
    assert not books.cluster.waiting()


def test_where_nodes_may_come_nothing_is_impossible_but_a_node_that_is_named() -> None:
    books = Books(node("a", CPU=1), grows=True).cluster
    assert books.never(ReplicaOptions(num_cpus=50), 3) is None
    assert books.never(ReplicaOptions(label_selector={"zone": "z"}), 1) is None
    gone = NodeAffinity(node_id="gone", soft=False)
    assert "on node gone; none of the 1 nodes" in str(books.never(ReplicaOptions(scheduling_strategy=gone), 1))
    assert books.never(ReplicaOptions(scheduling_strategy=NodeAffinity(node_id="gone", soft=True)), 1) is None


def test_a_node_that_is_lost_gives_back_nothing_and_one_that_comes_is_used() -> None:
    books = Books(node("a", CPU=1), node("b", CPU=1))
    books.cluster.take("r", ONE_CPU, "b")
    books.cluster.placed("r", "a", ())
    books.nodes.pop("a")
    books.look()
    assert books.cluster.totals()["CPU"] == 1
    assert books.cluster.free()["CPU"] == 1
    books.nodes["c"] = node("c", CPU=4)
    books.look()
    assert books.cluster.refusal(ReplicaOptions(num_cpus=4), 1) is None


def test_only_nodes_that_a_replica_may_go_to_have_room_for_it() -> None:
    books = Books(node("a", CPU=1, labels={"zone": "a"}), node("b", CPU=1, labels={"zone": "b"}), node("c", CPU=1)).cluster
    books.take("r", ReplicaOptions(num_cpus=1, label_selector={"zone": "a"}), "b")
    assert "free 0 of 1 CPU, over 1 node" in str(books.refusal(ReplicaOptions(num_cpus=1, label_selector={"zone": "a"}), 1))
    assert books.refusal(ReplicaOptions(num_cpus=1, label_selector={"zone": "!a"}), 2) is None
    assert "none of the 3 nodes" in str(books.never(ReplicaOptions(label_selector={"zone": "z"}), 1))


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        (ReplicaOptions(), "ab-"),
        (ReplicaOptions(label_selector={"zone": "a"}), "a"),
        (ReplicaOptions(label_selector={"zone": "!a"}), "b-"),
        (ReplicaOptions(label_selector={"zone": "in(a, c)"}), "a"),
        (ReplicaOptions(label_selector={"zone": "!in(a,b)"}), "-"),
        (ReplicaOptions(label_selector={"zone": "c"}, fallback_strategy=({"label_selector": {"zone": "b"}},)), "b"),
        (ReplicaOptions(scheduling_strategy=NodeAffinity(node_id="b", soft=False)), "b"),
        (ReplicaOptions(scheduling_strategy=NodeAffinity(node_id="b", soft=True)), "ab-"),
        (ReplicaOptions(scheduling_strategy=NodeLabels(hard={"zone": LabelMatch("In", ("a", "b"))})), "ab"),
        (ReplicaOptions(scheduling_strategy=NodeLabels(hard={"zone": LabelMatch("NotIn", ("a",))})), "b-"),
        (ReplicaOptions(scheduling_strategy=NodeLabels(hard={"zone": LabelMatch("Exists")})), "ab"),
        (ReplicaOptions(scheduling_strategy=NodeLabels(hard={"zone": LabelMatch("DoesNotExist")})), "-"),
        (ReplicaOptions(scheduling_strategy=NodeLabels(soft={"zone": LabelMatch("In", ("a",))})), "ab-"),
    ],
)
def test_labels_and_strategies_say_which_nodes_are_meant(options: ReplicaOptions, nodes: str) -> None:
    labels: dict[str, dict[str, str]] = {"a": {"zone": "a"}, "b": {"zone": "b"}, "-": {}}
    assert "".join(id for id, its in labels.items() if placement.may_go_to(options, id, its)) == nodes


def test_an_accelerator_type_is_a_resource_of_its_nodes_that_nobody_is_shown() -> None:
    books = Books({**node("a"), "Resources": {"GPU": 1, "accelerator_type:H100": 1}}).cluster
    assert books.never(ReplicaOptions(num_gpus=1, accelerator_type="H100"), 1) is None
    assert "'A100'" in str(books.never(ReplicaOptions(num_gpus=1, accelerator_type="A100"), 1))
    assert books.totals() == {"GPU": 1}


def test_an_autoscaler_that_only_watches_is_none() -> None:
    watching = {"active_nodes": {"node_1f": 1}, "idle_nodes": None, "pending_launches": {}, "node_type_mapping": {"1f": "node_1f"}}
    scaling = {"active_nodes": {"head": 1}, "idle_nodes": None, "pending_launches": {}, "node_type_mapping": {"1f": "head"}}
    for report, expected in ((watching, False), (scaling, True), ({**watching, "pending_launches": {"big": 2}}, True), (None, False)):
        assert autoscaler._tells_of_types(json.dumps({"autoscaler_report": report}).encode()) is expected


def test_an_autoscaler_of_the_second_version_is_told_by_groups_of_nodes() -> None:
    from ray.core.generated.autoscaler_pb2 import AutoscalingState, ClusterResourceState, GetClusterStatusReply, NodeState

    def status(version: int, group: str) -> bytes:
        nodes = ClusterResourceState(node_states=[NodeState(ray_node_type_name=group)])
        reply = GetClusterStatusReply(autoscaling_state=AutoscalingState(autoscaler_state_version=version), cluster_resource_state=nodes)
        return bytes(reply.SerializeToString())

    assert autoscaler._tells_of_groups(status(3, "workers"))
    assert not autoscaler._tells_of_groups(status(3, ""))
    assert not autoscaler._tells_of_groups(status(0, "workers"))


def test_instances_are_listed_by_their_records_whatever_is_in_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [records.instance_key("b"), records.instance_key("a/instance"), records.state_key("b"), records.spec_key("c", "instance")]
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_list", lambda prefix, namespace: [key.encode() for key in keys])
    assert records.names() == ["a/instance", "b"]
