"""How is one replica started, watched, drained and ended?

The fleet keeps a record of every replica that the engine runs and moves it through the table of `core/replica_life.py`.
Which replicas there should be is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Container, Iterable

from headgate.config import BackendConfig
from headgate.controller.tasks import Changes, Tasks, in_time
from headgate.core import histograms
from headgate.core import replica_life as life
from headgate.core.desired import Backend
from headgate.core.histograms import START_TICKS_PER_S, Tally
from headgate.core.messages import Configure
from headgate.core.reconcile import Actual
from headgate.engines.base import Ended, Engine, InstanceSettings, ReplicaSpec, Running
from headgate.errors import HeadgateError, InsufficientResourcesError, ReplicaStartError

_log = logging.getLogger("headgate.controller")


class Replica:
    """One replica: what it was started from, and what has become of it."""

    def __init__(self, spec: ReplicaSpec, config: BackendConfig, number: int, now: float, *, held: bool, adopted: bool = False) -> None:
        self.spec = spec
        self.config = config  # which may have changed since it started
        self.number = number  # by age
        self.held = held  # belongs to a verb under way: not reconciled, and …
        self.shown = not held  # … not in the table
        self.adopted = adopted  # started by a controller before this one
        self.dismissed = False  # drained, or ended by a verb: its end is no failure
        self.state = life.STARTING
        self.starting = False  # `Fleet.start` runs for it, and will see to its end …
        self.gone = ""  # … which the engine has told already: how it ended
        self.since = now  # of its state
        self.ready_at: float | None = None
        self.pid: int | None = None
        self.node = ""
        self.gpus: tuple[str, ...] = ()
        self.address = ""
        self.answered = 0
        self.no_room = False  # it did not fit into what was free
        self.given_up = ""  # why it need not wait for room any longer
        self.fault = ""  # why it is killed, or how it ended …
        self.failure = ""  # … and with the remote traceback, if it did not start
        self.cause = ""  # of its death, where it is killed; one of those in `core/replica_life.py`
        self.watch: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def tag(self) -> str:
        return self.spec.backend

    @property
    def generation(self) -> int:
        return self.spec.generation

    @property
    def live(self) -> bool:
        """Whether it counts towards what is wanted."""
        return self.state in (life.STARTING, life.READY)

    def actual(self) -> Actual:
        """What `core/reconcile.py` has to know."""
        return Actual(self.id, self.tag, self.generation, self.state, self.number)

    def move(self, event: str, now: float) -> None:
        """Follow the table."""
        state = life.after(self.state, event)
        if state != self.state:
            self.state, self.since = state, now


class Fleet:
    """All replicas. `changed` is called when what routers see has changed, `over` with each one that has ended."""

    def __init__(
        self,
        engine: Engine,
        settings: InstanceSettings,
        tasks: Tasks,
        changes: Changes,
        *,
        changed: Callable[[], object],
        over: Callable[[Replica], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._tasks = tasks
        self._changes = changes
        self._changed = changed
        self._over = over
        self._replicas: dict[str, Replica] = {}
        self.starts: Counter[str] = Counter()
        """Starts by backend, whatever came of them, …"""
        self.start_failures: Counter[str] = Counter()
        """… those of them that failed: not for want of room, nor because nobody wanted them any more, …"""
        self.start_times: dict[str, Tally] = {}
        """… and how long those took that this controller began and that became ready."""
        self.deaths: Counter[tuple[str, str]] = Counter()
        """Ends of ready replicas that nobody asked for, by backend and cause."""
        self._numbers = itertools.count()

    def get(self, id: str) -> Replica | None:
        """The replica of this id, unless it has ended."""
        return self._replicas.get(id)

    def all(self) -> list[Replica]:
        """Every replica that has not ended."""
        return list(self._replicas.values())

    def of(self, tag: str, generation: int | None = None) -> list[Replica]:
        """Those of one backend, or of one generation of it."""
        return [r for r in self._replicas.values() if r.tag == tag and generation in (None, r.generation)]

    def forget(self, told: Container[str]) -> None:
        """What was counted of backends that aren't among these is told no more."""
        for counts in (self.starts, self.start_failures, self.start_times):
            for tag in [tag for tag in counts if tag not in told]:
                del counts[tag]
        for key in [key for key in self.deaths if key[0] not in told]:
            del self.deaths[key]

    # Beginning.

    def make(self, backend: Backend, *, held: bool) -> Replica:
        """A record of a replica that is to start; `start` starts it."""
        spec = ReplicaSpec(
            id=f"{backend.generation}-{secrets.token_hex(4)}",
            token=secrets.token_hex(16),
            backend=backend.tag,
            generation=backend.generation,
            definition=backend.definition,
            config=backend.config,
            options=backend.options,
            instance=self._settings.name,
            traces=self._settings.traces,
        )
        replica = Replica(spec, backend.config, next(self._numbers), self._now(), held=held)
        self._replicas[replica.id] = replica
        return replica

    def adopt(self, running: Running, *, held: bool, config: BackendConfig) -> Replica:
        """Take note of a replica that a controller before this one started. `config` is what it should follow now."""
        assert isinstance(running.spec, ReplicaSpec)
        replica = Replica(running.spec, config, next(self._numbers), self._now(), held=held, adopted=True)
        self._replicas[replica.id] = replica
        if running.state == life.READY:
            self._ready(replica, running)
        else:
            replica.pid, replica.node, replica.gpus = running.pid, running.node, running.gpus
        if running.state == life.DRAINING:
            replica.move(life.CONSTRUCTED, self._now())
            self.dismiss(replica)
        return replica

    async def start(self, replica: Replica) -> None:
        """Start it, or wait for an adopted one; return when it is ready.

        Raises `InsufficientResourcesError` or `ReplicaStartError`; after that, or a cancellation, nothing of it is left.
        """
        if replica.state == life.READY:
            return
        if replica.state == life.ENDED:
            raise ReplicaStartError(f"replica {replica.id} of backend {replica.tag!r} was stopped before it started")
        replica.starting = True
        began_at = self._now()
        try:
            if replica.adopted:
                running = await self._engine.wait_ready(replica.id)
            else:
                self.starts[replica.tag] += 1
                running = await self._engine.start_replica(replica.spec)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                await asyncio.shield(self._engine.kill(replica.id))  # an adopted one lives on when the wait for it is cancelled
            replica.failure, replica.no_room = str(error), isinstance(error, InsufficientResourcesError)
            if isinstance(error, ReplicaStartError):
                self._count_failure(replica)
            self._end(replica, error.message if isinstance(error, HeadgateError) else repr(error))
            raise
        finally:
            replica.starting = False
        if replica.gone:
            self._count_failure(replica)
            self._end(replica, replica.gone)
        if replica.state == life.ENDED:
            raise ReplicaStartError(f"replica {replica.id} of backend {replica.tag!r} ended as soon as it was ready: {replica.fault}")
        self._ready(replica, running)
        if replica.state != life.READY:
            raise ReplicaStartError(f"replica {replica.id} of backend {replica.tag!r} was stopped while it started")
        if not replica.adopted:
            self._count_start(replica.tag, self._now() - began_at)

    # Ending.

    async def drain(self, replica: Replica, grace_s: float) -> None:
        """End it after it has finished what it has, at the latest after `grace_s`. Take it out of the table first: `dismiss`."""
        deadline = self._now() + grace_s
        was_ready = replica.state != life.STOPPING
        await self._engine.stop(replica.id, grace_s)
        if was_ready and self._now() >= deadline:
            _log.warning("replica %s of backend %r was ended over what it had not finished within its grace", replica.id, replica.tag)
        self._end(replica, "stopped")

    def dismiss(self, replica: Replica) -> None:
        """It is to go: out of the table with it."""
        replica.dismissed = True
        replica.move(life.DRAIN, self._now())
        self._stop_watching(replica)

    async def kill(self, replica: Replica, why: str, *, dismissed: bool = False) -> None:
        """End it now."""
        if replica.state == life.ENDED:
            return
        replica.dismissed = replica.dismissed or dismissed
        replica.fault = why
        was_visible = replica.state == life.READY and replica.shown
        replica.move(life.KILL, self._now())
        self._stop_watching(replica)
        if was_visible:
            self._changed()
        await self._engine.kill(replica.id)
        self._end(replica, why)

    def kill_soon(self, replica: Replica, why: str, cause: str = "") -> None:
        """Have it ended: it is stuck, or can't be talked to."""
        if replica.state in (life.STARTING, life.READY, life.DRAINING):
            replica.cause = replica.cause or cause
            _log.warning("replica %s of backend %r is killed: %s", replica.id, replica.tag, why)
            self._tasks.spawn(self.kill(replica, why), f"kill of {replica.id}")

    def ended(self, ended: Ended) -> None:
        """The engine says that it has ended."""
        replica = self._replicas.get(ended.id)
        if replica is None:
            return
        if replica.starting:  # why it did not start is in the error that is on its way
            replica.gone = ended.reason
        else:
            self._end(replica, ended.reason)

    # Configuration.

    def configure(self, replicas: Iterable[Replica], config: BackendConfig) -> None:
        """Have replicas follow their backend's config from now on; those that start take it when they are ready."""
        for replica in replicas:
            period_s, replica.config = replica.config.health_check_period, config
            if replica.state == life.READY:
                self._engine.send(replica.id, Configure(config))
            if replica.watch is not None and config.health_check_period != period_s:  # it may be asleep for long
                self._stop_watching(replica)
                self._start_watching(replica)

    # Inside.

    def _ready(self, replica: Replica, running: Running) -> None:
        replica.pid, replica.node, replica.gpus, replica.address = running.pid, running.node, running.gpus, running.address
        replica.move(life.CONSTRUCTED, self._now())
        if replica.state == life.READY:
            replica.ready_at = self._now()
            if replica.adopted or replica.config != replica.spec.config:  # it may have missed a change
                self.configure([replica], replica.config)
            self._start_watching(replica)
        self._changes.tell()

    def _end(self, replica: Replica, reason: str) -> None:
        """Called by whoever learns of it first."""
        if replica.state == life.ENDED:
            return
        replica.fault = replica.fault or reason
        replica.move(life.END, self._now())
        self._stop_watching(replica)
        del self._replicas[replica.id]
        self._over(replica)
        self._changes.tell()

    def _count_failure(self, replica: Replica) -> None:
        if not (replica.dismissed or replica.given_up):
            self.start_failures[replica.tag] += 1

    def _count_start(self, tag: str, took_s: float) -> None:
        histograms.observe(self.start_times.setdefault(tag, histograms.tally()), took_s, START_TICKS_PER_S)

    async def _watch(self, replica: Replica) -> None:
        """Ask a ready replica for signs of life, until it is no longer ready."""
        while replica.state == life.READY:
            await asyncio.sleep(replica.config.health_check_period)
            fault = await self.check(replica)
            if fault:
                self.kill_soon(replica, fault, life.HEALTH_CHECK)
                return

    async def check(self, replica: Replica) -> str:
        """Ask one replica for a sign of life; what is wrong with it, or an empty string."""
        config = replica.config
        try:
            pong = await in_time(self._engine.ping(replica.id), config.health_check_timeout)
        except TimeoutError:
            return f"its I/O thread did not answer for {config.health_check_timeout:g} s"
        except HeadgateError:  # it has ended, which is told elsewhere
            return ""
        replica.answered = max(replica.answered, pong.answered)
        if pong.overdue_s > config.health_check_timeout:
            return f"a call runs {pong.overdue_s:.1f} s past request_timeout, over health_check_timeout ({config.health_check_timeout:g} s)"
        return pong.unhealthy

    def _start_watching(self, replica: Replica) -> None:
        replica.watch = self._tasks.spawn(self._watch(replica), f"watch of {replica.id}")

    def _stop_watching(self, replica: Replica) -> None:
        if replica.watch is not None:
            replica.watch.cancel()
        replica.watch = None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
