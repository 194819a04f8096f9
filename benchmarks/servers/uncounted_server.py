"""How does Headgate serve the works where it counts nothing, and requests have no ids of their own?

By `headgate_server.py`, on a copy without what does that. There is no switch for that, and what users run has none of this: the copy
is made anew at each start, from the package as it stands.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import headgate
from benchmarks.environments import FOLDER

# What stands in these modules of the copy instead. Once each.
INSTEAD = {
    "router/router.py": {
        """        times = self._times[call.endpoint, call.backend, status]
        times.append(now - call.admitted_at)
        if len(times) >= MANY:
            times.settle()
""": "",
    },
    "replica/calls.py": {
        "                counts.ran(member, start, run_s)\n": "",
        "            counts.ran(member, start, monotonic() - start if run_s is None else run_s)\n": "",
        "        counts.batch_began(live, start)\n": "",
        "            counts.batch_ran(len(members), monotonic() - began_at)\n": "",
    },
    "ingress/service.py": {
        "map(prefix.__add__, map(str, itertools.count(1))).__next__": "itertools.repeat(prefix).__next__",
    },
}


def build(folder: Path) -> None:
    """Make the copy."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(headgate.__file__).parent, folder / "headgate", ignore=shutil.ignore_patterns("__pycache__"))
    for module, replaced in INSTEAD.items():
        path = folder / "headgate" / module
        text = path.read_text()
        for counts, nothing in replaced.items():
            if text.count(counts) != 1:
                raise SystemExit(f"{module} no longer has once: {counts}")
            text = text.replace(counts, nothing)
        path.write_text(text)


def main() -> None:
    """Become the other program, with the copy before the package."""
    folder = FOLDER / "uncounted"
    build(folder)
    program = Path(__file__).with_name("headgate_server.py")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    os.execve(sys.executable, [sys.executable, str(program), *sys.argv[1:]], os.environ | {"PYTHONPATH": path})


if __name__ == "__main__":
    main()
