"""Which commands does `headgate` have, and how does each of them end?

A command is a module of this package, which is imported when the command is looked at; what it needs of Headgate or of rich, it
imports when it runs. So `headgate --help` costs little.

Exit status: 0 it worked, 1 it failed, 2 it was called wrongly, 130 Ctrl-C ended it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

COMMANDS: Final = {
    "Serve": {
        "run": "headgate.cli.starting:run",
        "start": "headgate.cli.starting:start",
        "stop": "headgate.cli.ending:stop",
    },
    "Look": {
        "status": "headgate.cli.status:status",
        "backends": "headgate.cli.backends:backends",
        "endpoints": "headgate.cli.endpoints:endpoints",
        "logs": "headgate.cli.logs:logs",
        "doctor": "headgate.cli.doctor:doctor",
    },
    "Use": {
        "call": "headgate.cli.call:call",
        "bench": "headgate.cli.bench:bench",
    },
    "Change": {
        "deploy": "headgate.cli.deploy:deploy",
        "config": "headgate.cli.config:config",
        "traffic": "headgate.cli.traffic:traffic",
        "scale": "headgate.cli.scale:scale",
        "delete": "headgate.cli.delete:delete",
        "shutdown": "headgate.cli.ending:shutdown",
    },
    "Other": {
        "completion": "headgate.cli.completion:completion",
    },
}
"""Every command by its heading in `headgate --help`, and where it is."""

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

_WHOLE: Final = 200
"""No first sentence of a command is longer: it is broken into lines rather than cut."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are looked at."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, as they stand in the table."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        for commands in COMMANDS.values():
            if cmd_name in commands:
                module, _, attribute = commands[cmd_name].partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but where there is no such command the nearest name is said."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from headgate.config import suggest

            raise click.UsageError(f"there is no command {args[0]!r}{suggest(args[0], self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All commands under their headings."""
        width = max(map(len, self.list_commands(ctx)))
        for heading, names in COMMANDS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name.ljust(width), command.get_short_help_str(_WHOLE)) for name, command in commands if command is not None]
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, invoke_without_command=True)
@click.version_option(package_name="headgate", message="headgate %(version)s")
@click.pass_context
def headgate(ctx: click.Context) -> None:
    """Serve Python functions and models over HTTP and to Python callers.

    What a command does, with examples: headgate COMMAND --help.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says; returns the exit status. Errors are said on standard error."""
    try:
        if "_HEADGATE_COMPLETE" in os.environ:  # a shell asks what it may complete
            from headgate.cli import completion

            completion.register()
        status = headgate.main(list(arguments), prog_name="headgate", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "headgate"
        complain(f"{error.format_message().removesuffix('.')}\nTry '{where} --help'.")
        return USAGE
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # who read the output, such as `head`, has had enough
        sys.stdout = None  # nothing is left to flush at the exit, which would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except Exception as error:
        from headgate.errors import HeadgateError

        if not isinstance(error, HeadgateError):
            raise
        complain(str(error))
        traceback = getattr(error, "remote_traceback", "")
        if traceback and traceback not in str(error):
            from headgate.cli.output import note

            note(traceback.rstrip())
        return FAILED


def complain(text: str) -> None:
    """Say what is wrong, on standard error: the first line after `error:`, in red on a terminal."""
    from headgate.cli.output import to_stderr

    console = to_stderr()
    console.print("error: ", style="bold red", end="")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> NoReturn:
    """`headgate`, and `python -m headgate`."""
    sys.exit(run(sys.argv[1:]))
