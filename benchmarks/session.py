"""How are contenders started, measured in turns until they agree with themselves, and ended?

One server program at a time is measured; the processes of the others are stopped meanwhile, so that what an idle server does in the
background is no part of another's figure.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.contenders import CONTENDERS, MODEL_WORKS, Contender

ROOT = Path(__file__).resolve().parent.parent
NOOP = b'{"x":1}'

MAX_ROUNDS = 6
MAX_ROUNDS_QUICK = 3
AGREE = 1.10  # the largest of three windows may be this many times the smallest
AGREEING = 3  # windows that have to
START_S = 60.0
SETTLE_S = 0.2  # what the last window has left behind ends before the servers are stopped; what came due meanwhile, before the next
END_S = 4.0  # for a server to end by itself after SIGTERM; mosec doesn't always, once it was stopped


class VoidWindow(Exception):  # noqa: N818 - not an error: the window is repeated
    """What was measured doesn't count, and why."""


class NotThereError(RuntimeError):
    """A server program ended, or didn't answer in time."""


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
    agreed: bool = False
    void: list[str] = field(default_factory=list)  # why windows didn't count
    medians: dict[str, float] = field(default_factory=dict)  # of the last three windows
    spread: dict[str, float] = field(default_factory=dict)  # of the same: (largest - smallest) / median


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
        **options: str | int,
    ) -> Iterator[Server]:
        """Run a contender's server program for one work in its environment; ends it and all that it started.

        `work` and `options` are what `benchmarks/servers/` understands. `name` tells servers of one contender apart. The server is there
        when a POST of `probe` to `path` (the contender's own, where none is given) is answered 2xx; with None, when the port accepts.
        Raises `NotThereError` with the end of its log where it isn't there within a minute, also at a second attempt.
        """
        name = name or contender
        assert name not in self._running, f"{name} runs already; give the second one a name of its own"
        try:
            server, running = self._started(contender, name, work, path, probe, content_type, options)
        except NotThereError as error:
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
        running = self._running[name] = _Running(_start(known, work, port, {**known.options, **options}, log), known.freezes, log)
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

        A contender is done when its last three windows agree within 10 % on the figure `agree_on`, or after 6 rounds (3 in quick mode); the
        report says which. `windows` has a callable per name of a server (or of a contender where nothing is served). It returns figures by
        name; `units` has theirs. It may raise `VoidWindow`, which costs that contender this round. While one is called, the other servers
        are stopped.
        """
        row = Case(case, agree_on, dict(units))
        self._work(work).cases.append(row)
        rounds = MAX_ROUNDS_QUICK if self.quick else MAX_ROUNDS
        try:
            for _ in range(rounds):
                for name, window in windows.items():
                    figures = row.figures.setdefault(name, Figures())
                    if figures.agreed:
                        continue
                    self._leave_alone(name)
                    try:
                        figures.windows.append(dict(window()))
                    except VoidWindow as reason:
                        figures.void.append(str(reason))
                    _summarise(figures, agree_on)
        finally:
            for running in self._running.values():
                running.thaw()
        for name, figures in row.figures.items():
            _say(f"work {work:2}  {case:32} {name:16} {_in_words(figures, row)}")

    def note(self, work: int, text: str) -> None:
        """Say something in the report beside the work's figures, once."""
        notes = self._work(work).notes
        if text not in notes:
            notes.append(text)

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
        woken = [running.thaw() for other, running in self._running.items() if other == name or name not in self._running]
        if any(woken):
            time.sleep(SETTLE_S)


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

    def __init__(self, process: subprocess.Popen[bytes], freezes: bool, log: Path) -> None:
        self.process = process
        self.freezes = freezes
        self.log = log
        self.frozen = False

    def freeze(self) -> None:
        if not self.freezes or self.frozen:
            return
        self.frozen = True
        stopped: set[int] = set()
        while new := {self.process.pid, *descendants(self.process.pid)} - stopped:  # one may have started another meanwhile
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            stopped |= new

    def thaw(self) -> bool:
        if not self.frozen:
            return False
        self.frozen = False
        # The leaves first: who watches others finds them running.
        for pid in reversed([self.process.pid, *descendants(self.process.pid)]):
            _signal(pid, signal.SIGCONT)
        return True

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


def _summarise(figures: Figures, agree_on: str) -> None:
    last = figures.windows[-AGREEING:]
    if not last:
        return
    decisive = [window[agree_on] for window in last]
    figures.agreed = len(last) == AGREEING and max(decisive) <= AGREE * min(decisive)
    for key in dict.fromkeys(key for window in last for key in window):
        values = [window[key] for window in last if key in window]
        figures.medians[key] = statistics.median(values)
        figures.spread[key] = (max(values) - min(values)) / figures.medians[key] if figures.medians[key] else 0.0


def _in_words(figures: Figures, case: Case) -> str:
    if not figures.windows:
        return f"nothing that counts: {figures.void[-1] if figures.void else 'no window'}"
    said = "  ".join(f"{key} {value:,.4g} {case.units.get(key, '')}" for key, value in figures.medians.items())
    return said + ("" if figures.agreed else f"  (spread {figures.spread[case.agree_on]:.0%})")


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
