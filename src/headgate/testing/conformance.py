"""What must every engine keep to? Checks that a new engine passes before Headgate runs on it.

A `Harness` says how to reach one engine and what its replicas do; `CHECKS` are coroutine functions that take one, opened
and fresh. With pytest:

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_my_engine(check):
        async def run():
            async with MyHarness() as harness:
                await check(harness)
        asyncio.run(run())

A check that finds the engine at fault raises `AssertionError`. Checks wait for conditions, at most `WAIT_S` seconds each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.messages import Applied, Configure, Drain, Hello, Message
from headgate.engines.base import Ended, Engine, IngressSpec, ReplicaSpec, Running
from headgate.errors import InsufficientResourcesError, InvalidValueError, NotFoundError, NotRunningError, ReplicaStartError

T = TypeVar("T")

WAIT_S: Final = 20.0

WORKS: Final = "works"
"""Constructs at once, and ends at once when it is drained."""
GATED: Final = "gated"
"""Waits in its constructor until `Harness.let` is called for it; then works."""
RAISES: Final = "raises"
"""Its constructor raises `RuntimeError("no model here")`."""
DIES: Final = "dies"
"""Its constructor ends the process with status 3."""
LINGERS: Final = "lingers"
"""When it is drained, it has work to finish first, well under a second of it."""
STUCK: Final = "stuck"
"""Constructs at once; answers no ping, and does not end when it is drained."""


class Harness(Protocol):
    """One engine under test, opened, with nothing running; `on_end`, `on_message` and `on_leave` must call `Records` of the harness.

    It has the resources `{"CPU": 4, "GPU": 2, "tpu": 1}`.
    """

    @property
    def engine(self) -> Engine:
        """The engine under test: after `successor`, the next one."""
        ...

    @property
    def records(self) -> Records:
        """What it has reported."""
        ...

    @property
    def adopted(self) -> list[Running]:
        """What `open` of the engine returned."""
        ...

    def replica(
        self, behaviour: str, id: str, *, options: ReplicaOptions | None = None, config: BackendConfig | None = None
    ) -> ReplicaSpec:
        """A spec whose replica behaves so."""
        ...

    def ingress(self, id: str) -> IngressSpec:
        """A spec of an ingress that works."""
        ...

    def constructing(self, id: str) -> bool:
        """Whether a GATED replica is in its constructor."""
        ...

    def let(self, id: str) -> None:
        """A GATED replica may finish its constructor."""
        ...

    def finished(self, id: str) -> bool:
        """Whether a LINGERS replica has finished its work."""
        ...

    def crash(self, id: str) -> None:
        """End it from outside, without the engine's doing."""
        ...

    def say(self, id: str, message: Message) -> None:
        """Have a ready replica or ingress send this message."""
        ...

    def heard(self, id: str) -> list[Message]:
        """What a replica or ingress was sent, apart from pings."""
        ...

    async def successor(self) -> Engine:
        """Lose the engine as when the controller dies; return the next one, opened."""
        ...

    def leave(self) -> bool:
        """Tell the instance to end, as the machine does; False where this engine's machines have no such word."""
        ...

    def leftovers(self) -> list[str]:
        """What of the engine's processes, threads, sockets and files is still there, in words."""
        ...


class Records:
    """What an engine has reported: set its methods as the engine's `on_end`, `on_message` and `on_leave`."""

    def __init__(self) -> None:
        self.ended: list[Ended] = []
        self.messages: list[tuple[str, Message]] = []
        self.leaves = 0

    def on_end(self, ended: Ended) -> None:
        """Note an end."""
        self.ended.append(ended)

    def on_message(self, id: str, message: Message) -> None:
        """Note a message."""
        self.messages.append((id, message))

    def on_leave(self) -> float:
        """Note that the instance is to end."""
        self.leaves += 1
        return WAIT_S

    def ends_of(self, id: str) -> list[Ended]:
        """The ends that were reported for this id: at most one."""
        return [ended for ended in self.ended if ended.id == id]


