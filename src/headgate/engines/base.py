"""The seam of the engines: where do replicas and ingresses live, and how does one learn of their end?

An engine starts and stops processes and keeps the books of resources. It decides nothing: which replicas there should be
is the controller's affair. Every engine passes `headgate.testing.conformance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from headgate.config import ReplicaOptions
from headgate.core.messages import Hello, Message, Pong
from headgate.core.specs import IngressSpec, InstanceSettings, ReplicaSpec
from headgate.errors import ErrorInfo
from headgate.router.way import Way

__all__ = [
    "INGRESS",
    "REPLICA",
    "Ended",
    "Engine",
    "IngressSpec",
    "InstanceSettings",
    "Peer",
    "ReplicaSpec",
    "Report",
    "Running",
    "Starter",
]

# The roles of what an engine runs.
INGRESS: Final = "ingress"
REPLICA: Final = "replica"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine runs. `state` is "starting", "ready", or "draining" once `stop` was called; `address` is where it takes links."""

    id: str
    role: str  # REPLICA or INGRESS
    pid: int | None
    state: str
    address: str = ""
    gpus: tuple[str, ...] = ()
    node: str = ""  # where it runs, as far as that is known; empty where there is only one
    spec: ReplicaSpec | IngressSpec | None = None


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Something that ran has ended: `reason` is for people, such as "killed by SIGKILL" or "exit status 3"."""

    id: str
    role: str
    pid: int | None
    reason: str
    asked_for: bool  # stop or kill was called for it


class Peer(Protocol):
    """The control connection of one replica or ingress, as the controller's server hands it to the engine."""

    def send(self, message: Message) -> None:
        """Queue a message; never blocks, drops it where the connection is lost."""
        ...


class Report(msgspec.Struct, frozen=True):
    """How the start went: HTTP answers, or nothing is left running."""

    error: ErrorInfo | None = None


class Starter(Protocol):
    """How drivers deal with the instances of one engine. Everything may be called from any thread, and blocks."""

    def find(self, name: str) -> Way | None:
        """The way to the running instance of that name; None where there is none, or it is starting or ending."""
        ...

    def running(self) -> list[str]:
        """The names of the instances that run, in their order."""
        ...

    def start(self, settings: InstanceSettings) -> Way | None:
        """Start an instance and wait until HTTP answers; the way to it. None where one of that name runs already: connect to that.

        Raises `AddressInUseError`, `StateDirInUseError`, `LogDirInUseError`, `StateDirUnsafeError`, or `InstanceStartError` for anything
        else.
        After an error, or an interrupt, nothing of it is left running.
        """
        ...

    def wait_ended(self, way: Way, timeout_s: float) -> bool:
        """Wait until that instance has ended and left nothing; False where it has not after `timeout_s` seconds."""
        ...

    def has_ended(self, way: Way) -> bool:
        """Whether that instance is gone, be it by a crash."""
        ...

    def abandon(self, way: Way) -> None:
        """This process, which started that instance, is about to exit and waits no longer: end it now, whatever it is doing."""
        ...

    def leave(self, way: Way) -> None:
        """This process is done with that instance."""
        ...


class Engine(Protocol):
    """Where things live. Methods are called on the controller's event loop."""

    on_end: Callable[[Ended], None]
    """Set by the owner before `open`; called once for everything that ends, also for what failed to start."""
    on_message: Callable[[str, Message], None]
    """Set by the owner before `open`; called with the id of a replica or ingress for messages that aren't the engine's."""
    on_leave: Callable[[], float]
    """Set by the owner before `open`; called where the machine tells the instance to end, as by SIGTERM, maybe before `open` returns.

    The owner begins to end everything in order, and returns within how many seconds it will have called `close`. After that
    the engine may end everything itself. The next owner is told again, before `open` returns.
    """

    on_places: Callable[[], None]
    """Set by the owner before `open`; called when `places` have changed, or what there is in all."""

    async def open(self) -> list[Running]:
        """Begin, and return what runs already, started by an engine before this one; what was still starting goes on."""
        ...

    async def start_replica(self, spec: ReplicaSpec) -> Running:
        """Start a replica; return when user construction has finished and it takes links.

        Where it doesn't fit it raises `InsufficientResourcesError` at once, unless it `may_fit` later: then it waits for
        room, for `config.startup_timeout` at most, before it raises that. Raises `ReplicaStartError` where construction raised
        or took longer than `config.startup_timeout`. After an error, or a cancellation, nothing of it is left.
        """
        ...

    async def start_ingress(self, spec: IngressSpec) -> Running:
        """Start an ingress; return when it has said hello."""
        ...

    async def wait_ready(self, id: str) -> Running:
        """Wait for a replica that `open` returned as starting; same errors as `start_replica`."""
        ...

    def places(self) -> list[str]:
        """Where ingresses are to run, one at each: a socket on this machine, or a node."""
        ...

    def http_urls(self) -> tuple[str, ...]:
        """Where clients reach the ingresses."""
        ...

    def serving(self) -> None:
        """The owner says that HTTP answers now: every ingress follows a routing table. Whoever waits for the start goes on."""
        ...

    def connected(self, hello: Hello, peer: Peer) -> bool:
        """A replica or ingress has opened its control connection, or opened it again. False refuses it: unknown id, or wrong token."""
        ...

    def received(self, id: str, message: Message) -> None:
        """A message from a replica or ingress. What isn't the engine's own goes on to `on_message`; unknown ids are dropped."""
        ...

    def send(self, id: str, message: Message) -> None:
        """Send to a replica or ingress, such as `Configure`; kept until it first connects, dropped where it has ended."""
        ...

    async def ping(self, id: str) -> Pong:
        """Ask a sign of life. Never returns for one that is stuck: the caller sets the limit.

        Raises `NotFoundError` where it has ended, or ends before it answers.
        """
        ...

    async def stop(self, id: str, grace_s: float) -> None:
        """Drain, then end it; kill it after `grace_s`. Returns when it has ended. Unknown ids are ended already.

        One that is still starting has nothing to drain: it is killed at once, and `start_replica` raises `ReplicaStartError`.
        Others are "draining" from here on, also to the engine of the next owner, which may call this again.
        """
        ...

    async def kill(self, id: str) -> None:
        """End it now. Returns when it has ended."""
        ...

    def fits(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas fit into what is free and into what the replicas `without` give back.

        Otherwise a text that names what is asked for and what is free.
        """
        ...

    def may_fit(self, options: ReplicaOptions, count: int, without: list[str] | None = None) -> str | None:
        """None if `count` such replicas and nothing else could run some time: they fit now, or `start_replica` waits for room.

        Otherwise a text that names what is asked for and what there is. `without` are those of them that run already.
        """
        ...

    def waiting(self) -> dict[str, str]:
        """The starting replicas that wait for room, by id: a text that names what each asks for and what is free."""
        ...

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """All resources, and those that are free."""
        ...

    async def close(self) -> None:
        """End everything; leaves no process, thread, socket, file."""
        ...
