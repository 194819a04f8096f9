"""Do the pages that are made from code say what the code says?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import headgate
import headgate.serve
import headgate.testing

ROOT = Path(__file__).parents[2]


def test_the_page_about_errors_is_made_from_the_errors() -> None:
    environ = {"PYTHONPATH": str(Path(headgate.__file__).parents[1])}
    made = subprocess.run([sys.executable, ROOT / "docs/errors_page.py"], env=environ, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/reference/errors.md").read_text() == made, "python docs/errors_page.py > docs/reference/errors.md"
    assert "| `ReplicaDiedError` | `ConnectionError` | 502 | yes |" in made


@pytest.mark.parametrize("module", [headgate.serve, headgate.serve.metrics, headgate.testing], ids=lambda module: module.__name__)
def test_the_page_for_python_has_everything_that_is_exported(module: ModuleType) -> None:
    name = {"headgate.replica.metrics": "headgate.serve.metrics"}.get(module.__name__, module.__name__)
    page = (ROOT / "docs/reference/api.md").read_text()
    documented = re.findall(rf"^\.\. (?:auto|py:)\w+:: {re.escape(name)}\.(\w+)(?:\(.*\))?$", page, re.MULTILINE)
    assert sorted(documented) == sorted(set(module.__all__) - {"metrics"})