async def check_a_start_returns_when_construction_has_finished(harness: Harness) -> None:
    """`start_replica` waits for the constructor, and says where the replica takes links."""
    start = asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, "a")))
    await _until(lambda: harness.constructing("a"), "the constructor was not entered")
    assert not start.done(), "start_replica returned before construction had finished"
    harness.let("a")
    running = await _soon(start)
    assert (running.id, running.role, running.state) == ("a", "replica", "ready"), running
    assert running.address, "a ready replica has an address"
    assert not harness.records.ended


async def check_replicas_start_side_by_side(harness: Harness) -> None:
    """A slow constructor does not hold up the start of another replica."""
    slow = asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, "slow")))
    await _until(lambda: harness.constructing("slow"), "the constructor was not entered")
    await _soon(asyncio.gather(*(harness.engine.start_replica(harness.replica(WORKS, f"quick-{number}")) for number in range(3))))
    assert not slow.done()
    harness.let("slow")
    await _soon(slow)


async def check_a_constructor_that_raises_leaves_nothing(harness: Harness) -> None:
    """`ReplicaStartError` has the remote traceback; the replica is gone, and its resources are free."""
    spec = harness.replica(RAISES, "a", options=ReplicaOptions(num_cpus=4))
    error = await _start_error(harness, spec)
    assert "no model here" in str(error), f"the message or traceback says what the constructor raised, not: {error}"
    assert error.remote_traceback, "the remote traceback goes along"
    _assert_gone(harness, "a")


async def check_a_constructor_that_dies_leaves_nothing(harness: Harness) -> None:
    """A process that ends in its constructor is a `ReplicaStartError` too."""
    await _start_error(harness, harness.replica(DIES, "a", options=ReplicaOptions(num_cpus=4)))
    _assert_gone(harness, "a")


async def check_a_constructor_that_takes_too_long_is_ended(harness: Harness) -> None:
    """After `startup_timeout` the replica is ended, and the error names the key."""
    config = BackendConfig(startup_timeout=0.2)
    error = await _start_error(harness, harness.replica(GATED, "a", config=config, options=ReplicaOptions(num_cpus=4)))
    assert "startup_timeout" in str(error), error
    _assert_gone(harness, "a")


async def check_a_cancelled_start_leaves_nothing(harness: Harness) -> None:
    """Cancelling `start_replica` ends the replica before the cancellation returns."""
    start = asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, "a", options=ReplicaOptions(num_cpus=4))))
    await _until(lambda: harness.constructing("a"), "the constructor was not entered")
    start.cancel()
    await asyncio.wait([start], timeout=WAIT_S)
    assert start.cancelled(), "start_replica must end by the cancellation"
    _assert_gone(harness, "a")


async def check_a_stop_ends_a_replica_in_its_constructor(harness: Harness) -> None:
    """There is nothing to drain: it ends at once, whatever the grace, and its start fails."""
    start = asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, "a")))
    await _until(lambda: harness.constructing("a"), "the constructor was not entered")
    await _soon(harness.engine.stop("a", 3600.0))
    await asyncio.wait([start], timeout=WAIT_S)
    assert isinstance(start.exception(), ReplicaStartError), "the start of a replica that was stopped raises ReplicaStartError"
    _assert_gone(harness, "a")


