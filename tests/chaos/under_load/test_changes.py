"""Is no accepted request lost while code is replaced and replicas come and go under load?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from headgate.errors import ReplicaStartError
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import Load, Outcome
from tests.chaos.moments import percentile, ready, wait_not_listed, wait_until_then
from tests.chaos.workers import Broken, Unwell, Worker, begun
from tests.support import under_way, wait_until

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
    # Half of what serves meanwhile can do: two replicas, or the one that is left while the other is replaced.
    with Load(f"{instance.http_url}/e", 100.0 if fits else 50.0) as load:
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


UNDER_WAY = 6
"""So many requests at least are under way at a deletion: one of them runs, the others wait."""


class Held(Worker):
    """A `Worker` whose requests don't end while the file `hold` is there."""

    def __init__(self, hold: str, journal: str, version: str = "") -> None:
        super().__init__(journal, 0.0, version)
        self._hold = Path(hold)

    def __call__(self, request: Any) -> str:
        answer = super().__call__(request)
        wait_until(lambda: not self._hold.exists(), 60.0)
        return answer


@contextmanager
def held(instance: Instance, tag: str, hold: Path) -> Iterator[float]:
    """In the block a request of this backend runs and others wait. All that was written up to the moment that is given has arrived."""
    hold.touch()
    try:
        wait_until(lambda: under_way(instance, tag) >= UNDER_WAY)
        now = time.monotonic()
        # On a new connection, so that all that had come on others before it has been read when this is answered.
        assert requests.get(f"{instance.http_url}/-/healthz", timeout=10).status_code == 200
        yield now
    finally:
        hold.unlink()


class Life(NamedTuple):
    """When an endpoint was there: surely from `created_at` to `deleting_at`, and at most from `creating_at` to `deleted_at`."""

    creating_at: float
    created_at: float
    deleting_at: float
    deleted_at: float

    def had(self, outcome: Outcome) -> bool:
        """Whether a request surely came while it was there."""
        return self.created_at <= outcome.sent_at and outcome.written_at <= self.deleting_at

    def may_have_had(self, outcome: Outcome) -> bool:
        """Whether it may have come then."""
        return self.creating_at <= outcome.ended_at and outcome.sent_at < self.deleted_at


@pytest.mark.timeout(900)
def test_an_endpoint_and_then_its_backend_are_deleted_under_their_own_load(instance: Instance, tmp_path: Path, figure: Figures, long: bool):
    rounds = 200 if long else 30
    journal, hold = str(tmp_path / "journal"), tmp_path / "hold"
    lives: list[Life] = []
    with ThreadPoolExecutor(1) as threads, Load(f"{instance.http_url}/e", 100.0, timeout_s=20.0) as load:
        for _ in range(rounds):
            creating_at = time.monotonic()
            instance.create_backend("b", Held, str(hold), journal)
            instance.create_endpoint("e", "/e", ["POST"], backend="b")
            created_at = time.monotonic()
            load.wait_for_more(3)
            with held(instance, "b", hold) as deleting_at:
                deletion = threads.submit(instance.delete_endpoint, "e")
                wait_until(lambda: any(o.status == 404 and o.sent_at > deleting_at for o in load.outcomes[-20:]))
                assert not deletion.done(), "it doesn't wait for what was admitted"
            deletion.result()
            lives.append(Life(creating_at, created_at, deleting_at, time.monotonic()))
            before = begun(journal)
            instance.delete_backend("b")
            load.wait_for_more(3)
            assert begun(journal) == before, "a request began after its endpoint was deleted"
    load.check_definite()
    assert begun(journal) == Counter(outcome.name for outcome in load.outcomes if outcome.status == 200)
    for outcome in load.outcomes:
        if any(life.had(outcome) for life in lives):
            assert outcome.status == 200, outcome
        elif not any(life.may_have_had(outcome) for life in lives):
            assert outcome.status == 404, outcome
        else:
            assert outcome.status in (200, 404), outcome
    under_way_then = [o for o in load.outcomes for life in lives if life.had(o) and o.ended_at > life.deleting_at]
    figure("answered", load.by_status()[200])
    figure("of these, under way when their endpoint was deleted", len(under_way_then), at_least=UNDER_WAY * rounds)
    figure("told that it is gone", load.by_status()[404], at_least=3 * rounds)
    figure("rounds", rounds)


@pytest.mark.timeout(900)
def test_a_backend_is_deleted_while_requests_wait_for_it_after_its_traffic_has_moved(
    instance: Instance, tmp_path: Path, figure: Figures, long: bool
):
    rounds = 200 if long else 30
    journal = str(tmp_path / "journal")
    moves: list[tuple[float, float]] = []  # between the two traffic goes from one version to the next
    instance.create_backend("v0", Held, str(tmp_path / "v0"), journal, "0")
    instance.create_endpoint("e", "/e", ["POST"], backend="v0")
    with ThreadPoolExecutor(1) as threads, Load(f"{instance.http_url}/e", 100.0, timeout_s=20.0) as load:
        for number in range(rounds):
            old, new = f"v{number}", f"v{number + 1}"
            instance.create_backend(new, Held, str(tmp_path / new), journal, str(number + 1))
            with held(instance, old, tmp_path / old) as moving_at:
                instance.set_traffic("e", {new: 1.0})
                moves.append((moving_at, time.monotonic()))
                deletion = threads.submit(instance.delete_backend, old)
                wait_not_listed(instance, old)
                load.wait_for_more(3)  # which the new one answers
                assert not deletion.done(), "it doesn't wait for what was admitted"
            deletion.result()
    load.check_definite()
    assert begun(journal) == Counter(outcome.name for outcome in load.outcomes)
    waited = 0
    for outcome in load.outcomes:
        assert outcome.status == 200, outcome
        oldest = sum(moved_at <= outcome.sent_at for _, moved_at in moves)
        newest = sum(moving_at < outcome.written_at for moving_at, _ in moves)
        assert oldest <= int(outcome.body.split(" ")[1]) <= newest, outcome
        waited += oldest == newest < rounds and outcome.ended_at > moves[newest][0]
    figure("requests", len(load.outcomes))
    figure("of these, under way when traffic moved away and their backend was deleted", waited, at_least=UNDER_WAY * rounds)
    figure("rounds", rounds)
