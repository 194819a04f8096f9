"""`headgate backends`: which backends are there, and what is wrong with one?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from headgate.cli import completing, output
from headgate.cli.output import Column
from headgate.cli.rows import BACKENDS, backend_row
from headgate.cli.where import Where, known, on_instance

if TYPE_CHECKING:
    from headgate.core.reports import BackendInfo, Measurement

REPLICAS: Final = (
    Column("replica"),
    Column("state"),
    Column("since", right=True, rank=1),
    Column("pid", right=True),
    Column("gpus", rank=2, may_be_empty=True),
)


@click.command
@on_instance
@click.argument("tag", required=False, shell_complete=completing.backends)
@click.option("--json", "in_json", is_flag=True, help="All that is known, as JSON.")
def backends(where: Where, tag: str | None, in_json: bool) -> None:
    """List backends, or show one with its replicas.

    Of one backend it shows what was configured, too, and why it isn't ready, with the last traceback.

    In a pipe each line is a record, its fields separated by tabs: of a list backends, of one backend its replicas.

    \b
    Examples:
      headgate backends
      headgate backends digits:v2
      headgate backends --json | jq -r '.[] | select(.state != "ready").tag'
    """
    with where.connect() as instance:
        found, measured = instance.list_backends(), instance.stat()
    if tag is None:
        if in_json:
            output.as_json(found)
        else:
            output.table(BACKENDS, [backend_row(backend, measured) for backend in found.values()], empty="There is no backend yet.")
        return
    backend = known("backend", tag, found, "backends")
    if in_json:
        output.as_json(backend)
    else:
        _show(backend, measured)


def _show(backend: BackendInfo, measured: Measurement) -> None:
    if output.is_terminal():
        output.fields([(column.name, value) for column, value in zip(BACKENDS[:-1], backend_row(backend, measured), strict=False)])
        given = [*_changed("config", backend.config), *_changed("options", backend.options)]
        output.fields(given)
        output.say()
    rows = [
        [replica.id, replica.state, output.seconds_text(replica.since_s), str(replica.pid or "-"), ",".join(replica.gpus)]
        for replica in backend.replicas
    ]
    output.table(REPLICAS, rows, empty="It has no replica.")
    if backend.reason and output.is_terminal():
        output.say(f"\n{backend.reason}", style="yellow")


def _changed(what: str, record: object) -> list[tuple[str, str]]:
    """The fields in which a record isn't as by default."""
    default = type(record)()
    names: tuple[str, ...] = getattr(record, "__struct_fields__", ())
    return [(f"{what} {name}", repr(getattr(record, name))) for name in names if getattr(record, name) != getattr(default, name)]
