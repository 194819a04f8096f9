"""How is this project run and proved from a bare clone? `python3 dev.py demo` and `python3 dev.py test`.

Needs nothing but Python 3.11 or newer and a package index: it makes `.venv` beside itself, installs the project there in editable form
with all its tools, and does so again only when `pyproject.toml` or the Python has changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "headgate-stamp"
OLDEST = (3, 11)

PYTEST = ("python", "-m", "pytest")
UNDER_LOAD = "tests/chaos/under_load"  # its figures need the machine, but for a neighbour of its own kind
ALONE = (f"{UNDER_LOAD}/test_overload.py", f"{UNDER_LOAD}/test_soak.py")  # more than the machine can do; bytes that its own process holds
# Ray leaves connections of its own in a process that was connected with a cluster, so these have processes to themselves.
ON_RAY = ("tests/on_ray", "tests/conformance/test_ray_engine.py")
BY_FILE = "--dist=loadfile"
TEST = [
    [*PYTEST, BY_FILE, "--numprocesses=2", *(f"--ignore={path}" for path in (UNDER_LOAD, *ON_RAY))],
    [*PYTEST, BY_FILE, "--numprocesses=3", *ON_RAY],  # much of their time they wait for Ray to find that something died
    [*PYTEST, BY_FILE, "--numprocesses=2", UNDER_LOAD, *(f"--ignore={path}" for path in ALONE)],
    [*PYTEST, *ALONE],
]
# Everything anew, so that what was warned of before is warned of again, and fails.
STRICTLY = ("--quiet", "--fail-on-warning", "--fresh-env", "--write-all", "--doctree-dir", "build/docs-trees")
DOCS = [
    ["python", "-m", "sphinx", *STRICTLY, "docs", "build/docs"],
    ["python", "-c", "print('the site begins with build/docs/index.html')"],
]

# What each command runs, in order, from the environment's `bin`; the user's further arguments go to the last.
COMMANDS = {
    "demo": ("serve two classifiers of handwritten digits (--check: check and exit)", [["python", "demo/digits.py"]]),
    "test": ("run the tests: what needs the machine for itself last; arguments go to pytest alone", TEST),
    "lint": ("style and format", [["ruff", "check"], ["ruff", "format", "--check"]]),
    "types": ("mypy, strict", [["mypy"]]),
    "imports": ("the layers, and what core/ must not touch", [["lint-imports"]]),
    "docs": ("build the documentation site into build/docs; what is linked and not there makes it fail", DOCS),
    "bench": ("measure Headgate beside its peers (--quick: 3 minutes; --help)", [["python", "-m", "benchmarks.suite"]]),
    "setup": ("only make the environment", []),
}


def main() -> int:
    """Run one command; returns its exit status."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name not in COMMANDS:
        print(__doc__)
        print("\n".join(f"  python3 dev.py {known:8} {purpose}" for known, (purpose, _) in COMMANDS.items()))
        return 0 if name in ("-h", "--help") else 2
    if sys.version_info < OLDEST:
        return _refuse(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; this is {sys.version.split()[0]} ({sys.executable})")
    problem = ensure_environment()
    if problem:
        return _refuse(problem)
    os.chdir(ROOT)
    listed = [PYTEST] if name == "test" and rest else COMMANDS[name][1]
    steps = [[str(VENV / "bin" / program), *arguments] for program, *arguments in listed]
    for step in steps[:-1]:
        status = subprocess.run(step, check=False).returncode
        if status:
            return status
    if steps:
        # The last replaces this process, so that signals and the exit status are its own.
        sys.stdout.flush()
        os.execv(steps[-1][0], [*steps[-1], *rest])
    return 0


def ensure_environment() -> str | None:
    """Make `.venv` match `pyproject.toml`; returns what is wrong where it can't."""
    version = ".".join(map(str, sys.version_info[:2]))
    # The folder's own path is in it because an environment can't be moved.
    wanted = f"{hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()} {version} {ROOT}"
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return None
    began = time.monotonic()
    if not _usable():
        try:
            import ensurepip  # noqa: F401 - Debian ships venv without it, and venv then fails half way
        except ImportError:
            return f"this Python can't make a virtual environment; its venv package is missing: `apt-get install python{version}-venv`"
        _say(f"making {VENV.name} with Python {sys.version.split()[0]}")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
        if made.returncode:
            return f"`{sys.executable} -m venv {VENV}` failed; its message is above"
    _say("installing Headgate and its tools (a few minutes the first time)")
    # Not compiled: of all that is installed little is ever imported, and that is compiled then.
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--editable", ".[dev]"]
    if subprocess.run(pip, cwd=ROOT, check=False).returncode:
        return "pip could not install the project; its message is above (is a package index within reach?)"
    STAMP.write_text(wanted)
    _say(f"ready after {time.monotonic() - began:.0f} s")
    return None


def _usable() -> bool:
    """Whether `.venv` is an environment of this Python's version, made here, that can install."""
    program = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]} or sys.prefix != {str(VENV)!r})"
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", program], check=False, capture_output=True).returncode == 0


def _say(line: str) -> None:
    print(f"dev: {line}", file=sys.stderr, flush=True)


def _refuse(problem: str) -> int:
    print(f"dev: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
