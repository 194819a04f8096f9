"""Who is the parent of an instance's processes, and what becomes of them when something dies?

The supervisor binds the listening sockets, imports what the others need and forks them: the controller, and on the word of
the controller's engine ingresses and replicas. It has one thread and no event loop, runs no user code, and decides nothing
but this: every end is reported, a controller that dies is started again, and when the driver is gone, all is.

When the supervisor itself dies, the kernel kills its children.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from headgate.engines.base import IngressSpec, InstanceSettings, ReplicaSpec
from headgate.engines.local import folders, protocol, surroundings
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
    Ready,
    Report,
    Runs,
    Serving,
    Spawn,
    Spawned,
    ToSupervisor,
)
from headgate.errors import AddressInUseError, HeadgateError, InstanceStartError, InvalidValueError, describe, rebuild

CONTROLLER: Final = "controller"
INGRESS: Final = "ingress"
REPLICA: Final = "replica"

BACKLOG: Final = 4096
"""Connections that the kernel keeps for an ingress that is starting or was lost."""
FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 5.0
STEADY_AFTER_S: Final = 2.0
"""A controller that lived so long starts again without delay."""
LEAVE_TIMEOUT_S: Final = 10.0
"""How long a controller may take to end after its engine was closed."""
KILL_TIMEOUT_S: Final = 1.5
"""How long to wait for killed processes to be gone."""
PORT_FREE_TIMEOUT_S: Final = 1.0
"""How long a dead instance's processes may hold its port."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Programs(msgspec.Struct, frozen=True):
    """What the forked processes run. The composition root knows them."""

    controller: Callable[[InstanceSettings, socket.socket, tuple[str, ...]], None]
    """Its socket leads to the supervisor, for a `LocalEngine`."""
    ingress: Callable[[IngressSpec, socket.socket], None]
    replica: Callable[[ReplicaSpec], None]
    warm: Callable[[], None]
    """Imports what the others need and the controller does not."""


class _Child(msgspec.Struct):
    """One process that was forked."""

    role: str
    id: str
    pid: int
    ready: bool = False
    address: str = ""


def supervise(boot: Boot, report_to: socket.socket, programs: Programs) -> None:
    """Run an instance until it is shut down or its driver is gone. Tells `report_to` once how the start went."""
    held: list[int] = []
    listeners: list[socket.socket] = []
    settings = boot.settings
    try:
        lock = folders.hold(settings.folder)
        if lock is None:
            raise InstanceStartError(f"another instance runs in {settings.folder}")
        held.append(lock)
        if settings.state_kept:
            held.append(folders.hold_state(settings.state_dir))
        listeners = listen(settings, PORT_FREE_TIMEOUT_S if boot.replaces_dead else 0.0)
        driver = None if settings.detached else _watch(settings.driver_pid)
    except Exception as error:  # noqa: BLE001  # the root of this process: whatever it is, the driver waits for it
        _tell(report_to, error)
        return
    _Supervisor(boot, programs, report_to, listeners, held, driver).run()