async def check_a_death_is_reported_once(harness: Harness) -> None:
    """The end of a replica that nobody asked for is told once, and its resources are free."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=ReplicaOptions(num_cpus=4))))
    harness.crash("a")
    await _until(lambda: harness.records.ends_of("a"), "the death was not reported")
    ended = harness.records.ends_of("a")[0]
    assert ended.role == "replica"
    assert not ended.asked_for
    assert ended.reason
    await harness.engine.kill("a")
    _assert_gone(harness, "a")


async def check_a_stop_lets_work_end(harness: Harness) -> None:
    """Within the grace a replica finishes what it has, and `stop` returns when it has ended."""
    await _soon(harness.engine.start_replica(harness.replica(LINGERS, "a")))
    await _soon(harness.engine.stop("a", WAIT_S))
    assert harness.finished("a"), "the replica was ended before its work"
    assert harness.records.ends_of("a")[0].asked_for
    _assert_gone(harness, "a")


async def check_a_stop_kills_after_the_grace(harness: Harness) -> None:
    """What does not end by itself is killed."""
    await _soon(harness.engine.start_replica(harness.replica(STUCK, "a")))
    await _soon(harness.engine.stop("a", 0.1))
    assert harness.records.ends_of("a")[0].asked_for
    _assert_gone(harness, "a")


async def check_a_kill_ends_at_once(harness: Harness) -> None:
    """`kill` returns when it has ended; a second one finds nothing to do."""
    await _soon(harness.engine.start_replica(harness.replica(STUCK, "a")))
    await _soon(harness.engine.kill("a"))
    assert harness.records.ends_of("a")[0].asked_for
    await _soon(harness.engine.kill("a"))
    _assert_gone(harness, "a")


async def check_unknown_ids_are_ended_already(harness: Harness) -> None:
    """Stopping or killing them does nothing, messages to and from them are dropped, and nobody may connect as one."""
    await _soon(harness.engine.stop("nobody", 1.0))
    await _soon(harness.engine.kill("nobody"))
    harness.engine.send("nobody", Configure(BackendConfig()))
    harness.engine.received("nobody", Applied(1))
    assert not harness.engine.connected(Hello(1, "replica", "nobody", 1), _Nowhere())
    for wait in (harness.engine.ping("nobody"), harness.engine.wait_ready("nobody")):
        try:
            await _soon(wait)
        except NotFoundError:
            continue
        raise AssertionError("pinging, or waiting for, an unknown id raises NotFoundError")
    assert not harness.records.ended
    assert not harness.records.messages


async def check_an_id_is_used_once_at_a_time(harness: Harness) -> None:
    """Starting a second replica under the id of one that runs is refused and leaves the first alone."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a")))
    try:
        await _soon(harness.engine.start_replica(harness.replica(WORKS, "a")))
    except InvalidValueError:
        pass
    else:
        raise AssertionError("an id that is taken raises InvalidValueError")
    await _soon(harness.engine.ping("a"))
    assert not harness.records.ended


async def check_a_wrong_token_is_refused(harness: Harness) -> None:
    """Only who knows the token of the spec, in the right role, is let in."""
    spec = harness.replica(WORKS, "a")
    await _soon(harness.engine.start_replica(spec))
    assert not harness.engine.connected(Hello(1, "replica", "a", 1, token="guessed"), _Nowhere())
    assert not harness.engine.connected(Hello(1, "replica", "a", 1), _Nowhere())
    assert not harness.engine.connected(Hello(1, "ingress", "a", 1, token=spec.token), _Nowhere())
    await _soon(harness.engine.ping("a"))


async def check_a_ping_is_answered_by_who_is_alive(harness: Harness) -> None:
    """One that is stuck never answers; one that ends meanwhile raises `NotFoundError`."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a")))
    await _soon(harness.engine.ping("a"))
    await _soon(harness.engine.start_replica(harness.replica(STUCK, "b")))
    ping = asyncio.ensure_future(harness.engine.ping("b"))
    done, _ = await asyncio.wait([ping], timeout=0.2)
    assert not done, "a stuck replica gives no sign of life"
    await _soon(harness.engine.kill("b"))
    await asyncio.wait([ping], timeout=WAIT_S)
    assert isinstance(ping.exception(), NotFoundError), "a ping ends when its replica does"


async def check_messages_arrive(harness: Harness) -> None:
    """What is sent reaches the replica, and what a replica says and isn't the engine's own reaches the owner."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a")))
    told = Configure(BackendConfig(num_replicas=7))
    harness.engine.send("a", told)
    await _until(lambda: told in harness.heard("a"), "a message to a replica did not arrive")
    harness.say("a", Applied(12))
    await _until(lambda: ("a", Applied(12)) in harness.records.messages, "a message of a replica was not passed on")


