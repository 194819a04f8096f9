"""Is no accepted request lost while code is replaced and replicas come and go under load?"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from headgate.errors import ReplicaStartError
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import Load
from tests.chaos.moments import percentile, ready, wait_until_then
from tests.chaos.workers import Broken, Unwell, Worker, begun

ALONE_S = 3.0
"""How long the load runs by itself, to see what answers take without changes."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fits", [True, False], ids=["beside the old", "one at a time"])
def test_updates_under_load_some_of_them_broken(instance: Instance, tmp_path: Path, figure: Figures, long: bool, fits: bool):
    updates = 1000 if long else 200 if fits else 40
    journal = str(tmp_path / "journal")
    options = {} if fits else {"num_gpus": 0.5}  # of the one GPU that there is: two fit, and no third
    instance.create_backend("b", Worker, journal, 0.01, "v0", config={"num_replicas": 2}, ray_actor_options=options)
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    versions = [(0.0, "v0")]
    broken = 0
    with Load(f"{instance.http_url}/e", 100.0) as load:
        for number in range(1, updates + 1):
            if number % 4 == 0:
                broken += 1
                with pytest.raises(ReplicaStartError, match=r"is broken|is unwell"):
                    instance.update_backend("b", Broken if number % 8 else Unwell, journal, 0.01, f"v{number}")
            else:
                instance.update_backend("b", Worker, journal, 0.01, f"v{number}")
                versions.append((time.monotonic(), f"v{number}"))
    load.check_definite()
    assert set(begun(journal).values()) == {1}
    for outcome in load.outcomes:
        if outcome.status == 200:  # by the code that served when it was sent, or by newer code
            oldest = max(index for index, (since, _) in enumerate(versions) if since <= outcome.sent_at)
            assert outcome.body.split(" ")[1] in [version for _, version in versions[oldest:]], outcome
    figure("requests that failed", len(load.bad()), at_most=0)
    figure("requests", len(load.outcomes))
    figure("updates", updates)
    figure("of them broken", broken, at_least=updates // 4)


@pytest.mark.timeout(900)
def test_scaling_from_1_to_8_and_back_under_load(instance: Instance, tmp_path: Path, figure: Figures, long: bool):
    rounds = 100 if long else 20
    journal = str(tmp_path / "journal")
    instance.create_backend("b", Worker, journal)
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    with Load(f"{instance.http_url}/e", 30.0) as alone:
        wait_until_then(time.monotonic() + ALONE_S)
    with Load(f"{instance.http_url}/e", 30.0, seed=2) as load:
        for _ in range(rounds):
            for count in (8, 1):
                instance.update_backend_config("b", {"num_replicas": count})
                assert len(ready(instance, "b")) == count
                load.wait_for_more(10)
    load.check_definite()
    took_s = [outcome.took_s for outcome in alone.outcomes]
    figure("requests that failed", len(load.bad()), at_most=0)
    figure("the latest answer, of the p99 without scaling", load.percentile(1.0) / percentile(took_s, 0.99), at_most_times=10.0)
    figure("requests", len(load.outcomes))
    figure("changes", 2 * rounds)


@pytest.mark.timeout(900)
def test_traffic_config_and_deletions_lose_nothing_under_load(instance: Instance, tmp_path: Path, figure: Figures, long: bool):
    rounds = 200 if long else 30
    journal = str(tmp_path / "journal")
    for tag in ("a", "b"):
        instance.create_backend(tag, Worker, journal, 0.01, tag)
    instance.create_endpoint("e", "/e", ["POST"], backend="a")
    with Load(f"{instance.http_url}/e", 50.0) as load:
        for number in range(rounds):
            instance.set_traffic("e", {"a": 0.5, "b": 0.5})
            instance.update_backend_config("a", {"max_concurrent_queries": 1 + number % 3, "concurrency": 1 + number % 2})
            instance.set_traffic("e", {"b": 1.0})
            instance.delete_backend("a")  # which drains what was sent there
            instance.create_backend("a", Worker, journal, 0.01, "a")
            instance.shadow_traffic("e", "a", 0.5)
            instance.shadow_traffic("e", "a", 0)
            instance.create_endpoint("other", "/other", ["POST"], backend="a")
            instance.delete_endpoint("other")
            instance.set_traffic("e", {"a": 1.0})
            load.wait_for_more(5)
    load.check_definite()
    figure("requests that failed", len(load.bad()), at_most=0)
    figure("requests", len(load.outcomes))
    figure("changes", 10 * rounds)
