"""Which answer of a batch handler belongs to which request?

The first dimension of what it returns is the batch. Anything that doesn't say so beyond doubt is refused.
"""

from __future__ import annotations

from typing import Any

from headgate.errors import BatchResultError


def split_batch(result: Any, size: int) -> list[Any]:
    """Split what a batch handler returned for `size` requests into one value for each.

    Takes a list, tuple, NumPy array, tensor or Series. Exceptions in it stay values: each is the failure of its request.
    Raises `BatchResultError` that says what came back.
    """
    if isinstance(result, list | tuple):
        if len(result) == size:
            return list(result)
        raise _refused(f"{type(result).__name__} of {len(result)}", size)
    shape = getattr(result, "shape", None)
    if shape is None or hasattr(result, "columns"):  # a table's columns are not its first dimension
        raise _refused("None" if result is None else type(result).__name__, size)
    shape = tuple(shape)
    if not shape or shape[0] != size:
        raise _refused(f"{type(result).__name__} of shape {shape}", size)
    return list(result)


def _refused(what: str, size: int) -> BatchResultError:
    plural = "" if size == 1 else "s"
    return BatchResultError(
        f"a batch handler must return one answer for each request, in a list, tuple, array, tensor or Series; "
        f"for {size} request{plural} it returned: {what}"
    )
