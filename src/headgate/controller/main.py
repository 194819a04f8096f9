"""What does the controller's process do?"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from headgate.controller.controller import Controller
from headgate.engines.base import Engine, InstanceSettings


def run(settings: InstanceSettings, engine: Engine, http_urls: tuple[str, ...]) -> None:
    """Be the controller of an instance until it is shut down. `http_urls` are where its ingresses listen.

    What runs already is taken over, so this can be started again after a crash. Raises `InstanceStartError` where the
    state can't be read.
    """
    import uvloop

    os.umask(0o077)
    _log_to_stderr(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(settings, engine, http_urls))


async def _live(settings: InstanceSettings, engine: Engine, http_urls: tuple[str, ...]) -> None:
    await Controller(settings, engine, http_urls).run()


def _log_to_stderr(settings: InstanceSettings) -> None:
    """One line per event: trouble always, and with `debug`, or where nobody watches, everything."""
    logger = logging.getLogger("headgate")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s headgate: %(message)s" if settings.detached else "headgate: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if settings.debug or settings.detached else logging.WARNING)
