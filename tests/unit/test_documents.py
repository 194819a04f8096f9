"""Do the documents speak of what is there?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_is_there(document: Path):
    text = document.read_text()
    named = {(ROOT, path) for path in re.findall(r"`((?:src|tests|docs|demo|examples|benchmarks)/[\w./-]+|dev\.py|\.ci/run)`", text)}
    named |= {(document.parent, path) for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)}
    assert [path for base, path in sorted(named) if not (base / path).exists()] == []


def test_every_guarantee_names_tests_that_are_there():
    lines = [line for line in (ROOT / "docs/reference/behaviour.md").read_text().splitlines() if line.startswith("| ")]
    guarantees = [line for line in lines if not line.startswith("| guarantee ")]
    assert len(guarantees) > 50
    for line in guarantees:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
        assert named, f"without a test: {line}"
        for path, test in named:
            assert re.search(rf"^(?:async )?def {test}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE), f"{path}::{test}"


def test_every_module_of_core_is_among_the_questions():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {f"src/headgate/core/{path.name}" for path in ROOT.glob("src/headgate/core/*.py") if path.name != "__init__.py"}
    assert {module for module in modules if f"`{module}`" not in table} == set()
