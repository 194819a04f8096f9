"""How does a process begin to log?"""

from __future__ import annotations

import logging
from collections.abc import Callable

from headgate.core.specs import LogSettings
from headgate.logs.capture import Call, Handler, Speaker, capture
from headgate.logs.output import output_of

_speaker: Speaker | None = None


def speaker() -> Speaker:
    """Who says what is said in this process. To be asked after `begin`."""
    assert _speaker is not None
    return _speaker


def begin(settings: LogSettings, role: str, id: str = "", *, backend: str = "", call: Callable[[], Call | None] | None = None) -> None:
    """Have this process write entries of its own, with `call` also what is printed and logged in it.

    Args:
        settings: what the instance was told.
        role: what the process is.
        id: which one of these.
        backend: whose code it runs.
        call: the call that is being answered in this thread or task.
    """
    global _speaker
    _speaker = Speaker(output_of(settings, role, id), role, id, backend, call or (lambda: None))
    adopt("headgate")
    logging.getLogger("headgate").setLevel(logging.INFO if settings.verbose else logging.WARNING)
    if call is not None:
        capture(_speaker)


def adopt(name: str) -> None:
    """Have what is logged under this name become entries, in a process in which nobody else configures logging. After `begin`."""
    logger = logging.getLogger(name)
    logger.handlers[:] = [Handler(speaker())]
    logger.propagate = False
