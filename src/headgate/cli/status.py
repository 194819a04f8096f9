"""`headgate status`: what runs, and how is it?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from headgate.cli import output
from headgate.cli.numbers import Number
from headgate.cli.rows import BACKENDS, ENDPOINTS, backend_row, endpoint_row
from headgate.cli.where import Where, on_instance

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headgate.core.reports import Description, Measurement


@click.command
@on_instance
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until Ctrl-C; in a pipe, when it has changed.")
@click.option("--every", type=Number(min=0.1), default=1.0, show_default=True, metavar="SECONDS", help="How often, with --watch.")
@click.option("--json", "in_json", is_flag=True, help="All of it, as JSON; with --watch one line each time.")
def status(where: Where, watch: bool, every: float, in_json: bool) -> None:
    """Show what runs: endpoints with their traffic, backends with their replicas, and requests.

    In a pipe each line is a record: its kind, then its fields, separated by tabs.

    \b
    Examples:
      headgate status
      headgate status --watch
      headgate status --json | jq '.backends | map_values(.state)'
    """
    with where.connect() as instance:
        if not watch:
            _show(instance.status(), instance.stat(), in_json=in_json)
            return
        try:
            _watch(lambda: (instance.status(), instance.stat()), every, in_json=in_json)
        except KeyboardInterrupt:
            return


def _watch(look: Callable[[], tuple[Description, Measurement]], every_s: float, *, in_json: bool) -> None:
    if in_json or not output.is_terminal():
        shown: list[str] = []
        while True:
            description, measured = look()
            lines = [output.record(record) for record in records(description, measured)]
            if in_json or lines != shown:
                _show(description, measured, in_json=in_json)
                sys.stdout.flush()
                shown = lines
            time.sleep(every_s)
    from rich.live import Live

    with Live(console=output.to_stdout(), screen=True, auto_refresh=False) as live:
        while True:
            description, measured = look()
            live.update(page(description, measured, output.to_stdout().width), refresh=True)
            time.sleep(every_s)


def _show(description: Description, measured: Measurement, *, in_json: bool) -> None:
    if in_json:
        import msgspec

        output.as_json({**msgspec.to_builtins(description), "measured": msgspec.to_builtins(measured)})
    elif output.is_terminal():
        output.to_stdout().print(page(description, measured, output.to_stdout().width))
    else:
        for record in records(description, measured):
            output.say(output.record(record))


def page(description: Description, measured: Measurement, width: int) -> RenderableType:
    """All of it, for a terminal of that width."""
    from rich.console import Group
    from rich.text import Text

    state = "ready" if description.ready else "not ready"
    head = Text.assemble((description.name, "bold"), "  ", (state, output.STYLES[state]), "  ", " ".join(description.http_urls))
    parts: list[RenderableType] = [head, Text(_resources(description))]
    if description.endpoints:
        parts += [Text(), output.table_for(ENDPOINTS, [endpoint_row(one) for one in description.endpoints.values()], width)]
    if description.backends:
        parts += [Text(), output.table_for(BACKENDS, [backend_row(one, measured) for one in description.backends.values()], width)]
    parts += [
        Text(f"\ncoming: {tag}, {coming.ready}/{coming.replicas} ready", style="yellow") for tag, coming in description.coming.items()
    ]
    parts += [Text(f"\n{waiting.backend}: {waiting.text}", style="yellow") for waiting in description.waiting]
    if not description.endpoints and not description.backends:
        parts += [Text(), Text("Nothing is served yet: create_backend and create_endpoint, or headgate run, set it up.", style="dim")]
    return Group(*parts)


def records(description: Description, measured: Measurement) -> list[list[str]]:
    """All of it, one record to a line, with its kind first."""
    state = "ready" if description.ready else "not ready"
    return [
        ["instance", description.name, state, *description.http_urls],
        *(["endpoint", *endpoint_row(one)] for one in description.endpoints.values()),
        *(["backend", *backend_row(one, measured)] for one in description.backends.values()),
        *(["coming", tag, f"{coming.ready}/{coming.replicas}"] for tag, coming in description.coming.items()),
        *(["waiting", waiting.backend, str(waiting.replicas), waiting.reason] for waiting in description.waiting),
    ]


def _resources(description: Description) -> str:
    resident = sum(process.rss_bytes for process in description.processes)
    parts = [f"{len(description.processes)} processes"]
    if resident:
        parts.append(f"{output.bytes_text(resident)} resident")
    for name, amount in description.resources.items():
        if amount and name != "memory":
            parts.append(f"{name} {description.free.get(name, 0.0):g} of {amount:g} free")
    return ", ".join(parts)
