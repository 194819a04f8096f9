"""How does this process reach an instance, from any of its threads?

A `Connection` keeps one daemon thread with an event loop. On it live the control link for verbs and, once a handle is
wanted, a second control link that brings routing tables, and the router that follows them. Verbs block the calling
thread. Calls of handles are sent by the calling thread while only a few are under way, else handed over through a queue that
wakes the loop once for many of them; and of the threads that wait for answers, one reads the links in the loop's place. Both
borrow the loop (`router/borrowing.py`).

A fork takes nothing of this along but the memory: a child is told to connect anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from headgate.core import messages, tables
from headgate.core.messages import Count, Counted, Hello, Message, RoutingChanges, RoutingTable, SendTable, Verb, Welcome
from headgate.errors import ErrorInfo, HeadgateError, NotRunningError, rebuild
from headgate.router.borrowing import SharedLoop, Shield
from headgate.router.call import OVER, Call
from headgate.router.control import ControlLink
from headgate.router.reading import Reading
from headgate.router.router import Router
from headgate.router.way import Way

if TYPE_CHECKING:
    from headgate.router.afar import AfarWay
    from headgate.router.handle import PyCall

T = TypeVar("T")

_LOOK_S = 1.0
"""How often a thread that waits for a verb looks whether the loop still runs."""
_LONGEST_POLL_S = 3600.0
"""More than some 24 days can't be asked of the kernel; who has waited so long begins again."""
_MOMENT_S = 150e-6
_PATIENCE = 15
"""Where nothing came within that moment, the reader of that many waits sleeps at once: a slow call costs it little to look."""
_FEW = 4
"""With fewer calls to an endpoint under way, one more is sent at once; with more, many leave in one write."""
_JOIN_S = 5.0
"""The loop's thread ends in milliseconds; more than this means that it is stuck, and a daemon thread may be left."""
_LEFT_WITHIN_S = 2.0
"""What was killed holds its files for a moment longer."""

REPLICA_VARIABLE: Final = "HEADGATE_REPLICA"
"""In the environment of processes that a replica has started: its id."""
FORKED: Final = "this process was forked after serve.init(); call serve.init() again in it"


