"""How does one machine become a Ray cluster of several nodes, each with an address of its own?

Each node is a network namespace that is connected by a cable (veth) to a bridge of this machine. Ray's programs run in it, and so do
drivers; HTTP clients reach every node over the bridge. A cable can be pulled and plugged in again, and a node can lose its power.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import cloudpickle
import pytest

from tests.leaks import RUNTIME_VARIABLE
from tests.on_ray.cluster.guard import kill_all_in, processes_in
from tests.support import leave_out

_ROOT: Final = Path(__file__).resolve().parents[3]
_PORT: Final = 6379
_STARTS_WITHIN_S: Final = 60.0
_ATTEMPTS: Final = 3
_ANSWERS_WITHIN_S: Final = 90.0
_STORE_BYTES: Final = 80_000_000
CPUS: Final = 4
GPUS: Final = 2
"""What each node pretends to have."""


T = TypeVar("T")


def need() -> None:
    """Leave the tests out where no cluster can be made."""
    if importlib.util.find_spec("ray") is None:
        leave_out("Ray isn't installed")
    if os.geteuid() != 0:
        leave_out("network namespaces need root")
    if shutil.which("ip") is None:
        leave_out("network namespaces need the program `ip` (iproute2)")


class Node:
    """One node: what it is called here, and its address."""

    def __init__(self, number: int, namespace: str, cable: str, host: str) -> None:
        self.number = number
        self.namespace = namespace
        self.cable = cable
        self.host = host

    @property
    def is_head(self) -> bool:
        return self.number == 0

    @property
    def pids(self) -> list[int]:
        """Of all that runs on it."""
        return processes_in(self.namespace)


class Nodes:
    """The cluster, from entry to exit of the `with` block."""

    def __init__(self, count: int) -> None:
        need()
        mark = f"hg{os.getpid()}"
        self._bridge = f"{mark}b"
        self._net = _free_net()
        self.all = [Node(number, f"{mark}-{number}", f"{mark}-{number}", f"{self._net}.{10 + number}") for number in range(count)]
        self.folder = tempfile.mkdtemp(prefix="hgr-", dir="/tmp")
        self._token = secrets.token_hex(32)
        self._guard: subprocess.Popen[bytes] | None = None
        self._drivers: list[Driver] = []

    def __enter__(self) -> Self:
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "tests.on_ray.cluster.guard", ",".join(node.namespace for node in self.all), self._bridge, self.folder],
            stdin=subprocess.PIPE,
            cwd=_ROOT,
            start_new_session=True,
        )
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for node in self.all:
                self._connect(node)
            self.start(self.head)
            self.start(*self.all[1:])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()

    @property
    def head(self) -> Node:
        return self.all[0]

    @property
    def workers(self) -> list[Node]:
        """All but the head."""
        return self.all[1:]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.head.host}:{_PORT}"

    def at(self, host: str) -> Node:
        """The node with that address."""
        return next(node for node in self.all if node.host == host)

    def node_of(self, pid: int) -> Node:
        """The node on which a process runs."""
        return next(node for node in self.all if pid in node.pids)

    # Power and cables.

    def start(self, *nodes: Node) -> None:
        """Have these nodes run Ray's programs, and join; waits for that. They end by `kill`, or with the cluster."""
        for _ in range(_ATTEMPTS):  # on a busy machine Ray may give up by itself
            nodes = tuple(node for node, status in zip(nodes, self._start(nodes), strict=True) if status != 0)
            if not nodes:
                return
            for node in nodes:
                kill_all_in(node.namespace)
        pytest.fail(f"Ray did not start on node {nodes[0].number}:\n{self._log_of(nodes[0]).read_text(errors='replace')}")

    def kill(self, node: Node) -> None:
        """Its power fails: everything there is dead at once."""
        kill_all_in(node.namespace)

    def unplug(self, node: Node) -> None:
        """Nothing goes to it or comes from it any more."""
        _ip("link", "set", node.cable, "down")

    def plug_in(self, node: Node) -> None:
        """Undo that."""
        _ip("link", "set", node.cable, "up")

    # Drivers.

    def driver(self, node: Node | None = None) -> Driver:
        """A process on a node, the head unless one is given, that is connected with the cluster."""
        node = node or self.head
        command = [*self.run_in(node), sys.executable, "-m", "tests.on_ray.cluster.driver", self.address]
        driver = Driver(command, self.environment(), f"{self.folder}/driver-{len(self._drivers)}.log")
        self._drivers.append(driver)
        return driver

    def run_in(self, node: Node) -> list[str]:
        """What stands before a command that is to run on a node."""
        return ["ip", "netns", "exec", node.namespace]

    def environment(self) -> dict[str, str]:
        """Of everything that runs on the nodes."""
        return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            RUNTIME_VARIABLE: self.folder,
            "PYTHONPATH": f"{_ROOT}:{_ROOT / 'src'}",
            "RAY_AUTH_MODE": "token",  # as on a cluster that others can reach
            "RAY_AUTH_TOKEN": self._token,
            "RAY_enable_worker_prestart": "0",  # on a small machine they would all start at the same time
            "RAY_prestart_worker_first_driver": "0",
            "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    # Inside.

    def _connect(self, node: Node) -> None:
        _ip("netns", "add", node.namespace)
        _ip("link", "add", node.cable, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
        _ip("link", "set", node.cable, "master", self._bridge, "up")
        for arguments in (
            ["addr", "add", f"{node.host}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", f"{self._net}.1"],
        ):
            _ip("-n", node.namespace, *arguments)

    def _start(self, nodes: tuple[Node, ...]) -> list[int]:
        started = []
        for node in nodes:
            with open(self._log_of(node), "wb") as log:
                program, environment = self._program(node), self.environment()
                started.append(subprocess.Popen(program, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        try:
            return [ray.wait(_STARTS_WITHIN_S) for ray in started]
        finally:
            for ray in started:
                ray.kill()
                ray.wait()

    def _log_of(self, node: Node) -> Path:
        return Path(self.folder, f"node-{node.number}.log")

    def _program(self, node: Node) -> list[str]:
        ray = str(Path(sys.executable).with_name("ray"))
        if node.is_head:
            place = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        else:
            place = [f"--address={self.address}"]
        return [
            *self.run_in(node),
            ray,
            "start",
            *place,
            f"--temp-dir={self.folder}/{node.number}",  # else Ray notes the cluster as this machine's
            f"--node-ip-address={node.host}",
            f"--num-cpus={CPUS}",
            f"--num-gpus={GPUS}",
            f"--object-store-memory={_STORE_BYTES}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
        ]

    def _end(self) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        for driver in self._drivers:
            driver.kill()


class Driver:
    """A program that uses Headgate, on one of the nodes: `call` has it call functions. It ends with `kill`, or with the cluster."""

    def __init__(self, command: list[str], environment: dict[str, str], log_path: str) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs, open(log_path, "wb") as log:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [*command, str(descriptor)],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[descriptor],
            )
        self._pipe: Connection[Any, Any] = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have it call a function, with these arguments, and return what that does, or raise what it raises."""
        self._pipe.send_bytes(cloudpickle.dumps((function, args, kwargs)))
        if not self._pipe.poll(_ANSWERS_WITHIN_S):
            raise AssertionError(f"the driver did not answer within {_ANSWERS_WITHIN_S:g} s")
        result, error = pickle.loads(self._pipe.recv_bytes())
        if error is not None:
            raise error
        answer: T = result
        return answer

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def leave(self) -> None:
        """End it as a program ends; waits for that."""
        self._pipe.close()
        self._process.wait(_ANSWERS_WITHIN_S)


def _free_net() -> str:
    """A network of which nobody on this machine has an address."""
    taken = _ip("-o", "-4", "addr")
    return next(net for number in range(1, 255) if f" {(net := f'10.213.{(os.getpid() + number) % 255}')}." not in taken)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout
