"""What becomes of `ray.ObjectRef`s among the arguments of a call?"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate import serve
from headgate.errors import DeadlineExceededError, EncodeError, ObjectLostError, RequestCancelledError, UserCodeError
from headgate.serve import Handle
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("cluster_of_one", "shared_instance")


@pytest.fixture(scope="module")
def shared_instance(cluster_of_one: None, _nothing_left_by_module: None) -> Iterator[None]:
    with serve.init("references", engine="ray", http_port=0):
        yield


def deployed(function: Callable[..., Any], **config: Any) -> Handle:
    """A backend and endpoint of the name of the function, made once."""
    name = function.__name__
    if name not in serve.list_backends():
        serve.create_backend(name, function, config=config, ray_actor_options={"num_cpus": 0.1})
        serve.create_endpoint(name, backend=name)
    return serve.get_handle(name)


def kinds(*args: Any, **kwargs: Any) -> list[Any]:
    return [type(each).__name__ for each in args] + [f"{name}: {type(each).__name__}" for name, each in sorted(kwargs.items())]


async def async_kinds(*args: Any, **kwargs: Any) -> list[Any]:
    return kinds(*args, **kwargs)


@serve.accept_batch
def sums(arrays: list[Any]) -> list[float]:
    return [float(np.sum(array)) for array in arrays]


@serve.accept_batch
async def async_sums(arrays: list[Any]) -> list[float]:
    return [float(np.sum(array)) for array in arrays]


def mapped_from(array: Any) -> tuple[bool, str]:
    """Whether it can be written to, and which file its memory is of."""
    at = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *rest = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= at < high:
            return array.flags.writeable, rest[4] if len(rest) > 4 else ""
    return array.flags.writeable, "unknown"


def inner_value(holder: list[Any]) -> tuple[str, Any]:
    import ray

    return type(holder[0]).__name__, ray.get(holder[0])


def passes_on(size: int) -> Any:
    import ray

    return serve.get_handle("sums").remote(ray.put(np.ones(size))).result(20)


def gives_a_reference() -> Any:
    import ray

    return {"made": [ray.put(1)]}


def streams_a_reference() -> Any:
    import ray

    yield ray.put(1)


async def beats(count: int, slow: Any = None) -> int:
    return count


def of_ray(**options: Any) -> Any:
    import ray

    return ray.remote(num_cpus=0.1, **options)


@pytest.mark.parametrize("function", [kinds, async_kinds])
def test_references_that_are_arguments_are_resolved_and_those_within_stay(function: Callable[..., Any]) -> None:
    import ray

    handle = deployed(function)
    got = handle.remote(ray.put("text"), 5, [ray.put(1)], a=ray.put(np.ones(300_000)), b=ray.put(None), c={"k": ray.put(1)}).result(20)
    assert got == ["str", "int", "list", "a: ndarray", "b: NoneType", "c: dict"]


def test_a_reference_within_an_argument_is_good_inside_the_call() -> None:
    import ray

    handle = deployed(inner_value)
    for value in (7, "text"):
        assert handle.remote([ray.put(value)]).result(20) == ("ObjectRef", value)
    name, array = handle.remote([ray.put(np.arange(300_000))]).result(20)
    assert name == "ObjectRef"
    np.testing.assert_array_equal(array, np.arange(300_000))


def test_an_array_is_the_stores_own_memory() -> None:
    import ray

    writeable, path = deployed(mapped_from).remote(ray.put(np.arange(1_000_000))).result(20)
    assert not writeable
    assert "plasma" in path


@pytest.mark.parametrize("function", [sums, async_sums])
def test_each_member_of_a_batch_brings_its_own(function: Callable[..., Any]) -> None:
    import ray

    handle = deployed(function, max_batch_size=8, batch_wait_timeout=0.05)
    bad = of_ray()(_raises).remote()
    replies = [handle.remote(ray.put(np.ones(count))) for count in range(5)]
    fails = handle.remote(bad)
    assert serve.get(replies, timeout_s=20) == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(UserCodeError) as caught:
        fails.result(20)
    assert isinstance(caught.value, ZeroDivisionError)


def _raises() -> None:
    raise ZeroDivisionError("in the making")


@pytest.mark.parametrize("function", [kinds, async_kinds])
def test_what_was_raised_where_the_object_was_to_be_made_is_raised(function: Callable[..., Any]) -> None:
    with pytest.raises(UserCodeError, match="in the making") as caught:
        deployed(function).remote(of_ray()(_raises).remote()).result(20)
    assert isinstance(caught.value, ZeroDivisionError)


@pytest.mark.parametrize("function", [kinds, async_kinds])
def test_an_object_that_is_lost_is_told_by_its_own_error(function: Callable[..., Any]) -> None:
    import ray

    class Owner:
        def make(self) -> list[Any]:
            return [ray.put("text")]

    owner = of_ray()(Owner).remote()
    (reference,) = ray.get(owner.make.remote())
    handle = deployed(function)
    assert handle.remote(reference).result(20) == ["str"]
    (another,) = ray.get(owner.make.remote())
    ray.kill(owner)

    def is_told() -> bool:  # the owner's death is no news at once
        try:
            handle.options(timeout_s=5).remote(another).result(20)
        except ObjectLostError as error:
            return type(error) is ObjectLostError and "make it again" in str(error)
        except DeadlineExceededError:
            pass
        return False

    wait_until(is_told, 40)


@pytest.mark.parametrize("function", [kinds, async_kinds])
def test_an_object_that_does_not_come_is_waited_for_until_the_calls_deadline_and_frees_its_place(function: Callable[..., Any]) -> None:
    never = of_ray()(_sleeps_long).remote()
    handle = deployed(function)
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        handle.options(timeout_s=0.3).remote(never).result(20)
    assert time.monotonic() - began < 5
    cancelled = handle.remote(never)
    cancelled.cancel()
    with pytest.raises(RequestCancelledError):
        cancelled.result(20)
    assert handle.remote(1).result(20) == ["int"], "nobody waits for it in there any more"
    _cancel(never)


def _sleeps_long() -> None:
    time.sleep(600)


def _cancel(reference: Any) -> None:
    import ray

    ray.cancel(reference, force=True)


def test_an_async_handler_goes_on_with_others_while_an_object_is_waited_for() -> None:
    never = of_ray()(_sleeps_long).remote()
    handle = deployed(beats)
    waits = handle.remote(1, never)
    assert serve.get([handle.remote(count) for count in range(20)], timeout_s=20) == list(range(20))
    waits.cancel()
    _cancel(never)


def test_a_handler_gives_references_of_its_own_to_others() -> None:
    deployed(sums, max_batch_size=8, batch_wait_timeout=0.05)
    assert deployed(passes_on).remote(1000).result(20) == 1000.0


@pytest.mark.parametrize("function", [gives_a_reference, streams_a_reference])
def test_a_reference_in_an_answer_is_refused(function: Callable[..., Any]) -> None:
    reply = deployed(function).remote()
    with pytest.raises(EncodeError, match="return the object itself"):
        list(reply) if function is streams_a_reference else reply.result(20)


def test_objects_live_while_a_call_runs_and_no_longer() -> None:
    import ray

    core = ray._private.worker.global_worker.core_worker
    gc.collect()
    before = set(core.get_all_reference_counts())
    handle = deployed(kinds)
    made = of_ray()(_makes_an_array)
    replies = [handle.remote(made.remote(), [ray.put(np.ones(300_000))]) for _ in range(3)]  # nobody else keeps these
    assert serve.get(replies, timeout_s=20) == [["ndarray", "list"]] * 3
    wait_until(lambda: (gc.collect(), set(core.get_all_reference_counts()) <= before)[1], 20, "none is kept for good")


def _makes_an_array() -> Any:
    return np.ones(300_000)


def test_a_driver_awaits_such_calls_too() -> None:
    import ray

    async def main() -> Any:
        handle = deployed(async_kinds)
        return await asyncio.gather(*(handle.remote(ray.put(count)) for count in range(10)))

    assert asyncio.run(main()) == [["int"]] * 10
