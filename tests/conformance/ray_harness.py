"""How do the conformance checks reach the Ray engine?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Self

import msgspec

from headgate.engines.base import Engine, IngressSpec, Running
from headgate.engines.ray import launch, records
from headgate.engines.ray.engine import RayEngine
from headgate.engines.ray.records import InstanceRecord
from headgate.engines.ray.way import RayWay
from headgate.router.remote import address_of
from headgate.testing import ControlServer
from headgate.testing.conformance import Records
from tests.conformance import ray_standin, standin
from tests.conformance.harnesses import StandInHarness, settings_for


class RayHarness(StandInHarness):
    """The Ray engine in this process, on a cluster of one node, with stand-ins for actors."""

    def __init__(self) -> None:
        self.records = Records()
        self.adopted: list[Running] = []
        self.settings = msgspec.structs.replace(settings_for("conformance"), folder="")
        self._stack = contextlib.AsyncExitStack()
        self._control = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hg-scratch-"))
        os.environ[standin.SCRATCH] = self._scratch
        record = InstanceRecord(settings=self.settings, secret=b"secret")
        records.write_as(records.instance_key(self.settings.name), record)
        records.write(ray_standin.scratch_key(self.settings.name), self._scratch.encode())
        self._way = RayWay(record)
        await self._way.publish(address_of(self._way.node, "127.0.0.1:1", self._way.control_path))
        await self._open()
        self.engine.serving()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.engine.close()
        await self._control.aclose()
        await asyncio.to_thread(self._way.leave, 10.0)
        records.delete(ray_standin.scratch_key(self.settings.name))
        del os.environ[standin.SCRATCH]
        await self._stack.aclose()
        await asyncio.get_running_loop().shutdown_default_executor()

    async def _open(self) -> None:
        self.engine = RayEngine(self.settings, ray_standin.Actors(), on_serving=lambda: None)
        self.engine.on_end = self.records.on_end
        self.engine.on_message = self.records.on_message
        self.engine.on_leave = self.records.on_leave
        self.engine.on_places = lambda: None
        self.adopted = await self.engine.open()
        await self._control.enter_async_context(ControlServer(self.engine, self._way.control_path))

    def ingress(self, id: str) -> IngressSpec:
        return msgspec.structs.replace(standin.ingress_spec(id), place=self.engine.places()[0])

    async def successor(self) -> Engine:
        self.engine.on_end = lambda _: None  # a dead controller's engine reports nothing
        for task in self.engine._tasks:
            task.cancel()
        await self._control.aclose()
        await self._open()
        return self.engine

    def leave(self) -> bool:
        return False  # the lease is the controller's affair

    def leftovers(self) -> list[str]:
        actors = launch.actors(self.settings.name)
        return [*actors, *(str(path) for path in Path(self._way.folder).iterdir() if path.name.startswith("r-"))]
