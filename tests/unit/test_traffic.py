"""What `set_traffic`, `shadow_traffic` and shard keys refuse, and draws at their edges."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from headgate.core import traffic
from headgate.core.traffic import TrafficPolicy, check_proportion, check_weights
from headgate.errors import HeadgateError


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1},
        {"a": 0.7, "b": 0.3},
        {"a": 0.1, "b": 0.2, "c": 0.7},
        {"a": 1.0, "b": 0},
        {"a": 1.0, "b": -0.0},
        {"a": 0.5, "b": 0.5 + 9e-7},
        {"a": Fraction(1, 3), "b": Fraction(2, 3)},
        {"a": np.float32(0.7), "b": np.float64(0.3)},
        {"a": np.int64(1)},
        {f"b{number}": 0.1 for number in range(10)},
    ],
)
def test_weights_that_sum_to_one_are_accepted_as_they_are(weights: dict[str, Any]) -> None:
    checked = check_weights(weights)
    assert checked == {tag: float(weight) for tag, weight in weights.items()}
    assert all(type(weight) is float for weight in checked.values())


@pytest.mark.parametrize("weights", [None, 1, "a", ["a"], [("a", 1.0)], {1: 1.0}, {"a": "1"}, {"a": None}, {"a": True}, {"a": 1j}])
def test_traffic_of_the_wrong_type_is_a_type_error(weights: object) -> None:
    with pytest.raises(TypeError) as caught:
        check_weights(weights)
    assert isinstance(caught.value, HeadgateError)


def test_decimal_weights_are_refused_since_they_are_no_real_numbers_to_python() -> None:
    with pytest.raises(TypeError, match="Decimal"):
        check_weights({"a": Decimal(1)})


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({}, "empty"),
        ({"a": -0.1, "b": 1.1}, "'a'"),
        ({"a": math.nan, "b": 1.0}, "nan"),
        ({"a": math.inf}, "inf"),
        ({"a": 10**400}, "'a'"),
        ({"a": 0.5}, "sum to 0.5"),
        ({"a": 0.7, "b": 0.5}, "sum to 1.2"),
        ({"a": 0.0}, "sum to 0.0"),
        ({"a": 90, "b": 10}, "sum to 100.0: .*; 90 % is 0.9"),
        ({"a": 1 + 2e-6}, "sum to 1.00000"),
    ],
)
def test_traffic_that_is_no_split_is_a_value_error_that_says_what_is_wrong(weights: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_weights(weights)
    assert isinstance(caught.value, HeadgateError)
    assert not isinstance(caught.value, TypeError)


def test_a_wrong_type_is_reported_before_a_wrong_value() -> None:
    with pytest.raises(TypeError):
        check_weights({"a": -1.0, "b": "x"})


@pytest.mark.parametrize("proportion", [0, 1, 0.25, np.float64(0.5)])
def test_a_proportion_from_0_to_1_is_accepted(proportion: Any) -> None:
    assert check_proportion(proportion) == float(proportion)


@pytest.mark.parametrize("proportion", [-0.1, 1.1, math.nan, math.inf])
def test_a_proportion_out_of_range_is_a_value_error(proportion: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        check_proportion(proportion)


@pytest.mark.parametrize("proportion", [None, "0.5", True, [0.5]])
def test_a_proportion_that_is_no_number_is_a_type_error(proportion: object) -> None:
    with pytest.raises(TypeError):
        check_proportion(proportion)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}])
def test_without_traffic_nothing_is_chosen(weights: dict[str, float]) -> None:
    policy = TrafficPolicy("e", weights)
    assert policy.tags == ()
    assert policy.choose(0.5, None) is None
    assert policy.choose(0.5, "key") is None


@pytest.mark.parametrize("draw", [0.0, 0.5, math.nextafter(1, 0)])
def test_weight_0_is_never_chosen(draw: float) -> None:
    policy = TrafficPolicy("e", {"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.5, "e": 0.0})
    assert policy.tags == ("b", "d")
    assert policy.choose(draw, None) in ("b", "d")


def test_draws_fall_on_the_weights_borders_without_a_gap() -> None:
    policy = TrafficPolicy("e", {"a": 0.25, "b": 0.75})
    assert [policy.choose(draw, None) for draw in (0.0, math.nextafter(0.25, 0), 0.25, math.nextafter(1, 0))] == ["a", "a", "b", "b"]


def test_a_weight_that_is_almost_nothing_still_has_a_valid_policy() -> None:
    policy = TrafficPolicy("e", {"a": 5e-324, "b": 1.0})
    assert policy.choose(0.5, "key") == "b"


def test_each_shadow_is_drawn_apart() -> None:
    policy = TrafficPolicy("e", {"a": 1.0}, {"x": 0.5, "y": 0.5, "z": 1.0, "none": 0.0})
    draws = iter([0.4, 0.6, 0.999])
    assert policy.shadows(lambda: next(draws)) == ["x", "z"]
    assert next(draws, None) is None


def test_policies_that_share_a_memory_of_keys_remember_only_so_many_and_choose_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MOST_KEYS", 10)
    keys = traffic.KeyMemory()
    weights = {"a": 0.5, "b": 0.5}
    sharing = [TrafficPolicy(name, weights, keys=keys) for name in ("e1", "e2")]
    fresh = [TrafficPolicy(name, weights) for name in ("e1", "e2")]
    for number in [*range(25), *range(25)]:
        for policy, other in zip(sharing, fresh, strict=True):
            assert policy.choose(0.0, f"k{number}") == other._choose_by_key(f"k{number}")
        assert sum(len(policy._remembered) for policy in sharing) <= 10
