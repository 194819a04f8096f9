"""Do the documents speak of what is there?"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from headgate import errors
from headgate.cli.starting import run, start

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")])
SAID = [path for path in DOCUMENTS if path.parent.name != "design"] + sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("examples/*.py")])
"""Where a person reads what to type. Pages on design quote mistakes, too."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_is_there(document: Path):
    text = document.read_text()
    named = {(ROOT, path) for path in re.findall(r"`((?:src|tests|docs|demo|examples|benchmarks)/[\w./-]+|dev\.py|\.ci/run)`", text)}
    named |= {(document.parent, path) for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)}
    assert [path for base, path in sorted(named) if not (base / path).exists()] == []


@pytest.mark.parametrize("index", sorted(ROOT.glob("docs/*/index.md")), ids=lambda path: path.parent.name)
def test_every_page_of_a_folder_is_linked_from_its_index(index: Path):
    linked = {(index.parent / path).resolve() for path in re.findall(r"\]\(([^)#]+\.md)\)", index.read_text())}
    standing_for = {index.parent / "method.md": ROOT / "benchmarks/README.md"}  # it includes that
    pages = {standing_for.get(page, page) for page in index.parent.rglob("*.md") if page != index}
    assert pages - linked == set()


def test_nothing_is_installed_by_a_name_that_no_index_has():
    by_name = {str(path): re.findall(r"pip install[^\n`]* '?headgate\b[^\n`]*", path.read_text()) for path in SAID}
    assert {path: found for path, found in by_name.items() if found} == {}, "what is installed is the folder of a clone: '../headgate[ray]'"


def test_options_of_a_command_stand_before_the_program():
    options = {name for command in (run, start) for option in command.get_params(click.Context(command)) for name in option.opts}
    behind = {str(path): re.findall(r"headgate (?:run|start)\b[^\n`|]*? [\w./]+\.py ([^\n`|]*)", path.read_text()) for path in SAID}
    assert {path: found for path, found in behind.items() if options & {word for words in found for word in words.split()}} == {}


def test_every_guarantee_names_tests_that_are_there():
    lines = [line for line in (ROOT / "docs/reference/behaviour.md").read_text().splitlines() if line.startswith("| ")]
    guarantees = [line for line in lines if not line.startswith("| guarantee ")]
    assert len(guarantees) > 50
    for line in guarantees:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
        assert named, f"without a test: {line}"
        for path, test in named:
            assert re.search(rf"^(?:async )?def {test}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE), f"{path}::{test}"


def test_the_page_on_http_names_every_status_that_headgate_answers_with():
    page = (ROOT / "docs/reference/http.md").read_text()
    of_changes, of_requests = (statuses_in(page.split(f"\n{heading}\n")[1].split("\n## ")[0]) for heading in ("### Changes", "## Answers"))
    refused = {path.name: refusals(path) for path in ROOT.glob("src/headgate/ingress/*.py")}
    by_changes = refused.pop("changes.py")
    by_others = set().union(*refused.values())
    raised = {kind.status for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeadgateError)}
    raised.remove(errors.CALLER_LEFT)  # nobody is there to be answered
    assert by_changes <= of_changes <= by_changes | raised
    assert by_others <= of_requests <= by_others | raised
    assert of_changes | of_requests == by_changes | by_others | raised


def statuses_in(section: str) -> set[int]:
    """Those that the rows of a table are about."""
    return {int(status) for row in re.findall(r"^\| (\d[\d /]*) \|", section, re.MULTILINE) for status in row.split(" / ")}


def refusals(path: Path) -> set[int]:
    """The statuses, from 400 on, of all that a file of the ingress answers by itself."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
    answers = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("Refusal", "Reply")]
    given = [part for status in answers for part in ast.walk(status)]
    return {part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, int) and part.value >= 400}


def test_every_module_of_core_is_among_the_questions():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {f"src/headgate/core/{path.name}" for path in ROOT.glob("src/headgate/core/*.py") if path.name != "__init__.py"}
    assert {module for module in modules if f"`{module}`" not in table} == set()
