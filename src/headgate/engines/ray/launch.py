"""How does a driver start an instance on a Ray cluster, find one that runs, and see that it has ended?"""

from __future__ import annotations

import contextlib
import importlib
import logging
import secrets
import time
from typing import Any, Final

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headgate.engines.base import InstanceSettings, Report
from headgate.engines.ray import records, security
from headgate.engines.ray.cluster import HEAD
from headgate.engines.ray.engine import namespace
from headgate.engines.ray.options import LIGHT
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay
from headgate.errors import InstanceStartError, rebuild
from headgate.router.way import Way

START_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.02
_ASK_S: Final = 1.0
_MADE_WITHIN_S: Final = 5.0
"""So long after it has written that an instance starts, a driver has made its controller, or has died."""
CONTROLLER: Final = "controller"
"""The name of the controller's actor."""
ROOT: Final = "headgate.ray_root"


def connect(address: str | None) -> None:
    """Have this process connected with the cluster, as it may be already."""
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)


def find(name: str) -> RayWay | None:
    """The way to the running instance of that name; None where there is none."""
    if not ray.is_initialized():
        return None
    record = records.read_as(records.instance_key(name), InstanceRecord)
    return None if record is None or not record.serving or not _has_controller(name) else RayWay(record)


def launch(settings: InstanceSettings) -> bool:
    """Start an instance and wait until HTTP answers. False where one of that name runs already: connect to it.

    Raises `InvalidValueError` for what Ray's settings for TLS name, `AddressInUseError`, or `InstanceStartError` for anything else.
    After an error, or an interrupt, nothing of it is left.
    """
    security.tls()
    controller = importlib.import_module(ROOT).controller
    key, began = records.instance_key(settings.name), time.monotonic()
    deadline = began + START_TIMEOUT_S
    while not records.write_if_new(key, InstanceRecord(settings=settings, secret=secrets.token_bytes(32))):
        if find(settings.name) is not None:
            return False
        _bury(settings.name, since_s=time.monotonic() - began)
        if time.monotonic() > deadline:
            records.delete(records.burial_key(settings.name))  # who began it may have died
            raise InstanceStartError(f"another process has been starting instance {settings.name!r} for {START_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    actor: Any = None
    try:
        actor = controller.options(
            name=CONTROLLER,
            namespace=namespace(settings.name),
            lifetime="detached",
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(_head(), soft=True),
            **LIGHT,
        ).remote(settings.name)
        report = _wait_for_report(actor.report.remote(), deadline)
        if report.error is not None:
            raise rebuild(report.error)
    except BaseException:
        if actor is not None:
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)
        _kill_all(settings.name)
        records.delete_all(settings.name)
        raise
    return True


def _head() -> str:
    """The node without which there is no cluster, so that the controller ends by the loss of no other."""
    return str(next(node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]))


def _wait_for_report(told: Any, deadline: float) -> Report:
    while time.monotonic() < deadline:
        try:
            return msgspec.msgpack.decode(ray.get(told, timeout=_ASK_S), type=Report)
        except GetTimeoutError:  # asked again and again, so that it can be interrupted
            continue
        except RayError as error:
            raise InstanceStartError(f"the controller ended before HTTP answered: {error}") from error
    raise InstanceStartError(f"the instance did not answer HTTP within {START_TIMEOUT_S:g} s")


class RayStarter:
    """See `Starter`: the functions of this module, for instances of the cluster that this process is connected with."""

    def find(self, name: str) -> Way | None:
        """The way to the running instance of that name."""
        return find(name)

    def start(self, settings: InstanceSettings) -> Way | None:
        """`launch` it."""
        return find(settings.name) if launch(settings) else None

    def wait_ended(self, way: Way, timeout_s: float) -> bool:
        """Until the cluster has neither its record nor an actor of it."""
        assert isinstance(way, RayWay)
        return wait_ended(way.name, way.id, timeout_s)

    def has_ended(self, way: Way) -> bool:
        """Whether the cluster knows it no more."""
        assert isinstance(way, RayWay)
        return has_ended(way.name, way.id)

    def abandon(self, way: Way) -> None:
        """Kill its actors, the controller first, which would start others."""
        assert isinstance(way, RayWay)
        if not has_ended(way.name, way.id):
            _kill_all(way.name)
            records.delete_all(way.name)

    def leave(self, way: Way) -> None:
        """Its connection has left the folder on this node; Ray sees to the rest."""


def wait_ended(name: str, id: str, timeout_s: float) -> bool:
    """Wait until that instance has ended and left nothing; False where it has not after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not has_ended(name, id) or actors(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def has_ended(name: str, id: str) -> bool:
    """Whether that instance is gone."""
    record = records.read_as(records.instance_key(name), InstanceRecord)
    return record is None or record.settings.id != id


def _has_controller(name: str) -> bool:
    """Whether it has one, or Ray is making the next."""
    try:
        ray.get_actor(CONTROLLER, namespace=namespace(name))
    except ValueError:
        return False
    return True


def _bury(name: str, since_s: float) -> None:
    """Remove what is left of an instance of that name whose controller is gone for good, or was never made within `_MADE_WITHIN_S`."""
    if not records.write_if_new(records.burial_key(name)):  # one process at a time: the next instance may start right after
        return
    try:
        record = records.read_as(records.instance_key(name), InstanceRecord)
        if record is not None and (record.serving or since_s > _MADE_WITHIN_S) and not _has_controller(name):
            _kill_all(name)
            records.delete_all(name)
    finally:
        records.delete(records.burial_key(name))


def end_controller() -> None:
    """In the controller's actor, when all is done: end it for good."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def actors(name: str) -> list[str]:
    """The names of the actors that an instance has."""
    return [named["name"] for named in ray.util.list_named_actors(all_namespaces=True) if named["namespace"] == namespace(name)]


def _kill_all(name: str) -> None:
    for actor in sorted(actors(name), key=lambda actor: actor != CONTROLLER):
        with contextlib.suppress(Exception):
            ray.kill(ray.get_actor(actor, namespace=namespace(name)), no_restart=True)
