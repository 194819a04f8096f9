"""Which parameter of a handler does each argument of a call go to?

Worked out once per shape of call (how many positional arguments, which names), without the arguments themselves. Calls of one
shape or another that bind the same parameters share a `Layout`, and may share a batch: `f(1)` and `f(x=1)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headgate.core.specs import Parameter

PLACEHOLDER: Final = -1
"""Stands for the argument that a call from Python gets in place of the request."""

_MAX_SHAPES = 1024


class Layout:
    """A set of bound parameters, and how they are passed on. Compared by identity: each `Binder` makes one per set."""

    __slots__ = ("keywords", "positional")

    def __init__(self, positional: int, keywords: tuple[str, ...]) -> None:
        self.positional = positional
        self.keywords = keywords


class Binding(msgspec.Struct, frozen=True, gc=False):
    """Where the arguments of one shape of call go. `error` says why they don't fit; then nothing else holds.

    `sources` are in the order of `layout`: a position, the name of a keyword, or `PLACEHOLDER`.
    """

    layout: Layout
    sources: tuple[int | str, ...]
    placeholder: bool = False  # the placeholder stands before the arguments
    error: str = ""


class Binder:
    """The parameters of one handler, without `self`."""

    def __init__(self, name: str, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self._leading = [p for p in parameters if p.kind in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")]
        self._only_by_name = [p for p in parameters if p.kind == "KEYWORD_ONLY"]
        self._only_by_position = {p.name for p in parameters if p.kind == "POSITIONAL_ONLY"}
        self._by_name = {p.name for p in parameters if p.kind in ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")}
        self._more_positions = any(p.kind == "VAR_POSITIONAL" for p in parameters)
        self._more_names = any(p.kind == "VAR_KEYWORD" for p in parameters)
        self._layouts: dict[tuple[int, tuple[str, ...]], Layout] = {}
        self._shapes: dict[tuple[int, tuple[str, ...]], Binding] = {}
        takes_request = bool(self._leading) or self._more_positions
        self.http: Final = self._bound(int(takes_request), (), "an HTTP request gives only the request; ")
        """How a request over HTTP is bound: the request is the one argument, or there is none."""

    def bind(self, positional: int, keywords: tuple[str, ...]) -> Binding:
        """Bind a call from Python by its shape. The names may come in any order."""
        shape = (positional, keywords)
        found = self._shapes.get(shape)
        if found is None:
            if len(self._shapes) >= _MAX_SHAPES:  # callers choose the names of `**kwargs`
                self._shapes.clear()
                self._layouts.clear()
            found = self._shapes[shape] = self._bind(positional, keywords)
        return found

    def _bind(self, positional: int, keywords: tuple[str, ...]) -> Binding:
        first = self._leading[0] if self._leading else None
        given = first is not None and first.name in keywords and first.name not in self._only_by_position
        if positional == 0 and first is not None and not first.has_default and not given:
            return self._bound(1, keywords, "", placeholder=True)
        return self._bound(positional, keywords, "")

    def _bound(self, positional: int, keywords: tuple[str, ...], prefix: str, *, placeholder: bool = False) -> Binding:
        error = self._misfit(positional, keywords)
        if error:
            return Binding(self._layout(0, ()), (), error=f"{prefix}{self.name}() {error}")
        # By position as far as nothing is left to its default; all else by name, in an order that doesn't depend on the caller.
        leading: list[int | str] = list(range(positional))
        for parameter in self._leading[positional:]:
            if parameter.name not in keywords or parameter.name in self._only_by_position:
                break
            leading.append(parameter.name)
        rest = tuple(sorted(name for name in keywords if name not in leading))
        sources = (*leading, *rest)
        if placeholder:
            sources = tuple(source - 1 if isinstance(source, int) else source for source in sources)
        return Binding(self._layout(len(leading), rest), sources, placeholder)

    def _layout(self, positional: int, keywords: tuple[str, ...]) -> Layout:
        return self._layouts.setdefault((positional, keywords), Layout(positional, keywords))

    def _misfit(self, positional: int, keywords: tuple[str, ...]) -> str:
        if positional > len(self._leading) and not self._more_positions:
            most, least = len(self._leading), sum(not p.has_default for p in self._leading)
            takes = str(most) if least == most else f"from {least} to {most}"
            plural = "" if most == 1 else "s"
            return f"takes {takes} positional argument{plural} but {positional} {'was' if positional == 1 else 'were'} given"
        for parameter in self._leading[:positional]:
            if parameter.name in keywords and parameter.name in self._by_name:
                return f"got multiple values for argument {parameter.name!r}"
        if not self._more_names:
            misplaced = [name for name in keywords if name in self._only_by_position]
            if misplaced:
                return f"got some positional-only arguments passed as keyword arguments: {', '.join(misplaced)!r}"
            for name in keywords:
                if name not in self._by_name:
                    return f"got an unexpected keyword argument {name!r}"
        named = {name for name in keywords if name in self._by_name}
        missing = [p.name for p in self._leading[positional:] if not p.has_default and p.name not in named]
        only_by_name = [p.name for p in self._only_by_name if not p.has_default and p.name not in named]
        if missing:
            # Python would name the others only when these are given.
            return _missing("positional", missing) + (f", and {_missing('keyword-only', only_by_name)}" if only_by_name else "")
        return _missing("keyword-only", only_by_name) if only_by_name else ""


def gather(
    bindings: Sequence[Binding], calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]], placeholders: Sequence[Any] = ()
) -> tuple[list[list[Any]], dict[str, list[Any]]]:
    """Turn the calls of a batch into one: a list for each parameter, in the order of the calls.

    All bindings must have the same layout. `placeholders` has one for each call where any of them takes one.
    """
    layout = bindings[0].layout
    columns: list[list[Any]] = []
    for index in range(layout.positional + len(layout.keywords)):
        column: list[Any] = []
        for number, (binding, (args, kwargs)) in enumerate(zip(bindings, calls, strict=True)):
            source = binding.sources[index]
            if isinstance(source, str):
                column.append(kwargs[source])
            else:
                column.append(placeholders[number] if source == PLACEHOLDER else args[source])
        columns.append(column)
    return columns[: layout.positional], dict(zip(layout.keywords, columns[layout.positional :], strict=True))


def _missing(kind: str, names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    listed = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    return f"missing {len(names)} required {kind} argument{'' if len(names) == 1 else 's'}: {listed}"
