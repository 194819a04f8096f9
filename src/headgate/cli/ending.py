"""`headgate shutdown` and `headgate stop`: how does an instance end?

`shutdown` is the verb, and fails where nothing runs; `stop` is what undoes `start`: it is content where nothing runs.
"""

from __future__ import annotations

import contextlib

import click

from headgate.cli import output
from headgate.cli.where import Where, on_instance


@click.command
@on_instance
def shutdown(where: Where) -> None:
    """Shut an instance down: refuse new work, finish what was admitted, end everything.

    Returns when no process, socket or temporary file of it remains. A state_dir stays.

    \b
    Examples:
      headgate shutdown
      headgate shutdown --name staging
    """
    _shut_down(where)


@click.command
@on_instance
@click.option("--all", "everything", is_flag=True, help="Every instance of this user, or of the cluster.")
def stop(where: Where, everything: bool) -> None:
    """Shut down what `headgate start` has started. Where nothing runs, that is fine, too.

    \b
    Examples:
      headgate stop
      headgate stop --name staging
      headgate stop --all
    """
    from headgate import serve
    from headgate.errors import NotRunningError

    if where.is_afar:
        if everything:
            raise click.UsageError("--all is for those of this machine, or of a cluster; an admin address is one instance's")
        _shut_down(where)
        return
    running = serve.list_instances(engine=where.engine, address=where.address)
    wanted = running if everything else [name for name in running if name == where.name]
    for name in wanted:
        with contextlib.suppress(NotRunningError):  # others were faster
            _shut_down(where._replace(name=name))
    if not wanted:
        output.say("no instance is running" if everything else f"no instance {where.name!r} is running")


def _shut_down(where: Where) -> None:
    with where.connect() as instance, output.working(f"shutting down {instance.name}, which finishes what it has admitted"):
        unknown = instance._shut_down()
    if unknown:
        raise click.ClickException(unknown)
    output.say(f"{instance.name} is shut down")
