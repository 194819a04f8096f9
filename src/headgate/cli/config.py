"""`headgate config`: which file would declare what runs?"""

from __future__ import annotations

import click

from headgate.cli import output
from headgate.cli.where import Where, on_instance


@click.command
@on_instance
@click.option("--toml", "notation", flag_value="toml", help="As TOML.")
@click.option("--json", "notation", flag_value="json", help="As JSON.")
@click.option("--schema", is_flag=True, help="The JSON schema of such files instead, for editors; needs no instance.")
def config(where: Where, notation: str | None, schema: bool) -> None:
    """Print what runs as a file for `headgate deploy`, which then changes nothing.

    Code that can't be imported is named "by-value:…": only this instance has it, and others refuse the file.

    \b
    Examples:
      headgate config > app.yaml
      headgate config --toml
      headgate config --schema > headgate.schema.json
    """
    if schema:
        from headgate import schema as schemas

        output.say(schemas.text().rstrip("\n"))
        return
    from headgate import formats
    from headgate.core import declared

    with where.connect() as instance:
        running = instance.get_declared()
    output.say(formats.write(declared.to_data(running), notation or formats.YAML).rstrip("\n"))
    for tag, backend in running.backends.items():
        if backend.by_value:
            output.note(f"{tag}: its code or its arguments can't be named by a file, so only this instance has them")
