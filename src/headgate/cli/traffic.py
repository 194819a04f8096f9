"""`headgate traffic`: which backends answer an endpoint, and how much each?"""

from __future__ import annotations

from typing import Final

import click

from headgate.cli import completing, output
from headgate.cli.output import Column
from headgate.cli.where import Where, known, on_instance

COLUMNS: Final = (Column("backend"), Column("weight", right=True), Column("state"))


def parse_weights(given: tuple[str, ...]) -> dict[str, float]:
    """`v1=0.9`, or `v1=90%`: a tag may have `=` in it. Raises `click.BadParameter`."""
    weights: dict[str, float] = {}
    for each in given:
        tag, equals, text = each.rpartition("=")
        if not equals or not tag:
            raise click.BadParameter(f"{each!r} is no TAG=WEIGHT, such as v1=0.9 or v1=90%", param_hint="WEIGHTS")
        if tag in weights:
            raise click.BadParameter(f"{tag!r} is given twice", param_hint="WEIGHTS")
        try:
            weights[tag] = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise click.BadParameter(f"{text!r} in {each!r} is no number", param_hint="WEIGHTS") from None
    return weights


def _check_percents(given: tuple[str, ...], weights: dict[str, float]) -> None:
    """Where all were given in percent, what is wrong with their sum is said so, too."""
    from headgate.core.traffic import TOLERANCE

    total = sum(weights.values())
    if all(each.endswith("%") for each in given) and not abs(total - 1) <= TOLERANCE:
        raise click.BadParameter(f"they are {100 * total:g}% together, and must be 100%", param_hint="WEIGHTS")


@click.command
@on_instance
@click.argument("endpoint", shell_complete=completing.endpoints)
@click.argument("weights", nargs=-1, metavar="[TAG=WEIGHT]...", shell_complete=completing.weights)
def traffic(where: Where, endpoint: str, weights: tuple[str, ...]) -> None:
    """Split an endpoint's requests over backends, or show how they are split.

    Weights sum up to 1, or to 100%. When the command ends they are in force in every ingress. Shadows stay.

    \b
    Examples:
      headgate traffic digits
      headgate traffic digits digits:v1=0.9 digits:v2=0.1
      headgate traffic digits digits:v2=100%
    """
    wanted = parse_weights(weights)
    with where.connect() as instance:
        status = instance.status()
        known("endpoint", endpoint, status.endpoints, "endpoints")
        if wanted:
            for tag in wanted:
                known("backend", tag, status.backends, "backends")
            _check_percents(weights, wanted)
            with output.working(f"setting the traffic of {endpoint}"):
                instance.set_traffic(endpoint, wanted)
            status = instance.status()
        found = status.endpoints[endpoint].traffic
    rows = [[tag, f"{weight:g}", status.backends[tag].state] for tag, weight in found.items()]
    output.table(COLUMNS, rows, empty=f"{endpoint} has no traffic: its requests are answered with 503.")
