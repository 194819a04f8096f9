"""How does Headgate serve the works where it counts nothing? By `headgate_server.py`, on a copy in which what counts does nothing.

There is no switch for that, and what users run has none of this: the copy is made anew at each start, from the package as it stands.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import headgate
from benchmarks.environments import FOLDER

# Behind these modules of the copy stands what makes their functions do nothing.
SILENCED = {
    "router/router.py": "Router._count = lambda *_: None",
    "replica/counting.py": "for _name in ('ran', 'batch_began', 'batch_ran', 'encoded'):\n    setattr(Counts, _name, lambda *_: None)",
}


def build(folder: Path) -> None:
    """Make the copy."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(headgate.__file__).parent, folder / "headgate", ignore=shutil.ignore_patterns("__pycache__"))
    for module, silence in SILENCED.items():
        with (folder / "headgate" / module).open("a") as file:
            file.write(f"\n{silence}\n")


def main() -> None:
    """Become the other program, with the copy before the package."""
    folder = FOLDER / "uncounted"
    build(folder)
    program = Path(__file__).with_name("headgate_server.py")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    os.execve(sys.executable, [sys.executable, str(program), *sys.argv[1:]], os.environ | {"PYTHONPATH": path})


if __name__ == "__main__":
    main()
