"""Where does each contender run? At pinned versions, in a virtual environment of its own under `.bench/`, made when first needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench"

# Headgate runs in the suite's own environment, beside which only the models' libraries are missing.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "headgate": (),
    "mosec": ("mosec==0.9.8",),
    "litserve": ("litserve==0.2.19", "fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
    "ray": ("ray[serve]==2.60.0",),
    "bentoml": ("bentoml==1.4.39",),
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
    "report": ("matplotlib==3.11.2",),
}
MODELS = ("numpy==2.4.6", "scikit-learn==1.9.1", "onnx==1.23.2", "onnxruntime==1.32.0")


def python(name: str, *, models: bool = False) -> Path:
    """The interpreter of an environment, which `ensure` has made."""
    if name == "headgate" and not models:
        return Path(sys.executable)
    return FOLDER / name / "bin" / "python"


def ensure(name: str, *, models: bool = False) -> None:
    """Make the environment, or bring it up to what is asked for; `models` adds what work 12 computes with."""
    if name == "headgate" and not models:
        return
    requirements = [*ENVIRONMENTS[name], *(MODELS if models else ())]
    if name == "headgate":
        requirements += ["--editable", str(ROOT)]
    folder = FOLDER / name
    stamp = folder / "benchmark-stamp.json"
    there = json.loads(stamp.read_text()) if stamp.exists() else {}
    fresh = there.get("python") != sys.version or not set(ENVIRONMENTS[name]) <= set(there["requirements"])
    if not fresh and set(requirements) <= set(there["requirements"]):
        return
    began = time.monotonic()
    print(f"installing {' '.join(requirements)} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    if fresh:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    subprocess.run(pip, check=True)
    stamp.write_text(json.dumps({"python": sys.version, "requirements": requirements}))
    print(f"done after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
