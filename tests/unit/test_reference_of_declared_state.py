"""The page about declared state names every key that a file may have, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from headgate.core.declared import Declared, DeclaredBackend, DeclaredEndpoint, HttpSettings

PAGE = Path(__file__).parents[2] / "docs/reference/declared-state.md"


@pytest.mark.parametrize(
    ("heading", "record"),
    [
        ("## Keys", Declared),
        ("### `http`", HttpSettings),
        ("### Each of `backends`", DeclaredBackend),
        ("### Each of `endpoints`", DeclaredEndpoint),
    ],
)
def test_the_page_names_every_key(heading: str, record: type[msgspec.Struct]) -> None:
    section = re.split(r"\n##", PAGE.read_text().split(f"{heading}\n")[1])[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == record.__struct_fields__
