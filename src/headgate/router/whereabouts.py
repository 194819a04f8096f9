"""Where does the instance of a name run, and does it still?

A handle that comes out of a pickle knows only the name. Engines know the rest, and are above this layer: `headgate.serve`,
which every handle is pickled as a part of, sets `find` and `runs` when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def _unknown(name: str) -> str | None:
    return None


find: Callable[[str], str | None] = _unknown
"""The folder of the running instance of a name; None where there is none."""

runs: Callable[[str], bool] = os.path.exists
"""Whether an instance still runs in a folder, whose controller doesn't answer."""
