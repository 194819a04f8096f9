"""Which instance does a command act on?

No command but `run`, `start` and `deploy --start` ever starts one: where none of that name runs, the error names those that do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from headgate import DEFAULT_NAME

if TYPE_CHECKING:
    from headgate.serve import Instance

Found = TypeVar("Found")


class Where(NamedTuple):
    """What `--name`, `--engine` and `--address` say."""

    name: str
    engine: str
    address: str | None

    def connect(self) -> Instance:
        """Connect with that instance; leave it by `with`. Raises `NotRunningError` that names those that run."""
        from headgate import serve

        return serve.connect(self.name, engine=self.engine, address=self.address)


def known(what: str, name: str, among: Mapping[str, Found], command: str) -> Found:
    """What is of that name. Raises `NotFoundError` that says the nearest; `command` lists them."""
    if name in among:
        return among[name]
    from headgate.config import suggest
    from headgate.errors import NotFoundError

    listed = f"; `headgate {command}` lists them" if among else f"; this instance has no {what} yet"
    raise NotFoundError(f"there is no {what} {name!r}{suggest(name, among) or listed}")


def on_instance(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which instance it acts on; its function gets them as `where`."""

    @functools.wraps(function)
    def command(*, name: str, engine: str, address: str | None, **rest: Any) -> Any:
        return function(where=Where(name, engine, address), **rest)

    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from headgate.cli.completing import instances

    return [name for name in instances(ctx) if name.startswith(incomplete)]


OPTIONS = (
    click.option("--name", "-n", default=DEFAULT_NAME, show_default=True, shell_complete=_complete_names, help="The instance."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What it runs on."),
    click.option("--address", help="Of the Ray cluster, where it isn't this machine's own."),
)
"""Of every command that acts on an instance."""
