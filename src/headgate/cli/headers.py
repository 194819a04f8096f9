"""Which HTTP headers does a command send? Those that were given, each as often, and its own where none of that name was."""

from __future__ import annotations

from collections.abc import Iterable

import click

Header = tuple[str, str]
"""A name and a value."""


def parse(text: str) -> Header:
    """`Name: value`. Raises `click.BadParameter`."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text!r} is no NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()


def beside(own: Iterable[Header], given: Iterable[Header]) -> list[Header]:
    """All that was given, and before it what is of our own and was not given."""
    asked_for = [*given]
    names = {name.lower() for name, _ in asked_for}
    return [*(each for each in own if each[0].lower() not in names), *asked_for]
