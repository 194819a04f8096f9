"""Is the Grafana board one that Grafana reads whole, by its own types?"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

BOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs/how-to/prometheus/headgate-board.json").read_text())
UNTYPED = ("definition",)
"""What Grafana itself writes and has no type for: a variable's query, as its list of variables shows it."""


@pytest.fixture(scope="module", autouse=True)
def _panels_and_queries_have_types() -> None:
    register_default_plugins()


def lost(board: dict[str, Any]) -> list[str]:
    """Where Grafana has something else than what is there, or nothing."""
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    return list(_differences(board, read, ""))


def _differences(ours: Any, read: Any, at: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(read, dict):
        for key in ours.keys() - UNTYPED:
            yield from _differences(ours[key], read.get(key), f"{at}.{key}") if key in read else [f"{at}.{key}"]
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for number, each in enumerate(ours):
            yield from _differences(each, read[number], f"{at}[{number}]")
    elif ours != read:
        yield at


def test_grafana_knows_every_key_of_the_board() -> None:
    assert lost(BOARD) == []


def test_a_key_that_grafana_does_not_know_would_be_found() -> None:
    wrong = copy.deepcopy(BOARD)
    wrong["panels"][1]["options"]["colourMode"] = "value"
    wrong["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    wrong["panels"][1]["targets"][0]["expression"] = "up"
    assert sorted(lost(wrong)) == [
        ".panels[1].fieldConfig.defaults.units",
        ".panels[1].options.colourMode",
        ".panels[1].targets[0].expression",
    ]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
