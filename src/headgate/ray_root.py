"""The composition root of the Ray engine: which programs are its actors?

Ray imports this module in each of them. Every class makes one call for its whole life, in the main thread of its process.
"""

from __future__ import annotations

import functools
import os
import threading
import traceback
from typing import Any

import msgspec
import ray

from headgate.engines.base import IngressSpec, ReplicaSpec, Report
from headgate.engines.ray import launch, records
from headgate.engines.ray.actors import Actor, acting
from headgate.engines.ray.engine import RayEngine
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay


def _keep(key: str, state: bytes) -> None:
    try:
        records.write(key, state)
    except Exception as error:
        raise OSError(f"the cluster's store did not take it: {error}") from error


class Replica(Actor):
    """The actor of a replica."""

    def live(self, name: str, id: str) -> None:
        """Be the replica until it is drained."""
        from headgate.replica.main import run

        with acting(name, id, ReplicaSpec) as (_, spec, way):
            run(spec, way)


class Ingress(Actor):
    """The actor of an ingress."""

    def live(self, name: str, id: str) -> None:
        """Be the ingress until it is drained."""
        from headgate.engines.ray.listener import listen
        from headgate.ingress.main import run

        with acting(name, id, IngressSpec) as (settings, spec, way):
            run(spec, way, listen(settings, spec))


class _Actors:
    replica = ray.remote(Replica)
    ingress = ray.remote(Ingress)


class Controller:
    """The actor of the controller. Ray makes it again after a crash."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._report: Report | None = None
        self._reported = threading.Event()
        threading.Thread(target=self._run, name="headgate controller", daemon=True).start()

    def report(self) -> bytes:
        """Wait until it is known how the start went: a `Report`."""
        self._reported.wait()
        return msgspec.msgpack.encode(self._report)

    def _run(self) -> None:
        from headgate.controller.main import run
        from headgate.controller.store import Store
        from headgate.engines.local.folders import check_state_dir, hold_state
        from headgate.errors import HeadgateError, InstanceStartError, describe

        record = records.read_as(records.instance_key(self._name), InstanceRecord)
        if record is None:  # it has ended while Ray made this one
            launch.end_controller()
            return
        settings, is_first = record.settings, not record.controller
        engine = RayEngine(settings, _Actors(), on_serving=lambda: self._tell(Report()))
        way: RayWay | None = None

        def store() -> Store:
            if settings.state_kept:
                check_state_dir(settings.state_dir)
                hold_state(settings.state_dir)  # for as long as this process lives
                return Store(settings.state_dir, durable=True)
            key = records.state_key(settings.name)
            return Store.in_memory(records.read(key), functools.partial(_keep, key))

        try:
            way = RayWay(record)
            run(settings, engine, way, store)
        except BaseException as error:  # noqa: BLE001  # the root of this thread
            traceback.print_exc()
            if self._reported.is_set() or not is_first:
                os._exit(1)  # Ray starts the next one, which goes on
            self._tell(Report(error=describe(error if isinstance(error, HeadgateError) else InstanceStartError(repr(error)))))
            return  # who waits for the start cleans up
        finally:
            if way is not None:
                way.leave()
        launch.end_controller()

    def _tell(self, report: Report) -> None:
        self._report = report
        self._reported.set()


controller: Any = ray.remote(Controller)
