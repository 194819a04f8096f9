"""Do the pages that are made from code say what the code says?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


EXPORTED = {
    "headgate": ["DEFAULT_NAME", "__version__"],
    "headgate.serve": [name for name in headgate.serve.__all__ if name != "metrics"],
    "headgate.serve.metrics": headgate.serve.metrics.__all__,
    "headgate.testing": headgate.testing.__all__,
}


@pytest.mark.parametrize("name", EXPORTED)
def test_the_page_for_python_has_everything_that_is_exported(name: str) -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    documented = re.findall(rf"^\.\. (?:auto|py:)\w+:: {re.escape(name)}\.(\w+)(?:\(.*\))?$", page, re.MULTILINE)
    assert sorted(documented) == sorted(EXPORTED[name])
