"""The stand-ins of `standin.py` as actors."""

from __future__ import annotations

import os

import msgspec
import ray

from headgate.engines.base import IngressSpec, ReplicaSpec
from headgate.engines.ray import records
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay
from tests.conformance import standin


def scratch_key(name: str) -> str:
    """Of the folder by which stand-ins and their test speak."""
    return f"{name}/scratch"


def _enter(name: str) -> RayWay:
    record, scratch = records.read_as(records.instance_key(name), InstanceRecord), records.read(scratch_key(name))
    assert record is not None
    assert scratch is not None
    os.environ[standin.SCRATCH] = scratch.decode()
    return RayWay(record)


class Replica:
    """The actor of a stand-in replica."""

    def run(self, name: str, id: str) -> None:
        """Be it until it is drained."""
        way, spec = _enter(name), records.read_as(records.spec_key(name, id), ReplicaSpec)
        assert spec is not None
        try:
            standin.replica(msgspec.structs.replace(spec, gpus=tuple(map(str, ray.get_gpu_ids()))), way)
        finally:
            way.leave()
        ray.actor.exit_actor()

    def wait(self) -> None:
        """Returns when `run` has."""


class Ingress:
    """The actor of a stand-in ingress."""

    def run(self, name: str, id: str) -> None:
        """Be it until it is drained."""
        from headgate.engines.ray.listener import listen

        record = records.read_as(records.instance_key(name), InstanceRecord)
        way, spec = _enter(name), records.read_as(records.spec_key(name, id), IngressSpec)
        assert spec is not None
        assert record is not None
        try:
            standin.ingress(spec, way, listen(record.settings, spec))
        finally:
            way.leave()
        ray.actor.exit_actor()

    def wait(self) -> None:
        """Returns when `run` has."""


class Actors:
    replica = ray.remote(Replica)
    ingress = ray.remote(Ingress)
