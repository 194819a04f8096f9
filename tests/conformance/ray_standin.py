"""The stand-ins of `standin.py` as actors."""

from __future__ import annotations

import os

import ray

from headgate.engines.base import IngressSpec, ReplicaSpec
from headgate.engines.ray import records
from headgate.engines.ray.actors import Actor, acting
from headgate.engines.ray.listener import listen
from tests.conformance import standin


def scratch_key(name: str) -> str:
    """Of the folder by which stand-ins and their test speak."""
    return f"{name}/scratch"


def _scratch(name: str) -> None:
    folder = records.read(scratch_key(name))
    assert folder is not None
    os.environ[standin.SCRATCH] = folder.decode()


class Replica(Actor):
    """The actor of a stand-in replica."""

    def live(self, name: str, id: str) -> None:
        """Be it until it is drained."""
        with acting(name, id, ReplicaSpec) as (_, spec, way):
            _scratch(name)
            standin.replica(spec, way)


class Ingress(Actor):
    """The actor of a stand-in ingress."""

    def live(self, name: str, id: str) -> None:
        """Be it until it is drained."""
        with acting(name, id, IngressSpec) as (settings, spec, way):
            _scratch(name)
            standin.ingress(spec, way, listen(settings, spec, way.host))


class Actors:
    replica = ray.remote(Replica)
    ingress = ray.remote(Ingress)
