"""Is a command told to do what it has shown? It asks, where there is a terminal to ask on."""

from __future__ import annotations

import sys

import click

from headgate.cli import output


def can_ask() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def is_told_to() -> bool:
    """Ask; what was declined has been said. Ctrl-D declines; at Ctrl-C what comes next begins on a line of its own, too."""
    try:
        told = click.confirm("Do it?", err=True)
    except click.Abort as aborted:
        output.note("")
        if not isinstance(aborted.__context__, EOFError):
            output.note("interrupted: nothing has changed")
            raise
        told = False
    if not told:
        output.note("nothing has changed")
    return told
