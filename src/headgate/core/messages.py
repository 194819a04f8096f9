"""What do the controller and the other processes say to each other?

One Unix socket per process, with messages as in `framing.py`. The records are frozen; `Message`
is all that may arrive. Nothing in them is unpickled by the controller: definitions stay bytes until a replica opens them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from headgate.config import DEFAULT_MAX_BODY_BYTES, BackendConfig, ReplicaOptions
from headgate.core import framing
from headgate.core.reports import Counters, ReplicaCounters
from headgate.core.specs import Definition
from headgate.errors import ErrorInfo

PROTOCOL: Final = 3


# What routers know.


class ReplicaEntry(msgspec.Struct, frozen=True, array_like=True):
    """Where a ready replica takes links."""

    id: str
    address: str  # see `router/remote.py`
    token: str

    @property
    def node(self) -> str:
        """Where it runs; empty where all of the instance is on one machine."""
        return "" if self.address.startswith("/") else self.address.partition(" ")[0]


class BackendEntry(msgspec.Struct, frozen=True):
    """What a router has to know of a backend."""

    tag: str
    concurrency: int
    max_batch_size: int
    is_batch: bool
    batch_wait_timeout: float
    max_concurrent_queries: int | None
    max_queued_queries: int
    request_timeout: float | None
    idempotent: bool
    http_methods: tuple[str, ...]  # that HTTP clients may name
    methods: tuple[str, ...]  # that Python callers may name; "" is the call itself
    replicas: tuple[ReplicaEntry, ...]  # ordered by id; of very many, those that this router is to use
    starting: int  # replicas on their way, so that requests may wait for them; 1 for some, where `replicas` are not all
    fault: str = ""  # why it has fewer replicas than it should, with the last traceback …
    pause_s: float = 0.0  # … and how long after that failure the next one is started


class EndpointEntry(msgspec.Struct, frozen=True):
    """A name, its route and its traffic policy."""

    name: str
    route: str | None
    methods: tuple[str, ...]
    weights: dict[str, float] = {}
    shadows: dict[str, float] = {}


class RoutingTable(msgspec.Struct, frozen=True, tag="table"):
    """Everything that a router needs. A higher version is newer, also over controllers.

    A router that has connected gets it as a whole, and then `RoutingChanges`. Not every version comes to every router.
    """

    version: int
    endpoints: dict[str, EndpointEntry] = {}
    backends: dict[str, BackendEntry] = {}
    leaving: dict[str, BackendEntry] = {}  # deleted, and kept going for what routers still have for them
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    max_inflight_bytes: int = 0  # of the instance
    num_ingresses: int = 1
    debug: bool = False
    closing: bool = False  # shutting down: everything new is refused


class TableHead(msgspec.Struct, frozen=True, array_like=True):
    """What a routing table has besides endpoints and backends."""

    max_body_bytes: int
    max_inflight_bytes: int
    num_ingresses: int
    debug: bool
    closing: bool


class BackendChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is new about one backend."""

    entry: BackendEntry | None = None  # as it is now, but without its replicas; None: as it was
    starting: int = 0  # as it is now
    added: tuple[ReplicaEntry, ...] = ()  # also those that are known by another address
    removed: tuple[str, ...] = ()  # ids


class RoutingChanges(msgspec.Struct, frozen=True, tag="changes", omit_defaults=True):
    """What makes the table `version` of the table `since`; see `core/tables.py`."""

    since: int
    version: int
    head: TableHead | None = None  # None: as it was
    endpoints: dict[str, EndpointEntry] = {}  # new and changed ones
    endpoints_gone: tuple[str, ...] = ()
    backends: dict[str, BackendChange] = {}
    backends_gone: tuple[str, ...] = ()
    leaving: dict[str, BackendChange] = {}
    leaving_gone: tuple[str, ...] = ()


# Verbs. Those that change something can be repeated under the same id, and are applied once.


class CreateBackend(msgspec.Struct, frozen=True, tag="create_backend"):
    tag: str
    definition: Definition
    config: BackendConfig
    options: ReplicaOptions


class UpdateBackend(msgspec.Struct, frozen=True, tag="update_backend"):
    tag: str
    definition: Definition
    allow_gap: bool


class DeleteBackend(msgspec.Struct, frozen=True, tag="delete_backend"):
    tag: str


class UpdateBackendConfig(msgspec.Struct, frozen=True, tag="update_backend_config"):
    tag: str
    changes: dict[str, Any] | None  # keys to change, or …
    config: BackendConfig | None  # … the whole
    based_on: dict[str, Any] | None = None  # what these keys are: where they no longer are, it is refused


class CreateEndpoint(msgspec.Struct, frozen=True, tag="create_endpoint"):
    name: str
    route: str | None
    methods: tuple[str, ...]
    backend: str | None


class DeleteEndpoint(msgspec.Struct, frozen=True, tag="delete_endpoint"):
    name: str


class SetTraffic(msgspec.Struct, frozen=True, tag="set_traffic"):
    endpoint: str
    weights: dict[str, float]
    based_on: dict[str, float] | None = None  # the weights as they are: where they no longer are, it is refused


class ShadowTraffic(msgspec.Struct, frozen=True, tag="shadow_traffic"):
    endpoint: str
    backend: str
    proportion: float


class DeployedBackend(msgspec.Struct, frozen=True):
    """A backend as it is to be. Without a `definition` its code stays; where its options change it gets new replicas all the same."""

    tag: str
    definition: Definition | None
    config: BackendConfig
    options: ReplicaOptions


