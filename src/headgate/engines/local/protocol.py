"""What do the driver, the supervisor and the controller's engine say to each other?

The driver and the supervisor have a socket pair while an instance starts: one `Boot` goes in, one `Report` comes out.
The engine and the supervisor have another for as long as that controller lives, on which the records below travel as in
`core/framing.py`. A replica or ingress is known by its id; its spec lies in the instance's folder.
"""

from __future__ import annotations

import socket
from typing import Final, Generic, TypeVar

import msgspec

from headgate.core import framing
from headgate.engines.base import IngressSpec, InstanceSettings, ReplicaSpec
from headgate.errors import ErrorInfo

_RECEIVE_BYTES: Final = 65536

ALIVE_PERIOD_S: Final = 1.0


class Boot(msgspec.Struct, frozen=True):
    """What a supervisor has to know."""

    settings: InstanceSettings
    root: str  # the module that is run: the composition root
    python_path: str | None  # the driver's own PYTHONPATH; the supervisor was given one that holds the driver's whole sys.path
    replaces_dead: bool  # the folder held what a dead instance left, whose port may take a moment to become free


class InstanceRecord(msgspec.Struct, frozen=True):
    """What the folder of a serving instance says of it, in the file `instance`."""

    name: str
    pid: int  # of the supervisor
    http_urls: tuple[str, ...]
    traces: bool = False


# From the engine.


class Spawn(msgspec.Struct, frozen=True, tag="spawn"):
    """Fork this one; its spec has been written."""

    id: str
    role: str


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """End it and its whole process group, now."""

    id: str


class Remember(msgspec.Struct, frozen=True, tag="remember"):
    """What `Runs` is to say of it to the next controller's engine."""

    id: str
    state: str
    address: str


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """HTTP answers."""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The controller's event loop runs. Sent every `ALIVE_PERIOD_S`."""


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """It was told to leave, and will have closed after so many seconds."""

    within_s: float


class Close(msgspec.Struct, frozen=True, tag="close"):
    """End everything that the engine started, then, when the controller has ended, the instance."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The controller ends because of this error."""

    error: ErrorInfo


# From the supervisor.


class Runs(msgspec.Struct, frozen=True, tag="runs"):
    """Something that was started for an engine before this one."""

    id: str
    role: str
    pid: int
    state: str  # "starting"; "ready", for links at `address` or connections of clients; or "draining"
    address: str


class Complete(msgspec.Struct, frozen=True, tag="complete"):
    """All that runs has been told, and whether the instance is to end."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """End the instance in order: finish what was admitted, then close."""


class Spawned(msgspec.Struct, frozen=True, tag="spawned"):
    """It was forked; nothing else is known of it yet."""

    id: str
    pid: int


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """It has ended and was reaped, its spec and socket are removed. `reason` is for people."""

    id: str
    reason: str


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """Everything that the engine started has ended."""


ToSupervisor = Spawn | Kill | Remember | Serving | Alive | Leaving | Close | Failed
ToEngine = Runs | Complete | Leave | Spawned | Exited | Closed

to_supervisor: Final[msgspec.msgpack.Decoder[ToSupervisor]] = msgspec.msgpack.Decoder(ToSupervisor)
to_engine: Final[msgspec.msgpack.Decoder[ToEngine]] = msgspec.msgpack.Decoder(ToEngine)
replica_specs: Final[msgspec.msgpack.Decoder[ReplicaSpec]] = msgspec.msgpack.Decoder(ReplicaSpec)
ingress_specs: Final[msgspec.msgpack.Decoder[IngressSpec]] = msgspec.msgpack.Decoder(IngressSpec)

Received = TypeVar("Received")


def spec_path(folder: str, id: str) -> str:
    """Where the spec of a replica or ingress lies for as long as it runs."""
    return f"{folder}/spec-{id}"


class Channel(Generic[Received]):
    """One end of the socket pair between engine and supervisor. Never blocks; the owner watches the socket."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Received]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = framing.RecordDecoder(decoder)
        self._outgoing = bytearray()

    def send(self, record: ToSupervisor | ToEngine) -> bool:
        """Send a record; False where some of it waits until the socket can be written, for `flush`."""
        self._outgoing += framing.encode(record)
        return self.flush()

    def flush(self) -> bool:
        """Write what waits; True where nothing is left. Where the other end is gone, all is dropped."""
        while self._outgoing:
            try:
                sent = self.sock.send(self._outgoing)
            except BlockingIOError:
                return False
            except OSError:
                self._outgoing.clear()
                return True
            del self._outgoing[:sent]
        return True

    def receive(self) -> list[Received] | None:
        """The records that have arrived; None where the other end is gone."""
        records: list[Received] = []
        while True:
            try:
                data = self.sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return records
            except OSError:
                data = b""
            if not data:
                return records or None
            records += self._decoder.received(data)
