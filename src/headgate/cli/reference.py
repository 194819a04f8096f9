"""What does `docs/reference/command-line.md` say? All commands with their options, from the commands themselves.

`python -m headgate.cli.reference > docs/reference/command-line.md` writes it anew; a test compares them.
"""

from __future__ import annotations

import inspect
import sys
from typing import Final

import click

from headgate.cli.main import COMMANDS, headgate
from headgate.cli.where import FROM_AFAR, OPTIONS

_HEAD: Final = """# The command line: `headgate`, command by command

Made from the commands by `python -m headgate.cli.reference`; `headgate COMMAND --help` says the same. How they are used day by day is in
[the guide](../how-to/command-line.md).

## Of all commands

- **Exit status:** 0 it worked, 1 it failed, 2 it was called wrongly, 130 Ctrl-C ended it; `deploy --dry-run` has a 3 of its own.
- **Output:** what was asked for goes to standard output, all else to standard error. On a terminal it is aligned, as wide as that is,
  and coloured unless `NO_COLOR` is set. In a pipe each line is a record, its fields separated by tabs, without a heading and with
  nothing left out; `--json` gives everything.
- **Progress** is shown where standard error is a terminal.
- **What runs:** only `run`, `start` and `deploy --start` start an instance. Where no instance of the name runs, the others fail and name
  those that do.
- **Wrong names,** of commands, options, backends and endpoints, are answered with the nearest right one.
- **Completion** of commands, options, and the names of what runs: `headgate completion --help`.
- `python -m headgate` is the same command.

These options, of every command that acts on an instance, say which one; `run` and `start` have the first three. How to act on one that runs
on another machine: [from afar](../how-to/operate-from-afar.md).

"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD, _table(_instance_options())]
    context = click.Context(headgate, info_name="headgate")
    for heading, names in COMMANDS.items():
        parts.append(f"\n## {heading}\n")
        for name in names:
            command = headgate.get_command(context, name)
            assert command is not None
            parts.append(_section(command, click.Context(command, info_name=name, parent=context)))
    return "".join(parts)


def _section(command: click.Command, context: click.Context) -> str:
    usage = command.get_usage(context).removeprefix("Usage: ")
    said, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    common = {option.name for option in _instance_options()}
    own = [
        option
        for option in command.get_params(context)
        if isinstance(option, click.Option) and option.name not in common and "--help" not in option.opts
    ]
    lines = [line.strip() for line in examples.splitlines()[1:]]
    shown = "".join(f"$ {line}\n" for line in lines)
    parts = [f"\n### `{' '.join(usage.split())}`\n\n{said.strip()}\n"]
    if shown:
        parts.append(f"\n<!-- not run: each is understood by its command, and names what isn't there -->\n\n```console\n{shown}```\n")
    if own:
        parts.append(f"\n{_table(own)}")
    return "".join(parts)


def _instance_options() -> list[click.Option]:
    @click.command
    def any_command() -> None:
        """Has them."""

    for option in (*OPTIONS, *FROM_AFAR):
        any_command = option(any_command)
    return [parameter for parameter in any_command.params if isinstance(parameter, click.Option)]


def _table(options: list[click.Option]) -> str:
    rows = "".join(f"| {_flags(option)} | {_said(option)} |\n" for option in options)
    return f"| option | meaning |\n|---|---|\n{rows}"


def _flags(option: click.Option) -> str:
    value = ""
    if not option.is_flag:
        value = " " + (option.metavar or "|".join(getattr(option.type, "choices", ())) or option.type.name.upper().partition(" ")[0])
    return ", ".join(f"`{flag}{value}`".replace("|", "\\|") for flag in option.opts)


def _said(option: click.Option) -> str:
    default = option.show_default if isinstance(option.show_default, str) else option.default
    default = f" Default: {default}." if option.show_default and not option.is_flag else ""
    return f"{(option.help or '').replace('|', chr(92) + '|')}{default}"


if __name__ == "__main__":
    sys.stdout.write(text())
