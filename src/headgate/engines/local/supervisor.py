"""Who is the parent of an instance's processes, and what becomes of them when something dies?

The supervisor binds the listening sockets, imports what the others need and forks them: the controller, and on the word of
the controller's engine ingresses and replicas. It has one thread and no event loop, runs no user code, and decides nothing
but this: every end is reported, a controller that dies or is stuck is started again, and when the driver is gone, all is.
SIGTERM has the controller end everything in order; a second one, or SIGINT, ends everything at once.

When the supervisor itself dies, the kernel kills its children.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from typing import Final, NoReturn

import msgspec

from headgate.core import replica_life as life
from headgate.engines.base import INGRESS, Report
from headgate.engines.local import folders, processes, programs, protocol, sigterm
from headgate.engines.local.listeners import listen, listen_from_afar, urls
from headgate.engines.local.programs import Programs
from headgate.engines.local.protocol import (
    Boot,
    Channel,
    Close,
    Closed,
    Complete,
    Exited,
    Failed,
    InstanceRecord,
    Kill,
    Leave,
    Leaving,
    Remember,
    Runs,
    Serving,
    Spawn,
    Spawned,
    ToSupervisor,
)
from headgate.errors import HeadgateError, InstanceStartError, describe, rebuild
from headgate.logs.entry import Entry
from headgate.logs.output import output_of
from headgate.router.way import link_path
from headgate.traces import begin as tracing

CONTROLLER: Final = "controller"

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 1.0
STEADY_AFTER_S: Final = 1.0
"""A controller that lived so long starts again without delay."""
STUCK_AFTER_S: Final = 10.0
"""A controller from which nothing came for so long is killed; the next one, which has the same to do, gets twice the time."""
_LONGEST_PATIENCE_S: Final = 640.0
_PATIENCE_HOLDS: Final = 10
"""After a life of so many times the patience, being stuck counts as the first time."""
_LOOKS: Final = 5
"""So many times the supervisor has looked in vain by then: a time in which it was suspended itself counts as one of them."""
TELL_TIMEOUT_S: Final = 30.0
"""How long after SIGTERM there may be no controller that says by when it will have closed."""
LEAVE_TIMEOUT_S: Final = 10.0
"""How long a controller may take to end after its engine was closed, and to close it after it said it would."""
KILL_TIMEOUT_S: Final = 1.5
"""How long to wait for killed processes to be gone."""
PORT_FREE_TIMEOUT_S: Final = 1.0
"""How long a dead instance's processes may hold its port."""


class _Child(msgspec.Struct):
    """One process that was forked."""

    role: str
    id: str
    pid: int
    state: str = life.STARTING
    address: str = ""


def supervise(boot: Boot, report_to: socket.socket, to_run: Programs) -> None:
    """Run an instance until it is shut down or its driver is gone. Tells `report_to` once how the start went."""
    held: list[int] = []
    listeners: list[socket.socket] = []
    from_afar: socket.socket | None = None
    settings = boot.settings
    try:
        lock = folders.hold(settings.folder)
        if lock is None:
            raise InstanceStartError(f"another instance runs in {settings.folder}")
        held.append(lock)
        if settings.state_kept:
            held.append(folders.hold_state(settings.state_dir))
        if settings.log_dir:
            held.append(folders.hold_logs(settings.log_dir))
        free_timeout_s = PORT_FREE_TIMEOUT_S if boot.replaces_dead else 0.0
        listeners = listen(settings, free_timeout_s)
        from_afar = listen_from_afar(settings.admin_address, free_timeout_s) if settings.admin_address else None
        driver = None if settings.detached else processes.watch_parent(settings.driver_pid)
    except Exception as error:  # noqa: BLE001  # the root of this process: whatever it is, the driver waits for it
        _tell(report_to, error)
        return
    _Supervisor(boot, to_run, report_to, listeners, from_afar, held, driver).run()


