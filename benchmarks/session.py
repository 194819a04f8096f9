"""How are contenders started, measured in turns until they agree with themselves, and ended?

One server program at a time is measured; the processes of the others are stopped meanwhile, so that what an idle server does in the
background is no part of another's figure.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.contenders import CONTENDERS, MODEL_WORKS, Contender
from benchmarks.servers.asked import PR_SET_CHILD_SUBREAPER

ROOT = Path(__file__).resolve().parent.parent
NOOP = b'{"x":1}'

REFERENCE = "headgate"  # to which the others are compared
MAX_ROUNDS = 6
MAX_ROUNDS_QUICK = 3
AGREE = 1.10  # the largest of three windows may be this many times the smallest
AGREEING = 3  # windows that have to
VOID_IN_A_ROW = 3  # so many, and the round goes on without
START_S = 60.0
SETTLE_S = 0.2  # what the last window has left behind ends before the servers are stopped
END_S = 4.0  # for a server to end by itself after SIGTERM; mosec doesn't always, once it was stopped


class VoidWindow(Exception):  # noqa: N818 - not an error: the window is repeated
    """What was measured doesn't count, and why."""


class NotThereError(RuntimeError):
    """A server program ended, or didn't answer in time."""


NO_WINDOW = (VoidWindow, NotThereError, OSError, http.client.HTTPException, subprocess.SubprocessError)
"""What a window, and what comes before it, may end by."""


@dataclass(frozen=True)
class Server:
    """A running contender."""

    name: str  # under which it stands in `windows`; the contender's, unless `serving` was given another
    url: str
    pid: int  # of the server program; all that it started are its descendants


@dataclass
class Figures:
    """What was measured of one contender in one case."""

    windows: list[dict[str, float]] = field(default_factory=list)
    agreed: bool = False  # the last three windows on the figure that has to
    void: list[str] = field(default_factory=list)  # why windows didn't count
    medians: dict[str, float] = field(default_factory=dict)  # of the last three windows, or of all where those didn't agree
    spread: dict[str, float] = field(default_factory=dict)  # of the same: (largest - smallest) / median
    unsteady: list[str] = field(default_factory=list)  # figures on which these windows don't agree


@dataclass
class Case:
    """One row of a work: all contenders under the same load."""

    name: str
    agree_on: str
    units: dict[str, str]  # of each figure; `1/s`, `MB/s` and the like: more is better
    figures: dict[str, Figures] = field(default_factory=dict)


