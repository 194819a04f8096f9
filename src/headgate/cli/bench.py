"""`headgate bench`: how fast is a URL answered at a rate, and how are the times spread?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from headgate.cli import output
from headgate.cli.headers import parse
from headgate.cli.numbers import Number, WholeNumber
from headgate.cli.where import Where, on_instance

if TYPE_CHECKING:
    from headgate.cli.load import Plan, Run

_SHOW_S: Final = 0.2
_LATE_S: Final = 0.005


@click.command
@on_instance
@click.argument("url")
@click.option("--rate", "-r", type=Number(min=0, min_open=True), default=100.0, show_default=True, metavar="N", help="Requests a second.")
@click.option("--duration", "-t", type=Number(min=0, min_open=True), default=10.0, show_default=True, metavar="SECONDS", help="How long.")
@click.option("--request", "-X", "verb", metavar="METHOD", help="HTTP method; else GET, or POST with a body.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME:VALUE", help="HTTP header. Again for each.")
@click.option("--data", "-d", metavar="DATA", help="HTTP body; @FILE is what is in a file, @- standard input.")
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Then it has failed.",
)
@click.option("--connections", "-c", type=WholeNumber(min=1), default=1000, show_default=True, metavar="N", help="At most at once.")
@click.option("--insecure", "-k", is_flag=True, help="Over HTTPS, don't check the certificate.")
@click.option("--json", "in_json", is_flag=True, help="All figures as JSON, in seconds.")
def bench(
    where: Where,
    url: str,
    rate: float,
    duration: float,
    verb: str | None,
    headers: tuple[str, ...],
    data: str | None,
    timeout: float,
    connections: int,
    insecure: bool,
    in_json: bool,
) -> int:
    """Send requests to URL at a rate, and show how long they took.

    URL is whole, or a route such as /hello of the instance. Requests are sent when they are due, however slow those before them are, and
    each one's time counts from when it was due: also what it waited for a connection, or for this program. So nothing slow is left out
    but what was not answered, which is told apart.

    The exit status is 1 where a request was not answered, or with a status of 400 or more.

    \b
    Examples:
      headgate bench http://127.0.0.1:8000/hello
      headgate bench /digits --rate 2000 --duration 30 -d @digit.json
      headgate bench /hello --json | jq '.latency_s.p99'
    """
    import uvloop

    from headgate.cli import call
    from headgate.cli.load import Plan, Run

    if url.startswith("/"):
        with where.connect() as instance:
            url = f"{where.http_url(instance)}{url}"
    elif not url.startswith(("http://", "https://")):
        raise click.BadParameter(
            f"{url!r} is neither a URL, such as http://127.0.0.1:8000/hello, nor a route such as /hello", param_hint="URL"
        )
    if verb and verb.upper() == "HEAD":
        raise click.BadParameter("an answer to HEAD has no body to measure; GET has the same head", param_hint="--request")
    body = call.read_body(data)
    plan = Plan(
        url=url,
        rate=rate,
        duration_s=duration,
        method=verb or ("GET" if body is None else "POST"),
        headers=tuple(map(parse, headers)),
        body=body,
        timeout_s=timeout,
        max_connections=connections,
        insecure=insecure,
    )
    run, interrupted = Run(), False
    try:
        uvloop.run(_watched(plan, run))
    except KeyboardInterrupt:
        interrupted = True
    if in_json:
        output.as_json(figures(plan, run))
    elif output.is_terminal():
        _show(plan, run)
    else:
        for line in lines(plan, run):
            output.say(output.record(line))
    if interrupted:
        return 130
    return 1 if run.failed or not run.answered else 0


async def _watched(plan: Plan, run: Run) -> None:
    """Drive it, and show on a terminal how far it has come."""
    import asyncio

    from headgate.cli.load import drive

    if not output.to_stderr().is_terminal:
        await drive(plan, run)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    with Progress(*columns, console=output.to_stderr(), transient=True) as progress:
        shown = progress.add_task("", total=plan.total)

        async def show() -> None:
            while True:
                said = f"{run.answered} answered, {run.failed} failed, p99 {output.seconds_text(run.latencies.percentile(99))}"
                progress.update(shown, completed=run.answered + run.errors.total(), description=said)
                await asyncio.sleep(_SHOW_S)

        showing = asyncio.get_running_loop().create_task(show())
        try:
            await drive(plan, run)
        finally:
            showing.cancel()


def figures(plan: Plan, run: Run) -> dict[str, Any]:
    """All of it, for programs."""
    from headgate.cli.latencies import PERCENTILES

    latencies = run.latencies
    return {
        "url": plan.url,
        "rate": plan.rate,
        "elapsed_s": run.elapsed_s,
        "due": run.due,
        "answered": run.answered,
        "failed": run.failed,
        "answered_per_s": run.answered / run.elapsed_s if run.elapsed_s else 0.0,
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "errors": dict(run.errors),
        "connections": run.connections,
        "latency_s": {
            **{f"p{percent:g}": latencies.percentile(percent) for percent in PERCENTILES},
            "mean": latencies.mean_s,
            "max": latencies.max_s,
        }
        if latencies.count
        else {},  # 0 would be quick
        "sent_late_s": {"p99": run.late.percentile(99), "max": run.late.max_s},
        "histogram": [bar._asdict() for bar in latencies.bars()],
    }


def lines(plan: Plan, run: Run) -> list[list[str]]:
    """All of it but the histogram, one figure to a line; times in seconds."""
    found: list[list[str]] = []
    for name, value in figures(plan, run).items():
        if name == "histogram":
            continue
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        found += [[name, *([key] if key else []), f"{each:.6g}" if isinstance(each, float) else str(each)] for key, each in pairs]
    return found


def _show(plan: Plan, run: Run) -> None:
    from headgate.cli.latencies import PERCENTILES

    per_second = run.answered / run.elapsed_s if run.elapsed_s else 0.0
    output.say(plan.url, style="bold")
    statuses = ", ".join(f"{count} with {status}" for status, count in sorted(run.statuses.items()))
    took = output.seconds_text(run.elapsed_s)
    output.fields(
        [
            ("requests", f"{run.due} at {plan.rate:g}/s in {took}, over {run.connections} connection{'' if run.connections == 1 else 's'}"),
            ("answered", f"{run.answered}, {per_second:.4g}/s: {statuses}" if statuses else "none"),
        ]
    )
    for why, count in run.errors.most_common():
        output.say(f"failed: {count}, {why}", style="bold red")
    if run.latencies.count:
        output.say()
        for percent in PERCENTILES:
            output.say(f"{f'p{percent:g}':>6}  {output.seconds_text(run.latencies.percentile(percent))}")
        output.say(f"{'max':>6}  {output.seconds_text(run.latencies.max_s)}\n")
        for line in histogram(run, output.to_stdout().width):
            output.say(line)
        but = "; those that were not answered are not among them" if run.errors else ""
        output.say(f"\nTimes count from when a request was due{but}.", "dim", prose=True)
    if run.late.percentile(99) > _LATE_S:
        late = output.seconds_text(run.late.percentile(99))
        output.say(
            f"This program was late: 1 % of the requests were sent {late} or more after they were due. Lower the rate.", style="yellow"
        )


def histogram(run: Run, width: int) -> list[str]:
    """Bars that fit into that many columns: until when, how many."""
    bars = run.latencies.bars()
    labels = [f"< {output.seconds_text(bar.to_s)}" for bar in bars]
    counts = [str(bar.requests) for bar in bars]
    most = max((bar.requests for bar in bars), default=1)
    label_width, count_width = max(map(len, labels)), max(map(len, counts))
    room = max(width - label_width - count_width - 4, 1)
    full, eighths = "\u2588", " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
    if not _is_unicode():
        full, eighths = "#", " ########"
    drawn = []
    for label, count, bar in zip(labels, counts, bars, strict=True):
        length = bar.requests / most * room
        rest = eighths[min(int((length % 1) * 8) + (1 if 0 < length < 1 / 8 else 0), 8)].strip()
        drawn.append(f"{label:>{label_width}}  {count:>{count_width}}  {full * int(length)}{rest}")
    return drawn


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
