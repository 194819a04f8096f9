"""What do the actors of replicas and ingresses have in common, whatever program they run?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import msgspec
import ray

from headgate.engines.base import INGRESS, REPLICA, IngressSpec, InstanceSettings, ReplicaSpec
from headgate.engines.ray import records, surroundings
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay
from headgate.logs.begin import begin
from headgate.router.context import current_call

S = TypeVar("S", ReplicaSpec, IngressSpec)


class Actor:
    """Its class has a method `live(name, id)`, which is its whole life."""

    def __init__(self) -> None:
        self._has_begun = False

    def run(self, name: str, id: str) -> None:
        """Live, and return when that is over. A controller that adopts it calls it again: the first call may have died with its caller."""
        if not self._has_begun:
            self._has_begun = True
            self.live(name, id)

    def live(self, name: str, id: str) -> None:
        """Be what that class is for."""
        raise NotImplementedError


@contextlib.contextmanager
def acting(name: str, id: str, of: type[S]) -> Iterator[tuple[InstanceSettings, S, RayWay]]:
    """Be the actor of that id: its instance's settings, what it was started from, and its way. The process ends after the block."""
    record = records.read_as(records.instance_key(name), InstanceRecord)
    spec = records.read_as(records.spec_key(name, id), of)
    if record is None or spec is None:
        raise SystemExit(f"{id!r} is wanted no more")
    if isinstance(spec, ReplicaSpec):
        spec = msgspec.structs.replace(spec, gpus=tuple(map(str, ray.get_gpu_ids())), definition=surroundings.enter(spec))
    way = RayWay(record)
    if isinstance(spec, ReplicaSpec):
        begin(record.settings.log, REPLICA, id, backend=spec.backend, call=current_call)
    else:
        begin(record.settings.log, INGRESS, id)
    try:
        yield record.settings, spec, way
    finally:
        way.leave()
    ray.actor.exit_actor()
