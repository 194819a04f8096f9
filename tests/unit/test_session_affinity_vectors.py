"""Do the documented formula, its test vectors and the router's choice agree?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headgate.core.traffic import TrafficPolicy

PAGE = (Path(__file__).parents[2] / "docs/reference/session-affinity.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def vectors() -> list[tuple[str, dict[str, float], str, str]]:
    (text,) = blocks("json")
    return [(case["endpoint"], case["weights"], key, tag) for case in json.loads(text) for key, tag in case["backends"].items()]


def documented_formula() -> Callable[[str, dict[str, float], str], str]:
    (code,) = (code for code in blocks("python") if "def backend_of" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    backend_of: Callable[[str, dict[str, float], str], str] = names["backend_of"]
    return backend_of


@pytest.mark.parametrize(("endpoint", "weights", "key", "tag"), vectors())
def test_the_router_chooses_what_the_page_says(endpoint: str, weights: dict[str, float], key: str, tag: str) -> None:
    policy = TrafficPolicy(endpoint, weights)
    assert {policy.choose(draw, key) for draw in (0.0, 0.5, 0.999)} == {tag}
    backwards = TrafficPolicy(endpoint, dict(reversed(weights.items())))
    assert backwards.choose(0.5, key) == tag


@pytest.mark.parametrize(("endpoint", "weights", "key", "tag"), vectors())
def test_the_formula_on_the_page_gives_its_vectors(endpoint: str, weights: dict[str, float], key: str, tag: str) -> None:
    assert documented_formula()(endpoint, weights, key) == tag


def test_the_vectors_cover_unicode_the_empty_key_and_every_backend() -> None:
    keys = {key for _, _, key, _ in vectors()}
    assert "" in keys
    assert not all(key.isascii() for key in keys)
    chosen = {(endpoint, tag) for endpoint, _, _, tag in vectors()}
    assert chosen == {(endpoint, tag) for endpoint, weights, _, _ in vectors() for tag, weight in weights.items() if weight}
