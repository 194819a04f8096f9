"""What becomes of memory that a replica or an ingress has freed?

It is kept for the next request, up to a bound. The C library would give large pieces back to the kernel at once and have them anew
for each request, page by page, which costs more than all else that is done with a large body or array.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Final

_KEPT_BYTES: Final = 64 << 20
"""Free memory beyond this, at the end of the heap, goes back to the kernel."""
_LARGEST_BYTES: Final = 32 << 20
"""Larger pieces go back when they are freed; the C library takes no larger figure."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_CHOSEN_BY_USER: Final = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed(environ: Mapping[str, str] = os.environ) -> bool:
    """Keep it from now on. False where the user's variables say what is kept, or where the C library isn't GNU's."""
    if any(name.startswith(_CHOSEN_BY_USER) for name in environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