def listen(settings: InstanceSettings, free_timeout_s: float = 0.0) -> list[socket.socket]:
    """One listening socket for each ingress, all on one port.

    The first is bound without SO_REUSEPORT, so that it fails where anybody else listens. It is set on it afterwards, and on
    its siblings before they are bound, so that these share the port. Raises `AddressInUseError` naming the port.
    """
    host, port = settings.http_host, settings.http_port
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidValueError(f"http_host={host!r} is no address of this machine: {error}") from error
    deadline = time.monotonic() + free_timeout_s
    listeners: list[socket.socket] = []
    try:
        for number in range(settings.num_ingresses):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            while True:
                try:
                    listener.bind(address)
                    break
                except OSError as error:
                    if time.monotonic() >= deadline:
                        raise _bind_error(error, host, port) from error
                    time.sleep(0.01)
            if not number:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                address = (address[0], listener.getsockname()[1], *address[2:])
        for listener in listeners:
            listener.listen(BACKLOG)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def urls(settings: InstanceSettings, listeners: list[socket.socket]) -> tuple[str, ...]:
    """Where clients on this machine reach the instance."""
    port = listeners[0].getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)
    scheme = "https" if settings.ssl_certfile else "http"
    return (f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",)


def run_replica(program: Callable[[ReplicaSpec], None], spec: ReplicaSpec) -> NoReturn:
    """Run a replica's program in this process, to the end; what user code registered with `atexit` runs, too."""
    _end_with(lambda: program(spec), atexit._run_exitfuncs)


def read_replica_spec(path: str) -> ReplicaSpec:
    """The spec of a replica, from its file."""
    with open(path, "rb") as file:
        return protocol.replica_specs.decode(file.read())


class _Supervisor:
    """The state and the loop of the one supervisor in this process."""

    def __init__(
        self, boot: Boot, programs: Programs, report_to: socket.socket, listeners: list[socket.socket], held: list[int], driver: int | None
    ) -> None:
        self._boot = boot
        self._settings = boot.settings
        self._programs = programs
        self._report_to: socket.socket | None = report_to
        self._listeners = listeners
        self._held = held
        self._driver = driver
        self._urls = urls(boot.settings, listeners)
        self._environ = dict(os.environ)  # what this process was started with
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}  # by pid
        self._by_id: dict[str, _Child] = {}  # without the controller
        self._channel: Channel[ToSupervisor] | None = None
        self._failure: HeadgateError | None = None  # why the controller said that it ends
        self._start_again_at: float | None = None
        self._started_at = 0.0
        self._delay_s = 0.0
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
            gc.enable()
            while not self._over:
                self._turn()
        except Exception as error:  # noqa: BLE001  # the root of this process: a defect must not leave others behind
            traceback.print_exc()
            self._failure = InstanceStartError(f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            self._end()

    def _prepare(self) -> None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a replica's children leave behind comes here, and ends with the instance
        _set_name("hg-supervisor")
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _do_nothing)  # the number arrives at the socket
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._signals)
        if self._driver is not None:
            self._selector.register(self._driver, selectors.EVENT_READ, self._driver_gone)

    def _turn(self) -> None:
        due = [at for at in (self._start_again_at, self._leave_by) if at is not None]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        for key, events in self._selector.select(timeout_s):
            if self._over:
                return
            key.data(events)
        now = time.monotonic()
        if self._start_again_at is not None and now >= self._start_again_at:
            self._start_again_at = None
            self._start_controller()
        if self._leave_by is not None and now >= self._leave_by:
            self._over = True

    # What happens.

    def _signals(self, events: int) -> None:
        numbers = self._wakeup.recv(4096)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._over = True
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
        for record in records:
            self._obey(record)

    def _obey(self, record: ToSupervisor) -> None:
        if isinstance(record, Spawn):
            self._spawn(record.role, record.id)
        elif isinstance(record, Kill):
            child = self._by_id.get(record.id)
            if child is not None:
                _kill(child.pid)
        elif isinstance(record, Ready):
            child = self._by_id.get(record.id)
            if child is not None:
                child.ready, child.address = True, record.address
        elif isinstance(record, Serving):
            self._serving()
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
        record = InstanceRecord(name=self._settings.name, pid=self._pid, http_urls=self._urls)
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
        self._no_longer_serving()
        for listener in self._listeners:
            listener.close()
        for child in self._by_id.values():
            _kill(child.pid)
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
                _kill_group(found.si_pid)  # before it is reaped: until then the number can't be anybody else's
            os.waitpid(found.si_pid, 0)
            if child is None:
                continue  # an orphan of a replica's
            reason = _reason(found.si_code, found.si_status)
            if child.role == CONTROLLER:
                self._controller_ended(reason)
            else:
                del self._by_id[child.id]
                self._forget_files(child.id)
                self._send(Exited(child.id, reason))
                self._say_closed()

    def _controller_ended(self, reason: str) -> None:
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
        _say(f"the controller ended ({reason}); starting another in {self._delay_s:g} s")
        self._start_again_at = time.monotonic() + self._delay_s

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._selector.unregister(self._channel.sock)
            self._channel.sock.close()
            self._channel = None

    def _forget_files(self, id: str) -> None:
        folders.remove(protocol.spec_path(self._settings.folder, id))
        folders.remove(protocol.socket_path(self._settings.folder, id))

    def _end(self) -> None:
        """Kill what runs, wait for it, remove the folder, and say so where the driver still waits."""
        self._closing = True
        self._no_longer_serving()
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while True:
            for pid in self._children:
                _kill(pid)
            for pid in _children_of_this_process():
                if pid not in self._children:
                    _kill_one(pid)  # orphans, which may have had sessions of their own
            try:
                while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                    if self._children.pop(found.si_pid, None) is not None:
                        _kill_group(found.si_pid)
                    os.waitpid(found.si_pid, 0)
            except ChildProcessError:
                break
            if time.monotonic() > deadline:
                _say("processes that were killed are still there; leaving them to the kernel")
                break
            time.sleep(0.002)
        folders.remove_instance(self._settings.folder)
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
            self._fork(CONTROLLER, CONTROLLER, theirs)
        except OSError as error:
            self._controller_ended(f"could not be started: {error.strerror}")
            return
        finally:
            theirs.close()
        for child in self._by_id.values():
            self._send(Runs(child.id, child.role, child.pid, child.ready, child.address))
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
            gc.enable()
            os.setsid()
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self._pid:  # it died before we asked to be killed with it
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _set_name(f"hg-{role}")
            self._close_all_but_listeners()
            settings = self._settings
            if role == CONTROLLER:
                assert controller_socket is not None  # made by _start_controller
                self._close_listeners()
                controller_main = self._programs.controller
                _end_with(lambda: _run_controller(controller_main, settings, controller_socket, self._urls))
            path = protocol.spec_path(settings.folder, id)
            if role == INGRESS:
                with open(path, "rb") as file:
                    ingress = protocol.ingress_specs.decode(file.read())
                listener = self._listeners[ingress.number]
                self._close_listeners(listener)
                ingress_main = self._programs.ingress
                _end_with(lambda: ingress_main(ingress, listener))
            self._close_listeners()
            replica = read_replica_spec(path)
            environ = surroundings.environment(replica, self._environ)
            if surroundings.needs_exec(environ, self._environ):
                _execute_replica(self._boot.root, path, environ)
            surroundings.enter(environ, replica.definition.cwd)
            run_replica(self._programs.replica, replica)
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

    def _send(self, record: protocol.ToEngine) -> None:
        if self._channel is not None and not self._channel.send(record):
            self._selector.modify(self._channel.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self._controller_speaks)