async def check_an_ingress_starts_and_stops(harness: Harness) -> None:
    """`start_ingress` returns when it has said hello."""
    running = await _soon(harness.engine.start_ingress(harness.ingress("i")))
    assert (running.id, running.role, running.state) == ("i", "ingress", "ready"), running
    await _soon(harness.engine.stop("i", WAIT_S))
    assert harness.records.ends_of("i")[0].role == "ingress"
    _assert_gone(harness, "i")


async def check_the_books_are_kept(harness: Harness) -> None:
    """Resources are taken by what runs and are free after its end, also after a crash."""
    options = ReplicaOptions(num_cpus=1.5, resources={"tpu": 1})
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=options)))
    totals, free = harness.engine.resources()
    assert (totals["CPU"], totals["GPU"], totals["tpu"]) == (4, 2, 1), totals
    assert (free["CPU"], free["tpu"]) == (2.5, 0), free
    assert harness.engine.fits(ReplicaOptions(num_cpus=1), 2) is None
    assert harness.engine.fits(ReplicaOptions(num_cpus=1), 3), "three do not fit into 2.5"
    assert harness.engine.fits(ReplicaOptions(num_cpus=1), 4, without=["a"]) is None
    harness.crash("a")
    await _until(lambda: harness.records.ends_of("a"), "the death was not reported")
    assert harness.engine.resources()[1]["CPU"] == 4


async def check_what_can_never_fit_is_refused_at_once(harness: Harness) -> None:
    """`InsufficientResourcesError` names what is asked for and what there is; nothing is started, nothing is booked."""
    options = ReplicaOptions(num_cpus=5)
    assert harness.engine.may_fit(options, 1), "no replica of 5 CPUs fits into 4"
    assert harness.engine.may_fit(ReplicaOptions(num_cpus=2), 3), "three of 2 CPUs don't fit into 4"
    assert harness.engine.may_fit(ReplicaOptions(num_cpus=2), 2) is None
    refusal = await _refusal(harness, harness.replica(GATED, "a", options=options))
    assert "5" in str(refusal), refusal
    assert "CPU" in str(refusal), refusal
    assert not harness.records.ended
    assert harness.engine.resources()[1]["CPU"] == 4


async def check_what_does_not_fit_now_waits_or_is_refused_at_once(harness: Harness) -> None:
    """Which of them is told by `may_fit`. What waits is told by `waiting`, books nothing, and starts when there is room."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=ReplicaOptions(num_cpus=3))))
    options = ReplicaOptions(num_cpus=2)
    assert harness.engine.fits(options, 1), "2 CPUs don't fit into 1"
    spec = harness.replica(WORKS, "b", options=options)
    if harness.engine.may_fit(options, 1) is not None:
        refusal = await _refusal(harness, spec)
        assert "2" in str(refusal), refusal
        assert "CPU" in str(refusal), refusal
        assert not harness.engine.waiting()
        assert harness.engine.resources()[1]["CPU"] == 1
        return
    start = asyncio.ensure_future(harness.engine.start_replica(spec))
    await _until(lambda: "b" in harness.engine.waiting(), "what waits for room is not told")
    why = harness.engine.waiting()["b"]
    assert "2" in why, why
    assert "CPU" in why, why
    assert harness.engine.resources()[1]["CPU"] == 1
    assert not start.done()
    await _soon(harness.engine.stop("a", WAIT_S))
    assert (await _soon(start)).state == "ready"
    assert not harness.engine.waiting()
    assert harness.engine.resources()[1]["CPU"] == 2


async def check_a_wait_for_room_ends(harness: Harness) -> None:
    """After `startup_timeout`, by a stop, or by a cancellation; nothing is left of it then."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=ReplicaOptions(num_cpus=3))))
    options = ReplicaOptions(num_cpus=2)
    if harness.engine.may_fit(options, 1) is not None:
        return
    refusal = await _refusal(harness, harness.replica(GATED, "b", options=options, config=BackendConfig(startup_timeout=0.3)))
    assert "waited 0.3 s" in str(refusal), refusal
    starts = [asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, id, options=options))) for id in "cd"]
    await _until(lambda: sorted(harness.engine.waiting()) == ["c", "d"], "what waits for room is not told")
    starts[0].cancel()
    await _soon(harness.engine.stop("d", WAIT_S))
    await asyncio.wait(starts, timeout=WAIT_S)
    assert starts[0].cancelled()
    assert isinstance(starts[1].exception(), ReplicaStartError), starts[1].exception()
    assert not harness.engine.waiting()
    assert [ended.id for ended in harness.records.ended].count("a") == 0
    assert harness.engine.resources()[1]["CPU"] == 1


