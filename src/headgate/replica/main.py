"""What is the life of a replica's process, from its first line to its last?

It opens its control connection, imports and constructs user code in the main thread, takes links, runs calls until it is
told to drain, and returns. The I/O thread does the rest: links, control, health.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from headgate import usage
from headgate.core.messages import (
    PROTOCOL,
    Configure,
    Count,
    Drain,
    Hello,
    Message,
    Ping,
    Pong,
    ReplicaCounted,
    ReplicaFailed,
    ReplicaReady,
    Unwanted,
)
from headgate.core.reports import ReplicaCounters
from headgate.core.specs import ReplicaSpec
from headgate.errors import ErrorInfo, HeadgateError, describe_user_error
from headgate.heap import keep_freed
from headgate.replica.calls import Caller, exit_now
from headgate.replica.definition import construct, load
from headgate.replica.links import Links
from headgate.replica.runner import Runner
from headgate.router.connections import adopt_process, constructed
from headgate.router.control import ControlLink
from headgate.router.way import Way
from headgate.traces import begin as tracing

T = TypeVar("T")

_SWITCH_S = 0.0005
_LAST_WORDS_S = 2.0
_DRAIN_LOOK_S = 0.005


def run(spec: ReplicaSpec, way: Way) -> None:
    """Be this replica until it is drained, and return then; where construction fails, tell the controller and exit with 1."""
    sys.setswitchinterval(_SWITCH_S)
    keep_freed()
    connection = adopt_process(way, spec.instance, spec.id, spec.backend)
    io = _IoThread(spec, way)
    try:
        if spec.definition.any_async:
            import uvloop

            uvloop.run(_run_async(spec, way, io))
        else:
            caller = _construct(spec, way)
            if caller.has_health_check:
                _refuse_unwell(caller.check_health())
            io.serve(caller).run()
    except _StartFailedError as failed:
        why = failed.info.traceback or failed.info.message
        print(f"headgate: a replica of {spec.backend!r} did not start\n{why}", file=sys.stderr, flush=True)  # noqa: T201  # where user code prints
        io.report_failure(failed.info)
        raise SystemExit(1) from None
    finally:
        connection.close()
        io.stop()
        tracing.end()


async def _run_async(spec: ReplicaSpec, way: Way, io: _IoThread) -> None:
    # Constructed on its loop, so that a constructor can make what belongs to it, such as client sessions.
    caller = _construct(spec, way)
    if caller.has_health_check:
        _refuse_unwell(await caller.check_health_async())
    await io.serve(caller, asyncio.get_running_loop()).run_async()


def _construct(spec: ReplicaSpec, way: Way) -> Caller:
    """Import and construct user code. Raises `_StartFailedError` with its traceback."""
    try:
        methods = construct(load(spec.definition))
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, SystemExit too: it did not start
        raise _StartFailedError(describe_user_error(error)) from None
    constructed()
    gc.collect()
    gc.freeze()
    caller = _traced(spec) if way.traces else Caller
    return caller(spec.definition, methods, backend=spec.backend, replica=spec.id, idempotent=spec.config.idempotent, objects=way.objects)


def _traced(spec: ReplicaSpec) -> type[Caller]:
    """Begin to trace, and what to use for that. User code comes first: it may have its own tracer provider."""
    from headgate.replica.traced import TracedCaller

    tracing.begin("replica", spec.id, spec.backend)
    return TracedCaller


def _refuse_unwell(why: str) -> None:
    """A version whose health check fails from the start must not take the place of one that serves."""
    if why:
        raise _StartFailedError(ErrorInfo("ReplicaStartError", why))


class _StartFailedError(Exception):
    """Construction raised."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class _IoThread:
    """The thread with links and control connection, and its event loop."""

    def __init__(self, spec: ReplicaSpec, way: Way) -> None:
        import uvloop

        self._spec = spec
        self._way = way
        self._address = ""
        self._state = "starting"
        self._runner: Runner | None = None
        self._links: Links | None = None
        self._draining: asyncio.Task[None] | None = None
        self._config = spec.config  # as last told, also before there is a runner
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="headgate I/O", daemon=True)
        self._control: ControlLink
        self._thread.start()
        self._call(self._open_control())

    def serve(self, caller: Caller, user_loop: asyncio.AbstractEventLoop | None = None) -> Runner:
        """Construction has finished: take links, and tell the controller. Returns what runs the calls."""
        runner = Runner(self._spec.definition, self._config, caller, self._loop, user_loop)
        self._call(self._listen(runner))
        return runner

    def report_failure(self, info: ErrorInfo) -> None:
        """Tell the controller why construction failed; waits a moment for the message to leave."""
        self._call(self._last_words(ReplicaFailed(info)))

    def stop(self) -> None:
        """Close everything and end the thread."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LAST_WORDS_S)

    # On the thread.

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open_control(self) -> None:
        self._control = ControlLink(self._way, self._hello, self._received, on_gone=self._gone)
        self._control.start()

    async def _listen(self, runner: Runner) -> None:
        self._links = runner.links = Links(self._way, self._spec.id, self._spec.token, runner)
        await self._links.listen()
        self._address = self._links.address
        runner.configure(self._config)
        self._runner = runner
        self._state = "ready"
        self._control.send(ReplicaReady(self._address))

    async def _last_words(self, message: Message) -> None:
        try:
            await asyncio.wait_for(self._control.connected(), _LAST_WORDS_S)
        except (HeadgateError, TimeoutError):
            return  # nobody is there to hear it; the traceback is on the terminal
        self._control.send(message)

    async def _close(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
        if self._links is not None:
            await self._links.close()
        await self._control.close()

    def _hello(self) -> Hello:
        spec = self._spec
        hello = Hello(PROTOCOL, "replica", spec.id, os.getpid(), token=spec.token, state=self._state, gpus=spec.gpus)
        return msgspec.structs.replace(hello, address=self._address, node=self._way.node)

    def _received(self, message: Message) -> None:
        runner = self._runner
        if isinstance(message, Ping):
            if runner is None:
                self._control.send(Pong(message.number))
                return
            runner.check_health()
            self._control.send(Pong(message.number, overdue_s=runner.overdue_s(), answered=runner.answered, unhealthy=runner.unhealthy))
        elif isinstance(message, Count):
            self._tell_counters(message.number)
        elif isinstance(message, Configure):
            self._config = message.config
            if runner is not None:
                runner.configure(message.config)
        elif isinstance(message, Drain):
            self._begin_draining()
        elif isinstance(message, Unwanted):
            self._end_unwanted()

    def _tell_counters(self, number: int) -> None:
        runner = self._runner
        if runner is None:
            counters = ReplicaCounters(usage=usage.own())
        else:
            counters = msgspec.structs.replace(runner.counters(), failures=runner.take_failures())
        self._control.send(ReplicaCounted(number, counters))

    def _gone(self, ended: bool) -> None:
        if ended:
            self._end_unwanted()

    def _begin_draining(self) -> None:
        if self._draining is None:
            self._state = "draining"
            self._draining = self._loop.create_task(self._drain())

    def _end_unwanted(self) -> None:
        """It was given up while it was out of reach, and nobody else may be there to kill it."""
        if self._runner is None:
            exit_now(1)
        if self._draining is None:
            self._begin_draining()
            self._loop.call_later(self._config.graceful_shutdown_timeout, exit_now, 1)

    async def _drain(self) -> None:
        """Finish what was received, then let the main thread return. Who told to drain kills what takes too long.

        Copies for shadows aren't finished; synchronous ones can't be interrupted either, so the process ends around them.
        """
        settled = 0
        while settled < 2:  # once may be between two steps of another thread
            await asyncio.sleep(_DRAIN_LOOK_S)  # calls don't pay for telling
            settled = settled + 1 if self._runner is not None and self._links is not None and self._links.settled else 0
        assert self._runner is not None
        assert self._links is not None
        self._tell_counters(0)
        self._runner.stop()
        if self._runner.only_shadows:
            await self._links.close()
            await asyncio.to_thread(tracing.end)
            exit_now(0)
