"""How do Ray's references to objects leave a process and come to another one, without a call of Ray's own?

Whoever gets one borrows it without its owner being told. So the object lives for as long as the reference that was described is kept
where that was done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from headgate.errors import ObjectLostError
from headgate.router.references import Reduced


class RayObjects:
    """Ray's object store: see `headgate.router.references.Objects`."""

    reference: type = ray.ObjectRef

    def describe(self, reference: Any) -> Reduced:
        """What `_borrow` needs."""
        _, owner, status = _core_worker().serialize_object_ref(reference)
        return _borrow, (reference.binary(), owner, status)

    def get(self, references: list[Any], timeout_s: float) -> list[Any] | None:
        """The objects; None where they aren't all there after so many seconds."""
        with _told():
            try:
                found: list[Any] = ray.get(references, timeout=timeout_s)
            except GetTimeoutError:
                return None
        return found

    async def fetch(self, references: list[Any]) -> list[Any]:
        """The objects, however long it takes."""
        with _told():
            return list(await asyncio.gather(*(asyncio.wrap_future(reference.future()) for reference in references)))


def _core_worker() -> Any:
    worker = ray._private.worker.global_worker
    worker.check_connected()
    return worker.core_worker


def _borrow(id: bytes, owner: bytes, status: bytes) -> Any:
    reference = ray.ObjectRef(id, owner)
    _core_worker().deserialize_and_register_object_ref(id, ray.ObjectRef.nil(), owner, status)
    return reference


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise what a task of the user raised as itself, and what Ray says of an object as `ObjectLostError`."""
    try:
        yield
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException) and not isinstance(cause, RayError):
            raise cause from error
        raise
    except RayError as error:
        said = f"{type(error).__name__}: {str(error).strip().partition('. ')[0]}"
        raise ObjectLostError(f"the object that an argument refers to can't be had ({said}); make it again, and call again") from error