async def check_the_next_engine_knows_what_waits_for_room(harness: Harness) -> None:
    """It is told as starting, and starts when there is room."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=ReplicaOptions(num_cpus=3))))
    options = ReplicaOptions(num_cpus=2)
    if harness.engine.may_fit(options, 1) is not None:
        return
    start = asyncio.ensure_future(harness.engine.start_replica(harness.replica(WORKS, "b", options=options)))
    await _until(lambda: "b" in harness.engine.waiting(), "what waits for room is not told")
    engine = await _soon(harness.successor())
    assert {running.id: running.state for running in harness.adopted} == {"a": "ready", "b": "starting"}
    await _until(lambda: "b" in engine.waiting(), "what waits for room is not told by the next engine")
    ready = asyncio.ensure_future(engine.wait_ready("b"))
    await _soon(engine.stop("a", WAIT_S))
    assert (await _soon(ready)).state == "ready"
    start.cancel()  # of an engine that is no more
    await asyncio.wait([start], timeout=WAIT_S)


async def check_devices_are_shared_only_by_fractions(harness: Harness) -> None:
    """A whole GPU is one replica's alone; halves share a device."""
    whole, half = ReplicaOptions(num_gpus=1), ReplicaOptions(num_gpus=0.5)
    first = await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=whole)))
    second = await _soon(harness.engine.start_replica(harness.replica(WORKS, "b", options=half)))
    third = await _soon(harness.engine.start_replica(harness.replica(WORKS, "c", options=half)))
    assert len(first.gpus) == len(second.gpus) == 1
    assert first.gpus != second.gpus, "a whole device was shared"
    assert second.gpus == third.gpus, "two halves fill one device"
    assert harness.engine.fits(half, 1), "nothing is left"


