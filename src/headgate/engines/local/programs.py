"""What does a process that was forked run, and how does it end? It never returns into the supervisor's code."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import msgspec

from headgate.core.specs import LogSettings
from headgate.engines.base import INGRESS, REPLICA, IngressSpec, InstanceSettings, ReplicaSpec
from headgate.engines.local import protocol, surroundings
from headgate.engines.local.folders import LocalWay
from headgate.engines.local.protocol import Channel, Failed
from headgate.errors import HeadgateError, describe
from headgate.router.way import Way


class Programs(msgspec.Struct, frozen=True):
    """What the forked processes run. The composition root knows them."""

    controller: Callable[[InstanceSettings, Way, socket.socket, tuple[str, ...]], None]
    """Its socket leads to the supervisor, for a `LocalEngine`."""
    ingress: Callable[[IngressSpec, Way, socket.socket], None]
    replica: Callable[[ReplicaSpec, Way], None]
    warm: Callable[[], None]
    """Imports what the others need and the controller does not."""


def run_controller(
    programs: Programs, settings: InstanceSettings, sock: socket.socket, http_urls: tuple[str, ...], from_afar: socket.socket | None
) -> NoReturn:
    """Run the controller to its end; an error of Headgate's own is told to the supervisor at the other end of `sock`.

    `from_afar` listens at the admin address, where there is one.
    """

    from headgate.logs.begin import begin

    begin(settings.log, "controller")

    def program() -> None:
        last_words = sock.dup()
        try:
            way = LocalWay(settings.folder, traces=settings.traces)
            way.admin_listener = from_afar
            programs.controller(settings, way, sock, http_urls)
        except HeadgateError as error:
            with contextlib.suppress(OSError):
                Channel(last_words, protocol.to_supervisor).send(Failed(describe(error)))
            raise

    _end_with(program)


def run_ingress(programs: Programs, spec: IngressSpec, folder: str, listener: socket.socket, log: LogSettings) -> NoReturn:
    """Run an ingress to its end."""
    from headgate.logs.begin import begin

    begin(log, INGRESS, spec.id)
    _end_with(lambda: programs.ingress(spec, LocalWay(folder, traces=spec.traces), listener))


def run_replica(programs: Programs, spec: ReplicaSpec, folder: str, environ: Mapping[str, str], log: LogSettings) -> NoReturn:
    """Run a replica to its end, in these surroundings; what user code registered with `atexit` runs, too."""
    from headgate.logs.begin import begin
    from headgate.router.context import current_call

    begin(log, REPLICA, spec.id, backend=spec.backend, call=current_call)
    surroundings.enter(environ, spec.definition.cwd)
    _end_with(lambda: programs.replica(spec, LocalWay(folder, traces=spec.traces)), atexit._run_exitfuncs)


def become_replica(programs: Programs, path: str, root: str, started_with: Mapping[str, str], log: LogSettings) -> NoReturn:
    """Run the replica of the spec at `path`, in its own surroundings.

    Where they have variables that act only when a program starts, other than those that this one was `started_with`, that
    is in a fresh interpreter, by the module `root`.
    """
    spec = read_replica_spec(path)
    environ = surroundings.environment(spec, started_with)
    if surroundings.needs_exec(environ, started_with):
        _execute_replica(root, [REPLICA, path, log.format, log.folder, *(["verbose"] if log.verbose else [])], environ)
    run_replica(programs, spec, os.path.dirname(path), environ, log)


def read_replica_spec(path: str) -> ReplicaSpec:
    """The spec of a replica, from its file."""
    with open(path, "rb") as file:
        return protocol.replica_specs.decode(file.read())


def read_ingress_spec(path: str) -> IngressSpec:
    """The spec of an ingress, from its file."""
    with open(path, "rb") as file:
        return protocol.ingress_specs.decode(file.read())


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
                from headgate.logs.capture import finish

                finish()
            os._exit(status & 0xFF)


def _execute_replica(root: str, arguments: list[str], environ: dict[str, str]) -> NoReturn:
    """Go on in a fresh interpreter. Its PYTHONPATH leads to Headgate first; it puts back what the user wants to see there."""
    found = [os.path.abspath(entry) for entry in sys.path]
    own = environ.get("PYTHONPATH")
    run_with = {**environ, "PYTHONPATH": os.pathsep.join([*([own] if own else []), *found])}
    os.execve(sys.executable, [sys.executable, "-P", "-m", root, *arguments], run_with)
