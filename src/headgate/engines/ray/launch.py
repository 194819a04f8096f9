"""How does a driver start an instance on a Ray cluster, find one that runs, and see that it has ended?"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import signal
import socket
import time
from typing import Any, Final

import msgspec
import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headgate.engines.base import InstanceSettings, Report
from headgate.engines.ray import records, security
from headgate.engines.ray.cluster import HEAD
from headgate.engines.ray.engine import namespace
from headgate.engines.ray.options import LIGHT
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay
from headgate.errors import ClusterUnreachableError, ConfigError, InstanceStartError, rebuild
from headgate.router.way import Way

START_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.02
_ASK_S: Final = 1.0
_MADE_WITHIN_S: Final = 5.0
"""So long after it has written that an instance starts, a driver has made its controller, or has died."""
_HEAD_WITHIN_S: Final = 5.0
_HEAD_POLL_S: Final = 0.2
_GONE_WITHIN_S: Final = 3.0
"""So long after an instance has ended, its controller has answered those who asked for that, and is gone."""
CONTROLLER: Final = "controller"
"""The name of the controller's actor."""
ROOT: Final = "headgate.ray_root"
_ADDRESS: Final = "RAY_ADDRESS"


def connect(address: str | None) -> None:
    """Have this process connected with the cluster, as it may be already.

    Raises `ClusterUnreachableError`, or `ConfigError` for an address that isn't that of the cluster it is connected with.
    """
    given = address if address not in (None, "auto") else os.environ.get(_ADDRESS, "")
    if given.startswith("ray://"):
        raise ConfigError(f"address={given!r} is for Ray's client, which is no node of the cluster; run this on one, with address='auto'")
    if ray.is_initialized():
        current = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", current):
            raise ConfigError(f"address={address!r}, and this process is connected with the cluster at {current}; leave the address out")
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _wait_for_head(given)
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    except OSError as error:  # of ours, and Ray's `ConnectionError`
        where = f"at {given!r}" if given else "on this machine"
        raise ClusterUnreachableError(
            f"no Ray cluster answers {where} ({error}); start one with `ray start --head`, or give its address; where it asks for a token, "
            "set RAY_AUTH_MODE=token, and have the token where Ray looks for it"
        ) from error
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not the main thread, or a handler that isn't Python's
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own writes the machine's stack, and exits with 15


def _wait_for_head(address: str) -> None:
    """Wait until something listens there, which may just be starting. Where nothing does, Ray would end the program after a minute or more.

    Raises `OSError`.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _HEAD_WITHIN_S
    while host and port.isdecimal():  # else Ray looks for it itself
        try:
            socket.create_connection((host.strip("[]"), int(port)), _HEAD_WITHIN_S).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_HEAD_POLL_S)


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
        actor = _make_controller(controller, settings, deadline)
        report = _wait_for_report(actor.report.remote(), deadline)
        if report.error is not None:
            raise rebuild(report.error)
    except BaseException:
        if actor is not None:
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)
        remove(settings.name, settings.id)
        raise
    return True


def _make_controller(controller: Any, settings: InstanceSettings, deadline: float) -> Any:
    """Make its actor. That of an instance of this name which has just ended may need a moment to be gone."""
    began = time.monotonic()
    while True:
        try:
            return controller.options(
                name=CONTROLLER,
                namespace=namespace(settings.name),
                lifetime="detached",
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(_head(), soft=True),
                **LIGHT,
            ).remote(settings.name, settings.id)
        except ActorAlreadyExistsError as error:
            if time.monotonic() > deadline:
                raise InstanceStartError(f"the controller of an earlier instance {settings.name!r} doesn't end") from error
            if time.monotonic() - began > _GONE_WITHIN_S:
                _kill_all(settings.name)
            time.sleep(_POLL_S)


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


def _can_be_found(name: str) -> bool:
    try:
        return find(name) is not None
    except InstanceStartError:  # one of another version
        return False


class RayStarter:
    """See `Starter`: the functions of this module, for instances of the cluster that this process is connected with."""

    def find(self, name: str) -> Way | None:
        """The way to the running instance of that name."""
        return find(name)

    def running(self) -> list[str]:
        """On the cluster that this process is connected with."""
        return [name for name in records.names() if _can_be_found(name)]

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
        """Kill its actors."""
        assert isinstance(way, RayWay)
        remove(way.name, way.id)

    def leave(self, way: Way) -> None:
        """Its connection has left the folder on this node; Ray sees to the rest."""


def wait_ended(name: str, id: str, timeout_s: float) -> bool:
    """Wait until that instance has ended and left nothing; False where it has not after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        record = records.read_as(records.instance_key(name), InstanceRecord)
        if record is not None and record.settings.id != id:
            return True  # the next one of that name, which began after it, and has actors of its own
        if record is None and not actors(name):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


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
            remove(name, record.settings.id)
    finally:
        records.delete(records.burial_key(name))


def remove(name: str, id: str, but: str = "") -> None:
    """Remove what there is of that instance, `but` that actor. If it has ended, what there is belongs to the next one of its name."""
    if not has_ended(name, id):
        _kill_all(name, but)
        records.delete_all(name)


def end_controller() -> None:
    """In the controller's actor, when all is done: end it for good."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def actors(name: str) -> list[str]:
    """The names of the actors that an instance has."""
    return [named["name"] for named in ray.util.list_named_actors(all_namespaces=True) if named["namespace"] == namespace(name)]


def _kill_all(name: str, but: str = "") -> None:
    """All actors that an instance has, the controller first, which would start others."""
    for actor in sorted({*actors(name)} - {but}, key=lambda actor: actor != CONTROLLER):
        with contextlib.suppress(Exception):
            ray.kill(ray.get_actor(actor, namespace=namespace(name)), no_restart=True)
