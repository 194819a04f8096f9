"""Every value arrives as it left, and what was cut is refused before it is opened."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headgate.errors import WireError
from headgate.router import payload

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.sets(st.integers())
)
arrays = st.lists(
    st.integers(0, 5000).flatmap(lambda size: st.sampled_from(("u1", "f4", "i8")).map(lambda kind: np.arange(size).astype(kind)))
)


@given(values)
def test_plain_values_arrive_as_they_left(value: Any) -> None:
    assert payload.load(payload.dump(value)) == value


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates among them


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(), max_size=5))
def test_arguments_without_parts_arrive_as_they_left(args: list[Any]) -> None:
    sent = (*args, *args)  # the same objects twice, which a format may refer to by number
    assert repr(payload.load(payload.dump_call(sent, {}))) == repr((sent, {}))  # tells -0.0 from 0.0 and True from 1, and knows NaN


@given(arrays, values, st.booleans())
def test_arrays_arrive_as_they_left_among_other_values(sent: list[Any], other: Any, in_place: bool) -> None:
    data = payload.dump((sent, other))
    got, got_other = payload.load(bytearray(data) if in_place else data)
    assert got_other == other
    assert [each.dtype for each in got] == [each.dtype for each in sent]
    assert all(np.array_equal(one, two) for one, two in zip(sent, got, strict=True))


sizes = st.integers(0, 40) | st.integers(0, 2**64 - 1)


@given(st.integers(1, 4) | st.integers(1, 2**32 - 1), st.lists(sizes, max_size=6), st.binary(max_size=64))
def test_sizes_that_are_not_there_are_refused_before_anything_is_opened(count: int, sizes: list[int], rest: bytes) -> None:
    data = struct.pack(f"<II{len(sizes)}Q", count, 0, *sizes) + rest
    assume(not fits(data, count))
    with pytest.raises(WireError, match="not a payload"):
        payload.load(data)


def fits(data: bytes, count: int) -> bool:
    at = 8 * (count + 2)
    if at > len(data):
        return False
    for number in range(count + 1):
        size = int.from_bytes(data[8 * (number + 1) : 8 * (number + 2)], "little")
        if at + size > len(data):
            return False
        at += (size + 7) // 8 * 8
    return True
