"""How does nothing of a cluster stay, however its tests end?

Run as a program, with the names of the network namespaces, the bridge, and the folder. It waits until its standard input is closed, be
it by the death of who started it, and then ends all that is in the namespaces, and removes them, the bridge and the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Final

_ENDS_WITHIN_S: Final = 10.0


def processes_in(namespace: str) -> list[int]:
    """The pids of the processes in a network namespace."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def kill_all_in(namespace: str) -> None:
    """Kill every process there, and those that they start meanwhile."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while (pids := processes_in(namespace)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def main(namespaces: list[str], bridge: str, folder: str) -> None:
    """Wait, and remove."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for namespace in namespaces:
        kill_all_in(namespace)
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1].split(","), *sys.argv[2:])
