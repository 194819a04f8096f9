"""`headgate endpoints`: which endpoints are there, where, and who answers them?"""

from __future__ import annotations

import click

from headgate.cli import completing, output
from headgate.cli.rows import ENDPOINTS, endpoint_row
from headgate.cli.where import Where, known, on_instance


@click.command
@on_instance
@click.argument("endpoint", required=False, shell_complete=completing.endpoints)
@click.option("--json", "in_json", is_flag=True, help="All that is known, as JSON.")
def endpoints(where: Where, endpoint: str | None, in_json: bool) -> None:
    """List endpoints with their routes and traffic, or show one, with its URLs.

    In a pipe each line is a record, its fields separated by tabs.

    \b
    Examples:
      headgate endpoints
      headgate endpoints digits
      headgate endpoints | cut -f1
    """
    with where.connect() as instance:
        found, urls = instance.list_endpoints(), instance.http_urls
    if endpoint is None:
        if in_json:
            output.as_json(found)
        else:
            output.table(ENDPOINTS, [endpoint_row(one) for one in found.values()], empty="There is no endpoint yet.")
        return
    one = known("endpoint", endpoint, found, "endpoints")
    if in_json:
        output.as_json(one)
    elif output.is_terminal():
        output.fields([(column.name, value) for column, value in zip(ENDPOINTS, endpoint_row(one), strict=True)])
        output.fields([("url", f"{url}{one.route}") for url in urls if one.route])
    else:
        output.say(output.record(endpoint_row(one)))
