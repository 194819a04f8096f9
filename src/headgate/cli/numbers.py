"""Which numbers does a command take, and how is one called that is none?"""

from __future__ import annotations

import click


class WholeNumber(click.IntRange):
    """A whole number within bounds."""

    name = "whole number"


class Number(click.FloatRange):
    """A number within bounds."""

    name = "number"