async def check_the_next_engine_adopts_what_runs(harness: Harness) -> None:
    """After the controller's death nothing has ended: ready replicas are told as ready, starting ones go on, the books are right."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a", options=ReplicaOptions(num_gpus=1))))
    await _soon(harness.engine.start_ingress(harness.ingress("i")))
    start = asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, "b", options=ReplicaOptions(num_cpus=1))))
    await _until(lambda: harness.constructing("b"), "the constructor was not entered")
    devices = harness.engine.resources()[1]["GPU"]
    engine = await _soon(harness.successor())
    found = {running.id: running for running in harness.adopted}
    assert {id: running.state for id, running in found.items()} == {"a": "ready", "i": "ready", "b": "starting"}, found
    assert found["a"].address
    assert len(found["a"].gpus) == 1
    assert found["a"].spec is not None
    assert engine.resources()[1]["GPU"] == devices
    assert engine.resources()[1]["CPU"] == 3
    await _soon(engine.ping("a"))
    harness.let("b")
    assert (await _soon(engine.wait_ready("b"))).state == "ready"
    assert not harness.records.ended
    await _soon(engine.stop("a", WAIT_S))
    assert harness.records.ends_of("a")
    start.cancel()  # of an engine that is no more
    await asyncio.wait([start], timeout=WAIT_S)


async def check_the_next_engine_knows_what_drains(harness: Harness) -> None:
    """A replica that was told to stop is told as draining, and ends when it is told again."""
    await _soon(harness.engine.start_replica(harness.replica(STUCK, "a")))
    stop = asyncio.ensure_future(harness.engine.stop("a", WAIT_S))
    await _until(lambda: any(isinstance(message, Drain) for message in harness.heard("a")), "the replica was not told to drain")
    engine = await _soon(harness.successor())
    assert [running.state for running in harness.adopted] == ["draining"]
    await _soon(engine.stop("a", 0.1))
    assert harness.records.ends_of("a")[0].asked_for
    _assert_gone(harness, "a")
    stop.cancel()  # of an engine that is no more
    await asyncio.wait([stop], timeout=WAIT_S)


async def check_the_owner_is_told_to_leave_and_so_is_the_next(harness: Harness) -> None:
    """`on_leave` is called, and nothing ends that the owner does not end; of one that dies over it the successor is told as it opens."""
    await _soon(harness.engine.start_replica(harness.replica(WORKS, "a")))
    if not harness.leave():
        return
    await _until(lambda: harness.records.leaves == 1, "the owner was not told")
    await _soon(harness.engine.ping("a"))
    await _soon(harness.successor())
    assert harness.records.leaves == 2, "the next owner is told before open returns"
    await _soon(harness.engine.ping("a"))
    assert not harness.records.ended


async def check_close_leaves_nothing(harness: Harness) -> None:
    """Everything ends, also what is in its constructor; nothing can be started afterwards."""
    await _soon(harness.engine.start_replica(harness.replica(STUCK, "a")))
    await _soon(harness.engine.start_ingress(harness.ingress("i")))
    start = asyncio.ensure_future(harness.engine.start_replica(harness.replica(GATED, "b")))
    await _until(lambda: harness.constructing("b"), "the constructor was not entered")
    await _soon(harness.engine.close())
    await asyncio.wait([start], timeout=WAIT_S)
    assert isinstance(start.exception(), ReplicaStartError | NotRunningError), "a start fails when the engine is closed"
    assert sorted(ended.id for ended in harness.records.ended) == ["a", "b", "i"], harness.records.ended
    await _until(lambda: not harness.leftovers(), "something is left", harness.leftovers)
    try:
        await _soon(harness.engine.start_replica(harness.replica(WORKS, "c")))
    except NotRunningError:
        return
    raise AssertionError("a closed engine starts nothing")


Check = Callable[[Harness], Awaitable[None]]

CHECKS: Final[tuple[Check, ...]] = tuple(found for name, found in globals().items() if name.startswith("check_"))
"""All checks, in the order of this file."""


class _Nowhere:
    """A peer whose connection leads nowhere."""

    def send(self, message: Message) -> None:
        pass


async def _start_error(harness: Harness, spec: ReplicaSpec) -> ReplicaStartError:
    try:
        await _soon(harness.engine.start_replica(spec))
    except ReplicaStartError as error:
        return error
    raise AssertionError("the start of a replica whose construction fails raises ReplicaStartError")


async def _refusal(harness: Harness, spec: ReplicaSpec) -> InsufficientResourcesError:
    try:
        await _soon(harness.engine.start_replica(spec))
    except InsufficientResourcesError as error:
        return error
    raise AssertionError("what has no room raises InsufficientResourcesError")


def _assert_gone(harness: Harness, id: str) -> None:
    """It has ended, was reported once, and holds nothing any more, at this very moment."""
    assert len(harness.records.ends_of(id)) == 1, f"its end is reported once, not {harness.records.ends_of(id)}"
    totals, free = harness.engine.resources()
    assert totals == free, f"its resources are free again, not {free} of {totals}"
    assert not harness.engine.connected(Hello(1, "replica", id, 1, token=f"token-{id}"), _Nowhere()), "its token is worth nothing any more"


async def _soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


async def _until(condition: Callable[[], object], complaint: str, what: Callable[[], object] = lambda: "") -> None:
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{complaint} within {WAIT_S:g} s {what()}"
        await asyncio.sleep(0.005)
