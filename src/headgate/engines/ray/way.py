"""How does a process anywhere on the cluster reach its instance?"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast

import ray

from headgate.config import ReplicaOptions
from headgate.engines.local import folders
from headgate.engines.ray import records, security
from headgate.engines.ray.objects import RayObjects
from headgate.engines.ray.options import check
from headgate.engines.ray.records import InstanceRecord
from headgate.router.remote import as_seen_from
from headgate.router.way import Way

T = TypeVar("T")

_PREFIX: Final = "ray-"
_LOOK_S: Final = 0.01
_SHARES: Final = "shares"
"""The file in the folder that every process of the instance on the node holds a shared lock on."""


class RayWay(Way):
    """The way of a process of an instance of that record: the controller's address is looked up in the cluster's store.

    Made in a process that is connected with Ray.
    """

    objects = RayObjects()

    def __init__(self, record: InstanceRecord) -> None:
        node = ray.get_runtime_context().get_node_id()
        host = ray.util.get_node_ip_address()
        folder, traces = _folder(record.settings.id, node), record.settings.traces
        super().__init__(folder, node=node, host=host, secret=record.secret, tls=security.tls(), traces=traces)
        self._settings = record.settings
        self.name = record.settings.name
        self.id = record.settings.id
        self._share: int | None = None
        self._address = record.controller

    @property
    def folder(self) -> str:
        """Made by the first process on the node that asks for it, and removed by the last one that leaves."""
        if self._share is None:
            self._share = _enter(self._folder)
        return self._folder

    def check(self, options: ReplicaOptions) -> ReplicaOptions:
        """What Ray takes."""
        return check(options)

    def is_there(self) -> bool:
        """Its connection learns of its end."""
        return True

    async def controller(self) -> str | None:
        """The address of the controller as of now; None where the instance has ended."""
        with contextlib.suppress(Exception):  # Ray's control service is out of reach: what was true last
            record = await _in_a_thread(lambda: records.read_as(records.instance_key(self.name), InstanceRecord))
            if record is None or record.settings.id != self.id:
                return None
            self._address = record.controller
        return as_seen_from(self.node, self._address) if self._address else ""

    async def publish(self, address: str) -> None:
        """Have everybody know where the controller is."""
        await _in_a_thread(lambda: records.note(self._settings, {"controller": address}))
        self._address = address

    def leave(self, patience_s: float = 0.0) -> None:
        """This process needs the folder no more; the last one on the node removes it. See `Way`."""
        if self._share is None:
            return
        os.close(self._share)
        self._share = None
        until = time.monotonic() + patience_s
        while not _remove_unless_shared(self._folder) and time.monotonic() < until and self._has_ended():
            time.sleep(_LOOK_S)

    def _has_ended(self) -> bool:
        try:
            record = records.read_as(records.instance_key(self.name), InstanceRecord)
        except Exception:  # noqa: BLE001  # whatever Ray raises where its control service is away, or this process has left it
            return False
        return record is None or record.settings.id != self.id


async def _in_a_thread(function: Callable[[], T]) -> T:
    """In one of its own: it happens seldom, and an executor would keep its threads."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def set_result(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(set_result, result, failure)

    threading.Thread(target=run, name="headgate lookup", daemon=True).start()
    return await done


def _folder(instance: str, node: str) -> str:
    """Short, since sockets are in it; several nodes may share a machine."""
    return f"{folders.base_folder()}/{_PREFIX}{hashlib.blake2b(f'{instance} {node}'.encode(), digest_size=8).hexdigest()}"


def _enter(folder: str) -> int:
    """Make the folder, take a share in it, and remove what was left behind on this machine by processes that were killed."""
    while True:
        folders.make(folder)
        try:
            share = os.open(f"{folder}/{_SHARES}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # the last one before has just removed it
        fcntl.flock(share, fcntl.LOCK_SH)
        if folders.is_still_there(share, f"{folder}/{_SHARES}"):
            break
        os.close(share)
    _sweep_sockets(folder)
    for other in os.scandir(os.path.dirname(folder)):
        if other.name.startswith(_PREFIX) and other.path != folder:
            _remove_unless_shared(other.path)
    return share


def _remove_unless_shared(folder: str) -> bool:
    """False where another process is in it."""
    try:
        share = os.open(f"{folder}/{_SHARES}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(folder))
    except BlockingIOError:
        return False
    finally:
        os.close(share)
    return True


def _sweep_sockets(folder: str) -> None:
    """Remove the sockets of replicas that were killed on this node."""
    for entry in os.scandir(folder):
        if not entry.name.startswith("r-"):
            continue
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(entry.path)
            except ConnectionRefusedError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
            except OSError:
                pass
