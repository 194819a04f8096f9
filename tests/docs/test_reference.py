"""Do the pages that are made from code say what the code says?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import headgate

ROOT = Path(__file__).parents[2]


def test_the_page_about_errors_is_made_from_the_errors() -> None:
    environ = {"PYTHONPATH": str(Path(headgate.__file__).parents[1])}
    made = subprocess.run([sys.executable, ROOT / "docs/errors_page.py"], env=environ, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/reference/errors.md").read_text() == made, "python docs/errors_page.py > docs/reference/errors.md"
    assert "| `ReplicaDiedError` | `ConnectionError` | 502 | yes |" in made
