"""How much memory do large payloads take on their way, on both sides together?

Both sides are in this process, so what Python has allocated is what they hold; what the kernel holds is bounded by its own limits.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from headgate.core import wire
from tests.data_path.rig import Asked, Rig
from tests.data_path.test_data_path import play
from tests.support import until

MB = 1_000_000
LARGE = 100 * MB
SLACK = 8 * MB
"""For buffers, and what else goes on meanwhile."""


class _Peak:
    """How much more than at its beginning was ever held inside a `with` block, in bytes."""

    bytes = 0

    def __enter__(self) -> Self:
        tracemalloc.start(1)
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1] - self._before
        tracemalloc.stop()


class _Reads(Asked):
    """Takes a stream as it comes, and gives credit for it at once."""

    __slots__ = ("count_bytes", "rig")

    def take(self, rig: Rig) -> None:
        self.rig, self.count_bytes = rig, 0
        rig.router.submit(self)

    def chunk(self, frame: wire.Frame) -> None:
        self.small_chunk(bytes(frame.body))

    def small_chunk(self, body: bytes) -> None:
        self.count_bytes += len(body)
        self.rig.router.credit(self, len(body))


def chunks(size: int, made: list[int]) -> Iterator[bytes]:
    """100 MB in parts of that size, each made when it is asked for."""
    for _ in range(LARGE // size):
        made.append(size)
        yield bytes(size)


def streaming(size: int, made: list[int], *, is_async: bool) -> Callable[[], Any]:
    async def in_async() -> AsyncIterator[bytes]:
        for chunk in chunks(size, made):
            yield chunk

    def in_thread() -> Iterator[bytes]:
        yield from chunks(size, made)

    return in_async if is_async else in_thread


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("size", [10_000, MB], ids=["small parts", "large parts"])
def test_a_stream_of_100_mb_is_never_held_as_a_whole(tmp_path: Path, size: int, is_async: bool) -> None:
    async def scene() -> None:
        async with Rig(tmp_path, streaming(size, [], is_async=is_async)) as rig:
            await rig.linked()
            with _Peak() as peak:
                call = _Reads()
                call.take(rig)
                await call.done
            assert call.count_bytes >= LARGE
            assert peak.bytes < SLACK + 4 * size

    play(scene)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_where_nobody_reads_no_more_is_made_than_the_credit_however_many_streams_there_are(tmp_path: Path, is_async: bool) -> None:
    count, made = 4, [0]

    async def scene() -> None:
        async with Rig(tmp_path, streaming(MB, made, is_async=is_async), concurrency=count, max_concurrent_queries=count) as rig:
            await rig.linked()
            with _Peak() as peak:
                calls = [rig.ask() for _ in range(count)]
                await until(lambda: all(call.chunks for call in calls), "each has its first part")
                for _ in range(100):
                    await asyncio.sleep(0)
                    assert sum(made) <= count * (wire.STREAM_CREDIT + 2 * MB)
            assert peak.bytes < count * 3 * MB + SLACK
            for call in calls:
                rig.router.cancel(call)

    play(scene)


def test_100_mb_in_one_piece_are_held_once_by_who_sends_and_once_by_who_receives(tmp_path: Path) -> None:
    large = np.ones(LARGE, np.uint8)

    def handler(array: Any) -> Any:
        return large if array is None else int(array.sum())

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.linked()
            for argument in (large, None):
                with _Peak() as peak:
                    call = rig.ask(argument)
                    await call.done
                    value = call.value
                assert np.sum(value) == LARGE
                assert peak.bytes < 2.2 * LARGE + SLACK  # a buffer that grows has an eighth in reserve

    play(scene)


def test_a_small_call_behind_a_large_one_is_seen_at_once(tmp_path: Path) -> None:
    """With TLS it may have been received with the end of that, and then the kernel doesn't tell of it again."""

    async def handler(body: bytes) -> int:
        return len(body)

    async def scene() -> None:
        async with Rig(tmp_path, handler, max_concurrent_queries=100) as rig:
            await rig.linked()
            for size in range(100_000, 500_000, 20_000):
                calls = [rig.ask(bytes(size)), rig.ask(b"small")]
                _, late = await asyncio.wait([call.done for call in calls], timeout=5.0)
                assert not late, f"behind {size} bytes"
                assert [call.value for call in calls] == [size, 5]

    play(scene)
