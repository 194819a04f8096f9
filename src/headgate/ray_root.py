"""The composition root of the Ray engine: which programs are its actors?

Ray imports this module in each of them. Every class makes one call for its whole life, in the main thread of its process.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import traceback
from typing import Any, Final

import msgspec
import ray

from headgate.engines.base import IngressSpec, ReplicaSpec, Report
from headgate.engines.ray import launch, records
from headgate.engines.ray.actors import Actor, acting
from headgate.engines.ray.engine import RayEngine
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay

_CLEANS_UP_WITHIN_S: Final = 10.0
"""So long after a start has failed, the driver that waited for it has cleaned up, or has died."""
_PORT_FREE_WITHIN_S: Final = 5.0
"""A controller that has just died may hold its admin address for a moment."""


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
            run(spec, way, listen(settings, spec, way.host))


class _Actors:
    replica = ray.remote(Replica)
    ingress = ray.remote(Ingress)


class Controller:
    """The actor of the controller. Ray makes it again after a crash."""

    def __init__(self, name: str, id: str) -> None:
        self._name = name
        self._id = id
        self._report: Report | None = None
        self._reported = threading.Event()
        threading.Thread(target=self._run, name="headgate controller", daemon=True).start()

    def report(self) -> bytes:
        """Wait until it is known how the start went: a `Report`."""
        self._reported.wait()
        return msgspec.msgpack.encode(self._report)

    def _run(self) -> None:
        from headgate.errors import HeadgateError, InstanceStartError, describe

        is_start = False
        try:
            record = records.read_as(records.instance_key(self._name), InstanceRecord)
            if record is not None and record.settings.id == self._id:  # else it has ended while Ray made this one
                is_start = not record.serving
                if is_start:
                    threading.Thread(target=self._see_to_the_start, name="headgate start", daemon=True).start()
                self._live(record)
        except BaseException as error:  # noqa: BLE001  # the root of this thread
            goes_on = self._reported.is_set() or not is_start
            if goes_on or not isinstance(error, HeadgateError):  # which its driver raises
                traceback.print_exc()
            if goes_on:
                os._exit(1)  # Ray starts the next one, which does
            self._tell(Report(error=describe(error if isinstance(error, HeadgateError) else InstanceStartError(repr(error)))))
            return  # who waits for the start cleans up
        launch.end_controller()

    def _live(self, record: InstanceRecord) -> None:
        """Be the controller until the instance is shut down."""
        from headgate.controller.main import run
        from headgate.controller.store import Store
        from headgate.engines.local.folders import check_state_dir, hold_state
        from headgate.engines.local.listeners import listen_from_afar
        from headgate.errors import HeadgateError
        from headgate.logs.begin import begin

        settings = record.settings
        begin(settings.log, launch.CONTROLLER)
        engine = RayEngine(settings, _Actors(), on_serving=lambda: self._tell(Report()))

        def store() -> Store:
            if settings.state_kept:
                check_state_dir(settings.state_dir)
                hold_state(settings.state_dir)  # for as long as this process lives
                return Store(settings.state_dir, durable=True)
            key = records.state_key(settings.name)
            return Store.in_memory(records.read(key), functools.partial(_keep, key))

        way = RayWay(record)
        if settings.admin_address:
            try:
                way.admin_listener = listen_from_afar(settings.admin_address, _PORT_FREE_WITHIN_S)
            except HeadgateError as error:
                if not record.serving:
                    raise
                # The instance is worth more than that, wherever this controller has come to.
                logging.getLogger("headgate.controller").error("no commands are taken from afar: %s", error)
        try:
            run(settings, engine, way, store)
        finally:
            way.leave()

    def _see_to_the_start(self) -> None:
        """Where it has not succeeded, and the driver that would clean up has died, do that."""
        if self._reported.wait(launch.START_TIMEOUT_S) and self._serves():
            return
        time.sleep(_CLEANS_UP_WITHIN_S)
        if not self._serves():
            launch.remove(self._name, self._id, but=launch.CONTROLLER)
            launch.end_controller()

    def _serves(self) -> bool:
        return self._report is not None and self._report.error is None

    def _tell(self, report: Report) -> None:
        self._report = report
        self._reported.set()


controller: Any = ray.remote(Controller)
