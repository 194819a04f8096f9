"""When does the next thing die, what was with it then, and how soon was it found?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from headgate.serve import Instance
from tests import ray_cluster
from tests.support import under_way, wait_until

REPLACED_WITHIN_S = 10.0 if ray_cluster.in_use() else 1.0
"""A replica. A process of Ray's takes seconds to start."""


def every(period_s: float, seconds: float) -> Iterator[float]:
    """The moments of something that happens again and again, each waited for; at the very end nothing happens any more."""
    began = time.monotonic()
    for number in range(1, round(seconds / period_s)):
        wait_until_then(began + number * period_s)
        yield time.monotonic()


def wait_until_then(moment: float) -> None:
    """Until `time.monotonic()` is there."""
    wait_until(lambda: time.monotonic() >= moment, max(0.0, moment - time.monotonic()) + 1.0)


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    return sorted(values)[max(0, -(-round(share * 100) * len(values) // 100) - 1)]


def ready(instance: Instance, tag: str) -> list[int]:
    """The processes of a backend's replicas that are ready."""
    return [replica.pid for replica in instance.list_backends()[tag].replicas if replica.state == "ready" and replica.pid is not None]


def process(instance: Instance, role: str) -> list[int]:
    """The processes of that role."""
    return [process.pid for process in instance.status().processes if process.role == role]


def wait_nothing_under_way(instance: Instance, tag: str) -> None:
    """Until a backend has no request, queued or running."""
    wait_until(lambda: under_way(instance, tag) == 0, what=f"nothing is under way at {tag}")


def kill_with_clients(pid: int) -> tuple[float, frozenset[int]]:
    """Kill a process. Returns when, and the ports of the clients that were connected to it then, over IPv4.

    It is stopped first, so that it takes no connection between the look and its end. Connections that it hasn't taken are not its own.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T"), what=f"{pid} is stopped")
    sockets = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    ports = frozenset(int(row[2].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in sockets)
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return killed_at, ports


def wait_ready(instance: Instance, tag: str, count: int, *, without: int = 0) -> None:
    """Until so many replicas of a backend are ready, and the process `without` is none of them."""
    wait_until(
        lambda: len(now := ready(instance, tag)) == count and without not in now,
        10.0 * REPLACED_WITHIN_S,
        f"{count} replicas of {tag}, without {without}",
    )


def wait_without(instance: Instance, tag: str, victim: int) -> None:
    """Until that process is no longer among the replicas that are ready."""
    wait_until(lambda: victim not in ready(instance, tag), what=f"{victim} of {tag} is found")


def wait_not_listed(instance: Instance, tag: str) -> None:
    """Until a backend is deleted, though it may still have requests."""
    wait_until(lambda: tag not in instance.list_backends(), what=f"{tag} is deleted")


def wait_other_process(instance: Instance, role: str, count: int, *, without: int) -> None:
    """Until so many processes of that role run, and `without` is none of them."""
    wait_until(lambda: len(now := process(instance, role)) == count and without not in now, what=f"another {role} than {without}")
