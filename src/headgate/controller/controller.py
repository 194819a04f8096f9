"""How does what runs become what is asked for?

What is asked for is changed by verbs (`verbs.py`); the controller has replicas started and ended as `core/reconcile.py`
says, and pushes routing tables. Between a check and its act there is no `await`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping

import msgspec

from headgate import usage
from headgate.config import BackendConfig
from headgate.controller import kept_counts
from headgate.controller.compare_init import compare_init
from headgate.controller.counting import Counting
from headgate.controller.departures import Departures
from headgate.controller.describe import description
from headgate.controller.fleet import Fleet, Replica
from headgate.controller.ingresses import Ingresses
from headgate.controller.kept_counts import KeptCounts
from headgate.controller.lease import Lease
from headgate.controller.restarts import Restarts
from headgate.controller.rollout import Rollouts
from headgate.controller.routers import Routers
from headgate.controller.server import Connection, ControlServer
from headgate.controller.store import Pending, PendingDeployment, Store
from headgate.controller.tasks import Changes, Tasks
from headgate.controller.verbs import Question, Verbs
from headgate.controller.waiting import WaitsForRoom
from headgate.core import counters, desired, histograms, reconcile
from headgate.core import replica_life as life
from headgate.core.desired import Backend
from headgate.core.failures import Failures
from headgate.core.labels import Labels
from headgate.core.messages import (
    BrokenReplica,
    CompareInit,
    Describe,
    HadAnswered,
    Hello,
    Measure,
    Message,
    ReadLog,
    ReplicaCounted,
    ReplicaEntry,
    RoutingTable,
    Shutdown,
    Unwanted,
    VerbCall,
    VerbLeft,
    Welcome,
)
from headgate.core.pace import Pace
from headgate.core.reconcile import Wanted
from headgate.core.reports import Counters, Description, Failure, Measurement, ProcessReport, ReplicaCounters, ReplicaReport
from headgate.engines.base import Ended, Engine, InstanceSettings, ReplicaSpec, Running
from headgate.errors import AddressInUseError, HeadgateError, InstanceStartError, InvalidValueError, NotFoundError
from headgate.logs import reading
from headgate.logs.reading import Part
from headgate.router import admin, certificate
from headgate.router.way import Way

_log = logging.getLogger("headgate.controller")

COUNT_PERIOD_S = 1.0
"""How often routers and replicas are asked for their counters, so that little is lost of those that end."""
_REPLICAS_PER_S = 500
"""No more are asked: where there are thousands, each has its turn less often."""
_DRAIN_POLL_S = 0.02
_TELL_AFTER_S = 2.0
_INGRESS_GRACE_S = 5.0
_KEPT_FAILURES = 50
"""Of so many ways to fail it is known when that was last."""


class Controller:
    """The controller of one instance. `run` is its whole life."""

    def __init__(self, settings: InstanceSettings, engine: Engine, way: Way, store: Store) -> None:
        self._settings = settings
        self._engine = engine
        self._node = way.node
        self._folder = way.folder
        self._changes = Changes()
        self._tasks = Tasks()
        self._fleet = Fleet(engine, settings, self._tasks, self._changes, changed=self._publish, over=self._replica_over)
        self._labels = Labels()
        self._routers = Routers(self._changes, self._labels, build=self._table, in_replica=self._is_in_replica)
        self._replicas: Counting[ReplicaCounters] = Counting(
            self._tag_of, counters.add_up_replicas, counters.lasting_of_replica, self._labels.backends.__contains__
        )
        self._failures = Failures(_KEPT_FAILURES)
        self._departures = Departures(self._fleet, self._routers, self._tasks, self._changes, publish=self._publish)
        self._rollouts = Rollouts(engine, self._fleet, self._changes, reconcile=self._reconcile)
        self._ingresses = Ingresses(engine, settings, self._routers, self._tasks, self._changes)
        self._server = ControlServer(way, self)
        if way.admin_listener is not None:
            self._open_door(way.admin_listener)
        self._store = store
        self._matching = Pace()
        self._unmatched = False  # replicas have started or ended since what runs was compared with what is asked for
        self._adopted = asyncio.Event()
        self._restarts = Restarts(self._reconcile)
        self._verbs = Verbs(
            settings.name,
            engine,
            self._store,
            self._fleet,
            self._rollouts,
            self._departures,
            self._restarts,
            self._routers,
            self._changes,
            self._adopted,
            ask=self._ask,
            reconcile=self._reconcile,
            publish=self._publish,
        )
        self._waits = WaitsForRoom(engine, self._fleet, changed=self._publish, look_again=self._verbs.give_up_waits)
        self._closing = False  # new work is refused, …
        self._starts_missing = True  # False where it isn't known yet whether anybody waits for that
        self._stopping = False  # … and, later, the replicas end: none takes the place of another
        self._ending: asyncio.Task[None] | None = None
        self._shut_down = asyncio.Event()
        self._fatal: HeadgateError | None = None
        self._base = RoutingTable(
            version=0, max_body_bytes=settings.max_body_bytes, max_inflight_bytes=settings.max_inflight_bytes, debug=settings.debug
        )
        self._reading_log = asyncio.Lock()
        self._lease = Lease(self._shutdown_once_adopted, self._tasks)

    async def run(self) -> None:
        """Adopt what runs, keep it as it is asked for, and return after a shutdown.

        Raises `InstanceStartError` where a new instance can't serve HTTP.
        """
        try:
            self._routers.begin(self._store.begin_epoch())
            self._begin_with_counts()
            pending = self._verbs.load()
            self._engine.on_end = self._ended
            self._engine.on_message = self._from_engine
            self._engine.on_leave = self._leave
            self._engine.on_places = self._places_changed
            await self._server.open()
            running = await self._engine.open()
            self._adopt(running, pending)
            self._tasks.spawn(self._announce(first=not running), "announcement")
            self._tasks.spawn(self._count(), "counting")
            self._tasks.spawn(self._waits.keep_looking(), "looking who waits for room")
            if running:
                self._begin_lease()
            await self._shut_down.wait()
            if self._fatal is not None:
                raise self._fatal
            await self._verbs.settle()
        finally:
            await self._verbs.close()
            await self._tasks.close()
            self._routers.close()
            await self._server.close()
            self._store.close()

    # What the server tells.

    def connected(self, connection: Connection, hello: Hello) -> bool:
        """See `Owner`."""
        if hello.role in ("replica", "ingress"):
            if not self._engine.connected(hello, connection):
                if self._adopted.is_set():  # else it may be about to be taken over
                    _log.warning("refused process %d: there is no %s %r, or its token is wrong", hello.pid, hello.role, hello.id)
                    connection.send(Unwanted())
                return False
        elif hello.role != "client":
            _log.warning("refused process %d: %r is no role", hello.pid, hello.role)
            return False
        connection.send(Welcome(self._settings.name, self._engine.http_urls(), self._settings.id))
        if hello.routes:
            self._routers.add(connection)
        if hello.owner:
            self._lease.taken()
        if hello.role == "replica":
            self._replicas.came(connection)
        replica = self._fleet.get(hello.id) if hello.role == "replica" else None
        if replica is not None:
            replica.pid, replica.node = hello.pid, hello.node
            if hello.state == life.READY:  # it was out of reach, and may have missed a change
                self._fleet.configure([replica], replica.config)
        return True

    def _is_in_replica(self, hello: Hello) -> bool:
        return self._fleet.get(hello.replica) is not None

    def received(self, connection: Connection, message: Message) -> None:
        """See `Owner`."""
        if isinstance(message, VerbCall):
            self._verbs.call(message, connection.send)
        elif isinstance(message, VerbLeft):
            self._verbs.left(message.id, connection.send)
        elif isinstance(message, BrokenReplica):
            self._broken(message)
        elif isinstance(message, HadAnswered):
            self._had_answered(message.replica)
        elif isinstance(message, ReplicaCounted) and connection.hello.role == "replica":
            self._replicas.said(connection, message.number, message.counters)
            self._failures.add_all(message.counters.failures)
        elif not self._routers.received(connection, message) and connection.hello.role in ("replica", "ingress"):
            self._engine.received(connection.hello.id, message)

    def lost(self, connection: Connection) -> None:
        """See `Owner`."""
        self._routers.lost(connection)
        self._replicas.left(connection)
        if connection.hello.owner:
            self._lease.left()

    # What the engine tells.

    def _from_engine(self, id: str, message: Message) -> None:
        _log.warning("%s sent what nobody understands: %s", id, type(message).__name__)

    def _places_changed(self) -> None:
        if self._adopted.is_set():
            self._ingresses.place()
            self._restarts.room_came_free()
            self._reconcile()  # which publishes: ingresses share what may be held

    def _ended(self, ended: Ended) -> None:
        if ended.role == "ingress":
            self._ingresses.ended(ended)
        else:
            self._fleet.ended(ended)

    def _broken(self, message: BrokenReplica) -> None:
        replica = self._fleet.get(message.replica)
        if replica is not None:
            self._fleet.kill_soon(replica, message.reason, life.BROKEN_LINK)

    def _had_answered(self, id: str) -> None:
        """A replica that is dying, or dead already, did not crash before its first answer."""
        replica = self._fleet.get(id)
        if replica is not None:
            replica.answered = max(replica.answered, 1)
        elif self._restarts.take_back(id):
            self._reconcile()

    # Adoption.

    def _adopt(self, running: list[Running], pending: list[Pending | PendingDeployment]) -> None:
        """Match what runs with what is asked for; go on with the verbs that were under way, or forget them."""
        by_generation: dict[tuple[str, int], list[Running]] = {}
        for found in running:
            if isinstance(found.spec, ReplicaSpec) and found.state != life.DRAINING:
                by_generation.setdefault((found.spec.backend, found.spec.generation), []).append(found)
        carried: list[tuple[Pending | PendingDeployment, list[Replica]]] = []
        for verb in pending:
            configs = {(backend.tag, backend.generation): backend.config for backend in verb.backends}
            found_of_it = [found for backend in verb.backends for found in self._begun_for(backend, by_generation)]
            if not found_of_it and (self._closing or not running or not self._in_a_gap(verb, by_generation)):
                self._store.forget(verb.id)
                continue
            replicas = []
            for found in found_of_it:
                assert isinstance(found.spec, ReplicaSpec)
                config = configs[found.spec.backend, found.spec.generation]
                replicas.append(self._fleet.adopt(found, held=True, config=config))
            carried.append((verb, replicas))
        for found in running:
            if isinstance(found.spec, ReplicaSpec) and self._fleet.get(found.id) is None:
                replica = self._fleet.adopt(found, held=False, config=self._config_of(found.spec))
                if replica.state == life.STARTING:
                    self._tasks.spawn(self._start_alone(replica), f"start of {replica.id}")
                elif replica.state == life.DRAINING:  # its routers knew, before it was told
                    self._tasks.spawn(self._fleet.drain(replica, replica.config.graceful_shutdown_timeout), f"drain of {replica.id}")
        for verb, replicas in carried:
            self._verbs.carry_on(verb, replicas)
        self._go_on_with_departures()
        if running:
            self._routers.expect_back()
        if running or self._verbs.state.backends:
            _log.info(
                "took over %d processes; %d backends and %d endpoints are asked for",
                len(running),
                len(self._verbs.state.backends),
                len(self._verbs.state.endpoints),
            )
        self._adopted.set()
        self._ingresses.start([found for found in running if found.role == "ingress"])
        self._reconcile()

    def _begun_for(self, backend: Backend, running: dict[tuple[str, int], list[Running]]) -> list[Running]:
        """The replicas that a verb has started so that this backend can take the place of the one under its tag."""
        found = running.get((backend.tag, backend.generation), [])
        old = self._verbs.state.backends.get(backend.tag)
        if old is None or old.generation != backend.generation:
            return found
        if backend.config.num_replicas <= old.config.num_replicas:
            return []
        return sorted(found, key=lambda each: each.state == life.STARTING)[old.config.num_replicas :]  # those beyond what was wanted before

    def _in_a_gap(self, verb: Pending | PendingDeployment, running: dict[tuple[str, int], list[Running]]) -> bool:
        """Whether old replicas of a backend have made room already for those of an update."""
        if isinstance(verb, PendingDeployment):  # it starts all beside the old
            return False
        old = self._verbs.state.backends.get(verb.backend.tag)
        return verb.kind == "update" and old is not None and len(running.get((old.tag, old.generation), [])) < old.config.num_replicas

    def _go_on_with_departures(self) -> None:
        """Deleted backends are kept going as far as they still run; what they were is told by their replicas."""
        found: dict[str, list[Replica]] = {}
        for replica in self._fleet.all():
            if not (replica.held or replica.dismissed) and replica.tag not in self._verbs.state.backends:
                found.setdefault(replica.tag, []).append(replica)
        for tag, replicas in found.items():
            spec = max(replicas, key=lambda replica: replica.generation).spec  # older ones were being replaced by it
            config = msgspec.structs.replace(spec.config, num_replicas=sum(replica.generation == spec.generation for replica in replicas))
            self._departures.begin(Backend(tag, spec.generation, spec.definition, config, spec.options))

    def _config_of(self, spec: ReplicaSpec) -> BackendConfig:
        backend = self._verbs.state.backends.get(spec.backend)
        return backend.config if backend is not None and backend.generation == spec.generation else spec.config

    async def _announce(self, *, first: bool) -> None:
        """Tell the engine when HTTP answers: every ingress runs and follows a table. The `first` start may also fail."""
        await self._changes.until(lambda: self._ingresses.complete or (first and self._ingresses.given_up))
        if not self._ingresses.complete:
            failure = self._ingresses.failure
            assert failure is not None  # it has failed
            is_asked_wrongly = isinstance(failure, AddressInUseError | InvalidValueError)
            self._fatal = failure if is_asked_wrongly else InstanceStartError(f"HTTP could not be served: {failure.message}")
            self._shut_down.set()
            return
        await self._routers.in_force(self._publish())
        self._engine.serving()
        if first:  # who starts it doesn't connect before
            self._begin_lease()

    def _begin_lease(self) -> None:
        if self._settings.leased:
            self._lease.begin()

    async def _count(self) -> None:
        replicas_due_at = 0.0
        while True:
            await asyncio.sleep(COUNT_PERIOD_S)
            await self._routers.counting.ask()
            if self._now() >= replicas_due_at:
                replicas_due_at = self._now() + len(self._replicas) / _REPLICAS_PER_S
                await self._replicas.ask()

    # Reconciling.

    def _reconcile(self) -> None:
        """Start what is missing, drain what is too many, and have routers told what has changed."""
        self._match()
        self._publish()

    def _reconcile_soon(self) -> None:
        """The same; where it was done just now, together with what else comes before routers are told the next time."""
        if self._matching.delay_s(self._now()):
            self._unmatched = True
            self._publish()
        else:
            began_at = time.thread_time()
            self._reconcile()
            self._matching.done(time.thread_time() - began_at, self._now())

    def _match(self) -> None:
        """Start what is missing, and drain what is too many.

        While the instance closes what serves stays, and what is missing is started where accepted requests may wait for it.
        """
        self._unmatched = False
        if not self._adopted.is_set() or self._stopping:
            return
        backends = self._kept_going()
        wanted = {tag: Wanted(backend.generation, self._rollouts.wanted(backend)) for tag, backend in backends.items()}
        actual = [replica.actual() for replica in self._fleet.all() if not replica.held]
        actions = reconcile.reconcile(wanted, actual, self._restarts.paused(self._now()))
        if self._starts_missing:
            for tag, count in actions.start.items():
                for _ in range(count):
                    replica = self._fleet.make(backends[tag], held=False)
                    self._tasks.spawn(self._start_alone(replica), f"start of {replica.id}")
        if not self._closing:
            for id in actions.drain:
                self._dismiss(self._fleet.get(id))

    def _kept_going(self) -> dict[str, Backend]:
        """The backends whose replicas run: those that are asked for, and those that are leaving."""
        return self._departures.backends | self._verbs.state.backends

    def _publish(self) -> int:
        """Have routers told what has changed, if anything has; returns the version to wait for."""
        return self._routers.changed() if self._adopted.is_set() else -1

    def _table(self) -> RoutingTable:
        """What there is to route."""
        if self._unmatched:
            self._match()
        ready: dict[str, list[ReplicaEntry]] = {}
        coming = self._rollouts.coming() if self._starts_missing else dict.fromkeys(self._kept_going(), 1)  # who waits is not refused
        waiting = self._engine.waiting()
        for replica in self._fleet.all():
            if not replica.shown or replica.id in waiting:
                continue
            if replica.state == life.READY:
                ready.setdefault(replica.tag, []).append(ReplicaEntry(replica.id, replica.address, replica.spec.token))
            elif replica.state == life.STARTING or (replica.state == life.STOPPING and not replica.dismissed):
                # Also for one that is killed because it is stuck another will come, once it is dead: what is queued waits for that.
                coming[replica.tag] = coming.get(replica.tag, 0) + 1
        table = desired.routing_table(
            self._verbs.state,
            ready,
            coming=coming,
            faults=self._restarts.faults() | (self._waits.faults() if waiting else {}),
            leaving=self._departures.backends,
            base=msgspec.structs.replace(self._base, closing=self._closing, num_ingresses=len(self._engine.places())),
        )
        self._forget_gone(table)
        return table

    async def _start_alone(self, replica: Replica) -> None:
        """Start a replica that no verb waits for. What becomes of a failure is decided where every end is."""
        try:
            await self._fleet.start(replica)
        except HeadgateError:
            return
        backend = self._kept_going().get(replica.tag)
        ready = [other for other in self._fleet.of(replica.tag, replica.generation) if other.state == life.READY]
        if backend is not None and len(ready) >= backend.config.num_replicas:
            self._restarts.recovered(replica.tag)
        self._reconcile_soon()

    def _replica_over(self, replica: Replica) -> None:
        """A replica has ended: where nobody asked for that, note why, and when the next may start."""
        now = self._now()
        if not replica.no_room:  # what it had booked is free
            self._restarts.room_came_free()
        if not replica.dismissed and not replica.held:
            if replica.ready_at is None:
                _log.error("replica %s of backend %r did not start: %s", replica.id, replica.tag, replica.fault)
                fault = replica.failure or replica.fault
                if not replica.no_room:
                    self._failures.add(_failure(replica, "ReplicaStartError", "", fault))
                if replica.no_room and self._engine.may_fit(replica.spec.options, 1) is None:  # it has waited, and goes on
                    self._restarts.forget(replica.tag)
                self._restarts.failed(replica.tag, replica.id, life.STARTING, now, fault, no_room=replica.no_room, now=now)
            else:
                _log.warning("replica %s of backend %r ended: %s", replica.id, replica.tag, replica.fault)
                cause = replica.cause or life.cause_of_death(replica.fault)
                self._fleet.deaths[replica.tag, cause] += 1
                self._failures.add(_failure(replica, "ReplicaDiedError", cause, replica.fault))
                fault = f"replica {replica.id} ended: {replica.fault}"
                if life.died_early(life.READY, replica.answered, now - replica.ready_at):
                    self._restarts.failed(replica.tag, replica.id, life.READY, replica.ready_at, fault, no_room=False, now=now)
                else:
                    self._restarts.replaced(replica.tag, fault)
        self._reconcile_soon()

    def _dismiss(self, replica: Replica | None) -> None:
        """Take a replica out of the table and have it drained."""
        if replica is not None and replica.live:
            self._fleet.dismiss(replica)
            self._tasks.spawn(self._drain(replica), f"drain of {replica.id}")

    async def _drain(self, replica: Replica) -> None:
        """End a dismissed replica once no router sends it anything."""
        grace_s = replica.config.graceful_shutdown_timeout
        deadline = self._now() + grace_s
        if replica.state == life.DRAINING:
            version = self._publish()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._routers.in_force(version)
            except TimeoutError:
                _log.warning("replica %s of backend %r: some router still uses it after %g s", replica.id, replica.tag, grace_s)
                self._routers.push()  # where it has little grace they may not have been told at all
        await self._fleet.drain(replica, max(deadline - self._now(), 0.0))

    # Questions.

    async def _ask(self, question: Question) -> Description | Measurement | Part | None:
        match question:
            case Describe():
                return self._describe()
            case Measure():
                return await self._measure()
            case ReadLog():
                return await self._read_log(question)
            case CompareInit():
                compare_init(self._settings, self._engine.http_urls(), question.given)
            case Shutdown():
                await self._shutdown()
        return None

    def _describe(self) -> Description:
        return description(
            self._settings,
            self._engine.http_urls(),
            self._verbs.state,
            self._fleet.all(),
            self._ingresses.running,
            updating=self._rollouts.updating,
            faults=self._restarts.faults(),
            waiting=self._waits.found(),
            resources=self._engine.resources(),
            node=self._node,
            admin_address=self._server.admin_address,
            now=self._now(),
        )

    async def _read_log(self, asked: ReadLog) -> Part:
        """In a thread, for one at a time: a log may be long."""
        folder = self._settings.log_dir
        if not folder:
            raise NotFoundError(f"instance {self._settings.name!r} keeps no log; start it with a log_dir, or detached")
        wanted = reading.Wanted(asked.backend, asked.request, asked.level)
        async with self._reading_log:
            if asked.marks is None:
                return await asyncio.to_thread(reading.latest, folder, asked.lines, wanted)
            return await asyncio.to_thread(reading.following, folder, asked.marks, wanted)

    async def _measure(self) -> Measurement:
        answered, _ = await asyncio.gather(self._routers.counting.ask(), self._replicas.ask())
        self._routers.push()  # what is said here, routers have been told
        table = self._routers.table
        if table is not None:
            self._forget_gone(table)
        fleet, replicas = self._fleet, self._replicas.living()
        reasons: dict[str, dict[str, int]] = {}
        for (tag, cause), count in sorted(fleet.deaths.items()):
            reasons.setdefault(tag, {})[cause] = count
        self._keep_counts()
        return Measurement(
            counters.only(self._routers.counting.totals().get("", Counters()), self._labels),
            dict(fleet.starts),
            {tag: sum(counts.values()) for tag, counts in reasons.items()},
            len(answered),
            {} if table is None else {tag: entry.fault for tag, entry in table.backends.items() if entry.fault},
            replica_death_reasons=reasons,
            replica_start_failures=dict(fleet.start_failures),
            replica_start_times={tag: histograms.of(tally) for tag, tally in fleet.start_times.items()},
            backends=self._replicas.totals(),
            replicas=tuple(ReplicaReport(id, tag, said.metrics) for id, (tag, said) in sorted(replicas.items()) if said.metrics),
            processes=tuple(self._processes(replicas)),
            failures=self._failures.latest(),
        )

    def _open_door(self, listener: socket.socket) -> None:
        """Let in those from afar; where the certificate's files can't be used now, for want of which no controller must fail, later."""
        settings, host = self._settings, listener.getsockname()[0]
        found = None  # on loopback, where nobody is in between, and a tunnel ends under another name
        if not admin.is_loopback(host):
            if settings.ssl_certfile is None:  # a name that was taken for this machine's own
                raise InvalidValueError(
                    f"admin_address={settings.admin_address!r} is {host}, beyond this machine, which takes ssl_certfile"
                )
            try:
                found = certificate.Certificate(settings.ssl_certfile, settings.ssl_keyfile)
            except InvalidValueError:  # `init` could use them
                self._tasks.spawn(self._open_door_later(listener, settings.ssl_certfile), "waiting for a certificate")
                return
        self._server.add_door(listener, settings.admin_key, found)

    async def _open_door_later(self, listener: socket.socket, certfile: str) -> None:
        try:
            found = await certificate.once_usable(certfile, self._settings.ssl_keyfile)
        except asyncio.CancelledError:
            listener.close()
            raise
        self._server.add_door(listener, self._settings.admin_key, found)
        _log.info("the certificate can be used: commands are taken at %s", self._server.admin_address)

    def _forget_gone(self, table: RoutingTable) -> None:
        """Of endpoints and backends that have gone only the latest are told of."""
        fleet = self._fleet
        tags = dict.fromkeys([*table.backends, *table.leaving, *(replica.tag for replica in fleet.all())])
        forgotten = self._labels.endpoints.are(table.endpoints)
        if self._labels.backends.are(tags, fleet.starts) or forgotten:
            fleet.forget(self._labels.backends)

    def _keep_counts(self) -> None:
        fleet = self._fleet
        kept = KeptCounts(
            self._settings.id,
            self._routers.counting.kept(),
            self._replicas.kept(),
            dict(fleet.starts),
            dict(fleet.start_failures),
            fleet.start_times,
            [(*key, count) for key, count in fleet.deaths.items()],
        )
        try:
            kept_counts.write(self._folder, kept)
        except OSError as error:  # such as a full disk: what is shown is right all the same
            _log.warning("the counters could not be written down: %s", error)

    def _begin_with_counts(self) -> None:
        kept = kept_counts.read(self._folder, self._settings.id)
        if kept is None:
            return
        fleet = self._fleet
        endpoints, backends = kept_counts.names(kept)
        self._labels.follow(endpoints, backends)
        self._routers.counting.begin_with(kept.routers)
        self._replicas.begin_with(kept.replicas)
        fleet.starts.update(kept.starts)
        fleet.start_failures.update(kept.start_failures)
        fleet.start_times.update(kept.start_times)
        fleet.deaths.update({(tag, cause): count for tag, cause, count in kept.deaths})

    def _processes(self, replicas: Mapping[str, tuple[str, ReplicaCounters]]) -> Iterator[ProcessReport]:
        """What each process of the instance has used, as far as it is known here."""
        if not self._node:
            yield ProcessReport("supervisor", "supervisor", "", usage.of(os.getppid()))
        yield ProcessReport("controller", "controller", "", usage.own())
        for id, (_, counted) in sorted(self._routers.counting.living().items()):
            if counted.usage is not None:
                yield ProcessReport("ingress", id, "", counted.usage)
        for id, (tag, said) in sorted(replicas.items()):
            if said.usage is not None:
                yield ProcessReport("replica", id, tag, said.usage)

    def _tag_of(self, id: str) -> str | None:
        replica = self._fleet.get(id)
        return None if replica is None else replica.tag

    # The end.

    def _leave(self) -> float:
        """The engine says that the instance is to end; returns within how many seconds it will have.

        Where it says so before anything is adopted, a controller before this one may have ended most already.
        """
        if not self._adopted.is_set():
            self._closing, self._starts_missing = True, False
        self._tasks.spawn(self._shutdown_once_adopted(), "leaving")
        return self._grace_s() + _INGRESS_GRACE_S

    async def _shutdown_once_adopted(self) -> None:
        await self._adopted.wait()
        await self._shutdown()

    async def _shutdown(self) -> None:
        """End everything, once, however many ask for it."""
        if self._ending is None:
            self._ending = self._tasks.spawn(self._end_all(), "shutdown")
        await asyncio.shield(self._ending)

    def _grace_s(self) -> float:
        """How long accepted requests may take to end: also those for which no replica is ready yet."""
        return max((backend.config.graceful_shutdown_timeout for backend in self._kept_going().values()), default=0.0)

    async def _end_all(self) -> None:
        """Refuse new work; drain; stop replicas, then ingresses; then nothing is left but this process."""
        _log.info("shutting down: new work is refused")
        self._closing = True
        self._publish()
        self._routers.push()  # before they are asked what they have
        await self._verbs.give_up()  # what had not finished is as if it had not begun
        deadline = self._now() + self._grace_s()
        await self._routers.all_back()  # where an earlier controller has just died
        await self._drain_routers(deadline)
        replicas = self._fleet.all()
        _log.info("shutting down: stopping %d replicas", len(replicas))
        self._stopping = True
        for replica in replicas:
            self._fleet.dismiss(replica)
        self._publish()
        self._routers.push()  # what still waits is refused: nobody will come to take it
        grace_s = max(deadline - self._now(), 0.0)
        await asyncio.gather(*(self._fleet.drain(replica, min(grace_s, replica.config.graceful_shutdown_timeout)) for replica in replicas))
        _log.info("shutting down: stopping %d ingresses", len(self._ingresses.running))
        await self._ingresses.stop(_INGRESS_GRACE_S)
        await self._engine.close()
        _log.info("shutting down: done")
        self._shut_down.set()

    async def _drain_routers(self, deadline: float) -> None:
        """Wait until no router has a request under way."""
        left, tell_at = 0, self._now() + _TELL_AFTER_S
        while self._now() < deadline:
            left = await self._routers.under_way()
            if not left and not self._routers.still_serving():
                return
            if not self._starts_missing:
                self._starts_missing = True
                self._reconcile()
            if left and self._now() >= tell_at:  # who waits for the end should know what for
                _log.warning("shutting down: requests under way: %d; they have %.0f s more", left, deadline - self._now())
                tell_at = math.inf
            await asyncio.sleep(_DRAIN_POLL_S)
        if left:
            _log.warning("shutting down: %d requests take longer than graceful_shutdown_timeout and are given up", left)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _failure(replica: Replica, kind: str, cause: str, why: str) -> Failure:
    message, _, traceback = why.partition("\n\n")
    return Failure(kind, replica.tag, "", cause, 1, time.time(), replica.id, message=message, traceback=traceback)
