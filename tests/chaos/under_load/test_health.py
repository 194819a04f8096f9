"""What do clients and the operator see of a replica that answers pings, and whose work or health check goes on for ever?

And do the pages for load balancers tell the truth?
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import requests

from headgate import serve
from headgate.errors import ReplicaStartError
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.load import Load
from tests.chaos.moments import process, ready
from tests.chaos.workers import Worker, begun
from tests.support import TIME_FACTOR, under_way, wait_until

PERIOD_S = 0.1
TIMEOUT_S = 0.5
QUICK = {"health_check_period": PERIOD_S, "health_check_timeout": TIMEOUT_S}
NO_RETURN = f"check_health() has not returned for health_check_timeout ({TIMEOUT_S:g} s)"


class Trapped(Worker):
    """Who finds the file `trap` in `folder` is caught by it, once: the file takes the name of its process.

    While the file `shut` is there, no constructor gets any further.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(f"{folder}/journal")
        self._trap = f"{folder}/trap"
        wait_until(lambda: not os.path.exists(f"{folder}/shut"), 60)

    def falls_in(self) -> bool:
        try:
            os.rename(self._trap, f"{self._trap}-{os.getpid()}")
        except FileNotFoundError:
            return False
        return True


class Blocks(Trapped):
    """Its health check blocks."""

    def check_health(self) -> None:
        if self.falls_in():
            wait_for_ever()


class Awaits(Trapped):
    """Its health check awaits what doesn't come, beside its requests."""

    async def __call__(self, request: Any) -> str:  # type: ignore[override]  # as asynchronous as it can be
        name: str = request.data.decode()
        os.write(self._journal, f"{name}\n".encode())
        await asyncio.sleep(self._work_s)
        return name

    async def check_health(self) -> None:
        if self.falls_in():
            await asyncio.Event().wait()


class HoldsItsLoop(Awaits):
    """One of its requests never lets go of the event loop; its health check waits behind it."""

    async def __call__(self, request: Any) -> str:  # type: ignore[override]  # as above
        if self.falls_in():
            wait_for_ever()
        return await super().__call__(request)

    async def check_health(self) -> None: ...


class IgnoresItsCancellation(Awaits):
    """One of its requests never ends, though it is cancelled; all else goes on beside it."""

    async def __call__(self, request: Any) -> str:  # type: ignore[override]  # as above
        if self.falls_in():
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
        return await super().__call__(request)

    async def check_health(self) -> None: ...


class LeavesATimer(Awaits):
    """One of its requests is answered, and leaves behind what never lets go of the event loop."""

    async def __call__(self, request: Any) -> str:  # type: ignore[override]  # as above
        if self.falls_in():
            asyncio.get_running_loop().call_later(0.05, self.holds)
        return await super().__call__(request)

    def holds(self) -> None:
        Path(f"{self._trap}-holds").touch()
        wait_for_ever()

    async def check_health(self) -> None: ...


class LeavesATimerUnchecked(LeavesATimer):
    """The same without a health check."""

    check_health = None  # type: ignore[assignment]  # as if it had none


def wait_for_ever() -> NoReturn:
    while True:
        threading.Event().wait()


def caught(folder: Path) -> int:
    """The process that is in the trap, once there is one."""
    (trap,) = wait_until(lambda: list(folder.glob("trap-*")), what="one is caught")
    return int(trap.name.removeprefix("trap-"))


class Pages(NamedTuple):
    """What the two pages for load balancers said at one moment."""

    alive: int
    ready: int
    readiness: dict[str, Any]

    @classmethod
    def of(cls, instance: Instance) -> Pages:
        healthz, readyz = (requests.get(f"{instance.http_url}/-/{page}", timeout=5) for page in ("healthz", "readyz"))
        return cls(healthz.status_code, readyz.status_code, readyz.json())


GOOD = Pages(200, 200, {"status": "ready"})


def looks_until(instance: Instance, done: Callable[[], object]) -> list[Pages]:
    """The pages, looked at again and again until it is done."""
    seen: list[Pages] = []

    def look() -> bool:
        seen.append(Pages.of(instance))
        return bool(done())

    wait_until(look, 20 * TIME_FACTOR, "the end of looking")
    return seen


def serve_trapped(instance: Instance, code: type[Trapped], folder: Path, **config: object) -> str:
    """A backend "b" of that code, and an endpoint; its URL."""
    instance.create_backend("b", code, str(folder), config={**QUICK, **config})
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    return f"{instance.http_url}/e"


class Stuck(NamedTuple):
    """How one of two replicas was caught while requests went on, found, and replaced."""

    load: Load
    caught_at: float
    found_at: float
    replaced_at: float

    def served_meanwhile(self) -> int:
        """Requests that were sent and answered between."""
        return sum(o.status == 200 and o.sent_at > self.caught_at and o.ended_at < self.found_at for o in self.load.outcomes)


