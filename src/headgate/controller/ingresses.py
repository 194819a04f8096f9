"""How are there always as many ingresses as were asked for, and none that is stuck?"""

from __future__ import annotations

import asyncio
import logging
import secrets

from headgate.controller.routers import Routers
from headgate.controller.tasks import Changes, Tasks, in_time
from headgate.engines.base import Ended, Engine, IngressSpec, InstanceSettings, Running
from headgate.errors import HeadgateError, NotFoundError

_log = logging.getLogger("headgate.controller")

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 0.5
"""Connections wait meanwhile: a new ingress serves within a second, however often they die."""
_CHECK_PERIOD_S = 1.0
_CHECK_TIMEOUT_S = 10.0
"""An ingress runs no user code: without a sign of life for so long it is stuck, and verbs would wait for it for ever."""
_LIVED_S = 1.0
"""An ingress that lived so long did not die of its start: its successor comes at once."""


class Ingresses:
    """Keeps one ingress for each listening socket."""

    def __init__(self, engine: Engine, settings: InstanceSettings, routers: Routers, tasks: Tasks, changes: Changes) -> None:
        self._engine = engine
        self._settings = settings
        self._routers = routers
        self._tasks = tasks
        self._changes = changes
        self._running: dict[int, Running] = {}  # by number
        self.failures = 0
        """Starts that failed in a row, and …"""
        self.failure = ""
        """… what the last one said."""
        self._ended: set[str] = set()  # an end may be told before the start has returned
        self._closing = False

    def start(self, adopted: list[Running]) -> None:
        """Keep those that run already, and start the others."""
        for running in adopted:
            assert isinstance(running.spec, IngressSpec)
            number = running.spec.number
            if number < self._settings.num_ingresses and number not in self._running:
                self._add(number, running)
            else:
                self._tasks.spawn(self._engine.stop(running.id, 0), f"stop of {running.id}")
        for number in range(self._settings.num_ingresses):
            self._tasks.spawn(self._keep(number), f"ingress {number}")

    @property
    def running(self) -> list[Running]:
        """Those that run now."""
        return list(self._running.values())

    @property
    def complete(self) -> bool:
        """Whether all of them run."""
        return len(self._running) == self._settings.num_ingresses

    def ended(self, ended: Ended) -> None:
        """The engine says that one has ended."""
        if all(running.id != ended.id for running in self._running.values()):
            self._ended.add(ended.id)  # its start has not returned yet
        for number, running in list(self._running.items()):
            if running.id == ended.id:
                del self._running[number]
                self._routers.ingresses.discard(ended.id)
                if not self._closing:
                    _log.warning("ingress %d (%s) ended: %s; it is started again", number, ended.id, ended.reason)
        self._changes.tell()

    async def stop(self, grace_s: float) -> None:
        """Have all of them finish their answers and end."""
        self._closing = True
        running = self.running
        await asyncio.gather(*(self._engine.stop(ingress.id, grace_s) for ingress in running))

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        delay_s = 0.0
        while not self._closing:
            if number not in self._running:
                spec = IngressSpec(
                    id=f"i{number}-{secrets.token_hex(3)}",
                    token=secrets.token_hex(16),
                    number=number,
                    folder=self._settings.folder,
                    ssl_certfile=self._settings.ssl_certfile,
                    ssl_keyfile=self._settings.ssl_keyfile,
                )
                try:
                    self._add(number, await self._engine.start_ingress(spec))
                    self.failures = 0
                except HeadgateError as error:
                    self._ended.discard(spec.id)
                    self.failures, self.failure = self.failures + 1, error.message
                    self._changes.tell()
                    _log.error("ingress %d could not be started: %s", number, error)
            started_at = loop.time()
            while not await self._changes.until(lambda: number not in self._running, _CHECK_PERIOD_S):
                await self._check(self._running[number])
            lived = loop.time() - started_at > _LIVED_S
            delay_s = 0.0 if lived else min(max(delay_s * 2, _FIRST_DELAY_S), _LONGEST_DELAY_S)
            await asyncio.sleep(delay_s)

    async def _check(self, ingress: Running) -> None:
        try:
            await in_time(self._engine.ping(ingress.id), _CHECK_TIMEOUT_S)
        except TimeoutError:
            _log.warning("ingress %s gave no sign of life for %g s; it is killed", ingress.id, _CHECK_TIMEOUT_S)
            await self._engine.kill(ingress.id)
        except NotFoundError:  # it has ended, which is told elsewhere
            pass

    def _add(self, number: int, running: Running) -> None:
        if running.id in self._ended:
            self._ended.discard(running.id)
            return
        self._running[number] = running
        self._routers.ingresses.add(running.id)
        self._changes.tell()
