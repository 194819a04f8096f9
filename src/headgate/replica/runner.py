"""Which thread calls user code, and how many calls run at once?

Synchronous code runs in the main thread, and where `concurrency` is above 1 in as many threads, the main one among them; a
class with an async method runs all its methods on one event loop in the main thread. Whoever reads the links hands requests over
by `submit`. The I/O thread looks after what runs by `_tick`: answers that wait too long to be written, links that nobody reads,
and requests stuck behind a slow call.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from headgate import usage
from headgate.config import BackendConfig
from headgate.core.desired import concurrency_of
from headgate.core.reports import Failure, ReplicaCounters
from headgate.core.specs import Definition
from headgate.errors import ErrorInfo
from headgate.replica import metrics
from headgate.replica.calls import Caller
from headgate.replica.inbox import Inbox
from headgate.replica.member import Member
from headgate.router.reading import CAN_SHARE, Reading

if TYPE_CHECKING:
    from headgate.replica.links import Links


FLUSH_AFTER_S = 0.001
"""A tick writes an answer that was made so long ago."""
SLOW_CALL_S = 0.005
"""A call that has run so long stands in the way of what waits; that is given back."""
_LONGEST_HELD_S = 1.0
"""An event loop that has stood still for so long is taken to do so for only as long again, so that it isn't long without work."""
_EAGER_FLUSH_S = 0.0003
"""After so long, or a call of that length, answers leave though more calls wait: whoever gets them isn't idle until all are run."""
_LEFT_ALONE_S = 0.001
"""A call that has run so long has the I/O thread read in place of the user thread."""
_LONGEST_TICK_S = 0.008
"""Ticks that find nothing to look after come half as often each, down to this; so an instance of many replicas doesn't drown in them.
An answer that was not written yet when a slow call began, the first for long, may wait for so long."""
_WARY_CALLS = 1000
"""After a slow call so many answers are written at once: the next call may be slow, too."""
_QUIET_TICKS = 4
"""So many of those in which nothing has come either, and there are no more until something comes."""
_HELD_S = 0.05
"""A timer of the event loop that is later than this was held up by a call."""


