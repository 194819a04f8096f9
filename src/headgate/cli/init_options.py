"""Which options do commands have that start an instance? Those of `serve.init`, made from its signature and its documentation."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

import click

_TOKEN: Final = "admin_token"
"""Is given by a file that has it: command lines are there for all to see."""
_APART: Final = ("name", "engine", "address", "detached")
"""What all commands have, and what tells `run` from `start`."""


class InitCommand(click.Command):
    """A command with the options of `serve.init`, which is imported when they are looked at."""

    _made: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, then those of `init`, then --help."""
        if self._made is None:
            self._made = [*options()]
        own, help_option = self.params, self.get_help_option(ctx)
        return [*own, *self._made, *([help_option] if help_option is not None else [])]


def options() -> list[click.Option]:
    """One for each argument of `init`. What isn't given is None, so that `init` has its own defaults."""
    from headgate import serve

    texts = documented(serve.init.__doc__ or "")
    made = []
    for name, parameter in inspect.signature(serve.init).parameters.items():
        if name not in _APART:
            default = None if parameter.default in (None, False) else str(parameter.default)
            made.append(_option(name, str(parameter.annotation), texts[name], default))
    return made


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `init` among a command's values, as that takes them; removed from there."""
    found = {}
    for option in options():
        value = values.pop(str(option.name), None)
        if value is not None and option.name == _TOKEN:
            from headgate.router import admin

            value = admin.in_file(value)
        if value not in (None, ()):
            found[str(option.name)] = dict(value) if isinstance(value, tuple) else value
    return found


def documented(text: str) -> dict[str, str]:
    """What the documentation of a function says of each argument."""
    section = inspect.cleandoc(text).partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(said.replace("`", "").split()) for name, said in found}


def _amount(text: str | tuple[str, float]) -> tuple[str, float]:
    if isinstance(text, tuple):
        return text
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no NAME=AMOUNT, such as CPU=8") from None


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _option(name: str, annotation: str, text: str, default: str | None) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    said = text[0].upper() + text[1:]
    kinds = annotation.split(" | ")
    if name == _TOKEN:
        return click.Option([f"{flag}-file", name], type=click.Path(dir_okay=False), help=f"The file that has the token: {text}")
    if "bool" in kinds:
        return click.Option([flag], is_flag=True, default=None, help=said)
    if any(kind.startswith("Mapping") for kind in kinds):
        return click.Option([flag], type=_amount, multiple=True, metavar="NAME=AMOUNT", help=f"{said} Again for each.")
    if any("PathLike" in kind for kind in kinds):
        return click.Option([flag], type=click.Path(), help=said)
    kind: Any = _number_or_word if {"int", "str"} <= {*kinds} else int if "int" in kinds else str
    metavar = "N" if "int" in kinds else "TEXT"
    return click.Option([flag], type=kind, metavar=metavar, help=f"{said}  [default: {default}]" if default else said)
