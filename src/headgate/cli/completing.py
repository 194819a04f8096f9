"""What does the shell complete? Names of instances, and of the backends and endpoints of the one that runs.

A shell waits for this at every Tab, so it is quick or empty: whatever goes wrong, or takes long, completes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import click
from click.shell_completion import CompletionItem

from headgate.cli.where import Where, named

LIMIT_S: Final = 1.0


def instances(ctx: click.Context) -> list[str]:
    """Names of the instances that run here."""
    if _where(ctx).engine != "local":
        return []  # to connect with a cluster takes seconds

    def ask() -> list[str]:
        from headgate import serve

        return serve.list_instances()

    return within_limit(ask)


def backends(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Tags of the backends of the instance that the command line names."""
    return _names(ctx, incomplete, "list_backends")


def endpoints(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the endpoints of the instance that the command line names."""
    return _names(ctx, incomplete, "list_endpoints")


def backends_or_endpoints(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of what `headgate delete` was told to delete."""
    return endpoints(ctx, param, incomplete) if ctx.params.get("what") == "endpoint" else backends(ctx, param, incomplete)


def weights(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Tags of backends, with the `=` after which a weight is to come."""
    return [] if "=" in incomplete else [f"{tag}=" for tag in backends(ctx, param, incomplete)]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, as the shell knows them."""
    return [CompletionItem(incomplete, type="file")]


def _where(ctx: click.Context) -> Where:
    return named(ctx.params)


def _names(ctx: click.Context, incomplete: str, verb: str) -> list[str]:
    where = _where(ctx)
    if where.engine != "local":
        return []

    def ask() -> list[str]:
        with where.connect() as instance:
            return [name for name in getattr(instance, verb)() if name.startswith(incomplete)]

    return within_limit(ask)


def within_limit(ask: Callable[[], list[str]]) -> list[str]:
    """What `ask` returns, or nothing where it fails or takes longer than `LIMIT_S`."""
    found: list[str] = []

    def answer() -> None:
        try:
            found.extend(ask())
        except Exception:  # noqa: BLE001  # a shell that completes has no place for errors
            return

    thread = threading.Thread(target=answer, name="headgate-complete", daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return list(found)
