"""What does this machine have: CPUs, memory, GPUs?"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

from headgate.engines.local import cgroups


def resources(overrides: Mapping[str, float], environ: Mapping[str, str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """All resources by name ("CPU", "GPU", "memory" in bytes, and the user's own), and the GPUs' ids as CUDA takes them.

    `overrides` is what the user gave to `init`; what isn't in it is detected.
    """
    found = dict(overrides)
    found.setdefault("CPU", cpus())
    if "memory" not in found:
        found["memory"] = float(memory_bytes())
    gpus = gpu_ids(environ)
    found.setdefault("GPU", float(len(gpus)))
    return found, _as_many(gpus, int(found["GPU"]))


def gpu_ids(environ: Mapping[str, str], devices: str = "/dev") -> tuple[str, ...]:
    """The GPUs that the driver may use: those in its CUDA_VISIBLE_DEVICES where that is set, else all of the machine."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids: list[str] = []
        for part in visible.split(","):
            device = part.strip()
            if not device or device.startswith("-"):
                break  # CUDA, too, ignores everything from the first invalid one on
            ids.append(device)
        return tuple(ids)
    # Device nodes are counted, because nvidia-smi takes a second. CUDA numbers those that it can see from 0, whatever their names.
    try:
        names = os.listdir(devices)
    except OSError:
        return ()
    return tuple(str(number) for number in range(sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in names)))


def cpus() -> float:
    """The CPUs that the instance may use: those that it may run on, or the control groups' share of time where that is lower."""
    return min(float(len(os.sched_getaffinity(0))), cgroups.cpus() or math.inf)


def memory_bytes() -> int:
    """The memory that the instance may use: the machine's, or the control groups' limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, cgroups.memory_bytes() or total)


def _as_many(gpus: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The first `count` ids; where the user says that there are more, numbers that aren't taken stand for the others."""
    more = (str(number) for number in range(count + len(gpus)) if str(number) not in gpus)
    ids = list(gpus[:count])
    while len(ids) < count:
        ids.append(next(more))
    return tuple(ids)