class _Supervisor:
    """The state and the loop of the one supervisor in this process."""

    def __init__(
        self,
        boot: Boot,
        to_run: Programs,
        report_to: socket.socket,
        listeners: list[socket.socket],
        from_afar: socket.socket | None,
        held: list[int],
        driver: int | None,
    ) -> None:
        self._boot = boot
        self._settings = boot.settings
        self._programs = to_run
        self._report_to: socket.socket | None = report_to
        self._listeners = listeners
        self._from_afar = from_afar  # of one controller after the other; closed last, by which others see the end
        self._held = held
        self._driver = driver
        self._urls = urls(boot.settings, listeners)
        self._output = output_of(boot.settings.log, "supervisor")
        self._environ = dict(os.environ)  # what this process was started with
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}  # by pid
        self._by_id: dict[str, _Child] = {}  # without the controller
        self._controller: _Child | None = None
        self._channel: Channel[ToSupervisor] | None = None
        self._look_at: float | None = None  # whether the controller has given a sign of life, and …
        self._in_vain = 0  # … how many looks found none since the last one
        self._patience_s = STUCK_AFTER_S
        self._failure: HeadgateError | None = None  # why the controller said that it ends
        self._start_again_at: float | None = None
        self._started_at = 0.0
        self._delay_s = 0.0
        self._told_to_leave = False
        self._leaving = False  # a controller has said by when
        self._closing = False
        self._leave_by: float | None = None
        self._over = False
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def run(self) -> None:
        """Supervise until the end, then leave nothing."""
        try:
            self._prepare()
            self._start_controller()
            self._programs.warm()
            if self._settings.traces:
                tracing.warm()
            gc.enable()
            while not self._over:
                self._turn()
        except Exception as error:  # noqa: BLE001  # the root of this process: a defect must not leave others behind
            traceback.print_exc()
            self._failure = InstanceStartError(f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            self._end()

    def _prepare(self) -> None:
        processes.adopt_orphans()  # so that what a replica's children leave behind ends with the instance
        processes.set_name("hg-supervisor")
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _do_nothing)  # the number arrives at the socket
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._signals)
        if self._driver is not None:
            self._selector.register(self._driver, selectors.EVENT_READ, self._driver_gone)

    def _turn(self) -> None:
        due = [at for at in (self._start_again_at, self._look_at, self._leave_by) if at is not None]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        for key, events in self._selector.select(timeout_s):
            if self._over:
                return
            key.data(events)
        now = time.monotonic()
        if self._start_again_at is not None and now >= self._start_again_at:
            self._start_again_at = None
            self._start_controller()
        if self._look_at is not None and now >= self._look_at:
            self._look(now)
        if self._leave_by is not None and now >= self._leave_by:
            self._say("the controller did not end the instance in time; ending it at once")
            self._over = True

    # What happens.

    def _signals(self, events: int) -> None:
        numbers = self._wakeup.recv(4096)
        if signal.SIGINT in numbers or (signal.SIGTERM in numbers and self._told_to_leave):
            self._over = True
        elif signal.SIGTERM in numbers:
            self._told_to_leave = True
            if not self._closing:
                self._leave_by = time.monotonic() + TELL_TIMEOUT_S
                self._send(Leave())
        self._reap()

    def _driver_gone(self, events: int) -> None:
        self._over = True

    def _controller_speaks(self, events: int) -> None:
        channel = self._channel
        if channel is None:
            return
        if events & selectors.EVENT_WRITE and channel.flush():
            self._selector.modify(channel.sock, selectors.EVENT_READ, self._controller_speaks)
        records = channel.receive()
        if records is None:
            self._drop_channel()
            return
        if records:
            self._seen_alive()
        for record in records:
            self._obey(record)

    def _seen_alive(self) -> None:
        self._in_vain = 0
        self._look_at = None if self._closing else time.monotonic() + self._patience_s / _LOOKS

    def _look(self, now: float) -> None:
        """Nothing has come from the controller since the last look: kill it after some of them."""
        self._in_vain += 1
        self._look_at = now + self._patience_s / _LOOKS
        if self._in_vain >= _LOOKS and self._controller is not None:
            self._look_at = None
            # It may be at work, such as writing a very large model to a slow disk: the next one, to which that is sent again, needs longer.
            waited_s = self._patience_s
            again = now - self._started_at < _PATIENCE_HOLDS * waited_s
            self._patience_s = min(2 * waited_s, _LONGEST_PATIENCE_S) if again else 2 * STUCK_AFTER_S
            self._say(f"the controller gave no sign of life for {waited_s:g} s; killing it. The next one gets {self._patience_s:g} s")
            processes.kill(self._controller.pid)

    def _obey(self, record: ToSupervisor) -> None:
        if isinstance(record, Spawn):
            self._spawn(record.role, record.id)
        elif isinstance(record, Kill):
            child = self._by_id.get(record.id)
            if child is not None:
                processes.kill(child.pid)
        elif isinstance(record, Remember):
            child = self._by_id.get(record.id)
            if child is not None:
                child.state, child.address = record.state, record.address
        elif isinstance(record, Serving):
            self._serving()
        elif isinstance(record, Leaving):
            if not self._leaving:  # of those after a crash none gets more time
                self._leaving = True
                self._leave_by = time.monotonic() + record.within_s + LEAVE_TIMEOUT_S
        elif isinstance(record, Failed):
            self._failure = rebuild(record.error)
        elif isinstance(record, Close):
            self._close()

    def _spawn(self, role: str, id: str) -> None:
        try:
            child = self._fork(role, id)
        except OSError as error:
            self._forget_files(id)
            self._send(Exited(id, f"could not be started: {error.strerror}"))
            return
        self._by_id[id] = child
        self._send(Spawned(id, child.pid))

    def _serving(self) -> None:
        record = InstanceRecord(name=self._settings.name, pid=self._pid, http_urls=self._urls, traces=self._settings.traces)
        path = f"{self._settings.folder}/instance"
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.msgpack.encode(record))
        os.replace(f"{path}.new", path)
        if self._report_to is not None:
            _tell(self._report_to, None)
            self._report_to = None

    def _close(self) -> None:
        """The engine closes: from here on there is no way back."""
        self._closing = True
        self._look_at = None
        self._no_longer_serving()
        for listener in self._listeners:
            listener.close()
        for child in self._by_id.values():
            processes.kill(child.pid)
        self._leave_by = time.monotonic() + LEAVE_TIMEOUT_S
        self._say_closed()

    def _say_closed(self) -> None:
        if self._closing and not self._by_id:
            self._send(Closed())

    def _no_longer_serving(self) -> None:
        folders.remove(f"{self._settings.folder}/instance")

    # Ends.

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            child = self._children.pop(found.si_pid, None)
            if child is not None:
                processes.kill_group(found.si_pid)  # before it is reaped: until then the number can't be anybody else's
            os.waitpid(found.si_pid, 0)
            if child is None:
                continue  # an orphan of a replica's
            reason = processes.reason(found.si_code, found.si_status)
            if child.role == CONTROLLER:
                self._controller_ended(reason)
            else:
                del self._by_id[child.id]
                self._forget_files(child.id)
                self._send(Exited(child.id, reason))
                self._say_closed()

    def _controller_ended(self, reason: str) -> None:
        self._controller = self._look_at = None
        if self._channel is not None:  # hear its last words
            for record in self._channel.receive() or ():
                self._obey(record)
        self._drop_channel()
        if self._closing:
            self._over = True
            return
        if self._report_to is not None:
            if self._failure is None:
                self._failure = InstanceStartError(f"the controller ended while it started ({reason})")
            self._over = True
            return
        lived_s = time.monotonic() - self._started_at
        self._delay_s = 0.0 if lived_s >= STEADY_AFTER_S else min(max(2 * self._delay_s, FIRST_DELAY_S), LONGEST_DELAY_S)
        self._say(f"the controller ended ({reason}); starting another in {self._delay_s:g} s")
        self._start_again_at = time.monotonic() + self._delay_s

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._selector.unregister(self._channel.sock)
            self._channel.sock.close()
            self._channel = None

    def _forget_files(self, id: str) -> None:
        folders.remove(protocol.spec_path(self._settings.folder, id))
        folders.remove(link_path(self._settings.folder, id))

    def _end(self) -> None:
        """Kill what runs, wait for it, remove the folder, and say so where the driver still waits."""
        self._closing = True
        self._no_longer_serving()
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while True:
            for pid in self._children:
                processes.kill(pid)
            for pid in processes.children():
                if pid not in self._children:
                    processes.kill_one(pid)  # orphans, which may have had sessions of their own
            try:
                while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                    if self._children.pop(found.si_pid, None) is not None:
                        processes.kill_group(found.si_pid)
                    os.waitpid(found.si_pid, 0)
            except ChildProcessError:
                break
            if time.monotonic() > deadline:
                self._say("processes that were killed are still there; leaving them to the kernel")
                break
            time.sleep(0.002)
        folders.remove_instance(self._settings.folder)
        if self._from_afar is not None:
            self._from_afar.detach()  # closed by the exit of this process
        if self._report_to is not None:
            _tell(self._report_to, self._failure or InstanceStartError("the instance was ended while it started"))
            self._report_to = None

    # Beginnings.

    def _start_controller(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours, protocol.to_supervisor)
        self._selector.register(ours, selectors.EVENT_READ, self._controller_speaks)
        self._failure = None
        self._started_at = time.monotonic()
        try:
            self._controller = self._fork(CONTROLLER, CONTROLLER, theirs)
        except OSError as error:
            self._controller_ended(f"could not be started: {error.strerror}")
            return
        finally:
            theirs.close()
        self._seen_alive()
        for child in self._by_id.values():
            self._send(Runs(child.id, child.role, child.pid, child.state, child.address))
        if self._told_to_leave:
            self._send(Leave())
        self._send(Complete())

    def _fork(self, role: str, id: str, controller_socket: socket.socket | None = None) -> _Child:
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # what exists now is out of the collector's sight, so that collections in the fork don't copy its pages
        pid = os.fork()
        if not pid:
            self._become(role, id, controller_socket)
        child = _Child(role, id, pid)
        self._children[pid] = child
        return child

    def _become(self, role: str, id: str, controller_socket: socket.socket | None) -> NoReturn:
        """What a fork does: leave everything that is the supervisor's, and run its program."""
        try:
            signal.set_wakeup_fd(-1)  # first: it leads to the supervisor
            gc.enable()
            os.setsid()
            processes.end_with(self._pid)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sigterm.stay()
            processes.set_name(f"hg-{role}")
            self._close_all_but_listeners()
            if role == CONTROLLER:
                assert controller_socket is not None  # made by _start_controller
                self._close_listeners()
                programs.run_controller(self._programs, self._settings, controller_socket, self._urls, self._from_afar)
            if self._from_afar is not None:
                self._from_afar.close()
            path = protocol.spec_path(self._settings.folder, id)
            if role == INGRESS:
                ingress = programs.read_ingress_spec(path)
                listener = self._listeners[int(ingress.place)]
                self._close_listeners(listener)
                programs.run_ingress(self._programs, ingress, self._settings.folder, listener, self._settings.log)
            self._close_listeners()
            programs.become_replica(self._programs, path, self._boot.root, self._environ, self._settings.log)
        except BaseException:  # noqa: BLE001  # the root of a fork: nothing may run on as a second supervisor
            traceback.print_exc()
        finally:
            os._exit(1)

    def _close_all_but_listeners(self) -> None:
        self._selector.close()
        self._wakeup.close()
        self._wakeup_writer.close()
        if self._channel is not None:
            self._channel.sock.close()
        if self._report_to is not None:
            self._report_to.close()
        for descriptor in self._held:
            os.close(descriptor)
        if self._driver is not None:
            os.close(self._driver)

    def _close_listeners(self, keep: socket.socket | None = None) -> None:
        for listener in self._listeners:
            if listener is not keep:
                listener.close()

    def _say(self, text: str) -> None:
        """Past `logging`, which would be copied into every fork."""
        self._output.write(Entry(time=time.time(), role="supervisor", level="WARNING", text=text))

    def _send(self, record: protocol.ToEngine) -> None:
        if self._channel is not None and not self._channel.send(record):
            self._selector.modify(self._channel.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self._controller_speaks)


def _tell(sock: socket.socket, error: Exception | None) -> None:
    report = Report(error=None if error is None else describe(error))
    with contextlib.suppress(OSError):
        sock.sendall(msgspec.msgpack.encode(report))
    sock.close()


def _do_nothing(number: int, frame: object) -> None:
    pass
