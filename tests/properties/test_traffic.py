"""How are draws and keys split, and what moves when weights change?"""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.traffic import TrafficPolicy

KEYS = [f"session-{number}" for number in range(20_000)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TAGS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
WEIGHTS = st.dictionaries(TAGS, st.integers(0, 100), min_size=1, max_size=6).filter(lambda weights: any(weights.values()))


def shares(policy: TrafficPolicy, keys: list[str]) -> dict[str, str | None]:
    return {key: policy.choose(0.0, key) for key in keys}


@given(endpoint=TAGS, counts=WEIGHTS, key=TEXT)
def test_a_key_goes_where_the_formula_in_other_words_sends_it(endpoint: str, counts: dict[str, int], key: str) -> None:
    """Of any two, the one that wins has the larger `u`, each to the power of the other's weight: the same rule in whole numbers."""
    total = sum(counts.values())
    chosen = TrafficPolicy(endpoint, {tag: count / total for tag, count in counts.items()}).choose(0.5, key)
    assert chosen is not None

    def draw(tag: str) -> int:
        digest = blake2b(endpoint.encode() + b"\0" + tag.encode() + b"\0" + key.encode()).hexdigest()
        return 2 * (int(digest[:16], 16) >> 11) + 1  # u, in units of 2**-54

    for tag, count in counts.items():
        if tag != chosen and count:
            won = draw(chosen) ** count * 2 ** (54 * counts[chosen])
            lost = draw(tag) ** counts[chosen] * 2 ** (54 * count)
            assert won > lost


@pytest.mark.parametrize("shard_keys", [True, False])
def test_ten_thousand_requests_split_by_the_weights(shard_keys: bool) -> None:
    policy = TrafficPolicy("e", {"a": 0.7, "b": 0.25, "c": 0.05})
    rng = random.Random(7)
    chosen = [policy.choose(rng.random(), key if shard_keys else None) for key in KEYS[:10_000]]
    chi_square = sum((chosen.count(tag) - expected) ** 2 / expected for tag, expected in {"a": 7000, "b": 2500, "c": 500}.items())
    assert chi_square < 13.816  # p > 0.001 with two degrees of freedom


def test_a_tenth_of_the_keys_moves_from_70_30_to_60_40_and_none_the_other_way() -> None:
    before = shares(TrafficPolicy("e", {"v1": 0.7, "v2": 0.3}), KEYS)
    after = shares(TrafficPolicy("e", {"v1": 0.6, "v2": 0.4}), KEYS)
    moved = [(before[key], after[key]) for key in KEYS if before[key] != after[key]]
    assert set(moved) == {("v1", "v2")}
    assert len(moved) / len(KEYS) == pytest.approx(0.1, abs=0.01)


def test_a_new_backend_takes_its_share_evenly_and_moves_nothing_else() -> None:
    before = shares(TrafficPolicy("e", {"v1": 0.5, "v2": 0.5}), KEYS)
    after = shares(TrafficPolicy("e", {"v1": 0.4, "v2": 0.4, "v3": 0.2}), KEYS)
    moved = [before[key] for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in KEYS if before[key] != after[key]} == {"v3"}
    assert len(moved) / len(KEYS) == pytest.approx(0.2, abs=0.01)
    assert moved.count("v1") / len(moved) == pytest.approx(0.5, abs=0.03)


@given(counts=WEIGHTS, grown=st.integers(1, 50), key=TEXT, data=st.data())
def test_a_key_only_ever_moves_to_a_backend_whose_weight_grew(counts: dict[str, int], grown: int, key: str, data: st.DataObject) -> None:
    winner = data.draw(st.sampled_from(sorted(counts)))
    total = sum(counts.values())
    before = TrafficPolicy("e", {tag: count / total for tag, count in counts.items()}).choose(0.5, key)
    counts = {**counts, winner: counts[winner] + grown}
    after = TrafficPolicy("e", {tag: count / (total + grown) for tag, count in counts.items()}).choose(0.5, key)
    assert after in (before, winner)


def test_two_endpoints_split_the_same_keys_independently() -> None:
    weights = {"v1": 0.5, "v2": 0.5}
    one, other = shares(TrafficPolicy("one", weights), KEYS), shares(TrafficPolicy("other", weights), KEYS)
    same = sum(one[key] == other[key] for key in KEYS)
    assert same / len(KEYS) == pytest.approx(0.5, abs=0.02)


@given(counts=WEIGHTS, draw=st.floats(0, 1, exclude_max=True))
def test_a_draw_never_chooses_a_backend_without_weight(counts: dict[str, int], draw: float) -> None:
    total = sum(counts.values())
    chosen = TrafficPolicy("e", {tag: count / total for tag, count in counts.items()}).choose(draw, None)
    assert chosen is not None
    assert counts[chosen] > 0
