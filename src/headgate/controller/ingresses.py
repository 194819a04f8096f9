"""How are there always as many ingresses as were asked for, and none that is stuck?"""

from __future__ import annotations

import asyncio
import logging
import secrets

from headgate.controller.routers import Routers
from headgate.controller.tasks import Changes, Tasks, in_time
from headgate.engines.base import Ended, Engine, IngressSpec, InstanceSettings, Running
from headgate.errors import AddressInUseError, HeadgateError, InvalidValueError, NotFoundError
from headgate.router import admin

_log = logging.getLogger("headgate.controller")

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 0.5
"""Connections wait meanwhile: a new ingress serves within a second, however often they die."""
CHECK_PERIOD_S = 1.0
CHECK_TIMEOUT_S = 10.0
"""An ingress runs no user code: without a sign of life for so long it is stuck, and verbs would wait for it for ever."""
_LIVED_S = 1.0
"""An ingress that lived so long did not die of its start: its successor comes at once."""
_MOST_FAILURES = 3
_LEAVES_WITHIN_S = 10.0
"""For its answers under way, where there is no place for an ingress any more."""


class Ingresses:
    """Keeps one ingress at each place that the engine has for them."""

    def __init__(self, engine: Engine, settings: InstanceSettings, routers: Routers, tasks: Tasks, changes: Changes) -> None:
        self._engine = engine
        self._settings = settings
        self._routers = routers
        self._tasks = tasks
        self._changes = changes
        self._running: dict[str, Running] = {}  # by place
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._failures = 0  # starts in a row that failed
        self.failure: HeadgateError | None = None
        """Why the last start that failed did."""
        self._starting: set[str] = set()
        self._ended: set[str] = set()  # of those that start: an end may be told before the start has returned
        self._closing = False
        self._admin_check = admin.check_of(settings.admin_key) if settings.admin_key else b""

    def start(self, adopted: list[Running]) -> None:
        """Keep those that run already, and start the others."""
        places = self._engine.places()
        for running in adopted:
            assert isinstance(running.spec, IngressSpec)
            place = running.spec.place
            if place in places and place not in self._running:
                self._add(place, running)
            else:
                self._tasks.spawn(self._engine.stop(running.id, 0), f"stop of {running.id}")
        self.place()

    def place(self) -> None:
        """See to it that there is one at each place, and none elsewhere."""
        if self._closing:
            return
        places = self._engine.places()
        self._routers.places = frozenset(places)
        for place in self._keepers.keys() - places:
            self._keepers.pop(place).cancel()
            running = self._running.pop(place, None)
            if running is not None:
                self._routers.ingresses.pop(running.id, None)
                self._tasks.spawn(self._engine.stop(running.id, _LEAVES_WITHIN_S), f"stop of {running.id}")
        for place in places:
            if place not in self._keepers:
                self._keepers[place] = self._tasks.spawn(self._keep(place), f"ingress {place}")
        self._changes.tell()

    @property
    def running(self) -> list[Running]:
        """Those that run now."""
        return list(self._running.values())

    @property
    def given_up(self) -> bool:
        """Whether it is no use to try to start them any longer, where none has run before."""
        return self._failures >= _MOST_FAILURES or isinstance(self.failure, AddressInUseError | InvalidValueError)

    @property
    def complete(self) -> bool:
        """Whether all of them run."""
        return len(self._running) == len(self._keepers) > 0

    def ended(self, ended: Ended) -> None:
        """The engine says that one has ended."""
        if ended.id in self._starting:
            self._ended.add(ended.id)
        for place, running in list(self._running.items()):
            if running.id == ended.id:
                del self._running[place]
                self._routers.ingresses.pop(ended.id, None)
                if not self._closing:
                    _log.warning("ingress %s ended: %s; it is started again", ended.id, ended.reason)
        self._changes.tell()

    async def stop(self, grace_s: float) -> None:
        """Have all of them finish their answers and end."""
        self._closing = True
        running = self.running
        await asyncio.gather(*(self._engine.stop(ingress.id, grace_s) for ingress in running))

    async def _keep(self, place: str) -> None:
        loop = asyncio.get_running_loop()
        delay_s = 0.0
        while not self._closing:
            if place not in self._running:
                spec = IngressSpec(
                    id=f"i{place[:8]}-{secrets.token_hex(3)}",
                    token=secrets.token_hex(16),
                    place=place,
                    ssl_certfile=self._settings.ssl_certfile,
                    ssl_keyfile=self._settings.ssl_keyfile,
                    access_log=self._settings.access_log,
                    traces=self._settings.traces,
                    admin_check=self._admin_check,
                )
                self._starting.add(spec.id)
                try:
                    self._add(place, await self._engine.start_ingress(spec))
                    self._failures = 0
                except HeadgateError as error:
                    self._failures, self.failure = self._failures + 1, error
                    self._changes.tell()
                    self._routers.changed()  # until one starts there the others take its share
                    _log.error("ingress %s could not be started: %s", spec.id, error)
                finally:
                    self._starting.discard(spec.id)
                    self._ended.discard(spec.id)
            started_at = loop.time()
            while not await self._changes.until(lambda: place not in self._running, CHECK_PERIOD_S):
                await self._check(self._running[place])
            lived = loop.time() - started_at > _LIVED_S
            delay_s = 0.0 if lived else min(max(delay_s * 2, _FIRST_DELAY_S), _LONGEST_DELAY_S)
            await asyncio.sleep(delay_s)

    async def _check(self, ingress: Running) -> None:
        try:
            await in_time(self._engine.ping(ingress.id), CHECK_TIMEOUT_S)
        except TimeoutError:
            _log.warning("ingress %s gave no sign of life for %g s; it is killed", ingress.id, CHECK_TIMEOUT_S)
            await self._engine.kill(ingress.id)
        except NotFoundError:  # it has ended, which is told elsewhere
            pass

    def _add(self, place: str, running: Running) -> None:
        if running.id in self._ended:
            return
        self._running[place] = running
        self._routers.ingresses[running.id] = place
        self._changes.tell()
