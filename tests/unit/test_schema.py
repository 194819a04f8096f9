"""Does the published JSON schema say what the records say, and what `parse` accepts?"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from headgate import formats, schema
from tests.unit.test_declared import TOML, YAML

PUBLISHED = Path(__file__).parents[2] / "docs/reference/declared-state.schema.json"


def test_the_published_schema_is_made_of_the_records_as_they_are_now():
    assert PUBLISHED.read_text() == schema.text(), "run: python -m headgate.schema > docs/reference/declared-state.schema.json"


def test_every_key_is_described():
    for name, part in schema.schema()["$defs"].items():
        assert part["description"]
        for key, about in part["properties"].items():
            assert about.get("description") or name in ("NodeAffinity", "NodeLabels", "InPlacementGroup", "LabelMatch"), f"{name}.{key}"


@pytest.mark.parametrize(("text", "notation"), [(YAML.replace("get,", "GET,"), formats.YAML), (TOML, formats.TOML)])
def test_what_can_be_deployed_is_valid_by_the_schema(text: str, notation: str):
    jsonschema.Draft202012Validator.check_schema(json.loads(PUBLISHED.read_text()))
    jsonschema.validate(formats.read(text, "app", notation).data, json.loads(PUBLISHED.read_text()))


@pytest.mark.parametrize(
    "data",
    [
        {"backend": {}},
        {"backends": {"a": {}}},
        {"backends": {"a": {"import_path": "app.f"}}},
        {"backends": {"a": {"import_path": "m:f", "config": {"num_replica": 1}}}},
        {"backends": {"a": {"import_path": "m:f", "ray_actor_options": {"scheduling_strategy": "SPRED"}}}},
        {"endpoints": {"e": {"route": "x"}}},
        {"endpoints": {"e": {"methods": ["GTE"]}}},
        {"http": {"http_port": "80"}},
    ],
)
def test_editors_see_mistakes_by_the_schema(data: object):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(PUBLISHED.read_text()))