def _run_controller(
    program: Callable[[InstanceSettings, socket.socket, tuple[str, ...]], None],
    settings: InstanceSettings,
    sock: socket.socket,
    http_urls: tuple[str, ...],
) -> None:
    last_words = sock.dup()
    try:
        program(settings, sock, http_urls)
    except HeadgateError as error:
        with contextlib.suppress(OSError):
            Channel(last_words, protocol.to_supervisor).send(Failed(describe(error)))
        raise


def _end_with(program: Callable[[], None], afterwards: Callable[[], None] | None = None) -> NoReturn:
    """Run a program, then end this process, with status 1 where it raised; never returns into the supervisor's code."""
    status = 1
    try:
        program()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  # the root of this process
        traceback.print_exc()
    finally:
        try:
            if afterwards is not None:
                afterwards()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status & 0xFF)


def _execute_replica(root: str, path: str, environ: dict[str, str]) -> NoReturn:
    """Go on in a fresh interpreter. Its PYTHONPATH leads to Headgate first; it puts back what the user wants to see there."""
    found = [os.path.abspath(entry) for entry in sys.path]
    own = environ.get("PYTHONPATH")
    run_with = {**environ, "PYTHONPATH": os.pathsep.join([*([own] if own else []), *found])}
    os.execve(sys.executable, [sys.executable, "-P", "-m", root, REPLICA, path], run_with)


def _watch(pid: int) -> int:
    """A descriptor that can be read once this process, our parent, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise InstanceStartError(f"the process that starts the instance (pid {pid}) has ended") from None
    if os.getppid() != pid:
        os.close(descriptor)
        raise InstanceStartError(f"the process that starts the instance (pid {pid}) has ended")
    return descriptor


def _tell(sock: socket.socket, error: Exception | None) -> None:
    report = Report(error=None if error is None else describe(error))
    with contextlib.suppress(OSError):
        sock.sendall(msgspec.msgpack.encode(report))
    sock.close()


def _bind_error(error: OSError, host: str, port: int) -> HeadgateError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(f"port {port} on {host} is in use by another program or instance; give another http_port, or 0 for any")
    return InvalidValueError(f"http_host={host!r}, http_port={port} can't be listened on: {error.strerror}")


def _kill(pid: int) -> None:
    _kill_group(pid)
    _kill_one(pid)  # it may not have become the leader of its group yet


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill_one(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _children_of_this_process() -> list[int]:
    pid = os.getpid()
    try:
        with open(f"/proc/self/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def _reason(code: int, status: int) -> str:
    if code == os.CLD_EXITED:
        return f"exit status {status}"
    name = signal.Signals(status).name if status in signal.Signals._value2member_map_ else f"signal {status}"
    return f"killed by {name}" + (" (core dumped)" if code == os.CLD_DUMPED else "")


def _set_name(name: str) -> None:
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"headgate: {text}", file=sys.stderr, flush=True)  # noqa: T201  # the supervisor has no logging: it would be copied into every fork


def _do_nothing(number: int, frame: object) -> None:
    pass
