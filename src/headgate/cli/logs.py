"""`headgate logs`: what have the processes of an instance said, in the order of time?"""

from __future__ import annotations

import contextlib
import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

import click

from headgate.cli import completing, output
from headgate.cli.numbers import WholeNumber
from headgate.cli.where import Where, on_instance

if TYPE_CHECKING:
    from headgate.logs.entry import Entry
    from headgate.logs.reading import Wanted
    from headgate.serve import Instance

_EVERY_S: Final = 0.2
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STYLES: Final = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


@click.command
@on_instance
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C or the end of the instance.")
@click.option(
    "--lines",
    "-l",
    type=WholeNumber(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="The latest so many of what there is; 0: all.",
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
    from headgate.logs.reading import Wanted

    wanted = Wanted(backend, request, level.upper() if level is not None else None)
    with contextlib.closing(_of_running(where, wanted) if folder is None else _Near(folder, wanted)) as source:
        try:
            for entry in in_order(source, lines) if follow else source.latest(lines):
                _show(entry, in_json=in_json)
        except KeyboardInterrupt:
            return
        except FileNotFoundError:  # the folder went with its instance
            return


class Source(Protocol):
    """Where entries come from."""

    def has_ended(self) -> bool:
        """Whether nobody writes any more; what was written before is still to be asked for."""

    def latest(self, lines: int) -> Iterable[Entry]:
        """The latest so many of what there is, by time; 0: all."""

    def following(self) -> Iterable[Entry]:
        """What has come since, by time."""


def in_order(source: Source, lines: int, every_s: float = _EVERY_S) -> Iterator[Entry]:
    """The latest so many, then what comes, by time, until whoever writes it has ended.

    While the files are read one after another, others go on writing, and what is found next time may be older than what was found now.
    So what has come is held until the next look, which says what belongs before it.
    """
    held = list(source.latest(lines))
    try:
        while True:
            ended = source.has_ended()
            come = list(source.following())
            until = held[-1].time if held else 0.0
            merged = list(heapq.merge(held, come, key=_time))
            held = []  # whoever leaves at one of these has seen it
            for number, entry in enumerate(merged):
                if entry.time > until and not ended:
                    held = merged[number:]
                    break
                yield entry
            if ended:
                return
            sys.stdout.flush()
            time.sleep(every_s)
    except (KeyboardInterrupt, FileNotFoundError):  # the folder goes with its instance
        yield from held
        raise


def _time(entry: Entry) -> float:
    return entry.time


class _Near:
    """The log in a folder of this machine."""

    def __init__(self, folder: str, wanted: Wanted, runs: Callable[[], bool] = lambda: False) -> None:
        from headgate.logs.reading import Folder

        self._files = Folder(folder)
        self._wanted = wanted
        self._runs = runs  # whoever writes to it; nobody does where a folder was named
        self.close = self._files.close

    def has_ended(self) -> bool:
        return not self._runs()

    def latest(self, lines: int) -> Iterable[Entry]:
        return deque(self.following(), maxlen=lines or None)

    def following(self) -> Iterable[Entry]:
        return filter(self._wanted.has, self._files.read())


class _Afar:
    """The log of an instance on another machine, which its controller reads. `close` is given."""

    def __init__(self, instance: Instance, wanted: Wanted, close: Callable[[], None]) -> None:
        self._instance = instance
        self._wanted = wanted
        self._marks: dict[str, tuple[int, int]] | None = None
        self._ended = False
        self.close = close

    def has_ended(self) -> bool:
        return self._ended

    def latest(self, lines: int) -> Iterable[Entry]:
        return self._ask(lines)

    def following(self) -> Iterable[Entry]:
        from headgate.errors import NotRunningError

        try:
            return self._ask()
        except NotRunningError:
            self._ended = True
            return ()

    def _ask(self, lines: int = 0) -> list[Entry]:
        import msgspec

        from headgate.core.messages import ReadLog
        from headgate.logs.reading import Part

        asked = ReadLog(lines, self._marks, self._wanted.backend, self._wanted.request, self._wanted.level)
        part = msgspec.msgpack.decode(self._instance._verb(asked), type=Part)
        self._marks = part.marks
        return part.entries


def _of_running(where: Where, wanted: Wanted) -> _Near | _Afar:
    from headgate import serve
    from headgate.errors import NotRunningError

    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(where.connect())
        folder = instance.status().log_dir
        if not folder:
            kept = (
                "Ray keeps what its actors say, on the node of each: worker-*.out in /tmp/ray/session_latest/logs, or `ray logs cluster`"
                if where.engine == "ray"
                else "what it says is on the terminal of the program that has started it; to have files, start it with log_dir, by "
                "`headgate run --log-dir FOLDER`, or detached as `headgate start` does"
            )
            raise NotRunningError(f"instance {instance.name!r} keeps no log: {kept}")
        if where.is_afar:
            return _Afar(instance, wanted, stack.pop_all().close)
        return _Near(folder, wanted, lambda: where.name in serve.list_instances())


def _show(entry: Entry, *, in_json: bool) -> None:
    from headgate.logs.entry import as_json, as_text

    if in_json:
        output.say(as_json(entry).decode().rstrip("\n"))
        return
    for line in as_text(entry, time=True).split("\n"):
        output.say(line, style=_STYLES.get(entry.level, ""))
