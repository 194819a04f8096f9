"""`headgate delete`: which backend or endpoint goes, and should it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from headgate.cli import asking, completing, output
from headgate.cli.where import Where, known, on_instance

if TYPE_CHECKING:
    from headgate.core.reports import Description

BACKEND: Final = "backend"
ENDPOINT: Final = "endpoint"


@click.command
@on_instance
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.argument("what", type=click.Choice([BACKEND, ENDPOINT]))
@click.argument("called", metavar="NAME", shell_complete=completing.backends_or_endpoints)
def delete(where: Where, what: str, called: str, yes: bool) -> int:
    """Delete a backend that nobody uses, or an endpoint.

    Shows what goes, and asks. Returns once that has finished what it had. A backend to which an endpoint sends requests, or copies of
    them, is refused: `headgate traffic` gives them to another one first. An endpoint is answered with 404 from then on; its backends stay.

    \b
    Examples:
      headgate delete backend digits:v1
      headgate delete endpoint digits
      headgate delete --yes backend digits:v1
    """
    if not (yes or asking.can_ask()):
        raise click.UsageError("there is no terminal to ask on: give --yes to do it")
    with where.connect() as instance:
        goes = _goes(what, called, instance.status())
        if not yes:
            output.say(f"- {goes}", "red")
            if not asking.is_told_to():
                return 1
        with output.working(f"{what} {called} finishes what it has"):
            if what == BACKEND:
                instance.delete_backend(called)
            else:
                instance.delete_endpoint(called)
    output.say(f"{what} {called} is deleted")
    return 0


def _goes(what: str, called: str, status: Description) -> str:
    """What goes. Raises what the verb would, so that nobody is asked in vain, with the command that helps."""
    from headgate.cli.rows import weights_text
    from headgate.errors import InUseError

    if what == ENDPOINT:
        endpoint = known(ENDPOINT, called, status.endpoints, "endpoints")
        return f"endpoint {called} ({endpoint.route or 'by handle'}, {weights_text(endpoint.traffic) or 'no traffic'})"
    replicas = len(known(BACKEND, called, status.backends, "backends").replicas)
    for endpoint in status.endpoints.values():
        if endpoint.traffic.get(called, 0) > 0:
            raise InUseError(
                f"backend {called!r} is used by endpoint {endpoint.name!r}, which sends it requests; "
                f"`headgate traffic {endpoint.name} OTHER=100%` gives them to another one"
            )
        if called in endpoint.shadows:
            raise InUseError(
                f"backend {called!r} is used by endpoint {endpoint.name!r}, which sends it copies of requests; "
                f"`serve.shadow_traffic({endpoint.name!r}, {called!r}, 0)` ends that"
            )
    return f"backend {called} ({replicas} replica{'' if replicas == 1 else 's'})"
