"""How do references to objects of a cluster's own store travel with a call, and become those objects?

An engine may give its processes such a store (`Way.objects`). An argument that is a reference is resolved in the replica, inside the call;
a reference within an argument stays one. The caller's own references are kept until the call is over: for so long the objects live.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from headgate.errors import DeadlineExceededError, EncodeError, RequestCancelledError

_LOOK_S: Final = 0.5
"""How often a thread that waits for an object looks whether anybody still waits for the call."""

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]
"""What stands for an object in a pickle: what makes it anew, and from what."""


class Objects(Protocol):
    """A store of objects beside the calls."""

    reference: type
    """The class of references to its objects."""

    def describe(self, reference: Any) -> Reduced:
        """How another process makes the reference anew. That is good for as long as this one is kept."""
        ...

    def get(self, references: list[Any], timeout_s: float) -> list[Any] | None:
        """The objects; None where they aren't all there after so many seconds. Blocks.

        Raises `ObjectLostError`, or what was raised where an object was to be made.
        """
        ...

    async def fetch(self, references: list[Any]) -> list[Any]:
        """The same without a limit, on an event loop."""
        ...


class Asker(Protocol):
    """Whose arguments they are."""

    cancelled: bool

    @property
    def deadline(self) -> float:
        """When its time is over, by time.monotonic()."""
        ...


class Lending:
    """The references of one call's arguments, met while they are pickled."""

    __slots__ = ("_objects", "mark", "met", "reference")

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.reference = objects.reference
        self.mark = objects.reference.__name__.encode()
        """Stands in each pickle that has one in it."""
        self.met: list[Any] = []
        """To be kept until the call is over."""

    def reduce(self, reference: Any) -> Reduced:
        """What stands for it in the pickle."""
        self.met.append(reference)
        return self._objects.describe(reference)


class NoLending(Lending):
    """For answers: nobody would keep what they refer to."""

    __slots__ = ()

    def reduce(self, reference: Any) -> Reduced:
        """Raises `EncodeError`."""
        kind = f"{self.reference.__module__}.{self.reference.__name__}"
        raise EncodeError(f"an answer can't have a {kind} in it, since its object ends with the call; return the object itself")


def resolve(objects: Objects, args: tuple[Any, ...], kwargs: dict[str, Any], asker: Asker) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with objects in place of references. Blocks until they are there, and the asker's deadline at most.

    Raises `ObjectLostError`, what was raised where an object was to be made, `DeadlineExceededError`, or `RequestCancelledError`.
    """
    references = _of(objects, args, kwargs)
    if not references:
        return args, kwargs
    while True:
        got = objects.get(references, min(_left(asker), _LOOK_S))
        if got is not None:
            return _replaced(objects, args, kwargs, got)


async def resolve_async(
    objects: Objects, args: tuple[Any, ...], kwargs: dict[str, Any], asker: Asker
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As `resolve`, on an event loop."""
    references = _of(objects, args, kwargs)
    if not references:
        return args, kwargs
    fetching = asyncio.ensure_future(objects.fetch(references))
    try:
        while not fetching.done():
            left = _left(asker)
            await asyncio.wait([fetching], timeout=None if left == float("inf") else left)
    finally:
        fetching.cancel()
    return _replaced(objects, args, kwargs, fetching.result())


def _of(objects: Objects, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return [each for each in (*args, *kwargs.values()) if type(each) is objects.reference]


def _replaced(objects: Objects, args: tuple[Any, ...], kwargs: dict[str, Any], got: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    objects_of = iter(got)

    def swapped(each: Any) -> Any:
        return next(objects_of) if type(each) is objects.reference else each

    return tuple(map(swapped, args)), {name: swapped(each) for name, each in kwargs.items()}


def _left(asker: Asker) -> float:
    if asker.cancelled:
        raise RequestCancelledError("the request was cancelled while its arguments were waited for")
    left = asker.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceededError("the object that an argument refers to did not come in time")
    return left