def catch_one_of_two(instance: Instance, code: type[Trapped], folder: Path, **config: object) -> Stuck:
    """Have a replica caught, and wait for another in its place. What held for whatever it hung in is asserted here."""
    url = serve_trapped(instance, code, folder, num_replicas=2, **config)
    with Load(url, 60.0) as load:
        load.wait_for_more(50)
        (folder / "trap").touch()
        victim = caught(folder)
        caught_at = time.monotonic()
        pages = looks_until(instance, lambda: victim not in ready(instance, "b"))
        found_at = time.monotonic()
        pages += looks_until(instance, lambda: len(ready(instance, "b")) == 2)
        replaced_at = time.monotonic()
        load.wait_for_more(50)
    load.check_definite()
    # The other one serves all the time; while the new one is on its way, the page may say why it is needed.
    assert {(page.alive, page.ready, page.readiness["status"]) for page in pages} == {(200, 200, "ready")}
    assert begun(f"{folder}/journal").most_common(1)[0][1] == 1, "a request of a backend that is not idempotent ran twice"
    for outcome in load.bad():
        assert outcome.sent_at < replaced_at, outcome
        assert outcome.ended_at > caught_at, outcome
    backend, measured = instance.status().backends["b"], instance.stat()
    assert (backend.state, measured.replica_deaths, measured.unhealthy) == ("ready", {"b": 1}, {})
    return Stuck(load, caught_at, found_at, replaced_at)


@pytest.mark.parametrize("code", [Blocks, Awaits])
def test_a_replica_whose_health_check_does_not_return_is_replaced_while_requests_go_on(
    code: type[Trapped], tmp_path: Path, figure: Figures, capfd: pytest.CaptureFixture[str]
):
    with serve.init(http_port=0) as instance:
        stuck = catch_one_of_two(instance, code, tmp_path)
    said = capfd.readouterr().err
    assert f"of backend 'b' is killed: {NO_RETURN}" in said
    assert f"of backend 'b' ended: {NO_RETURN}" in said
    # What waited behind the check runs elsewhere; what ran beside it when the replica was killed may have had effects.
    assert all(outcome.status == 502 for outcome in stuck.load.bad()), stuck.load.bad()
    figure("requests that failed", len(stuck.load.bad()), at_most=0 if code is Blocks else 3)
    figure("requests served while it was stuck", stuck.served_meanwhile(), at_least=1)
    figure("found", stuck.found_at - stuck.caught_at, at_most_s=TIMEOUT_S + 0.5)
    figure("another serves after that", stuck.replaced_at - stuck.found_at, at_most_s=1.0)


@pytest.mark.parametrize("code", [HoldsItsLoop, IgnoresItsCancellation])
def test_a_replica_whose_asynchronous_work_makes_no_progress_is_replaced_while_requests_go_on(
    code: type[Trapped], tmp_path: Path, figure: Figures, capfd: pytest.CaptureFixture[str]
):
    limit_s = 1.0
    with serve.init(http_port=0) as instance:
        stuck = catch_one_of_two(instance, code, tmp_path, request_timeout=limit_s)
    said = capfd.readouterr().err
    assert "of backend 'b' is killed: a call runs " in said
    assert f"s past request_timeout, over health_check_timeout ({TIMEOUT_S:g} s)" in said
    # The time of the stuck one is over, and of what waits behind it; what ran beside it may have had effects.
    failed = stuck.load.by_status()
    assert 504 in failed
    assert set(failed) <= {200, 502, 504}
    figure("requests that failed", len(stuck.load.bad()))
    figure("requests served while it was stuck", stuck.served_meanwhile(), at_least=1)
    figure("found", stuck.found_at - stuck.caught_at, at_most_s=limit_s + TIMEOUT_S + 0.5)
    figure("another serves after that", stuck.replaced_at - stuck.found_at, at_most_s=1.0)


@pytest.mark.parametrize("code", [LeavesATimer, LeavesATimerUnchecked])
def test_a_replica_whose_event_loop_something_else_than_a_call_holds_is_replaced(
    code: type[Trapped], tmp_path: Path, figure: Figures, capfd: pytest.CaptureFixture[str]
):
    limit_s = 0.5
    with serve.init(http_port=0) as instance:
        url = serve_trapped(instance, code, tmp_path, request_timeout=limit_s)
        (victim,) = ready(instance, "b")
        (tmp_path / "trap").touch()
        assert requests.post(url, "armed", timeout=5).text == "armed"
        wait_until((tmp_path / "trap-holds").exists)
        caught_at = time.monotonic()

        def another_answers() -> bool:
            answer = requests.post(url, "next", timeout=5)
            assert answer.status_code in (200, 502, 504), answer
            return answer.status_code == 200 and victim not in ready(instance, "b")

        wait_until(another_answers, 20 * TIME_FACTOR)
        replaced_at = time.monotonic()
    assert "of backend 'b' is killed: its event loop has stood still for " in capfd.readouterr().err
    allowed_s = TIMEOUT_S if code is LeavesATimer else limit_s + TIMEOUT_S
    figure("another answers", replaced_at - caught_at, at_most_s=allowed_s + 1.5)


