"""Does the controller call late what is late, and nothing else?"""

from __future__ import annotations

import asyncio
import time

import pytest

from headgate.controller.tasks import in_time


async def read(reader: asyncio.StreamReader) -> bytes:
    """As what arrives is seen: by a task that another waits for."""
    return await asyncio.ensure_future(asyncio.ensure_future(reader.readexactly(1)))


def be_busy(until: float) -> None:
    while time.monotonic() < until:
        pass


def test_what_arrived_while_this_process_was_busy_is_in_time() -> None:
    async def main() -> bytes:
        reader = asyncio.StreamReader()
        waits = asyncio.ensure_future(in_time(read(reader), 0.01))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, reader.feed_data, b"x")  # seen after the limit, as both are due when the loop goes on
        be_busy(loop.time() + 0.05)
        return await waits

    assert asyncio.run(main()) == b"x"


def test_what_comes_later_is_late_and_is_cancelled() -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        task = asyncio.ensure_future(read(reader))
        with pytest.raises(TimeoutError):
            await in_time(task, 0.01)  # type: ignore[arg-type]  # a task, so that it can be asked how it ended
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
