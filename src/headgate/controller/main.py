"""What does the controller's process do?"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
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
    _log_to_stderr(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(settings, engine, way, store))


async def _live(settings: InstanceSettings, engine: Engine, way: Way, store: Callable[[], Store]) -> None:
    await Controller(settings, engine, way, store()).run()


def _log_to_stderr(settings: InstanceSettings) -> None:
    """One line per event: trouble always, and with `debug`, or where nobody watches, everything."""
    logger = logging.getLogger("headgate")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s headgate: %(message)s" if settings.detached else "headgate: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if settings.debug or settings.detached else logging.WARNING)
