"""Binding by shape, held against what Python itself does with the call, and batches against one call each."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.binding import Binder, gather
from headgate.core.specs import Parameter

KINDS = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL", "KEYWORD_ONLY", "VAR_KEYWORD")
NAMES = ("a", "b", "c", "d", "e", "f")


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    named = [kind for kind in KINDS if not kind.startswith("VAR")]
    kinds = draw(st.lists(st.sampled_from(named), max_size=4)) + sorted(draw(st.sets(st.sampled_from(["VAR_POSITIONAL", "VAR_KEYWORD"]))))
    kinds.sort(key=KINDS.index)
    parameters: list[inspect.Parameter] = []
    defaults_began = False
    for name, kind in zip(NAMES, kinds, strict=False):
        has_default = not kind.startswith("VAR") and draw(st.booleans())
        if kind.startswith("POSITIONAL"):
            has_default = defaults_began = has_default or defaults_began
        default = f"default of {name}" if has_default else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, getattr(inspect.Parameter, kind), default=default))
    return inspect.Signature(parameters)


def binder_of(signature: inspect.Signature) -> Binder:
    return Binder("f", [Parameter(p.name, p.kind.name, p.default is not inspect.Parameter.empty) for p in signature.parameters.values()])


def call_in_full(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """What a function with this signature gets, defaults included; None where Python refuses the call.

    Not by `Signature.bind`, which in Python 3.11 refuses `f(a=1)` for `def f(a=0, /, **more)`, unlike a call.
    """
    try:
        return callable_with(signature)(*args, **kwargs)
    except TypeError:
        return None


def callable_with(signature: inspect.Signature) -> Callable[..., dict[str, Any]]:
    """A function that returns what it gets for each of its parameters."""
    names: dict[str, Any] = {}
    exec(f"def f{signature}: return dict(locals())", names)
    return cast("Callable[..., dict[str, Any]]", names["f"])


def needs_placeholder(signature: inspect.Signature, args: Any, kwargs: Any) -> bool:
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            by_name = parameter.name in kwargs and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            return not args and parameter.default is parameter.empty and not by_name
        break
    return False


shapes = st.tuples(st.integers(0, 5), st.sets(st.sampled_from(NAMES)))


@given(signatures(), shapes)
def test_a_call_fits_exactly_when_python_would_bind_it(signature: inspect.Signature, shape: tuple[int, set[str]]) -> None:
    args = [f"position {index}" for index in range(shape[0])]
    kwargs = {name: f"named {name}" for name in sorted(shape[1])}
    binding = binder_of(signature).bind(len(args), tuple(kwargs))
    placed = needs_placeholder(signature, args, kwargs)
    expected = call_in_full(signature, ["no request", *args] if placed else args, kwargs)
    assert (binding.error == "") == (expected is not None)
    if expected is not None:
        assert binding.placeholder == placed


@given(signatures(), st.lists(shapes, min_size=1, max_size=4))
def test_a_batch_gives_each_parameter_what_each_call_would_have_given_it(
    signature: inspect.Signature, given_shapes: list[tuple[int, set[str]]]
) -> None:
    binder = binder_of(signature)
    groups: dict[int, list[tuple[Any, list[str], dict[str, str]]]] = {}
    for number, (positional, names) in enumerate(given_shapes):
        args = [f"{number}: position {index}" for index in range(positional)]
        kwargs = {name: f"{number}: named {name}" for name in names}
        binding = binder.bind(positional, tuple(kwargs))
        if not binding.error:
            groups.setdefault(id(binding.layout), []).append((binding, args, kwargs))
    for group in groups.values():
        placeholders = [f"no request {number}" for number in range(len(group))]
        columns, named_columns = gather([each[0] for each in group], [(each[1], each[2]) for each in group], placeholders)
        together = call_in_full(signature, columns, named_columns)
        assert together is not None
        for number, (binding, args, kwargs) in enumerate(group):
            apart = call_in_full(signature, [placeholders[number], *args] if binding.placeholder else args, kwargs)
            assert apart is not None
            assert {name: item_of(value, number) for name, value in together.items()} == apart


def item_of(value: Any, number: int) -> Any:
    """One call's share of what a batch handler gets for a parameter; defaults are not lists."""
    if isinstance(value, list):
        return value[number]
    if isinstance(value, tuple):
        return tuple(each[number] for each in value)
    if isinstance(value, dict):
        return {name: each[number] for name, each in value.items()}
    return value


@given(signatures())
def test_calls_share_a_layout_exactly_when_they_bind_the_same_parameters(signature: inspect.Signature) -> None:
    binder, call = binder_of(signature), callable_with(signature)
    layouts: dict[frozenset[Any], set[int]] = {}
    for positional in range(4):
        for count in range(len(NAMES) + 1):
            for names in itertools.combinations(NAMES, count):
                binding = binder.bind(positional, names)
                if not binding.error:
                    args = ["given"] * (positional + binding.placeholder)
                    bound = parameters_bound(call(*args, **dict.fromkeys(names, "given")))
                    layouts.setdefault(bound, set()).add(id(binding.layout))
    assert all(len(each) == 1 for each in layouts.values())
    assert len(set.union(set(), *layouts.values())) == len(layouts)


def parameters_bound(got: dict[str, Any]) -> frozenset[Any]:
    found: set[Any] = set()
    for name, value in got.items():
        if isinstance(value, tuple):
            found |= {(name, index) for index in range(len(value))}
        elif isinstance(value, dict):
            found |= {(name, key) for key in value}
        elif value == "given":
            found.add(name)
    return frozenset(found)


@given(signatures())
def test_an_http_request_goes_to_the_first_position_or_nowhere(signature: inspect.Signature) -> None:
    kinds = {p.kind.name for p in signature.parameters.values()}
    takes = bool(kinds & {"POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL"})
    binding = binder_of(signature).http
    expected = call_in_full(signature, ["request"] if takes else [], {})
    assert (binding.error == "") == (expected is not None)
    if expected is not None:
        assert binding.sources == ((0,) if takes else ())
