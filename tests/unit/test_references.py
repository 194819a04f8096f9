"""What becomes of references to objects of a store, among and within the arguments of a call?"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from headgate.core import wire
from headgate.errors import DeadlineExceededError, EncodeError, ErrorInfo, ObjectLostError, RequestCancelledError
from headgate.router import payload
from headgate.router.handle import Handle
from headgate.router.references import Lending, NoLending, resolve, resolve_async
from tests.support import FakeConnection

_kept: dict[int, Any] = {}


class Reference:
    def __init__(self, key: int) -> None:
        self.key = key


class Store:
    """Objects by number. Those that aren't there yet are waited for; None stands for one that is lost."""

    reference: type = Reference

    def __init__(self) -> None:
        self.waits = 0

    def describe(self, reference: Reference) -> Any:
        return Reference, (reference.key,)

    def get(self, references: list[Reference], timeout_s: float) -> list[Any] | None:
        self.waits += 1
        if all(each.key in _kept for each in references):
            return self._found(references)
        time.sleep(min(timeout_s, 0.001))  # stands for the wait
        return None

    async def fetch(self, references: list[Reference]) -> list[Any]:
        while not all(each.key in _kept for each in references):  # noqa: ASYNC110 - stands for the wait
            await asyncio.sleep(0.001)
        return self._found(references)

    def _found(self, references: list[Reference]) -> list[Any]:
        found = [_kept[each.key] for each in references]
        if None in found:
            raise ObjectLostError("lost; make it again")
        return found


class Asker:
    def __init__(self, left_s: float = 10.0) -> None:
        self.deadline = time.monotonic() + left_s
        self.cancelled = False


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    yield
    _kept.clear()


@pytest.fixture(params=["thread", "loop"])
def resolved(request: pytest.FixtureRequest) -> Any:
    """Resolve arguments, in either way."""

    def in_thread(args: Any, kwargs: Any, asker: Asker) -> Any:
        return resolve(Store(), args, kwargs, asker)

    def on_loop(args: Any, kwargs: Any, asker: Asker) -> Any:
        return asyncio.run(resolve_async(Store(), args, kwargs, asker))

    return in_thread if request.param == "thread" else on_loop


def test_arguments_that_are_references_are_replaced_and_those_within_stay(resolved: Any) -> None:
    _kept.update({1: "one", 2: "two"})
    within = [Reference(1)]
    args, kwargs = resolved((Reference(1), 5, within), {"a": Reference(2), "b": 6}, Asker())
    assert args == ("one", 5, within)
    assert kwargs == {"a": "two", "b": 6}


def test_without_references_nothing_is_asked_of_the_store() -> None:
    store = Store()
    assert resolve(store, (1, [Reference(1)]), {"a": 2}, Asker())[1] == {"a": 2}
    assert store.waits == 0


def test_an_object_that_does_not_come_is_waited_for_until_the_deadline(resolved: Any) -> None:
    with pytest.raises(DeadlineExceededError):
        resolved((Reference(1),), {}, Asker(0.02))


def test_an_object_that_is_lost_is_told(resolved: Any) -> None:
    _kept[1] = None
    with pytest.raises(ObjectLostError):
        resolved((Reference(1),), {}, Asker())


def test_a_thread_waits_no_longer_for_a_call_that_is_cancelled() -> None:
    asker, store = Asker(float("inf")), Store()

    def get(references: list[Reference], timeout_s: float) -> None:
        asker.cancelled = True  # while it waits

    store.get = get  # type: ignore[method-assign]  # as the test wants it
    with pytest.raises(RequestCancelledError):
        resolve(store, (Reference(1),), {}, asker)


def test_a_task_that_is_cancelled_stops_waiting() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(resolve_async(Store(), (Reference(1),), {}, Asker(float("inf"))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_references_are_met_wherever_they_stand_and_come_out_as_references() -> None:
    lending = Lending(Store())
    array = np.arange(10_000)
    body = payload.dump_call((Reference(1), [Reference(2), {"k": Reference(3)}], array), {"a": Reference(4)}, lending)
    assert sorted(each.key for each in lending.met) == [1, 2, 3, 4]
    args, kwargs = payload.load(body)
    assert (args[0].key, args[1][0].key, args[1][1]["k"].key, kwargs["a"].key) == (1, 2, 3, 4)
    np.testing.assert_array_equal(args[2], array)


def test_what_is_no_reference_goes_as_it_does_without_a_store() -> None:
    lending = Lending(Store())
    for args in ((1, "two"), ([1, {"a": 2}],), (np.arange(5000),)):
        assert payload.dump_call(args, {}, lending) == payload.dump_call(args, {})
    assert lending.met == []


def test_an_answer_with_a_reference_in_it_is_refused() -> None:
    with pytest.raises(EncodeError, match="return the object itself"):
        payload.dump({"a": [Reference(1)]}, lending=NoLending(Store()))


class _Lends(FakeConnection):
    objects = Store()  # type: ignore[assignment]  # a store, where others have none


@pytest.mark.parametrize("end", ["answered", "ended", "failed"])
def test_a_call_keeps_its_references_until_it_is_over(end: str) -> None:
    connection = _Lends()
    handle = Handle("i", "e")
    handle._connection = connection  # type: ignore[assignment]  # as much of one as a handle needs
    reply = handle.remote(Reference(1), [Reference(2)])
    (call,) = connection.calls
    kept = call.lent  # type: ignore[attr-defined]  # a call from Python
    assert [each.key for each in kept] == [1, 2]
    if end == "answered":
        call.answered(wire.Answer(1, 200, 0, 0, b"", payload.dump("done")))
        assert reply.result(1) == "done"
    elif end == "ended":
        call.ended()
    else:
        call.failed(ErrorInfo("UserCodeError", "no"))
    assert call.lent is None  # type: ignore[attr-defined]  # as above


def test_without_a_store_calls_keep_nothing_and_ray_is_not_even_imported() -> None:
    code = """
import sys
from headgate import serve

def modules(value):
    return sorted({name.partition(".")[0] for name in sys.modules})

with serve.init(http_port=0):
    serve.create_backend("b", modules)
    serve.create_endpoint("e", backend="b")
    there = serve.get_handle("e").remote([1]).result(20)
assert "ray" not in there, "in the replica"
assert "ray" not in sys.modules, "in the driver"
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "fine", done.stderr
    assert done.returncode == 0
