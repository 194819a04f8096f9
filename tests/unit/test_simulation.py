"""Does the simulation of a large cluster do what it says? Tiny instances, against sums that are worked out here."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.simulation import __main__ as program
from benchmarks.simulation import control, subsetting
from benchmarks.simulation.cluster import REPLICAS_A_NODE, Cluster
from benchmarks.simulation.control import Controller
from benchmarks.simulation.requests import HANDLER_S, HOP_S, simulate
from headgate.core import messages


@pytest.mark.parametrize("way", ["whole", "changes"])
def test_the_failure_of_a_node_is_ten_changes_and_every_router_follows_them(way: str) -> None:
    ingresses = 3
    controller = Controller(Cluster(50), ingresses, way)
    alive = {id for id, replica in controller.cluster.replicas.items() if replica.node != 0}
    costs = control.node_failure(controller, seed=2)
    assert costs.views_hold
    assert costs.changes == 2 * REPLICAS_A_NODE
    assert costs.sent == ingresses * costs.pushes
    assert costs.received == 2 * costs.sent + REPLICAS_A_NODE * ingresses
    for router in controller.routers:
        assert router.table is not None
        listed = {replica.id for entry in router.table.backends.values() for replica in entry.replicas}
        assert len(listed) == 50
        assert alive < listed
    if way == "whole":
        whole = controller.whole_bytes
        assert 0.9 * whole * costs.sent < costs.bytes < 1.1 * whole * costs.sent
        assert costs.pushes == costs.changes
    else:
        assert costs.bytes < 1500 * costs.sent
        assert costs.pushes <= costs.changes


@pytest.mark.parametrize("way", ["whole", "changes"])
def test_an_update_beside_what_runs_is_one_push_and_leaves_only_new_replicas(way: str) -> None:
    controller = Controller(Cluster(50), 3, way)
    costs = control.update_beside(controller, seed=2)
    assert costs.views_hold
    assert costs.pushes == 1
    generations = {replica.generation for replica in controller.cluster.replicas.values() if replica.tag == controller.cluster.tags[0]}
    assert generations == {controller.cluster.state.backends["model-0"].generation}


def test_an_update_one_by_one_replaces_as_many_as_it_says() -> None:
    controller = Controller(Cluster(50), 3, "changes")
    before = set(controller.cluster.replicas)
    costs = control.update_one_by_one(controller, seed=2, steps=4)
    assert costs.views_hold
    assert len(before - set(controller.cluster.replicas)) == 5 * 4
    assert len(controller.cluster.replicas) == 50


def test_the_table_is_what_the_product_sends() -> None:
    table = Cluster(50).table(7, 3)
    assert messages.MessageDecoder().received(messages.encode(table)) == [table]
    assert table.num_ingresses == 3
    assert {len(entry.replicas) for entry in table.backends.values()} == {10}
    assert len(msgspec.msgpack.encode(table.backends["model-0"].replicas[0])) > 100  # an address on a cluster, and a token


@pytest.mark.parametrize("way", [subsetting.everything, subsetting.replicas_draw], ids=["every replica", "subsets"])
def test_every_request_comes_to_one_end(way: subsetting.Way) -> None:
    found = simulate(way, 20, 400, backends=5, warm_s=0.0, window_s=0.03)
    assert 0.8 < found.offered / (400 * 400 * 0.03) < 1.2
    assert found.offered == found.answered + found.refused + found.lost + found.retried + found.waiting
    assert found.answered == len(found.latencies)
    assert found.lost > 0  # the silent node ran some
    assert found.links == (20 * 400 if way is subsetting.everything else 400 * 16)
    assert min(found.latencies) >= 2 * HOP_S
    mean_s = sum(found.latencies) / len(found.latencies)
    assert mean_s > HANDLER_S * 0.7
    assert mean_s > 0.9 * sum(found.central) / len(found.central)  # nothing is quicker than a queue that knows everything


def test_without_events_nothing_is_lost_or_tried_again() -> None:
    found = simulate(subsetting.replicas_draw, 4, 40, backends=1, warm_s=0.0, window_s=0.05, events=False)
    assert found.offered == found.answered
    assert (found.lost, found.retried, found.refused, found.waiting) == (0, 0, 0, 0)


def test_replicas_that_draw_are_even_and_move_little() -> None:
    replicas, routers = [f"r{n}" for n in range(150)], [f"i{n}" for n in range(40)]
    found = {
        way: subsetting.spread(way, replicas, routers) for way in (subsetting.replicas_draw, subsetting.routers_draw, subsetting.rounds)
    }
    ours = found.pop(subsetting.replicas_draw)
    assert ours.routers_least == ours.routers_most == 18
    assert ours.load_p99 < found[subsetting.routers_draw].load_p99
    assert ours.moved_by_replica < found[subsetting.rounds].moved_by_replica
    assert subsetting.spread(subsetting.everything, replicas, routers).load_most == pytest.approx(1.0)


def test_the_program_prints_a_table_for_each_part(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "QUICK", ((2, 50),))
    assert program.main(["--quick", "--only", "growth"]) == 0
    assert program.main(["--quick", "--only", "subsets"]) == 0
    out = capsys.readouterr().out
    assert out.count("###") == 4
    assert "| 2 x 50 | changes | 100 |" in out