@pytest.mark.parametrize("code", [Blocks, Awaits])
def test_why_the_only_replica_is_gone_is_said_everywhere_until_the_next_one_serves(code: type[Trapped], instance: Instance, tmp_path: Path):
    url = serve_trapped(instance, code, tmp_path)
    (victim,) = ready(instance, "b")
    (tmp_path / "shut").touch()
    (tmp_path / "trap").touch()
    assert caught(tmp_path) == victim

    def is_told() -> bool:
        status = instance.status()
        backend = status.backends["b"]
        assert (backend.state, status.ready) == ("unhealthy", False)
        assert [replica.state for replica in backend.replicas] == ["starting"]
        for text in (backend.reason, instance.stat().unhealthy["b"]):
            assert NO_RETURN in text
        return True

    before = looks_until(instance, lambda: not ready(instance, "b"))
    wait_until(is_told)
    # Alive all the time; ready as long as it isn't found, and from then on not.
    assert [page.alive for page in before] == [200] * len(before)
    assert [page.ready for page in before] == sorted(page.ready for page in before)
    stuck = Pages.of(instance)
    assert (stuck.alive, stuck.ready, stuck.readiness["status"], stuck.readiness["backends"]) == (200, 503, "not ready", ["b"])
    assert NO_RETURN in stuck.readiness["unhealthy"]["b"]
    with Load(url, 20.0, timeout_s=20.0) as load:  # the next one is on its way: they wait for it
        wait_until(lambda: under_way(instance, "b") > 5)
        (tmp_path / "shut").unlink()
        wait_until(lambda: Pages.of(instance) == GOOD)
    assert not load.bad()
    wait_until(lambda: (instance.status().backends["b"].state, instance.stat().unhealthy) == ("ready", {}))
    assert instance.status().backends["b"].reason == ""
    assert instance.stat().replica_deaths == {"b": 1}


@pytest.mark.parametrize("code", [Blocks, Awaits])
def test_a_new_version_whose_first_health_check_does_not_return_leaves_the_old_one_serving(
    code: type[Trapped], instance: Instance, tmp_path: Path
):
    url = serve_trapped(instance, code, tmp_path)
    instance.update_backend_config("b", {"startup_timeout": 2.0})
    before = ready(instance, "b")
    with Load(url, 60.0) as load:
        new = tmp_path / "new"
        new.mkdir()
        (new / "trap").touch()
        with pytest.raises(ReplicaStartError, match="startup_timeout"):
            instance.update_backend("b", code, str(new))
        load.wait_for_more(20)
    assert not load.bad()
    assert caught(new) not in before
    assert ready(instance, "b") == before
    assert Pages.of(instance) == GOOD


# What else the pages must tell.


def not_ready(page: Pages) -> bool:
    return (page.alive, page.ready, page.readiness.get("backends")) == (200, 503, ["b"])


def test_the_last_replica_dies_while_there_is_no_controller_to_tell(instance: Instance, tmp_path: Path):
    serve_trapped(instance, Trapped, tmp_path)
    ((victim,), (controller,)) = ready(instance, "b"), process(instance, "controller")
    os.kill(controller, signal.SIGSTOP)
    assert Pages.of(instance) == GOOD
    os.kill(victim, signal.SIGKILL)
    pages = looks_until(instance, lambda: not_ready(Pages.of(instance)))
    os.kill(controller, signal.SIGCONT)
    pages += looks_until(instance, lambda: Pages.of(instance) == GOOD)
    assert {page.alive for page in pages} == {200}


def test_in_the_gap_of_an_update_no_replica_is_ready(instance: Instance, tmp_path: Path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "shut").touch()
    instance.create_backend("b", Trapped, str(tmp_path), ray_actor_options={"num_gpus": 1})
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    with ThreadPoolExecutor(1) as threads:
        update = threads.submit(instance.update_backend, "b", Trapped, str(new), allow_gap=True)
        pages = looks_until(instance, lambda: not_ready(Pages.of(instance)))
        (new / "shut").unlink()
        pages += looks_until(instance, update.done)
        update.result()
    assert {page.alive for page in pages} == {200}
    assert Pages.of(instance) == GOOD


def test_who_has_too_much_to_do_is_ready(instance: Instance, tmp_path: Path):
    instance.create_backend("b", Worker, str(tmp_path / "journal"), 0.5, config={"max_concurrent_queries": 1, "max_queued_queries": 1})
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    with Load(f"{instance.http_url}/e", 50.0) as load:
        wait_until(lambda: load.by_status().get(503, 0) > 20)
        pages = looks_until(instance, lambda: load.by_status().get(503, 0) > 60)
    assert all(page == GOOD for page in pages), pages


def test_a_new_ingress_tells_the_truth_from_its_first_answer(instance: Instance, tmp_path: Path):
    serve_trapped(instance, Trapped, tmp_path)
    for _ in range(5):
        (victim,) = process(instance, "ingress")
        os.kill(victim, signal.SIGKILL)
        assert Pages.of(instance) == GOOD  # it waits for the new one, which answers when it has a table
        assert process(instance, "ingress") != [victim]
