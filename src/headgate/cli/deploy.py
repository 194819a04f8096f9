"""`headgate deploy`: what would a file change, should it, and how far is it?"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from headgate.cli import asking, completing, output
from headgate.cli.where import Where, nearest_file, on_instance

if TYPE_CHECKING:
    from headgate.core.plan import Plan
    from headgate.declaring import Source
    from headgate.serve import Instance

CHANGES: Final = 3
"""The exit status of --dry-run where there is something to do."""
_LOOK_S: Final = 0.1
_TAKEN_BACK_WITHIN_S: Final = 10.0
_STYLES: Final = {"+": "green", "-": "red", "~": "yellow"}


@click.command
@on_instance
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option("--dry-run", is_flag=True, help=f"Only show what would change: exit status 0 if nothing would, {CHANGES} if something would.")
@click.option(
    "--update",
    "-u",
    multiple=True,
    metavar="BACKEND",
    shell_complete=completing.backends,
    help="Replace its code though it looks the same.",
)
@click.option("--start", is_flag=True, help="Where no such instance runs, start one that outlives this command.")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
def deploy(where: Where, file: str, yes: bool, dry_run: bool, update: tuple[str, ...], start: bool) -> int:
    """Have an instance run what FILE declares, and nothing else: all at once, or nothing.

    Shows what will change, and asks. Then new replicas start beside what runs; when all are ready, what FILE declares counts, and what is
    no longer wanted finishes what it has, and ends. Where something fails, or Ctrl-C comes before that, everything is as it was.

    FILE is YAML, TOML or JSON, by its name; - is YAML from standard input. Its code is imported from its own folder first.

    \b
    Examples:
      headgate deploy app.yaml
      headgate deploy --dry-run app.yaml
      headgate deploy --yes --start app.yaml
      headgate deploy --update digits:v1 app.yaml
      headgate config | headgate deploy --yes -
    """
    if not (yes or dry_run or (file != "-" and asking.can_ask())):
        raise click.UsageError("there is no terminal to ask on: give --yes to do it, or --dry-run to see it")
    if start and dry_run:
        raise click.UsageError("--dry-run starts nothing; leave out --start")
    source = _load(file)
    with _instance(where, source, start=start) as instance:
        with output.working("comparing"), _warnings_as_notes():
            plan = instance._plan(source, update)
        if not plan.steps:
            output.say(f"{instance.name} runs what is declared: nothing to do")
            return 0
        _show(plan)
        if dry_run:
            return CHANGES
        if not yes and not asking.is_told_to():
            return 1
        return _do(instance, plan)


def _load(file: str) -> Source:
    from headgate import declaring, formats

    if file == "-":
        return declaring.load_text(sys.stdin.buffer.read(), "standard input", formats.YAML, os.getcwd())
    if not os.path.exists(file):
        raise click.BadParameter(f"there is no file {file!r}{nearest_file(file, *formats.SUFFIXES)}", param_hint="FILE")
    return declaring.load(file)


@contextlib.contextmanager
def _instance(where: Where, source: Source, *, start: bool) -> Iterator[Instance]:
    """The one that runs; or one that is started, and ends again where nothing comes of it."""
    from headgate.cli import starting
    from headgate.errors import NotRunningError

    try:
        instance = where.connect()
    except NotRunningError as error:
        if not start:
            raise click.ClickException(f"{error.message}; `headgate start` starts it, or deploy --start") from None
    else:
        with instance:
            yield instance
        return
    with starting.to_stay(where, source.http()) as instance:
        if not instance.started:  # others were faster, and it is theirs
            with instance:
                yield instance
            return
        yield instance
        is_wanted = source.declared.backends or source.declared.endpoints
        if is_wanted and not instance.list_backends() and not instance.list_endpoints():
            instance.shutdown()
            return
    starting.say_urls(where, instance)


def _show(plan: Plan) -> None:
    from headgate.core.plan import lines, summary

    for line in lines(plan):
        output.say(f"{'    ' * line.depth}{line.sign} {line.text}", _STYLES[line.sign])
    output.say(summary(plan))


def _do(instance: Instance, plan: Plan) -> int:
    from headgate.cli.main import complain
    from headgate.errors import AdminTokenError, HeadgateError, NotRunningError

    try:
        with _progress(instance, plan):
            instance.deploy(plan)
    except (AdminTokenError, NotRunningError):
        raise  # whether it was done isn't known
    except HeadgateError as error:
        complain(str(error).rstrip())
        output.note("nothing has changed")
        return 1
    except KeyboardInterrupt:
        output.note(_what_became_of_it(instance, plan))
        raise
    output.say(f"{instance.name} runs what is declared")
    return 0


def _what_became_of_it(instance: Instance, plan: Plan) -> str:
    """An interruption takes back what hasn't taken effect, which may take a moment: the controller knew of it before it answers here."""
    from headgate.errors import HeadgateError

    deadline = time.monotonic() + _TAKEN_BACK_WITHIN_S
    try:
        while True:
            status = instance.status()
            if status.state_id != plan.verb.based_on:
                return "interrupted when something had changed already: headgate status shows what runs"
            if not any(backend.tag in status.coming for backend in plan.verb.backends):
                return "interrupted: nothing has changed"
            if time.monotonic() > deadline:
                return "interrupted: nothing has changed, but replicas that were starting are yet to end"
            time.sleep(_LOOK_S)
    except HeadgateError:
        return (
            "interrupted while the controller is out of reach: if the next one still finds replicas that were started for this, it goes on "
            "with it, else nothing changes; headgate status shows it"
        )


@contextlib.contextmanager
def _progress(instance: Instance, plan: Plan) -> Iterator[None]:
    """Show on a terminal how many replicas of each backend are ready, in a thread: Ctrl-C is for the verb."""
    console = output.to_stderr()
    if not console.is_terminal:
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    over = threading.Event()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ready"),
        console=console,
        transient=True,
    ) as shown:
        bars = {tag: shown.add_task(tag, total=count) for tag, count in plan.starts.items()}

        def look() -> None:
            from headgate.errors import HeadgateError

            while not over.wait(_LOOK_S):
                try:
                    told = instance.status()
                except HeadgateError:  # what that means is for the verb to say
                    return
                is_done = told.state_id != plan.verb.based_on  # and what goes is waited for
                for tag, bar in bars.items():
                    if is_done or tag in told.coming:
                        shown.update(bar, completed=plan.starts[tag] if is_done else told.coming[tag].ready)

        thread = threading.Thread(target=look, name="headgate-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """What user code is warned of, in a line for people."""

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        for warning in caught:
            output.note(f"warning: {warning.message}")
