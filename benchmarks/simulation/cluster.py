"""What does the simulated cluster consist of, and what does a controller make of it? By the product's own pure core."""

from __future__ import annotations

import random
from dataclasses import dataclass

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core import desired, reconcile
from headgate.core.messages import CreateBackend, CreateEndpoint, ReplicaEntry, RoutingTable, SetTraffic, UpdateBackend
from headgate.core.reconcile import Actual, Wanted
from headgate.core.replica_life import DRAINING, READY, STARTING
from headgate.core.specs import Definition, MethodInfo

BACKENDS = 5
REPLICAS_A_NODE = 5
ENDPOINT = "front"
_CODE = Definition(b"", "handler", {"": MethodInfo("")})


@dataclass(slots=True)
class Replica:
    """One replica, as the controller keeps it."""

    id: str
    tag: str
    generation: int
    node: int
    number: int
    state: str = STARTING
    held: bool = False
    entry: ReplicaEntry | None = None


class Cluster:
    """What is asked for, and the replicas that run. `seed` settles every name."""

    def __init__(self, replicas: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.nodes = [f"{self._random.getrandbits(224):056x}" for _ in range(max(replicas // REPLICAS_A_NODE, 1))]
        self.replicas: dict[str, Replica] = {}
        self.faults: dict[str, desired.Fault] = {}
        self._number = 0
        each = replicas // BACKENDS
        state = desired.State()
        self.tags = [f"model-{number}" for number in range(BACKENDS)]
        for tag in self.tags:
            state = desired.apply(state, CreateBackend(tag, _CODE, BackendConfig(num_replicas=each, concurrency=4), ReplicaOptions()))
        state = desired.apply(state, CreateEndpoint(ENDPOINT, "/front", ("POST",), None))
        self.state = desired.apply(state, SetTraffic(ENDPOINT, dict.fromkeys(self.tags, 1 / BACKENDS)))
        for tag in self.tags:
            for _ in range(each):
                self.ready(self.make(tag))

    def make(self, tag: str, generation: int | None = None, *, held: bool = False) -> Replica:
        """A replica that starts, on the next node."""
        number = self._number = self._number + 1
        generation = self.state.backends[tag].generation if generation is None else generation
        id = f"{generation}-{self._random.getrandbits(32):08x}"
        replica = self.replicas[id] = Replica(id, tag, generation, number % len(self.nodes), number, held=held)
        return replica

    def ready(self, replica: Replica) -> None:
        """It takes links, at an address as it is on a cluster."""
        node = replica.node
        host = f"10.{node >> 16 & 255}.{node >> 8 & 255}.{node & 255}"
        address = f"{self.nodes[node]} {host}:{32768 + replica.number % 28000} /tmp/headgate-0/a1b2c3d4/r{replica.id}.sock"
        replica.state, replica.entry = READY, ReplicaEntry(replica.id, address, f"{self._random.getrandbits(128):032x}")

    def ended(self, replica: Replica) -> None:
        """It runs no more. Where nobody asked for that, routers are told why its backend has fewer."""
        del self.replicas[replica.id]
        if replica.state != DRAINING:
            self.faults[replica.tag] = desired.Fault(f"replica {replica.id} ended: its node failed", 0.0)

    def match(self) -> list[Replica]:
        """Drain what is too many, and return what has to start."""
        asked = {tag: Wanted(backend.generation, backend.config.num_replicas) for tag, backend in self.state.backends.items()}
        actual = [Actual(r.id, r.tag, r.generation, r.state, r.number) for r in self.replicas.values() if not r.held]
        actions = reconcile.reconcile(asked, actual)
        for id in actions.drain:
            self.replicas[id].state = DRAINING
        return [self.make(tag) for tag, count in actions.start.items() for _ in range(count)]

    def updated(self, tag: str) -> desired.State:
        """The state with new code behind one backend."""
        return desired.apply(self.state, UpdateBackend(tag, _CODE, allow_gap=False))

    def table(self, version: int, ingresses: int) -> RoutingTable:
        """What routers are to follow."""
        ready: dict[str, list[ReplicaEntry]] = {}
        coming: dict[str, int] = {}
        for replica in self.replicas.values():
            if replica.held:
                continue
            if replica.state == READY and replica.entry is not None:
                ready.setdefault(replica.tag, []).append(replica.entry)
            elif replica.state == STARTING:
                coming[replica.tag] = coming.get(replica.tag, 0) + 1
        base = RoutingTable(version, num_ingresses=ingresses)
        return desired.routing_table(self.state, ready, coming=coming, faults=self.faults, leaving={}, base=base)
