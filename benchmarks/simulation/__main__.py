"""How does a large cluster behave, and what grows faster than the cluster? `python -m benchmarks.simulation`

Nothing runs but this process: time is virtual, and what decides is the product's own pure core. What the figures mean, and what
was done about them, is in `docs/design/0019-tables-for-many-routers.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence

from benchmarks.simulation import control, subsetting
from benchmarks.simulation.cluster import Cluster
from benchmarks.simulation.control import Controller, Costs
from benchmarks.simulation.requests import Outcome, percentile, simulate

FULL = ((10, 250), (10, 1250), (10, 5000), (50, 250), (50, 1250), (50, 5000), (200, 250), (200, 1250), (200, 5000))
QUICK = ((10, 250), (50, 250), (50, 1250))
"""Ingresses and replicas."""
_HEADS_OF_REQUESTS = (
    *("routers link to", "links", "offered", "answered", "refused", "lost", "retried"),
    *("mean", "p99", "one queue: mean", "p99", "load p99/mean"),
)
STEPS = 5
"""Of an update one by one, of each backend."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print tables in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small cluster, in about 20 s; else some minutes, with 1 GB of memory")
    parser.add_argument("--only", choices=("growth", "subsets", "requests"), help="one part")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    given = parser.parse_args(arguments)
    sizes = QUICK if given.quick else FULL
    if given.only in (None, "growth"):
        growth(sizes, given.seed)
    if given.only in (None, "subsets"):
        subsets(*sizes[-1])
    if given.only in (None, "requests"):
        requests(sizes[-1], given.seed, quick=given.quick)
    return 0


def growth(sizes: Iterable[tuple[int, int]], seed: int) -> None:
    """What a change costs, by size."""
    for title, scenario in (
        ("A node with 5 replicas fails: until all 5 are replaced", control.node_failure),
        ("Rolling update of one backend of five, all new replicas beside the old", control.update_beside),
        ("Rolling update of all five backends, one replica at a time", _one_by_one),
    ):
        rows = []
        for ingresses, replicas in sizes:
            whole, changes = (_costs(ingresses, replicas, way, scenario, seed) for way in ("whole", "changes"))
            for way, (controller, costs) in (("whole", whole), ("changes", changes)):
                assert costs.views_hold, f"{title}: a router does not follow what runs"
                rows.append(
                    (
                        f"{ingresses} x {replicas}",
                        way,
                        _si(controller.links),
                        costs.changes,
                        costs.pushes,
                        _si(costs.sent),
                        _si(costs.bytes) + "B",
                        _si(costs.bytes / max(costs.span_s, 1.0)) + "B/s",
                        f"{costs.work_s:.3g} s",
                        f"{costs.work_s / max(costs.span_s, 1.0):.1%}",
                        f"{costs.longest_s * 1e3:.0f} ms",
                    )
                )
        heads = (
            "ingresses x replicas",
            "way",
            "links",
            "changes",
            "pushes",
            "messages",
            "bytes",
            "bytes/s",
            "work",
            "work/time",
            "latest push",
        )
        _table(title, heads, rows)


def _one_by_one(controller: Controller, seed: int) -> Costs:
    return control.update_one_by_one(controller, seed, STEPS)


def _costs(ingresses: int, replicas: int, way: str, scenario: object, seed: int) -> tuple[Controller, Costs]:
    controller = Controller(Cluster(replicas, seed), ingresses, way)
    assert callable(scenario)
    return controller, scenario(controller, seed)


def subsets(ingresses: int, replicas: int) -> None:
    """Ways to draw subsets, beside each other."""
    each = replicas // 5
    of_replicas = [f"1-{number:08x}" for number in range(each)]
    of_routers = [f"i{number:08x}" for number in range(ingresses)]
    rows = []
    for name, way in (
        ("every router, every replica", subsetting.everything),
        ("replicas draw routers", subsetting.replicas_draw),
        ("routers draw replicas", subsetting.routers_draw),
        ("rounds", subsetting.rounds),
    ):
        found = subsetting.spread(way, of_replicas, of_routers)
        rows.append(
            (
                name,
                _si(found.links),
                found.replicas_least,
                f"{found.routers_least} to {found.routers_most}",
                f"{found.load_p99:.3f}",
                f"{found.load_most:.3f}",
                f"{found.moved_by_replica:.2f}",
                f"{found.moved_by_router:.2f}",
            )
        )
    heads = (
        "way",
        "links",
        "fewest replicas",
        "routers of a replica",
        "load p99/mean",
        "most/mean",
        "moved by a replica",
        "moved by a router",
    )
    _table(f"Subsets of one backend: {ingresses} ingresses, {each} replicas", heads, rows)


def requests(size: tuple[int, int], seed: int, *, quick: bool) -> None:
    """Requests under way."""
    ingresses, replicas = size
    warm_s, window_s = (0.03, 0.08) if quick else (0.05, 0.2)
    rows = []
    for name, way in (("every replica", subsetting.everything), ("subsets", subsetting.replicas_draw)):
        began = time.monotonic()
        found = simulate(way, ingresses, replicas, warm_s=warm_s, window_s=window_s, seed=seed)
        rows.append(_row(name, found, time.monotonic() - began))
    title = f"Requests: {ingresses} ingresses, {replicas} replicas, {_si(400 * replicas)} offered a second, a window of {window_s:g} s"
    heads = (
        "routers link to",
        "links",
        "offered",
        "answered",
        "refused",
        "lost",
        "retried",
        "mean",
        "p99",
        "of one queue",
        "p99",
        "load p99/mean",
    )
    _table(title, heads, rows)


def _row(name: str, found: Outcome, took_s: float) -> tuple[object, ...]:
    def ms(values: list[float], share: float | None = None) -> str:
        return f"{1e3 * (sum(values) / len(values) if share is None else percentile(values, share)):.2f} ms"

    return (
        name,
        _si(found.links),
        found.offered,
        found.answered,
        found.refused,
        found.lost,
        found.retried,
        ms(found.latencies),
        ms(found.latencies, 0.99),
        ms(found.central),
        ms(found.central, 0.99),
        f"{found.busy_p99:.3f}",
    )


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def _si(number: float) -> str:
    """Three digits and a power of a thousand."""
    for power in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {power}".rstrip() if not power else f"{number:.3g} {power}"
        number /= 1000
    return f"{number:.4g} T"


if __name__ == "__main__":
    raise SystemExit(main())
