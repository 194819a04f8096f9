"""What does the controller's process do?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from headgate.controller.controller import Controller
from headgate.controller.store import Store
from headgate.engines.base import Engine, InstanceSettings
from headgate.router.way import Way


def run(settings: InstanceSettings, engine: Engine, way: Way, store: Callable[[], Store]) -> None:
    """Be the controller of an instance until it is shut down. `store` opens what has been kept of it.

    What runs already is taken over, so this can be started again after a crash. Raises `InstanceStartError` where the
    state can't be read.
    """
    import uvloop

    os.umask(0o077)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(settings, engine, way, store))


async def _live(settings: InstanceSettings, engine: Engine, way: Way, store: Callable[[], Store]) -> None:
    await Controller(settings, engine, way, store()).run()
