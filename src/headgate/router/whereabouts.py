"""Where does the instance of a name run?

A handle that comes out of a pickle knows only the name. Engines know the rest, and are above this layer: `headgate.serve`,
which every handle is pickled as a part of, sets `find` when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable


def _unknown(name: str) -> str | None:
    return None


find: Callable[[str], str | None] = _unknown
"""The folder of the running instance of a name; None where there is none."""