@dataclass
class Measured:
    """One work: its cases, and what has to be said beside them."""

    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Session:
    """One run of the suite: who takes part, what runs, what was measured."""

    def __init__(self, contenders: tuple[str, ...], *, quick: bool = False) -> None:
        self.contenders = contenders
        self.quick = quick
        self.measured: dict[int, Measured] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="hgb-"))  # logs and sockets: a short name, since those of sockets are limited
        self._running: dict[str, _Running] = {}
        # What a server has started and left behind becomes a child of this process, which ends it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # Some contenders keep files in the user's home: identities, tokens, models. Here they keep them for the session.
        self._home = os.environ.get("HOME")
        os.environ["HOME"] = str(self.folder)

    def close(self) -> None:
        """Remove the folder, and with it all that contenders have left."""
        if self._home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = self._home
        shutil.rmtree(self.folder, ignore_errors=True)

    def choose(self, *names: str) -> list[str]:
        """Those of these contenders that take part, in this order."""
        unknown = set(names) - set(CONTENDERS)
        assert not unknown, f"no such contenders: {sorted(unknown)}"
        return [name for name in names if name in self.contenders]

    @contextlib.contextmanager
    def serving(
        self,
        contender: str,
        work: str,
        *,
        name: str | None = None,
        probe: bytes | None = NOOP,
        content_type: str = "application/json",
        path: str | None = None,
        attempts: int = 2,
        **options: str | int,
    ) -> Iterator[Server]:
        """Run a contender's server program for one work in its environment; ends it and all that it started.

        `work` and `options` are what `benchmarks/servers/` understands. `name` tells servers of one contender apart. The server is there
        when a POST of `probe` to `path` (the contender's own, where none is given) is answered 2xx; with None, when the port accepts.
        Raises `NotThereError` with the end of its log where it isn't there within a minute, also at the last of `attempts`.
        """
        name = name or contender
        assert name not in self._running, f"{name} runs already; give the second one a name of its own"
        try:
            server, running = self._started(contender, name, work, path, probe, content_type, options)
        except NotThereError as error:
            if attempts < 2:
                raise
            _say(f"once more: {error}")
            server, running = self._started(contender, name, work, path, probe, content_type, options)
        try:
            yield server
        except BaseException:
            if running.process.poll() is not None:
                _say(f"{name} has ended by itself with status {running.process.returncode}; its last lines:\n{_end_of(running.log)}")
            raise
        finally:
            del self._running[name]
            running.end()

    def serving_all(
        self,
        stack: contextlib.ExitStack,
        number: int,
        names: Sequence[str],
        work: str,
        ready: Callable[[str, str], object] | None = None,
        *,
        probes: Mapping[str, bytes] | None = None,
        **settings: Any,
    ) -> dict[str, str]:
        """Run these contenders for one work until the stack ends; returns their addresses.

        `ready` is called with each contender's name and address before the next is started. Whoever doesn't start, or isn't ready, is left
        out of work `number`, with a note. `probes` has those that differ by contender; `settings` are what `serving` takes.
        """
        urls: dict[str, str] = {}
        for name in names:
            attempt = contextlib.ExitStack()
            try:
                probe = settings | ({"probe": probes[name]} if probes else {})
                urls[name] = attempt.enter_context(self.serving(name, work, **probe)).url
                if ready is not None:
                    ready(name, urls[name])
            except NO_WINDOW as error:
                urls.pop(name, None)
                attempt.close()
                self.leave_out(number, name, error)
                continue
            stack.push(attempt)
        return urls

    def _started(
        self,
        contender: str,
        name: str,
        work: str,
        path: str | None,
        probe: bytes | None,
        content_type: str,
        options: Mapping[str, str | int],
    ) -> tuple[Server, _Running]:
        known = CONTENDERS[contender]
        port = _free_port()
        log = self.folder / f"{len(list(self.folder.iterdir()))}-{contender}-{work}.log"
        running = self._running[name] = _Running(_start(known, work, port, {**known.options, **options}, log), log, known.wakes_s)
        server = Server(name, f"http://127.0.0.1:{port}{path or known.path}", running.process.pid)
        try:
            _wait_until_there(server, port, probe, content_type, running)
        except BaseException:
            del self._running[name]
            running.end()
            raise
        return server, running

    def interleave(
        self,
        work: int,
        case: str,
        windows: Mapping[str, Callable[[], Mapping[str, float]]],
        *,
        agree_on: str,
        units: Mapping[str, str],
    ) -> None:
        """Call each contender's window in turn, round after round, and keep every figure.

        A contender is done when its last three windows agree within 10 % on the figure `agree_on`, or after 6 rounds (3 in quick mode);
        Headgate goes on as long as anybody does, so that there is one of its windows beside each. `windows` has a callable per name of a
        server (or of a contender where nothing is served). It returns figures by name; `units` has theirs. One that raises, such as a
        `VoidWindow`, is called twice more. While one is called, the other servers are stopped.
        """
        row = Case(case, agree_on, dict(units))
        self._work(work).cases.append(row)
        rounds = MAX_ROUNDS_QUICK if self.quick else MAX_ROUNDS
        try:
            for _ in range(rounds):
                if row.figures and all(figures.agreed for figures in row.figures.values()):
                    break
                for name, window in windows.items():
                    figures = row.figures.setdefault(name, Figures())
                    if figures.agreed and name != REFERENCE:
                        continue
                    self._leave_alone(name)
                    _take_window(figures, window)
                    summarise(figures, agree_on)
        finally:
            for running in self._running.values():
                running.thaw()
        _say_all(work, row)

    def record(
        self, work: int, case: str, windows: Mapping[str, Sequence[Mapping[str, float]]], *, agree_on: str, units: Mapping[str, str]
    ) -> None:
        """Keep a case whose windows were measured elsewhere, by contender."""
        row = Case(case, agree_on, dict(units))
        self._work(work).cases.append(row)
        for name, measured in windows.items():
            figures = row.figures[name] = Figures([dict(window) for window in measured])
            summarise(figures, agree_on)
        _say_all(work, row)

    def note(self, work: int, text: str) -> None:
        """Say something in the report beside the work's figures, once."""
        notes = self._work(work).notes
        if text not in notes:
            notes.append(text)

    def leave_out(self, work: int, contender: str, reason: Exception) -> None:
        """Say that a contender takes no part in the rest of a work."""
        _say(f"work {work:2}: {contender} is left out: {reason}")
        self.note(work, f"{CONTENDERS[contender].title} is left out: {str(reason).splitlines()[0]}")

    def results(self, work: int) -> dict[str, Any]:
        """What was measured of a work, as it goes into the JSON file."""
        return asdict(self._work(work))

    def _work(self, work: int) -> Measured:
        return self.measured.setdefault(work, Measured())

    def _leave_alone(self, name: str) -> None:
        """Stop all servers but this one; a window that belongs to none of them needs them all."""
        time.sleep(SETTLE_S)
        for other, running in self._running.items():
            if name in self._running and other != name:
                running.freeze()
        time.sleep(
            max((running.thaw() for other, running in self._running.items() if other == name or name not in self._running), default=0.0)
        )


def post(url: str, body: bytes, timeout_s: float = 30.0, *, content_type: str = "application/json") -> bytes:
    """One POST; returns the body of the answer, raises `OSError` where it isn't 2xx."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type}, method="POST")
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        content: bytes = answer.read()
        return content


def descendants(pid: int) -> list[int]:
    """All processes below this one, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            parent = _parent(int(entry))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for process in found:
        found.extend(children.get(process, ()))
    return found[1:]


