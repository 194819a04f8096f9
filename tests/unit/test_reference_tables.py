"""Do the pages of the reference that are written by hand name what there is: records, verbs, errors of replies, keys of the log?"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headgate import errors, serve
from headgate.cli.logs import logs
from headgate.core.plan import Change, Step
from headgate.core.reports import Description, Measurement
from headgate.ingress import access
from headgate.logs import entry, output

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows below a table's first line."""
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, heading
    rows = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# Records.


def documented(name: str) -> list[str]:
    return re.findall(r"^\.\. autoclass:: (?:[\w.]+\.)?(\w+)$", page(name), re.MULTILINE)


def reached(*roots: Any) -> list[type[msgspec.Struct]]:
    """The records that these hold, and they themselves; what the page for Python has isn't told again."""
    found: dict[type[msgspec.Struct], None] = {}
    left = [*roots]
    while left:
        each = left.pop()
        left += typing.get_args(each)
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each not in found and each.__name__ not in documented("api"):
            found[each] = None
            left += [field.type for field in msgspec.structs.fields(each)]
    return list(found)


RECORDS = reached(Description, Measurement, Step, Change)


def test_every_record_that_a_verb_returns_is_on_the_page() -> None:
    assert sorted(documented("records")) == sorted(kind.__name__ for kind in RECORDS)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_record_is_told_on_its_page(kind: type[msgspec.Struct]) -> None:
    (declared,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(declared, ast.ClassDef)
    told = {
        field.target.id
        for field, after in zip(declared.body, declared.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr)
    }
    told |= {name for name, found in vars(kind).items() if isinstance(found, property) and found.__doc__}
    public = {name for name, found in vars(kind).items() if isinstance(found, property) and not name.startswith("_")}
    assert {*kind.__struct_fields__, *public} - told == set()


# Verbs.

VERBS = [verb for row in cells(page("verbs"), "| verb | what it does | when it returns |") for verb in code(row[0])]


def test_every_verb_is_in_the_table() -> None:
    functions = {name for name in serve.__all__ if inspect.isfunction(getattr(serve, name))}
    assert sorted(verb.partition("(")[0] for verb in VERBS) == sorted(functions - {"accept_batch"})  # it marks code, and asks no instance


@pytest.mark.parametrize("told", VERBS, ids=lambda told: told.partition("(")[0])
def test_a_verb_takes_what_its_row_says(told: str) -> None:
    name, _, arguments = told.removesuffix(")").partition("(")
    arguments, *more = arguments.replace("{tag: weight}", "weights").split(", …")
    shown = inspect.signature(eval(f"lambda {arguments}: 0")).parameters  # a line of our own page
    takes = inspect.signature(getattr(serve, name)).parameters
    known = {name: (_kind(parameter), parameter.default) for name, parameter in takes.items() if name != "self"}
    listed = {name: (_kind(parameter), parameter.default) for name, parameter in shown.items()}
    assert listed.items() <= known.items() if more else listed == known


def _kind(parameter: inspect.Parameter) -> str:
    """The page leaves out which arguments have no name for callers."""
    return "positional" if parameter.kind < inspect.Parameter.VAR_POSITIONAL else parameter.kind.name


def test_what_a_reply_raises_has_the_status_that_its_row_says() -> None:
    rows = cells(page("verbs"), "| a reply raises | HTTP | when |")
    assert len(rows) > 5
    for raised, status, _ in rows:
        for name in code(raised):
            assert status in ("", str(getattr(errors, name).status)), name


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_every_error_that_a_page_names_is_there(path: Path) -> None:
    named = set(re.findall(r"`(?:errors\.)?([A-Z]\w*Error)`", path.read_text()))
    assert {name for name in named if not hasattr(errors, name) and not hasattr(builtins, name)} == set()


# Logs.


def test_the_keys_of_an_entry_in_json_are_those_of_the_page() -> None:
    rows = cells(page("logs"), "| key | |")
    assert sorted(key for row in rows for key in code(row[0])) == sorted(entry._Written.__struct_fields__)
    (http,) = [row[1] for row in rows if row[0] == "`http`"]
    assert code(http) == list(entry.HttpFacts.__struct_fields__)


def test_the_figures_options_and_secrets_that_the_page_on_logs_names_are_those_of_the_code() -> None:
    text = page("logs")
    assert f"{output.MAX_BYTES >> 20} MiB is put aside as `.1`" in text
    assert f"up to `.{output.KEPT}`" in text
    assert f"latest {output.KEPT_OF_ENDED} stay" in text
    assert set(re.findall(r"`(--[\w-]+)`", text)) <= {option for parameter in logs.params for option in parameter.opts}
    (secrets,) = re.findall(r"Of its query the values of (.+?) are left out", text)
    for name in code(secrets):
        assert access._SECRET.search(f"/path?{name}=value"), name
    assert len(code(secrets)) == access._SECRET.pattern.count("|") + 1
