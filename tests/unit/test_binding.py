"""What callers are told whose call doesn't fit, and who gets a placeholder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from headgate.core.binding import PLACEHOLDER, Binder
from headgate.core.specs import Parameter


def binder_of(function: Callable[..., Any]) -> Binder:
    parameters = inspect.signature(function).parameters.values()
    return Binder("f", [Parameter(p.name, p.kind.name, p.default is not p.empty) for p in parameters])


def one(a): ...
def two(a, b): ...
def some_defaults(a, b=1): ...
def by_name(*, k): ...
def by_position(a, /): ...


@pytest.mark.parametrize(
    ("function", "positional", "keywords"),
    [
        (one, 2, ()),
        (some_defaults, 3, ()),
        (two, 1, ()),
        (by_name, 0, ()),
        (one, 1, ("x",)),
        (one, 1, ("a",)),
        (by_position, 1, ("a",)),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_python_s_own_words(
    function: Callable[..., Any], positional: int, keywords: tuple[str, ...]
) -> None:
    with pytest.raises(TypeError) as python:
        function(*[None] * positional, **dict.fromkeys(keywords))
    said = str(python.value).replace(function.__name__, "f")
    assert binder_of(function).bind(positional, keywords).error == said


def test_f_of_1_and_f_of_x_equals_1_are_the_same() -> None:
    binder = binder_of(lambda x: x)
    assert binder.bind(1, ()).layout is binder.bind(0, ("x",)).layout


def test_the_order_of_names_makes_no_difference() -> None:
    binder = binder_of(lambda *, x, y: x)
    assert binder.bind(0, ("x", "y")).layout is binder.bind(0, ("y", "x")).layout


def test_a_placeholder_stands_first_where_nothing_was_given_for_a_required_first_parameter() -> None:
    assert binder_of(one).bind(0, ()).sources == (PLACEHOLDER,)
    assert not binder_of(one).bind(0, ("a",)).placeholder
    assert not binder_of(one).bind(1, ()).placeholder
    assert not binder_of(lambda a=1: a).bind(0, ()).placeholder
    assert not binder_of(lambda *args: args).bind(0, ()).placeholder


def test_over_http_what_no_request_can_give_is_named() -> None:
    assert binder_of(two).http.error == "an HTTP request gives only the request; f() missing 1 required positional argument: 'b'"
    assert "'k'" in binder_of(by_name).http.error
    both = binder_of(lambda request, other, *, named: None).http.error
    assert "'other'" in both
    assert "'named'" in both


def test_callers_that_make_up_names_without_end_fill_no_memory() -> None:
    binder = binder_of(lambda **names: names)
    for number in range(5000):
        binder.bind(0, (f"name{number}",))
    assert len(binder._shapes) <= 1024  # the only trace of it
