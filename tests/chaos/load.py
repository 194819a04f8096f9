"""What does each request of a steady stream come to, while things die?

An open loop: requests leave at their own moments, whatever becomes of those before, each on a connection that is free or on a new one.
Nothing is sent twice. Every request has a name of its own as its body, which a `Worker` gives back, so that an answer to somebody else's
request is seen; and its end is kept.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
import time
from collections import Counter, deque
from types import TracebackType
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from tests.support import wait_until

NO_ANSWER: Final = 0
"""In place of a status: the connection ended before the answer was whole."""
HUNG: Final = -1
"""In place of a status: nothing came, long after the request's deadline."""
REFUSED: Final = -2
"""In place of a status: no connection could be made."""

_PATIENCE_S: Final = 3.0  # after its deadline, a request without an answer counts as hung


class Outcome(NamedTuple):
    """What one request came to. Times are of `time.monotonic()`."""

    name: str
    status: int
    connected_at: float
    """When its connection was made."""
    sent_at: float
    written_at: float
    """When all of it was with the kernel; infinity where it never was."""
    ended_at: float
    body: str
    retry_after: str
    port: int
    """The client's own, of its connection; 0 where there was none."""

    @property
    def took_s(self) -> float:
        return self.ended_at - self.sent_at


class Load:
    """Requests to `url`, `rate` a second at random moments (Poisson), from entry to exit of the `with` block; in a thread of its own.

    Each gives the server `timeout_s` for the answer, and its name is the URL's path, or `name`, and a number. On exit no more are sent,
    and all that were are waited for.
    """

    def __init__(self, url: str, rate: float, *, timeout_s: float = 5.0, seed: int = 1, name: str = "") -> None:
        parts = urlsplit(url)
        self.outcomes: list[Outcome] = []
        """In the order of their ends."""
        self._address = (parts.hostname or "", parts.port or 80)
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Serve-Timeout-Ms: {round(timeout_s * 1000)}\r\nContent-Length: "
        )
        self._rate = rate
        self._timeout_s = timeout_s
        self._chance = random.Random(seed)
        prefix = name or parts.path.strip("/")
        self._names = (f"{prefix}-{number}" for number in itertools.count())
        self._free: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=f"load on {url}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int) -> None:
        """Until that many more requests have ended."""
        wanted = len(self.outcomes) + count
        wait_until(lambda: len(self.outcomes) >= wanted, 60.0, f"{count} more requests ended")

    def by_status(self) -> dict[int, int]:
        """How many requests ended in which way."""
        return dict(sorted(Counter(outcome.status for outcome in self.outcomes).items()))

    def bad(self) -> list[Outcome]:
        """All that were not answered with 200."""
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def percentile(self, share: float) -> float:
        """Nearest-rank percentile of the times that good answers took, in seconds."""
        times = sorted(outcome.took_s for outcome in self.outcomes if outcome.status == 200)
        return times[max(0, math.ceil(share * len(times)) - 1)]

    def check_definite(self) -> None:
        """Every request has its own answer, or an error, before its deadline (and a moment for the way)."""
        lost = [outcome for outcome in self.outcomes if outcome.status in (HUNG, REFUSED)]
        assert not lost, f"{len(lost)} of {len(self.outcomes)}: {lost[:10]}"
        for outcome in self.outcomes:
            assert outcome.took_s < self._timeout_s + 1.0, outcome
            assert outcome.status != 200 or outcome.body.split(" ")[0] == outcome.name, outcome

    async def _run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self._stop.is_set():
            due += self._chance.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._one(next(self._names)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for _, writer, _ in self._free:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer, _ in self._free), return_exceptions=True)

    async def _one(self, name: str) -> None:
        sent_at = connected_at = time.monotonic()
        written_at = math.inf
        status, body, retry_after, port = REFUSED, "", "", 0
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout_s + _PATIENCE_S):
                while self._free and self._free[0][0].at_eof():  # closed meanwhile
                    self._free.popleft()[1].close()
                if self._free:
                    reader, writer, connected_at = self._free.popleft()
                else:
                    reader, writer = await asyncio.open_connection(*self._address)
                    connected_at = time.monotonic()
                status, port = NO_ANSWER, writer.get_extra_info("sockname")[1]
                writer.write(f"{self._head}{len(name)}\r\n\r\n{name}".encode())
                written_at = time.monotonic()
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
                body = (await _body(reader, fields)).decode()
                status, retry_after = int(head[9:12]), fields.get("retry-after", "")
                if fields.get("connection") != "close":
                    self._free.append((reader, writer, connected_at))
                    writer = None
        except TimeoutError:
            status = HUNG
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.outcomes.append(Outcome(name, status, connected_at, sent_at, written_at, time.monotonic(), body, retry_after, port))
            if writer is not None:
                writer.close()


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    """By its length, or in chunks until the last one."""
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    body = b""
    while size := int((await reader.readline()).decode() or "x", 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body
