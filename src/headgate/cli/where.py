"""Which instance does a command act on?

No command but `run`, `start` and `deploy --start` ever starts one: where none of that name runs, the error names those that do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from headgate import DEFAULT_NAME

if TYPE_CHECKING:
    from headgate.core.reports import Description
    from headgate.serve import Instance

Found = TypeVar("Found")


class Where(NamedTuple):
    """What `--name`, `--engine`, `--address` and the options for another machine say."""

    name: str  # empty: whichever is at the address
    engine: str
    address: str | None
    admin_token_file: str | None = None
    admin_cafile: str | None = None

    @property
    def is_afar(self) -> bool:
        """Whether it is an instance on another machine."""
        from headgate import arguments

        return arguments.is_afar(self.address)

    def connect(self) -> Instance:
        """Connect with that instance; leave it by `with`. Raises `NotRunningError` that names those that run."""
        from headgate import serve

        token = None
        if self.admin_token_file is not None:
            from headgate.router import admin

            token = admin.in_file(self.admin_token_file)
        return serve.connect(self.name or None, engine=self.engine, address=self.address, admin_token=token, admin_cafile=self.admin_cafile)

    def log_is_here(self, status: Description) -> bool:
        """Whether what an instance says that this command has started comes out where the command's own errors do."""
        return self.engine == "local" and not status.log_dir

    def http_url(self, instance: Instance) -> str:
        """Where this machine reaches its HTTP. Raises `FromAfarError` where that is on another machine, for that machine alone."""
        if not self.is_afar:
            return instance.http_url
        from urllib.parse import urlsplit

        from headgate.errors import FromAfarError
        from headgate.router import admin, remote
        from headgate.router.listening import ALL_ADDRESSES

        parts = urlsplit(instance.http_url)
        if instance.status().http.get("http_host") in ALL_ADDRESSES:
            host, _ = admin.address(self.address)
            return f"{parts.scheme}://{remote.join(host, parts.port or 0)}"
        if admin.is_loopback(parts.hostname or ""):
            raise FromAfarError(
                f"instance {instance.name!r} serves HTTP at {instance.http_url}, for its own machine alone; from here "
                "take the URL of the proxy or the tunnel that leads there"
            )
        return instance.http_url


def known(what: str, name: str, among: Mapping[str, Found], command: str) -> Found:
    """What is of that name. Raises `NotFoundError` that says the nearest; `command` lists them."""
    if name in among:
        return among[name]
    from headgate.config import suggest
    from headgate.errors import NotFoundError

    listed = f"; `headgate {command}` lists them" if among else f"; this instance has no {what} yet"
    raise NotFoundError(f"there is no {what} {name!r}{suggest(name, among) or listed}")


def nearest_file(path: str, *suffixes: str) -> str:
    """`; did you mean 'x'?` for the file in the same folder whose name ends so and is nearest, or an empty string."""
    from headgate.config import suggest

    folder, name = os.path.split(path)
    try:
        return suggest(name, [each for each in os.listdir(folder or ".") if each.endswith(suffixes)])
    except OSError:
        return ""


def on_instance(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which instance it acts on; its function gets them as `where`."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        where = named({name: given.pop(name) for name in Where._fields})
        return function(where=where, **given)

    for option in reversed((*OPTIONS, *FROM_AFAR)):
        command = option(command)
    return command


def starting_instance(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `on_instance`, for a command that starts the instance, which is no matter from afar."""

    @functools.wraps(function)
    def command(*, name: str | None, engine: str, address: str | None, **rest: Any) -> Any:
        return function(where=Where(name or DEFAULT_NAME, engine, address), **rest)

    for option in reversed(OPTIONS):
        command = option(command)
    return command


def named(given: Mapping[str, Any]) -> Where:
    """What the options say, by the fields of `Where`; what isn't among them was not given."""
    where = Where(given.get("name") or "", given.get("engine") or "local", *[given.get(name) for name in Where._fields[2:]])
    return where if where.name or where.is_afar else where._replace(name=DEFAULT_NAME)


def _complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from headgate.cli.completing import instances

    return [name for name in instances(ctx) if name.startswith(incomplete)]


OPTIONS = (
    click.option("--name", "-n", show_default=DEFAULT_NAME, shell_complete=_complete_names, help="The instance."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What it runs on."),
    click.option("--address", help="Of the Ray cluster, where it isn't this machine's own; or tcp://HOST:PORT, an admin address."),
)
"""Of every command that acts on an instance."""
FROM_AFAR = (
    click.option(
        "--admin-token-file", type=click.Path(dir_okay=False), help="With tcp://: the file with its admin token; else HEADGATE_ADMIN_TOKEN."
    ),
    click.option("--admin-cafile", type=click.Path(dir_okay=False), help="With tcp://: PEM file with the authorities to trust."),
)
"""Of those that can act on one that runs on another machine."""
