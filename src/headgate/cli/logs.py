"""`headgate logs`: what have the processes of an instance said, in the order of time?"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from headgate.cli import completing, output
from headgate.cli.where import Where, on_instance

if TYPE_CHECKING:
    from headgate.logs.entry import Entry

_EVERY_S: Final = 0.2
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STYLES: Final = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


@click.command
@on_instance
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C or the end of the instance.")
@click.option(
    "--lines", "-l", type=click.IntRange(min=0), default=100, show_default=True, help="The latest so many of what there is; 0: all."
)
@click.option("--backend", "-b", metavar="TAG", shell_complete=completing.backends, help="Of this backend alone.")
@click.option("--request", "-r", metavar="ID", help="Of this request alone, as X-Request-Id names it.")
@click.option("--level", type=click.Choice(_LEVELS, case_sensitive=False), help="Logged, and at least so bad.")
@click.option("--json", "in_json", is_flag=True, help="A line of JSON for each.")
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False), help="A folder of logs, of an instance that has ended.")
def logs(
    where: Where,
    follow: bool,
    lines: int,
    backend: str | None,
    request: str | None,
    level: str | None,
    in_json: bool,
    folder: str | None,
) -> None:
    """Show what the processes of an instance have printed and logged, merged by time.

    An instance that isn't detached writes to the terminal of the program that has started it, unless that gave a log_dir. On a cluster
    Ray keeps what actors say.

    \b
    Examples:
      headgate logs --follow
      headgate logs --backend greeter:v2 --level warning
      headgate logs --request 6f926ab4484be395-1
      headgate logs --lines 0 --json | jq -r .text
      headgate logs --dir state/logs
    """
    from headgate.logs.reading import Folder

    has_ended: Callable[[], bool] = lambda: True  # noqa: E731  # nobody writes to a folder that was named
    if folder is None:
        folder, has_ended = _of_running(where)

    def wanted(entry: Entry) -> bool:
        return (
            (backend is None or entry.backend == backend)
            and (request is None or request in entry.request_ids)
            and (level is None or (entry.level in _LEVELS and _LEVELS.index(entry.level) >= _LEVELS.index(level.upper())))
        )

    files = Folder(folder)
    try:
        for entry in deque((entry for entry in files.read() if wanted(entry)), maxlen=lines or None):
            _show(entry, in_json=in_json)
        while follow:
            sys.stdout.flush()
            ended = has_ended()
            for entry in files.read():
                if wanted(entry):
                    _show(entry, in_json=in_json)
            if ended:
                return
            time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return
    except FileNotFoundError:  # the folder went with its instance
        return
    finally:
        files.close()


def _of_running(where: Where) -> tuple[str, Callable[[], bool]]:
    """The folder of a running instance, and whether that has ended meanwhile."""
    from headgate import serve
    from headgate.errors import NotRunningError

    with where.connect() as instance:
        folder = instance.status().log_dir
    if not folder:
        kept = (
            "Ray keeps what its actors say, on the node of each: worker-*.out in /tmp/ray/session_latest/logs, or `ray logs cluster`"
            if where.engine == "ray"
            else "what it says is on the terminal of the program that has started it; start it with a log_dir, or detached as "
            "`headgate start` does, to have files"
        )
        raise NotRunningError(f"instance {where.name!r} keeps no log: {kept}")
    return folder, lambda: where.name not in serve.list_instances()


def _show(entry: Entry, *, in_json: bool) -> None:
    from headgate.logs.entry import as_json, as_text

    if in_json:
        output.say(as_json(entry).decode().rstrip("\n"))
        return
    for line in as_text(entry, time=True).split("\n"):
        output.say(line, style=_STYLES.get(entry.level, ""))
