"""What runs in the replicas that are killed: it tells what it began, so that nothing can run twice unseen."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Worker:
    """Takes `work_s` for each request and gives its body back. Each begin is a line in the file `journal`, which no death takes back."""

    def __init__(self, journal: str, work_s: float = 0.01, version: str = "") -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._work_s = work_s
        self._version = version

    def __call__(self, request: Any) -> str:
        name = request.data.decode()
        os.write(self._journal, f"{name}\n".encode())
        time.sleep(self._work_s)
        return f"{name} {self._version}" if self._version else name


class Broken(Worker):
    """A version that can't be constructed."""

    def __init__(self, journal: str, work_s: float = 0.01, version: str = "") -> None:
        raise RuntimeError(f"version {version} is broken")


class Unwell(Worker):
    """A version whose health check fails."""

    def check_health(self) -> None:
        raise RuntimeError("this version is unwell")


def begun(journal: str) -> Counter[str]:
    """How often each request began."""
    path = Path(journal)
    return Counter(path.read_text().split()) if path.exists() else Counter()
