"""Batches over HTTP and by handles: when they leave, who is in them, and whose failure is whose."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest

from headgate import serve
from headgate.errors import BatchResultError, DeadlineExceededError, UserCodeError
from headgate.serve import Instance
from tests.support import TIME_FACTOR, under_way, wait_until


class SlowBatches:
    """Takes 100 ms for a batch; answers with the batch's number and size."""

    def __init__(self) -> None:
        self.count = 0

    @serve.accept_batch
    def __call__(self, request: list[Any]) -> list[str]:
        self.count += 1
        time.sleep(0.1)  # stands for a model
        return [f"{self.count} {serve.context.batch_size}"] * len(request)


async def _post(host: str, port: int) -> tuple[str, float]:
    """One request on a connection of its own: its answer's body, and the seconds it took."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        began = time.monotonic()
        writer.write(b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        body = await reader.readexactly(size)
        return body.decode(), time.monotonic() - began
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def instance(emptied_instance: serve.Instance) -> serve.Instance:
    """One for all, emptied after each test."""
    return emptied_instance


def test_forty_dripping_requests_leave_in_three_or_four_batches_none_undersized(instance: serve.Instance) -> None:
    instance.create_backend("b", SlowBatches, config={"max_batch_size": 32, "batch_wait_timeout": 0.01})
    instance.create_endpoint("b", "/b", ["POST"], backend="b")
    host, port = instance.http_url.removeprefix("http://").split(":")

    async def drip() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        begins = loop.time()
        asked = []
        for number in range(40):
            await asyncio.sleep(begins + number * 0.004 - loop.time())  # the load's own pace
            asked.append(asyncio.create_task(_post(host, int(port))))
        return await asyncio.gather(*asked)

    answers = asyncio.run(drip())
    batches = [(int(number), int(size)) for number, size in (body.split() for body, _ in answers)]
    numbers = [number for number, _ in batches]
    assert numbers == sorted(numbers)  # in order of age
    sizes = dict(batches)
    assert sum(sizes.values()) == 40
    assert len(sizes) in (3, 4)
    # While a batch ran, all that came waited for the next: about 25 in 100 ms, at most 32. Only the first and the last may be small.
    assert all(size >= 10 for number, size in sizes.items() if 1 < number < len(sizes)), sizes
    assert max(seconds for _, seconds in answers) < 0.25 * TIME_FACTOR


def test_under_load_batches_fill(instance: serve.Instance) -> None:
    instance.create_backend("b", SlowBatches, config={"max_batch_size": 8})
    instance.create_endpoint("b", backend="b")
    handle = instance.get_handle("b")
    answers = [answer.split() for answer in serve.get([handle.remote() for _ in range(33)])]
    sizes = {int(number): int(size) for number, size in answers}
    assert sum(sizes.values()) == 33
    assert list(sizes.values()).count(8) >= 3


def test_one_returned_exception_is_one_failure_and_the_rest_are_answered(instance: serve.Instance) -> None:
    @serve.accept_batch
    def handler(x: list[int]) -> list[Any]:
        return [ValueError(f"bad {value}") if value == 3 else value for value in x]

    instance.create_backend("b", handler, config={"max_batch_size": 8, "batch_wait_timeout": 10.0})
    instance.create_endpoint("b", backend="b")
    handle = instance.get_handle("b")
    replies = [handle.remote(number) for number in range(8)]
    assert [reply.result(10) for number, reply in enumerate(replies) if number != 3] == [0, 1, 2, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="bad 3"):
        replies[3].result(10)


def test_one_bad_item_is_found_where_the_handler_raises_and_may_run_again(instance: serve.Instance) -> None:
    @serve.accept_batch
    def handler(x: list[int]) -> list[int]:
        return [10 // value for value in x]

    instance.create_backend("b", handler, config={"max_batch_size": 8, "batch_wait_timeout": 10.0, "idempotent": True})
    instance.create_endpoint("b", backend="b")
    handle = instance.get_handle("b")
    replies = [handle.remote(number) for number in range(8)]
    assert [reply.result(10) for reply in replies[1:]] == [10 // number for number in range(1, 8)]
    with pytest.raises(ZeroDivisionError) as raised:
        replies[0].result(10)
    assert isinstance(raised.value, UserCodeError)
    assert "10 // value" in raised.value.remote_traceback


@pytest.mark.parametrize("result", ["'12'", "{0: 1, 1: 2}", "[1]", "None", "{1, 2}"])
def test_what_is_not_one_answer_for_each_request_fails_the_batch_and_says_what_came_back(instance: serve.Instance, result: str) -> None:
    @serve.accept_batch
    def handler(x: list[int]) -> Any:
        return eval(result)

    instance.create_backend("b", handler, config={"max_batch_size": 2, "batch_wait_timeout": 10.0})
    instance.create_endpoint("b", backend="b")
    handle = instance.get_handle("b")
    for reply in [handle.remote(1), handle.remote(2)]:
        with pytest.raises(BatchResultError, match=type(eval(result)).__name__.removesuffix("Type")):
            reply.result(10)


def test_numpy_answers_are_split_by_their_first_dimension(instance: serve.Instance) -> None:
    @serve.accept_batch
    def handler(x: list[Any]) -> Any:
        import numpy as np

        return np.stack(x) * 2

    import numpy as np

    instance.create_backend("b", handler, config={"max_batch_size": 4, "batch_wait_timeout": 0.05})
    instance.create_endpoint("b", backend="b")
    handle = instance.get_handle("b")
    answers = serve.get([handle.remote(np.full(3, number)) for number in range(6)])
    assert [answer.tolist() for answer in answers] == [[number * 2] * 3 for number in range(6)]


def test_an_async_batch_handler_runs_one_batch_at_a_time_by_default(instance: serve.Instance) -> None:
    class Async:
        def __init__(self) -> None:
            self.running = 0

        @serve.accept_batch
        async def __call__(self, x: list[int]) -> list[int]:
            self.running += 1
            seen = self.running
            await asyncio.sleep(0)
            self.running -= 1
            return [seen] * len(x)

    instance.create_backend("b", Async, config={"max_batch_size": 4})
    instance.create_endpoint("b", backend="b")
    handle = instance.get_handle("b")
    assert set(serve.get([handle.remote(number) for number in range(50)])) == {1}


class Held:
    """An async batch handler that waits until it is cancelled, and tells by files."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @serve.accept_batch
    async def __call__(self, requests: list[Any]) -> list[str]:
        (self.folder / f"began-{len(requests)}").touch()
        try:
            gone: list[int] = []
            while not gone:
                await asyncio.sleep(0.005)
                gone = [number for number, left in enumerate(cast("list[bool]", serve.context.cancelled())) if left]
            (self.folder / f"knows-{gone}").touch()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            (self.folder / "cancelled").touch()
            raise
        return ["never"] * len(requests)


