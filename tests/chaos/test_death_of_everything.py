"""Is everything there again after everything died, whatever was under way, and is a verb applied once though its controller died?"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from headgate import serve
from headgate.controller.store import Store
from headgate.core.desired import State
from headgate.engines.local import folders, launch
from headgate.errors import NotRunningError
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.moments import process
from tests.chaos.round import (
    ANSWER_WITHIN_S,
    Step,
    There,
    Verb,
    Version,
    asked_for,
    begin,
    check_answers,
    constructed,
    steps,
    wait_whole,
    whole,
)
from tests.leaks import processes
from tests.support import GONE_WITHIN_S, wait_until

NAME = "everything"
CPUS = {"CPU": 16}


@pytest.fixture(autouse=True)
def _nothing_outlives_a_failure() -> Iterator[None]:
    yield
    folder = launch.find(NAME)
    record = None if folder is None else folders.read_record(folder)
    if record is not None:
        os.kill(record.pid, signal.SIGKILL)


def start(state_dir: Path, **given: object) -> Instance:
    return serve.init(NAME, http_port=0, detached=True, state_dir=state_dir, resources=CPUS, **given)  # type: ignore[arg-type]  # as `init` checks


def wait_gone() -> float:
    """How long it takes until nothing of any instance runs."""
    began = time.monotonic()
    wait_until(lambda: not processes(), 10 * GONE_WITHIN_S)
    return time.monotonic() - began


def on_disk(state_dir: Path, scratch: Path) -> State:
    """What a state directory has, as it lies there: looked at in a copy, since a look mends what was under way."""
    shutil.copytree(state_dir, scratch)
    try:
        with closing(Store(str(scratch), durable=False)) as store:
            return store.load()[0]
    finally:
        shutil.rmtree(scratch)


def durations(instance: Instance, verbs: list[Step], there: There) -> list[float]:
    """How long each verb takes while nothing dies."""
    took = []
    for step in verbs:
        began = time.monotonic()
        step.do(instance)
        took.append(time.monotonic() - began)
        there = step.model(there)
        assert asked_for(instance, there)
    return took


def do_while(step: Step, instance: Instance, offset_s: float, happens: Callable[[], object]) -> Verb:
    """Begin a verb; let that happen so long after its begin, or just before."""
    verb = Verb(step, instance)
    if offset_s < 0:
        happens()
        verb.start()
    else:
        verb.start()
        verb.over.wait(offset_s)
        happens()
    return verb


@pytest.mark.timeout(10_800)  # the long form
def test_everything_dies_at_any_moment_of_a_verb_and_the_next_init_has_the_state_before_or_after_it(
    tmp_path: Path, figure: Figures, long: bool
):
    chance = random.Random(8)
    state_dir, journal = tmp_path / "state", str(tmp_path / "journal")
    verbs = steps(journal)
    instance = start(state_dir)
    there = begin(instance, journal)
    took = durations(instance, verbs, there)
    found: Counter[str] = Counter()
    gone_s, starts_s, answers_s = [], [], []
    for number in range((100 if long else 1) * len(verbs)):
        step, duration_s = verbs[number % len(verbs)], took[number % len(verbs)]
        before, after = there, step.model(there)
        (supervisor,) = process(instance, "supervisor")
        generations = on_disk(state_dir, tmp_path / "copy").backends
        verb = do_while(step, instance, chance.uniform(-0.2, 1.1) * duration_s, partial(os.kill, supervisor, signal.SIGKILL))
        gone_s.append(wait_gone())
        kept = on_disk(state_dir, tmp_path / "copy")

        began = time.monotonic()
        instance = start(state_dir)
        starts_s.append(time.monotonic() - began)
        verb.join(ANSWER_WITHIN_S)
        assert not verb.is_alive(), f"{step.verb} still waits, though another instance has taken the place of its own"
        assert verb.error is None or isinstance(verb.error, NotRunningError), verb.error
        is_before, is_after = asked_for(instance, before), asked_for(instance, after)
        if is_before and is_after:  # only the code differs
            is_after = kept.backends["c"].generation != generations["c"].generation
            is_before = not is_after
        assert is_before != is_after, f"{step.verb}: neither before nor after: {instance.status()}"
        assert is_after or verb.error is not None, f"{step.verb} had returned, and is lost"
        there = after if is_after else before
        for tag in kept.backends.keys() & generations.keys() - {"c"}:
            assert kept.backends[tag] == generations[tag]
        check_answers(instance, there)
        answers_s.append(time.monotonic() - began)
        found[f"the state {'after' if is_after else 'before'}, the verb had {'returned' if verb.error is None else 'not returned'}"] += 1
        if is_before:
            step.do(instance)
            there = after
        wait_whole(instance, there)
        check_answers(instance, there)
    instance.shutdown()
    figure("kills", found.total())
    for what, count in sorted(found.items()):
        figure(what, count)
    figure("everything was gone, the latest", max(gone_s), at_most_s=2.0)
    figure("the slowest init", max(starts_s))
    figure("from its begin until every endpoint had answered", max(answers_s), at_most_s=5.0)


@pytest.mark.timeout(10_800)  # the long form
def test_a_controller_dies_at_any_moment_of_a_verb_which_is_applied_once_and_returns(tmp_path: Path, figure: Figures, long: bool):
    state_dir, journal = tmp_path / "state", str(tmp_path / "journal")
    verbs = steps(journal)
    instance = start(state_dir)
    there = begin(instance, journal)
    took = durations(instance, verbs, there)
    chance = random.Random(9)
    rounds = 40 if long else 2
    kills = killed_here = 0
    slowest_s = 0.0
    for number in range(rounds):
        for step, duration_s in zip(verbs, took, strict=True):
            if killed_here > 1:  # a supervisor starts a controller the later, the more have died soon
                instance.shutdown()
                instance = start(state_dir)
                wait_whole(instance, there)
                kills, killed_here = kills + killed_here, 0
            expected = constructed(journal) + Counter(step.starts(there))
            there = step.model(there)
            (controller,) = process(instance, "controller")
            began = time.monotonic()
            verb = do_while(step, instance, number / (rounds - 1) * duration_s, partial(os.kill, controller, signal.SIGKILL))
            killed_here += 1
            if number % 2:  # and the next one, while it takes over
                successor = wait_until(partial(next_controller, controller))
                verb.over.wait(chance.uniform(0.0, 0.1))
                os.kill(successor, signal.SIGKILL)
                killed_here += 1
            verb.join(ANSWER_WITHIN_S)
            slowest_s = max(slowest_s, time.monotonic() - began)
            assert not verb.is_alive(), f"{step.verb} has not returned"
            assert verb.error is None, f"{step.verb}: {verb.error}"
            assert asked_for(instance, there), f"{step.verb} returned, and is not applied"
            check_answers(instance, there)
            wait_whole(instance, there)
            assert constructed(journal) == expected, f"{step.verb}: replicas were started more than once"
    instance.shutdown()
    figure("verbs, each applied once", rounds * len(verbs))
    figure("kills of controllers", kills + killed_here)
    figure("the slowest verb", slowest_s, at_most_s=5.0)


def next_controller(dead: int) -> int:
    """The one that lives in the place of a dead one, whether it answers or not; 0 where there is none yet."""
    for pid in processes().keys() - {dead}:
        with contextlib.suppress(OSError):  # it has just ended
            if Path(f"/proc/{pid}/comm").read_text().strip() == "hg-controller":
                return pid
    return 0


class Stuck:
    """Never answers, or is never constructed."""

    def __init__(self, *, constructor: bool = False) -> None:
        if constructor:
            time.sleep(600)

    def __call__(self, request: Any) -> None:
        time.sleep(600)


def create_late(instance: Instance) -> None:
    instance.create_backend("late", Stuck, constructor=True)


def under_way(instance: Instance, creation: Verb) -> bool:
    """Whether the replica of that creation is in its constructor, and a request in its handler."""
    assert creation.error is None, creation.error
    busy = any(queue.in_flight for queue in instance.stat().counters.queues)
    return busy and len(processes()) == 10  # supervisor, controller, two ingresses, six replicas


@pytest.mark.timeout(600)
def test_a_supervisor_dies_and_everything_with_it_within_2_seconds_and_the_next_init_is_whole(tmp_path: Path, figure: Figures, long: bool):
    state_dir, journal = tmp_path / "state", str(tmp_path / "journal")
    instance = start(state_dir, num_ingresses=2)
    there = begin(instance, journal)
    instance.create_backend("stuck", Stuck)
    instance.create_endpoint("stuck", "/stuck", backend="stuck")
    instance.create_backend("fresh", Version, journal, "fresh", ray_actor_options={"runtime_env": {"env_vars": {"PYTHONHASHSEED": "7"}}})
    before = instance.status()
    gone_s = []
    for _ in range(30 if long else 2):
        wait_until(partial(whole, instance))
        request = Asked(f"{instance.http_url}/stuck")
        request.start()
        creation = Verb(Step("create_backend", create_late, lambda there: there), instance)
        creation.start()
        wait_until(partial(under_way, instance, creation))
        (supervisor,) = process(instance, "supervisor")
        os.kill(supervisor, signal.SIGKILL)
        gone_s.append(wait_gone())
        request.join(1)
        assert isinstance(request.error, requests.ConnectionError), request.error

        instance = start(state_dir, num_ingresses=2)
        creation.join(ANSWER_WITHIN_S)
        assert isinstance(creation.error, NotRunningError)
        now = instance.status()
        assert (now.endpoints, now.backends.keys()) == (before.endpoints, before.backends.keys())
        for tag, backend in now.backends.items():
            assert (backend.config, backend.options) == (before.backends[tag].config, before.backends[tag].options)
        check_answers(instance, there)
    instance.shutdown()
    figure("everything was gone, the latest", max(gone_s), at_most_s=2.0)


class Asked(threading.Thread):
    """A request under way in a thread of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(name=url)
        self.error: BaseException | None = None
        self._url = url

    def run(self) -> None:
        try:
            requests.get(self._url, timeout=60)
        except BaseException as error:  # noqa: BLE001  # whoever joins looks at it
            self.error = error
