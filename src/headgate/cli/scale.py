"""`headgate scale`: how many replicas does a backend have?"""

from __future__ import annotations

import click

from headgate.cli import completing, output
from headgate.cli.numbers import WholeNumber
from headgate.cli.where import Where, known, on_instance


@click.command
@on_instance
@click.argument("backend", shell_complete=completing.backends)
@click.argument("replicas", type=WholeNumber(min=1))
def scale(where: Where, backend: str, replicas: int) -> None:
    """Change how many replicas a backend has.

    Returns once the new ones are ready, or those that go have finished what they had. Where new ones fail to start, or don't fit, the
    number stays.

    \b
    Examples:
      headgate scale digits:v1 4
    """
    with where.connect() as instance:
        before = known("backend", backend, instance.list_backends(), "backends").config.num_replicas
        with output.working(f"scaling {backend} from {before} to {replicas}"):
            instance.update_backend_config(backend, {"num_replicas": replicas})
    output.say(f"{backend}: {before} -> {replicas} replicas" if before != replicas else f"{backend} has {replicas} replicas already")
