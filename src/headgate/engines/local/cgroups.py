"""What do control groups leave to this process, as containers and service managers limit CPUs and memory by them?

A limit may stand at the process's own group or at any above it, and the lowest counts. A container mostly sees its own group as the
root, whatever `/proc/self/cgroup` calls it: so the root is looked at, too, and what isn't there limits nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

ROOT = "/"


def cpus(root: str = ROOT) -> float | None:
    """How many CPUs' time the process may use, such as 1.5; None without a limit. `root` is where `proc` and `sys` are."""
    found = []
    for folder in _folders(root, "cpu"):
        quota, _, period = _read(f"{folder}/cpu.max").partition(" ")  # version 2; without a limit the quota is "max"
        if not quota:
            quota, period = _read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us")  # … it is -1
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_bytes(root: str = ROOT) -> int | None:
    """How much memory the process may use, with all others of its groups; None without a limit."""
    found = []
    for folder in _folders(root, "memory"):
        # Version 1 knows no "no limit": it says a number beyond all memory.
        limit = _read(f"{folder}/memory.max") or _read(f"{folder}/memory.limit_in_bytes")
        if limit.isdigit():
            found.append(int(limit))
    return min(found, default=None)


def _folders(root: str, controller: str) -> Iterator[str]:
    """Where limits may stand, by both versions of control groups, which may be there at once."""
    base = posixpath.join(root, "sys/fs/cgroup")
    for line in ["0::/", f"1:{controller}:/", *_read(posixpath.join(root, "proc/self/cgroup")).splitlines()]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [f"{base}/{controller}", f"{base}/{controllers}"] if controllers else [base, f"{base}/unified"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts) + 1):
                yield "/".join([mount, *parts[:depth]])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
