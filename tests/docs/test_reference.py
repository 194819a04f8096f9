"""Do the pages that are made from code say what the code says?"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headgate
import headgate.serve
import headgate.testing
from docs import metrics_page

ROOT = Path(__file__).parents[2]


def test_the_page_about_errors_is_made_from_the_errors() -> None:
    environ = {"PYTHONPATH": str(Path(headgate.__file__).parents[1])}
    made = subprocess.run([sys.executable, ROOT / "docs/errors_page.py"], env=environ, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/reference/errors.md").read_text() == made, "python docs/errors_page.py > docs/reference/errors.md"
    assert "| `ReplicaDiedError` | `ConnectionError` | 502 | yes |" in made


def test_the_tables_of_metrics_are_made_from_what_the_page_of_an_instance_is_made_of() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.text(), "python docs/metrics_page.py"
    assert "`reason`: `queue full`, `deadline`, " in metrics_page.text()


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


CALLED: list[Callable[..., Any]] = [
    *(found for name in headgate.serve.__all__ if inspect.isfunction(found := getattr(headgate.serve, name))),
    headgate.serve.Handle.options,
    headgate.serve.Reply.result,
    headgate.serve.Response,
    headgate.serve.metrics.Counter,
    headgate.serve.metrics.Histogram,
]


@pytest.mark.parametrize("called", CALLED, ids=lambda called: called.__qualname__)
def test_a_docstring_lists_the_arguments_that_there_are(called: Callable[..., Any]) -> None:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(called).parameters
    there_are = [name for name, parameter in parameters.items() if parameter.kind not in several and name != "self"]
    text = inspect.getdoc(called) or ""
    listed = re.findall(r"^    (\w+): ", text.partition("Args:\n")[2], re.MULTILINE)
    if "rguments and errors as for `" in text:  # those of another one, which are listed there
        assert set(listed) < set(there_are)
    elif listed or len(there_are) > 1:
        assert listed == there_are