class Connection:
    """One instance, as seen from this process. Nothing runs before it is first used. `forget` is called when it is over."""

    router: type[Router] = Router
    new_call: type[PyCall] | None = None
    """What handles make of a call; None for what they make of any."""

    def __init__(
        self,
        name: str,
        way: Way,
        *,
        replica: str = "",
        backend: str = "",
        owner: bool = False,
        forget: Callable[[Connection], object] = lambda connection: None,
    ) -> None:
        self.name = name
        self.way = way
        self.objects = way.objects
        self.replica = replica  # set inside a replica, as are …
        self.backend = backend
        self._owner = owner  # the instance is to end with this process
        self.constructing = False  # inside a replica whose definition is being imported or constructed
        self.id = f"{replica or 'c'}{os.getpid()}-{secrets.token_hex(3)}"
        self.over = ""  # why nothing can be done through it any more
        self.forked = False  # this process is a child of the one that made it
        self.users = 0
        self.on_end: Callable[[], object] | None = None  # called in the loop's thread when the instance was ended by others
        self._forget = forget
        self._lock = threading.Lock()
        self._loop: SharedLoop | None = None
        self._reader = threading.Lock()  # held by the thread that reads the links in the loop's place
        self._reader_is = 0
        self._no_readers = False  # it ends
        self._patience = 0  # so many more times the reader sleeps at once
        self._thread: threading.Thread | None = None
        self._links: list[ControlLink] = []
        self._control: ControlLink | None = None
        self._routes: ControlLink | None = None
        self._router: Router | None = None
        self._changed: asyncio.Event | None = None  # set by the first routing table, and when the instance is gone
        self._routed = False
        self._inbox: deque[Call | tuple[str, Call, int]] = deque()
        self._scheduled = False
        self._ending: asyncio.Task[None] | None = None  # it ends because the instance has
        # Calls that wait for the first routing table, and what ends those that have a limit of their own.
        self._early: dict[Call, asyncio.TimerHandle | None] = {}

    # Verbs.

    def verb(self, verb: Verb) -> bytes:
        """Have the controller apply a verb, wait for its end, and return its result as msgpack.

        Raises the verb's error; `NotRunningError` when the instance is gone, or its controller out of reach for 15 s.
        Where the wait is interrupted, as by Ctrl-C, that is what `ControlLink.call` says of a cancellation.
        """
        done = self._wait(self._call(verb))
        for text in done.warnings:
            warnings.warn(text, RuntimeWarning, stacklevel=frames_to_the_caller())
        if done.error is not None:
            raise rebuild(done.error)
        return done.result

    def meet(self, way: AfarWay) -> None:
        """See that this way leads to the controller now; raises at once what `AfarWay.meet` does, where others wait."""
        self._wait(way.meet())

    def welcome(self) -> Welcome:
        """Wait until the controller has been reached, and return what it said of the instance."""
        return self._wait(self._connected())

    # Calls of handles.

    def submit(self, call: Call) -> None:
        """Hand a call to the router; never blocks. Raises `NotRunningError` where this connection is over."""
        if self._inbox:  # what has waited leaves first
            self._post(call)
            return
        if self._routes is None:
            self._open_routes()
        loop, router = self._loop, self._router
        if (
            not self._routed
            or loop is None
            or router is None
            or not loop.asleep
            or router.in_flight(call.endpoint) >= _FEW
            or not self._submit_here(call, loop, router)
        ):
            self._post(call)

    def _submit_here(self, call: Call, loop: SharedLoop, router: Router) -> bool:
        with Shield():
            if not loop.borrow(wait=False):
                return False
            try:
                if self._inbox or self.over or loop.has_work():  # such as a routing table, which comes first
                    return False
                router.submit(call)
                return True
            finally:
                loop.give_back()

    def cancel(self, call: Call) -> None:
        """Give a call up; it ends with `RequestCancelledError` unless it has ended."""
        self._post(("cancel", call, 0))

    def credit(self, call: Call, count_bytes: int) -> None:
        """The reader of this call's stream has taken that many bytes."""
        self._post(("credit", call, count_bytes))

    def read_for(self, ready: Callable[[], bool], add_waiter: Callable[[Callable[[], object]], bool], until: float) -> bool:
        """Read the links in this thread until `ready()`, or until then (time.monotonic()). False where another thread reads.

        Whoever makes it ready calls what was given to `add_waiter`, which returns False where that is too late.
        """
        loop = self._loop
        if loop is None or loop.reading is None or not self._routed:
            return False
        if self._reader.locked():
            if self._reader_is == threading.get_ident():
                # This is called by a handler of a signal: what it has interrupted can't read for it.
                loop.reading.leave(while_waiting=True)
            return False
        reading = loop.reading
        with Shield() as shield:
            if not self._reader.acquire(False):
                return False
            self._reader_is = threading.get_ident()
            try:
                if self._no_readers:
                    return False
                if add_waiter(reading.wake):
                    self._read(ready, until, loop, reading, shield)
            finally:
                self._reader_is = 0
                reading.leave()
                self._reader.release()
        return True

    def _read(self, ready: Callable[[], bool], until: float, loop: SharedLoop, reading: Reading, shield: Shield) -> None:
        if self._inbox and loop.borrow(wait=False):
            try:
                self._empty_inbox()
            finally:
                loop.give_back()
        idle = lambda: not ready()  # noqa: E731
        while not ready():
            left = until - time.monotonic()
            if left <= 0:
                return
            try:
                shield.lifted = True
                shield.check()
                events = self._look_again(idle, left, reading) or reading.poll(idle, min(left, _LONGEST_POLL_S))
            finally:
                shield.lifted = False
            if events:
                loop.borrow(wait=True)
                try:
                    reading.read(events)
                finally:
                    loop.give_back()

    def _look_again(self, idle: Callable[[], bool], left: float, reading: Reading) -> list[tuple[int, int]]:
        """What arrives in a moment, without sleeping for it: a quick call is answered sooner than a thread falls asleep and wakes."""
        if self._patience:
            self._patience -= 1
            return []
        until = time.monotonic() + min(left, _MOMENT_S)
        while idle() and time.monotonic() < until:
            events = reading.poll(idle, 0.0)
            if events:
                return events
        self._patience = _PATIENCE
        return []

    def wait_for_routes(self) -> RoutingTable:
        """Wait for the first routing table, so that the first call finds its way at once; return the latest."""
        self._open_routes()
        return self._wait(self._latest_table())

    def forbid_waiting(self) -> None:
        """Raise where waiting would never end: in a forked child, and in the thread that all answers come through."""
        if self.forked:
            raise NotRunningError(FORKED)
        here = threading.get_ident()
        if self._thread is not None and here == self._thread.ident:
            raise HeadgateError(f"the thread {self._thread.name!r} carries all answers; waiting for one in it would never end")
        if self._loop is not None and here == self._loop.borrower:  # a destructor, for example
            raise HeadgateError("this thread is at work for all calls of handles; waiting for one here would never end")

    # Life.

    def close(self) -> None:
        """End links, loop and thread; what still waits fails. Can be called again."""
        with self._lock:
            self.over = self.over or "this process has disconnected from it, or shut it down; call serve.init() again"
            loop, thread = self._loop, self._thread
            self._loop = None
        self._forget(self)
        if loop is not None:  # else it ends by itself already
            asyncio.run_coroutine_threadsafe(self._end(), loop)
        if thread is not None and thread.ident != threading.get_ident():
            thread.join(_JOIN_S)
        self._fail_all()

    def disown(self) -> None:
        """This is a child of the process that made the connection: leave its sockets alone, and refuse everything."""
        self.forked = True
        self.over = FORKED
        self._lock = threading.Lock()
        loop, self._loop, self._thread = self._loop, None, None
        if loop is not None:
            loop.forked()
        for link in self._links:
            link.forked()
        if self._router is not None:
            self._router.forked()

    # On any thread.

    def _running_loop(self) -> SharedLoop:
        loop = self._loop
        if loop is not None:
            return loop
        with self._lock:
            if self.over:
                raise NotRunningError(self.over if self.forked else f"instance {self.name!r}: {self.over}")
            if self._loop is None:
                self._loop = SharedLoop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name=f"headgate-{self.name}", daemon=True)
                self._thread.start()
            return self._loop

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            self.forbid_waiting()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
        except BaseException as error:
            coroutine.close()
            if isinstance(error, RuntimeError) and not isinstance(error, HeadgateError):  # the loop was closed just now
                raise NotRunningError(f"instance {self.name!r}: {self.over}") from None
            raise
        try:
            while True:
                try:
                    return future.result(_LOOK_S)
                except TimeoutError:
                    if future.done():
                        raise
                    if self._loop is None and (self._thread is None or not self._thread.is_alive()):
                        raise NotRunningError(f"instance {self.name!r}: {self.over}") from None
        except BaseException:
            future.cancel()
            raise

    def _open_routes(self) -> None:
        loop = self._running_loop()
        with self._lock:
            if self._routes is not None:
                return
            link = ControlLink(self.way, lambda: self._hello(routes=True), self._received, on_gone=self._gone)
            self._links.append(link)
            try:
                loop.call_soon_threadsafe(self._start_router, link)
            except RuntimeError:  # closed just now
                raise NotRunningError(f"instance {self.name!r}: {self.over}") from None
            self._routes = link  # after its start is on its way, so that whoever sees it comes later

    def _post(self, item: Call | tuple[str, Call, int]) -> None:
        # The flag is cleared before the inbox is emptied, so what is added to it later finds the flag down and wakes the loop.
        self._inbox.append(item)
        if not self._scheduled:
            try:
                self._scheduled = True
                self._running_loop().call_soon_threadsafe(self._empty_inbox)
            except RuntimeError:  # over, or closed just now; NotRunningError is one too
                self._scheduled = False
                self._fail_all()
            except BaseException:  # a signal's handler raised: the next one wakes the loop
                self._scheduled = False
                raise
        elif self.over:
            self._fail_all()

    def _fail_all(self) -> None:
        """End what will never be looked at again."""
        error = ErrorInfo("NotRunningError", f"instance {self.name!r}: {self.over}")
        with contextlib.suppress(IndexError):
            while True:
                item = self._inbox.popleft()
                if isinstance(item, Call):
                    item.failed(error)
        for call in self._take_early():
            call.failed(error)

    # On the loop, or while it is borrowed.

    async def _call(self, verb: Verb) -> messages.VerbDone:
        return await self._open_control().call(verb)

    async def _connected(self) -> Welcome:
        return await self._open_control().connected()

    def _open_control(self) -> ControlLink:
        if self._control is None:
            self._control = ControlLink(self.way, lambda: self._hello(routes=False), lambda message: None, on_gone=self._gone)
            self._links.append(self._control)
            self._control.start()
        return self._control

    def _hello(self, *, routes: bool) -> Hello:
        id = self.id if routes else f"{self.id}-v"
        replica = self.replica or os.environ.get(REPLICA_VARIABLE, "")
        return Hello(messages.PROTOCOL, "client", id, os.getpid(), routes=routes, replica=replica, owner=self._owner and not routes)

    def _start_router(self, link: ControlLink) -> None:
        self._routes = link  # here too, as this may be first
        self._changed = asyncio.Event()
        self._router = self.router(self.id, self.way, link.send)
        link.start()

    async def _latest_table(self) -> RoutingTable:
        assert self._routes is not None
        assert self._router is not None
        assert self._changed is not None
        while True:
            await self._routes.connected()
            if self._routed:
                return self._router.table
            self._changed.clear()
            await self._changed.wait()

    def _received(self, message: Message) -> None:
        assert self._router is not None
        assert self._routes is not None
        assert self._changed is not None
        if isinstance(message, RoutingTable | RoutingChanges):
            table = tables.follow(self._router.table if self._routed else None, message)
            if table is None:
                self._routes.send(SendTable())
                return
            self._router.apply(table)
            self._routed = True
            self._changed.set()
            for call in self._take_early():
                self._router.submit(call)
        elif isinstance(message, Count):
            self._routes.send(Counted(message.number, self._router.counters()))

    def _gone(self, ended: bool) -> None:
        if self._changed is not None:
            self._changed.set()
        for call in self._take_early():
            why = f"instance {self.name!r} has ended, or its controller can't be reached; call serve.init() again"
            call.failed(ErrorInfo("NotRunningError", why))
        if not ended:
            return
        with self._lock:
            if self._loop is None:  # it ends already
                return
            self.over = "it was shut down; call serve.init() again"
            self._loop = None
        self._forget(self)
        self._ending = asyncio.get_running_loop().create_task(self._end())

    def _empty_inbox(self) -> None:
        self._scheduled = False
        inbox = self._inbox
        router, routed = self._router, self._routed
        assert router is not None
        for _ in range(len(inbox)):
            item = inbox.popleft()
            if type(item) is not tuple:
                if routed:
                    router.submit(item)  # type: ignore[arg-type]  # a call
                else:
                    self._wait_for_table(item)  # type: ignore[arg-type]  # as above
                continue
            what, call, count_bytes = item
            if what == "credit":
                router.credit(call, count_bytes)
            else:
                self._cancel(call, router)

    def _wait_for_table(self, call: Call) -> None:
        """Keep a call until the first routing table has come: at most for as long as its caller has time."""
        limit_s, timer = call.caller_timeout_s, None
        if limit_s is not None:
            timer = asyncio.get_running_loop().call_later(call.admitted_at + limit_s - time.monotonic(), self._expire_early, call)
        self._early[call] = timer

    def _expire_early(self, call: Call) -> None:
        self._early.pop(call, None)
        call.state = OVER  # whoever cancels it now comes too late
        why = f"no answer within {call.caller_timeout_s:.3g} s; it waited to hear from the controller and never started"
        call.failed(ErrorInfo("DeadlineExceededError", f"endpoint {call.endpoint!r}: {why}"))

    def _take_early(self) -> list[Call]:
        early, self._early = self._early, {}
        for call, timer in early.items():
            call.state = OVER  # unless it is submitted now
            if timer is not None:
                timer.cancel()
        return list(early)

    def _cancel(self, call: Call, router: Router) -> None:
        try:
            timer = self._early.pop(call)  # in one step: where the loop doesn't end, another thread takes all of them
        except KeyError:
            router.cancel(call)
        else:
            if timer is not None:
                timer.cancel()
        call.failed(ErrorInfo("RequestCancelledError", f"the call to endpoint {call.endpoint!r} was cancelled by its caller"))

    async def _end(self) -> None:
        if self._router is not None:
            await self._router.close(0)
            if self._routes is not None:
                self._routes.send(Counted(0, self._router.counters()))
                await asyncio.sleep(0)  # so that it leaves
        for link in self._links:
            await link.close()
        await asyncio.sleep(0)  # transports end in the next turn of the loop
        asyncio.get_running_loop().stop()

    def _run(self, loop: SharedLoop) -> None:
        try:
            loop.run()
        finally:
            # Who reads for a call in the inbox is woken by its end; who comes later doesn't read.
            self._no_readers = True
            self._fail_all()
            self._reader.acquire()
            loop.close()
        self._fail_all()
        if not self.replica:  # a replica's own links need it longer
            self.way.leave(_LEFT_WITHIN_S)
        if self._ending is not None and self.on_end is not None:
            self.on_end()


def frames_to_the_caller() -> int:
    """How far up the stack user code is, as `warnings.warn` counts it, so that a warning names a line of it."""
    depth = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("headgate."):
        depth += 1
        frame = frame.f_back
    return depth