def test_a_batch_is_cancelled_only_when_all_of_its_members_are_gone(instance: Instance, tmp_path: Path) -> None:
    config = {"max_batch_size": 2, "batch_wait_timeout": 10.0}
    instance.create_backend("b", Held, str(tmp_path), config=config)
    instance.create_endpoint("e", backend="b")
    first, second = (instance.get_handle("e").remote(number) for number in range(2))
    wait_until((tmp_path / "began-2").exists)
    first.cancel()
    wait_until((tmp_path / "knows-[0]").exists)
    assert not (tmp_path / "cancelled").exists()
    second.cancel()
    wait_until((tmp_path / "cancelled").exists)


class Recorded:
    """Writes who is in each batch, and waits until it may go on."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @serve.accept_batch
    def __call__(self, requests: list[Any]) -> list[str]:
        names = [request if isinstance(request, str) else request.args["name"] for request in requests]
        with (self.folder / "ran").open("a") as file:
            file.write(" ".join(names) + "\n")
        wait_until((self.folder / "go").exists, 30)
        return names


def test_who_is_late_or_gone_leaves_its_place_in_the_next_batch_to_others(instance: Instance, tmp_path: Path) -> None:
    instance.create_backend("b", Recorded, str(tmp_path), config={"max_batch_size": 2})
    instance.create_endpoint("e", "/e", backend="b")
    handle = instance.get_handle("e")
    host, port = instance.http_url.removeprefix("http://").split(":")
    running = handle.remote("first")
    wait_until((tmp_path / "ran").exists)
    late = handle.options(timeout_s=0.2).remote("late")
    cancelled = handle.remote("cancelled")
    with socket.create_connection((host, int(port)), 10) as leaves:
        leaves.sendall(b"GET /e?name=leaves HTTP/1.1\r\nhost: h\r\n\r\n")
        wait_until(lambda: under_way(instance, "b") >= 3)  # the late one may be over already
        stay = [handle.remote(name) for name in ("second", "third")]
        cancelled.cancel()
    with pytest.raises(DeadlineExceededError):
        late.result(10)
    wait_until(lambda: under_way(instance, "b") == 3)
    (tmp_path / "go").touch()
    assert [reply.result(10) for reply in (running, *stay)] == ["first", "second", "third"]
    assert (tmp_path / "ran").read_text().splitlines() == ["first", "second third"]