class _Running:
    """The processes of one server."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, wakes_s: float) -> None:
        self.process = process
        self.log = log
        self.wakes_s = wakes_s
        self.frozen = False

    def freeze(self) -> None:
        if self.frozen:
            return
        self.frozen = True
        stopped: set[int] = set()
        while new := {self.process.pid, *descendants(self.process.pid)} - stopped:  # one may have started another meanwhile
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            stopped |= new

    def thaw(self) -> float:
        """Have it go on; how long to wait until what came due meanwhile is done, in seconds."""
        if not self.frozen:
            return 0.0
        self.frozen = False
        # The leaves first: who watches others finds them running.
        for pid in reversed([self.process.pid, *descendants(self.process.pid)]):
            _signal(pid, signal.SIGCONT)
        return self.wakes_s

    def end(self) -> None:
        """End the server program as its user would, then whatever it has left."""
        self.thaw()
        tree = {pid: _start_time(pid) for pid in descendants(self.process.pid)}
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        tree |= {pid: _start_time(pid) for pid in _orphans(self.process.pid)}
        deadline = time.monotonic() + END_S
        while left := [pid for pid, started in tree.items() if started is not None and _start_time(pid) == started]:
            for pid in left:
                _signal(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"these processes of a server can't be ended: {left}")
            time.sleep(0.02)
        for pid in tree:
            with contextlib.suppress(ChildProcessError):  # the others were reaped by their parents
                os.waitpid(pid, os.WNOHANG)


def _start(contender: Contender, work: str, port: int, options: Mapping[str, str | int], log: Path) -> subprocess.Popen[bytes]:
    folder = ROOT / "benchmarks" if contender.program == "ceiling" else ROOT / "benchmarks" / "servers"
    python = environments.python(contender.environment, models=work in MODEL_WORKS)
    command = [str(python), str(folder / f"{contender.program}.py"), work, str(port)]
    command += [f"{key}={value}" for key, value in options.items()]
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(log.parent),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **contender.variables,
    }
    with open(log, "wb") as output:
        return subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait_until_there(server: Server, port: int, probe: bytes | None, content_type: str, running: _Running) -> None:
    deadline = time.monotonic() + START_S
    while True:
        status = running.process.poll()
        if status is not None:
            raise NotThereError(f"{server.name} ended with status {status} instead of serving:\n{_end_of(running.log)}")
        try:
            if probe is None:
                socket.create_connection(("127.0.0.1", port), 5.0).close()
            else:
                post(server.url, probe, 5.0, content_type=content_type)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise NotThereError(f"{server.name} was not there after {START_S:.0f} s ({error}):\n{_end_of(running.log)}") from None
        time.sleep(0.01)  # work 9 measures how long this takes


def _free_port() -> int:
    """Below those that the kernel gives to clients and Ray Serve to replicas, so that nobody takes it before the server does."""
    while True:
        port = random.randrange(20_000, 29_000)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _take_window(figures: Figures, window: Callable[[], Mapping[str, float]]) -> None:
    for _ in range(VOID_IN_A_ROW):
        try:
            figures.windows.append(dict(window()))
        except NO_WINDOW as reason:
            figures.void.append(str(reason))
        else:
            return


def agree(values: Sequence[float]) -> bool:
    """Whether three windows, or what else they are, are within 10 % of each other."""
    return len(values) >= AGREEING and max(values) <= AGREE * min(values)


def summarise(figures: Figures, agree_on: str) -> None:
    """Bring all but the windows up to date."""
    counted = figures.windows[-AGREEING:]
    if not counted:
        return
    figures.agreed = agree([window[agree_on] for window in counted])
    if not figures.agreed:
        counted = figures.windows
    figures.unsteady = []
    for key in dict.fromkeys(key for window in counted for key in window):
        values = [window[key] for window in counted if key in window]
        figures.medians[key] = statistics.median(values)
        figures.spread[key] = (max(values) - min(values)) / figures.medians[key] if figures.medians[key] else 0.0
        if not agree(values):
            figures.unsteady.append(key)


def _say_all(work: int, row: Case) -> None:
    for name, figures in row.figures.items():
        _say(f"work {work:2}  {row.name:32} {name:16} {_in_words(figures, row)}")


def _in_words(figures: Figures, case: Case) -> str:
    if not figures.windows:
        return f"nothing that counts: {figures.void[-1] if figures.void else 'no window'}"
    said = "  ".join(f"{key} {value:,.4g} {case.units.get(key, '')}" for key, value in figures.medians.items())
    return said + ("" if figures.agreed else f"  (spread {figures.spread[case.agree_on]:.0%})")


def _orphans(pid: int) -> list[int]:
    """What this server, which has ended, has left to this process: those that run in its session."""
    return [child for child in descendants(os.getpid()) if (fields := _stat(child)) is not None and int(fields[3]) == pid]


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def _start_time(pid: int) -> str | None:
    """Of a process that lives: with the id it tells one process from a later one."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _stat(pid: int) -> list[str] | None:
    """The fields after the name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
