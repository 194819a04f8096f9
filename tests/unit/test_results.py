"""Which results of a batch handler are one answer for each request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headgate.errors import BatchResultError
from headgate.replica.results import split_batch


class Series:
    """As much of a Series as is asked of it: labels are not positions."""

    shape = (2,)

    def __iter__(self):
        return iter(["first", "second"])

    def __getitem__(self, label: int) -> str:
        return {5: "first", 0: "second"}[label]


class Frame:
    shape = (2, 3)
    columns = ("a", "b", "c")


@pytest.mark.parametrize("result", [["a", "b"], ("a", "b"), np.array(["a", "b"])])
def test_lists_tuples_and_arrays_are_split(result: Any) -> None:
    assert split_batch(result, 2) == ["a", "b"]


def test_the_first_dimension_is_the_batch() -> None:
    rows = split_batch(np.arange(6).reshape(2, 3), 2)
    assert [row.tolist() for row in rows] == [[0, 1, 2], [3, 4, 5]]


def test_a_series_is_split_by_position() -> None:
    assert split_batch(Series(), 2) == ["first", "second"]


def test_exceptions_in_a_list_stay_in_their_place() -> None:
    bad = ValueError("bad")
    assert split_batch(["a", bad, "c"], 3) == ["a", bad, "c"]


def test_the_handler_s_own_list_is_not_kept() -> None:
    own = ["a"]
    assert split_batch(own, 1) is not own


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("ab", "str"),
        (b"ab", "bytes"),
        ({"a": 1, "b": 2}, "dict"),
        ({1, 2}, "set"),
        (None, "None"),
        (7, "int"),
        (iter(["a", "b"]), "list_iterator"),
        (["a"], "list of 1"),
        (("a", "b", "c"), "tuple of 3"),
        (np.zeros((3, 2)), r"ndarray of shape \(3, 2\)"),
        (np.array(1), r"ndarray of shape \(\)"),
        (np.float64(1), r"float64 of shape \(\)"),
        (Frame(), "Frame"),
    ],
)
def test_anything_else_is_refused_saying_what_came_back(result: Any, said: str) -> None:
    with pytest.raises(BatchResultError, match=f"for 2 requests it returned: {said}$"):
        split_batch(result, 2)