class Runner:
    """Runs user code. `submit` and `cancel` are for the thread that reads, `configure` for the I/O thread, `run` for the main thread."""

    def __init__(
        self,
        definition: Definition,
        config: BackendConfig,
        caller: Caller,
        io_loop: asyncio.AbstractEventLoop,
        user_loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self._definition = definition
        self._caller = caller
        self._inbox = Inbox(config.max_batch_size, config.batch_wait_timeout)
        self._stopping = False
        self._gave_back: set[tuple[float, int]] = set()
        self._io_loop = io_loop
        self._loop = user_loop  # where async user code runs; None for threads
        self._pump_asked_at = 0.0  # when `_pump` was asked for that has not run yet; else 0
        self._loop_seen = (0.0, 0, 0, 0)  # what the I/O thread saw of the event loop, and since when it has seen nothing else
        self._loop_seen_at = 0.0
        self._return_after_s = SLOW_CALL_S
        self._gives_back_after_s = 0.0
        self._flush_scheduled = False
        self._health_due = False
        self._checking_since: float | None = None
        self._pump_timer: asyncio.TimerHandle | None = None
        self._async_running = 0
        self._async_ended = 0
        self._context = contextvars.copy_context()  # what each call on the event loop begins with, whatever others have set
        self._done = asyncio.Event()
        self.links: Links
        self._ticking = False
        self._ticks = threading.Lock()  # over starting them
        self._submitted = 0  # requests, ever; as of …
        self._seen = 0  # … the last tick
        self._quiet_ticks = 0
        self._tick_s = FLUSH_AFTER_S
        self.unhealthy = ""
        self.config = config
        self._concurrency = concurrency_of(definition, config)
        self._slots = threading.Lock()  # over the number of slots, and which of them have a thread
        self._open: set[int] = set()
        self._pool: list[threading.Thread] = []

    # The thread that reads.

    def submit(self, members: list[Member]) -> None:
        """Requests have arrived."""
        caller = self._caller
        if caller.has_batches:
            plain: list[Member] = []
            grouped: list[tuple[Member, object]] = []
            for member in members:
                group = caller.group_of(member)
                if group is None:
                    plain.append(member)
                elif isinstance(group, ErrorInfo):
                    member.link.fail(member, group, None)
                    member.link.channel.flush()
                else:
                    grouped.append((member, group))
            if grouped:
                self._inbox.add_to_batches(grouped)
            if plain:
                self._inbox.add(plain)
        else:
            self._inbox.add(members)
        if self._loop is not None:
            self._wake_loop(members[0].received_at)
        self._submitted += len(members)  # before the question, as `_tick` asks the other way round
        if not self._ticking:
            self._start_ticks()

    def look_after(self) -> None:
        """Something has begun that ticks are to see to, whoever had it begin."""
        self._submitted += 1  # before the question, as in `submit`
        if not self._ticking:
            self._start_ticks()

    def cancel(self, member: Member) -> None:
        """Nobody waits for this request any more."""
        member.cancelled = True
        if self._inbox.withdraw(member):
            member.link.give_back(member, dropped=True)
            member.link.channel.flush()
            return
        if member.stream is not None:
            member.stream.add(0)
        task = member.task
        if task is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._caller.cancel_if_all_gone, task, member)
        self._caller.give_up_if_all_gone(member)  # after that: async code is to see its own cancellation first

    # The I/O thread.

    def configure(self, config: BackendConfig) -> None:
        """Follow a changed configuration, without a restart."""
        self.config = config
        self._caller.idempotent = config.idempotent
        self._inbox.configure(config.max_batch_size, config.batch_wait_timeout)
        concurrency = concurrency_of(self._definition, config)
        if concurrency != self._concurrency:
            with self._slots:
                self._concurrency = concurrency
                self._inbox.change_shape()  # first, so that the main thread doesn't wait where only one may
                if self._loop is None:
                    self._open_slots()
        if self._loop is not None:
            self._wake_loop(time.monotonic())

    def check_health(self) -> None:
        """Have `check_health()` called between two calls; and look what this replica can't do. What is wrong is in `unhealthy`."""
        now = time.monotonic()
        if not self._caller.has_health_check:
            self.unhealthy = ""  # where there is one, its end says so
        deaf_since = self.links.deaf_since
        if deaf_since and now - deaf_since > self.config.health_check_timeout:
            self.unhealthy = f"it could not take the link of a router for {now - deaf_since:.1f} s; it may have no descriptor left"
        if self._loop is not None:
            self._check_loop(now)
        if not self._caller.has_health_check:
            return
        if self._loop is not None:
            self._health_due = True
            self._wake_loop(now)
            return
        since, limit_s = self._checking_since, self.config.health_check_timeout
        if since is None:
            self._inbox.add_check()
        elif now - since > limit_s:
            self.unhealthy = _no_return(limit_s)

    def _check_loop(self, now: float) -> None:
        """Find an event loop that is held by something else than a call; one that a call holds has the call's time limit."""
        config = self.config
        limit_s = config.health_check_timeout
        if not self._caller.has_health_check:  # then as long as a call may take
            limit_s += math.inf if config.request_timeout is None else config.request_timeout
        stands_s = self._stands_still_s(now)
        if stands_s > limit_s and not self._caller.running:
            self.unhealthy = f"its event loop has stood still for {stands_s:.1f} s, and not in a call"

    def _stands_still_s(self, now: float) -> float:
        """For how long something has been seen to wait for the event loop, which has not begun or ended a call meanwhile."""
        seen = (self._pump_asked_at, self._async_running, len(self._caller.running), self._async_ended)
        if seen != self._loop_seen:
            self._loop_seen, self._loop_seen_at = seen, now
        return now - self._loop_seen_at if self._waits_for_loop else 0.0

    @property
    def _waits_for_loop(self) -> bool:
        """Whether something was asked of the event loop that has not begun."""
        return bool(self._pump_asked_at) or self._async_running > len(self._caller.running)

    @property
    def answered(self) -> int:
        """Calls of user code that have ended."""
        return self._caller.ended

    def counters(self) -> ReplicaCounters:
        """What was counted since this replica started, and what it has used."""
        return msgspec.structs.replace(self._caller.counts.told(), usage=usage.own(), metrics=metrics.told())

    def take_failures(self) -> tuple[Failure, ...]:
        """The calls that have failed since this was asked last."""
        return self._caller.failed.take()

    def overdue_s(self) -> float:
        """How long the call that is most over its time limit is over it; 0 where none is."""
        limit = self.config.request_timeout
        if limit is None:
            return 0.0
        now = time.monotonic()
        return max((now - since - limit for since in self._caller.running_since()), default=0.0)

    @property
    def only_shadows(self) -> bool:
        """Whether synchronous code runs, and nobody has ever waited for any of it. Asynchronous code is cancelled, and may clean up."""
        running = [member for facts in list(self._caller.running.values()) for member in facts.members]
        return self._loop is None and bool(running) and all(member.shadow for member in running)

    def stop(self) -> None:
        """Have `run` return when the calls under way have ended."""
        self._stopping = True
        self._inbox.change_shape()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._done.set)

    def _start_ticks(self) -> None:
        with self._ticks:
            if not self._ticking:
                self._ticking = True
                self._io_loop.call_soon_threadsafe(self._next_tick)

    def _next_tick(self) -> None:
        self._io_loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        busy = False
        for link in list(self.links.all):
            since = link.channel.since
            if since:
                busy = True
                if now - since >= FLUSH_AFTER_S:
                    link.channel.flush()
        running = list(self._caller.running.values())
        if running:
            left_alone = now - min(facts.members[0].started_at for facts in running) >= _LEFT_ALONE_S
            if left_alone:
                self.links.reading.leave()
            busy = busy or not left_alone or any(facts.members[0].stream for facts in running)
        if self._loop is not None and not self._waits_for_loop:
            self._return_after_s = SLOW_CALL_S
        if not self._inbox.empty or self._async_running > len(running):
            busy = True
            if self._slots_became_slow(now):
                self._give_back(self._inbox.withdraw_surplus(), 0.0)
            elif self._loop is not None and (held_s := self._loop_became_held(now)):
                surplus = self._inbox.withdraw_surplus()  # before those that came before them, which may begin meanwhile
                self._give_back(self._withdraw_unbegun() + surplus, held_s)
        self._tick_s = FLUSH_AFTER_S if busy else min(2 * self._tick_s, _LONGEST_TICK_S)
        submitted = self._submitted
        self._quiet_ticks = 0 if busy or submitted != self._seen else self._quiet_ticks + 1
        self._seen = submitted
        if self._quiet_ticks < _QUIET_TICKS:
            self._next_tick()
            return
        self._ticking, self._tick_s = False, FLUSH_AFTER_S
        if self._submitted != submitted:
            self._start_ticks()

    def _slots_became_slow(self, now: float) -> bool:
        """Every slot has been busy for a while. True once for each such set of calls, and again when that has lasted twice as long.

        So what came too late for the first time, since its router couldn't know yet, doesn't wait for the end of a long call.
        """
        # With its start, since a later call may get the identity of one that has ended.
        calls = {(facts.members[0].started_at, id(facts)) for facts in list(self._caller.running.values())}
        if not calls or len(calls) < self._concurrency:
            return False
        busy_s = now - max(calls)[0]
        if busy_s < (self._gives_back_after_s if calls <= self._gave_back else SLOW_CALL_S):
            return False
        self._gave_back = calls
        self._gives_back_after_s = 2 * busy_s
        return True

    def _loop_became_held(self, now: float) -> float:
        """For how long the event loop, which has stood still for a while, is taken to do so yet; 0 where it doesn't.

        Once, and again, for what has come since, when it still does after that: until nothing waits for it any more. So calls
        that hold it one after the other don't each send away what waits behind all of them.
        """
        stands_s = self._stands_still_s(now)
        if stands_s < self._return_after_s:
            return 0.0
        held_s = min(stands_s, _LONGEST_HELD_S)
        self._return_after_s = stands_s + held_s
        return held_s

    def _withdraw_unbegun(self) -> list[Member]:
        """Take out what has a task on the event loop already, but has not begun in it."""
        unbegun: list[Member] = []
        for member in [member for link in list(self.links.all) for member in list(link.members.values())]:
            if member.task is None or member.started_at or member.binding is not None:
                continue
            member.withdrawn = True  # before the question, as `Caller.call_async` asks the other way round
            if member.started_at:
                member.withdrawn = False
            else:
                unbegun.append(member)
        return unbegun

    def _give_back(self, members: list[Member], held_s: float) -> None:
        """What can't run soon runs sooner elsewhere: where there is less to do, or the event loop isn't held."""
        for member in members:
            member.link.give_back(member, dropped=False, held_s=held_s)
        self.links.flush()

    # The main thread.

    def run(self) -> None:
        """Call user code until `stop`. For async code `run_async` stands in for this."""
        with self._slots:
            self._open_slots()
        self._work(0)
        for thread in self._pool:
            thread.join()

    def _open_slots(self) -> None:
        """Start a thread for each slot that has none: the main thread is slot 0, the others come and go with `concurrency`."""
        self._pool = [thread for thread in self._pool if thread.is_alive()]
        for slot in range(1, self._concurrency):
            if slot not in self._open:
                self._open.add(slot)
                thread = threading.Thread(target=self._work, args=(slot,), name=f"headgate user code {slot}")
                self._pool.append(thread)
                thread.start()

    def _work(self, slot: int) -> None:
        """One slot: take what is next, run it, and see that answers leave in time."""
        inbox, call, links = self._inbox, self._caller.call, self.links
        shape, reading = -1, None  # so that it looks first at how it is to work
        wary = 0
        while True:
            members = None  # not kept while there is nothing to do
            members = inbox.wait(shape, reading)
            if members is None:
                links.flush()
                shape, reading = inbox.shape, self._reads_itself()
                with self._slots:
                    if self._stopping or (slot and slot >= self._concurrency):
                        self._open.discard(slot)
                        return
                continue
            if not members:
                links.flush()
                self._check_health()
                continue
            run_s = call(members, slot)
            if run_s > SLOW_CALL_S:
                wary = _WARY_CALLS
            if run_s > _EAGER_FLUSH_S or wary or inbox.empty:
                links.flush()
                wary = max(wary - 1, 0)
            else:
                channel = members[0].link.channel
                since = channel.since
                if since and time.monotonic() - since > _EAGER_FLUSH_S:
                    channel.flush()

    def _reads_itself(self) -> Reading | None:
        """What the user thread waits by, where there is but one and it may read the links; else the I/O thread is to."""
        if CAN_SHARE and self._concurrency == 1:
            return self.links.reading
        self.links.reading.leave()
        return None

    def _check_health(self) -> None:
        self.links.reading.leave()  # it may take its time
        self._checking_since = time.monotonic()
        self.unhealthy = self._caller.check_health()
        self._checking_since = None

    async def run_async(self) -> None:
        """Call async user code on this loop until `stop`."""
        self._context = contextvars.copy_context()  # with what the constructor has set
        self._pump()
        await self._done.wait()

    def _wake_loop(self, now: float) -> None:
        if not self._pump_asked_at:
            self._pump_asked_at = now
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._pump)

    def _pump(self) -> None:
        """Start what may start; come back when the next batch is due, or when a call ends."""
        self._pump_asked_at = 0.0
        assert self._loop is not None
        if self._health_due and self._checking_since is None:
            self._checking_since = time.monotonic()
            self._loop.create_task(self._check_health_async(), context=self._context.copy())
        self._health_due = False
        if self._pump_timer is not None:
            self._pump_timer.cancel()
            self._pump_timer = None
        now = time.monotonic()
        while self._async_running < self._concurrency:
            members = self._inbox.take(now)
            if members is None:
                leaves_at = self._inbox.leaves_at(now)
                if leaves_at is not None:
                    self._pump_timer = self._loop.call_later(max(0.0, leaves_at - now), self._pump, context=self._context)
                return
            self._async_running += 1
            task = self._loop.create_task(self._run_one(members), context=self._context.copy())
            for member in members:
                member.task = task

    async def _run_one(self, members: list[Member]) -> None:
        try:
            await self._caller.call_async(members)
        finally:
            for member in members:
                member.task = None  # else the two would hold each other, and the call with its body, until the collector comes
            self._async_running -= 1
            self._async_ended += 1
            if not self._inbox.empty:
                self._pump()
            if not self._flush_scheduled and self._loop is not None:
                self._flush_scheduled = True
                self._loop.call_soon(self._flush_answers)

    def _flush_answers(self) -> None:
        self._flush_scheduled = False
        self.links.flush()

    async def _check_health_async(self) -> None:
        loop = asyncio.get_running_loop()
        check = loop.create_task(self._caller.check_health_async())
        try:
            while not check.done():
                limit_s = self.config.health_check_timeout
                due = loop.time() + limit_s
                await asyncio.wait([check], timeout=limit_s)
                # Where a call has held the loop meanwhile, the check had no chance to go on: it gets its time anew.
                if not check.done() and loop.time() < due + _HELD_S:
                    self.unhealthy = _no_return(limit_s)
                    return
            self.unhealthy = check.result()
        finally:
            check.cancel()
            self._checking_since = None


def _no_return(limit_s: float) -> str:
    return f"check_health() has not returned for health_check_timeout ({limit_s:g} s)"