class Deploy(msgspec.Struct, frozen=True, tag="deploy"):
    """All that is asked for becomes this, at once. What isn't among it is deleted."""

    backends: tuple[DeployedBackend, ...]
    endpoints: tuple[EndpointEntry, ...]
    based_on: str  # `state_id` of the state that it was planned for: where that is no longer the state, it is refused


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Asks for a `Description`: what is asked for, what runs, and why not."""


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """Asks for a `Measurement`: the counters of all processes, added up."""


class ReadLog(msgspec.Struct, frozen=True, tag="read_log"):
    """Asks for a `Part` of the log, see `logs/reading.py`: what follows these marks, or without any the latest `lines`."""

    lines: int = 0
    marks: dict[str, tuple[int, int]] | None = None
    backend: str | None = None
    request: str | None = None
    level: str | None = None


class CompareInit(msgspec.Struct, frozen=True, tag="compare_init"):
    """Asks whether an `init` with these explicit arguments means the running instance."""

    given: dict[str, Any]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    pass


StateVerb = (
    CreateBackend
    | UpdateBackend
    | DeleteBackend
    | UpdateBackendConfig
    | CreateEndpoint
    | DeleteEndpoint
    | SetTraffic
    | ShadowTraffic
    | Deploy
)
"""The verbs that change what is asked for."""

Verb = StateVerb | Describe | Measure | ReadLog | CompareInit | Shutdown


# What processes say to the controller.


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message of every connection. `token` proves a replica or ingress; others prove themselves by the socket's mode."""

    protocol: int
    role: str  # "client" (driver, or handles in a replica), "ingress" or "replica"
    id: str
    pid: int
    token: str = ""
    routes: bool = False  # wants routing tables
    state: str = ""  # a replica's: "starting", "ready" or "draining"; it says so again to a new controller
    address: str = ""  # where a ready replica takes links, or an ingress HTTP
    node: str = ""  # where it runs, and …
    gpus: tuple[str, ...] = ()  # … the devices of a replica
    replica: str = ""  # a client's: the id of the replica that it is in, or that has started its process
    owner: bool = False  # the instance is to end with this process
    place: str = ""  # an ingress': its spec's


class VerbCall(msgspec.Struct, frozen=True, tag="verb"):
    id: str
    verb: Verb


class VerbLeft(msgspec.Struct, frozen=True, tag="verb_left"):
    """Nobody waits for this verb any more: if it waits for room, or is a deployment that hasn't taken effect, it is given up.

    Answered by a `VerbDone` once nothing more will come of it, at once by a controller that doesn't know of it; until then it is said
    again to each controller.
    """

    id: str


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """A router now follows the table of this version."""

    version: int


class SendTable(msgspec.Struct, frozen=True, tag="send_table"):
    """A router was told changes of a table that it does not follow: it needs the whole."""


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """A router has nothing left of what the table of this version lets leave or no longer has, except for these, which it still serves.

    Sent after each `Applied`, and whenever the exceptions have become fewer.
    """

    version: int
    except_endpoints: tuple[str, ...] = ()
    except_backends: tuple[str, ...] = ()


class ReplicaReady(msgspec.Struct, frozen=True, tag="replica_ready"):
    """Construction finished, and the replica takes links at `address`."""

    address: str


class ReplicaFailed(msgspec.Struct, frozen=True, tag="replica_failed"):
    """Construction raised; the process ends after this."""

    error: ErrorInfo


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """An I/O thread is alive. `running_s`: how long past its time limit the oldest call of user code has run (0 if not)."""

    number: int
    overdue_s: float = 0.0
    answered: int = 0
    unhealthy: str = ""  # that check_health() raised, and what, or that it doesn't return


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    """The counters of a router. `number` is that of the question, 0 where it ends and says them unasked; so for replicas."""

    number: int
    counters: Counters


class ReplicaCounted(msgspec.Struct, frozen=True, tag="replica_counted"):
    number: int
    counters: ReplicaCounters


class BrokenReplica(msgspec.Struct, frozen=True, tag="broken_replica"):
    """A router lost its link to a replica whose process still lives; it must be ended before its work runs elsewhere."""

    replica: str
    reason: str


class HadAnswered(msgspec.Struct, frozen=True, tag="had_answered"):
    """A router lost its link to a replica that had answered before, so that its end says nothing of its start."""

    replica: str


# What the controller says to processes.


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    name: str
    http_urls: tuple[str, ...]
    id: str = ""  # the instance's own: another one of that name may have taken its place


class VerbDone(msgspec.Struct, frozen=True, tag="verb_done"):
    """A verb's end: `result` is msgpack of what it returns, or `error` says why not."""

    id: str
    result: bytes = b"\xc0"
    error: ErrorInfo | None = None
    warnings: tuple[str, ...] = ()


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    config: BackendConfig


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Finish what was received, then end; what runs after `grace_s` is killed."""

    grace_s: float


class Unwanted(msgspec.Struct, frozen=True, tag="unwanted"):
    """There is no such replica or ingress any more: it had been out of reach, and was given up. It is to end."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    number: int


class Count(msgspec.Struct, frozen=True, tag="count"):
    """Asks a router or a replica for its counters."""

    number: int


Message = (
    Hello
    | VerbCall
    | VerbLeft
    | Applied
    | SendTable
    | Idle
    | ReplicaReady
    | ReplicaFailed
    | Pong
    | Counted
    | ReplicaCounted
    | BrokenReplica
    | HadAnswered
    | Welcome
    | VerbDone
    | Configure
    | Drain
    | Unwanted
    | Ping
    | Count
    | RoutingTable
    | RoutingChanges
)

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as bytes, with its length in front."""
    return framing.encode(message)


class MessageDecoder(framing.RecordDecoder[Message]):
    """Turns received bytes into messages, however they were cut. Garbage raises `WireError`."""

    def __init__(self, max_message_bytes: int = framing.MAX_RECORD_BYTES) -> None:
        super().__init__(_decoder, max_message_bytes)
