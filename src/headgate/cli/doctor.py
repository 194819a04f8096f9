"""`headgate doctor`: what is wrong or slow here, and what helps?"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from typing import TYPE_CHECKING

import click

from headgate.cli import output
from headgate.cli.where import Where, on_instance

if TYPE_CHECKING:
    from headgate.cli.findings import Finding, Machine


@click.command
@on_instance
@click.option("--json", "in_json", is_flag=True, help="The findings, as JSON.")
def doctor(where: Where, in_json: bool) -> int:
    """Look for what is wrong or slow with an instance and this machine, and say what helps.

    Of the instance: backends that are unhealthy, with the last traceback, replicas that wait for room or die again and again, requests that
    were refused, expired or failed, and whether strangers can reach it. Of the machine: open files, memory, disk, kernel and Python, and
    what instances that were killed have left. Where no instance of that name runs, that is a problem, and it looks at the machine.

    The exit status is 1 where there is a problem, 0 where there are only warnings, or nothing.

    \b
    Examples:
      headgate doctor
      headgate doctor --json | jq -r '.[] | select(.level == "problem").what'
    """
    from headgate.cli import findings
    from headgate.errors import NotRunningError

    found, aside, state_dir = [], "", ""
    try:
        with where.connect() as instance, output.working("looking"):
            status = instance.status()
            found += findings.of_instance(status, instance.stat())
            state_dir = status.state_dir
            if where.is_afar:
                aside = f"looked at {instance.name} alone: its machine can be looked at only there"
    except NotRunningError as error:
        found.append(findings.missing(where.name, where.address if where.is_afar else None, str(error)))
    if not where.is_afar:
        found += findings.of_machine(look_at_machine(state_dir))
    found.sort(key=lambda finding: finding.level != findings.PROBLEM)
    if in_json:
        output.as_json(found)
    else:
        if aside:
            output.note(aside)
        _show(found)
    return 1 if any(finding.level == findings.PROBLEM for finding in found) else 0


def _show(found: list[Finding]) -> None:
    if not output.is_terminal():
        for finding in found:
            output.say(output.record((finding.level, finding.subject, finding.what, finding.do)))
        return
    for finding in found:
        output.say(f"{finding.level}: {finding.subject}", output.STYLES[finding.level])
        output.say(f"  {finding.what}", prose="\n" not in finding.what)
        output.say(f"  -> {finding.do}\n", prose=True)
    if not found:
        output.say("Nothing is wrong here.", output.STYLES["ok"])


def look_at_machine(state_dir: str) -> Machine:
    """What there is to know of this machine, and of the disk on which an instance keeps its state."""
    from headgate.cli.findings import Machine
    from headgate.engines.local import folders

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = _memory()
    disk = shutil.disk_usage(state_dir) if os.path.isdir(state_dir) else None
    release = os.uname().release.split(".")
    return Machine(
        open_files_limit=None if soft == resource.RLIM_INFINITY else soft,
        memory_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        state_dir=state_dir,
        disk_bytes=disk.total if disk is not None else None,
        disk_free_bytes=disk.free if disk is not None else None,
        python=sys.version_info[:2],
        kernel=(int(release[0]), int(release[1])) if len(release) > 1 and release[0].isdecimal() and release[1].isdecimal() else None,
        stale_folders=tuple(folders.stale()),
    )


def _memory() -> dict[str, int]:
    """In bytes, by the names of /proc/meminfo; empty where that can't be read."""
    found = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return {}
    return found
