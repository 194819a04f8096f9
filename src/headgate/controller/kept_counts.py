"""What is counted on from when a controller has died? So that nothing that was ever shown counts backwards.

Before it shows anything, a controller writes down what that rests on, to a file in the instance's folder. The next one begins with that;
what still runs says by itself what it has counted. The file goes with the instance.
"""

from __future__ import annotations

import os
from typing import Generic, TypeVar

import msgspec

from headgate.core.histograms import Tally
from headgate.core.reports import Counters, ReplicaCounters

C = TypeVar("C")


class KeptCounting(msgspec.Struct, Generic[C], frozen=True):
    """What processes of one kind had counted: each that may still run by its id, with its key, and by key all others together."""

    said: dict[str, tuple[str, C]] = {}
    forgotten: dict[str, C] = {}


class KeptCounts(msgspec.Struct, frozen=True):
    """All that a controller has counted, and been told."""

    instance: str  # its id: what another one has left says nothing
    routers: KeptCounting[Counters]
    replicas: KeptCounting[ReplicaCounters]
    starts: dict[str, int]
    start_failures: dict[str, int]
    start_times: dict[str, Tally]
    deaths: list[tuple[str, str, int]]


def names(kept: KeptCounts) -> tuple[dict[str, None], dict[str, None]]:
    """The endpoints and backends of which something is told there."""
    endpoints: dict[str, None] = {}
    backends = dict.fromkeys([*kept.starts, *kept.replicas.forgotten, *(tag for tag, _ in kept.replicas.said.values())])
    for counters in [*kept.routers.forgotten.values(), *(counters for _, counters in kept.routers.said.values())]:
        for endpoint, backend in counters.labels():
            endpoints[endpoint] = backends[backend] = None
    return endpoints, backends


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(KeptCounts)


def _path(folder: str) -> str:
    return f"{folder}/counters"


def write(folder: str, kept: KeptCounts) -> None:
    """Keep this in place of what was kept before. It survives this process, not the machine: nor does the instance."""
    path = _path(folder)
    with open(f"{path}.new", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(_encode(kept))
    os.replace(f"{path}.new", path)


def read(folder: str, instance: str) -> KeptCounts | None:
    """What a controller of this instance has kept; None where there is none, or it can't be read."""
    try:
        with open(_path(folder), "rb") as file:
            kept = _decoder.decode(file.read())
    except (OSError, msgspec.DecodeError):
        return None
    return kept if kept.instance == instance else None
