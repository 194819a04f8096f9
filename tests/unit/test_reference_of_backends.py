"""The tables of docs/reference/backends.md name every option with its default, and none that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from headgate.config import BackendConfig, ReplicaOptions

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "backends.md"


@pytest.mark.parametrize(("heading", "record"), [("`config`", BackendConfig), ("`ray_actor_options`", ReplicaOptions)])
def test_the_page_names_every_option_with_its_default(heading: str, record: type[msgspec.Struct]) -> None:
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE))
    default = record()
    assert told == {name: repr(getattr(default, name)) for name in record.__struct_fields__}
