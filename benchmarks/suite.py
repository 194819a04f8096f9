"""How fast is Headgate, beside its peers, on this machine? Picks works and contenders, measures them, writes the report.

Run by `python3 dev.py bench`; needs `wrk`. What a contender needs is installed when it first takes part.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import environments, floors, machine, report
from benchmarks.contenders import CONTENDERS, QUICK
from benchmarks.session import Session

# In the order in which they are measured. Each module has NUMBER, TITLE and `measure(session)`.
WORKS = {
    1: "noop",
    2: "batches",
    3: "echo",
    4: "handles",
    5: "saturation",
    6: "dripped",
    7: "overload",
    8: "streaming",
    9: "starting",
    10: "size",
    11: "late_binding",
    12: "models",
}
QUICK_WORKS = (1, 2, 3, 6)
FORMAT = 2  # of results.json
MODELS = 12
PUBLISHED = environments.ROOT / "docs" / "benchmarks"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASIDE = environments.FOLDER / "last"  # what is quick or leaves contenders out is not to be published


def main() -> int:
    """Measure; status 1 where a work failed or, with `--check`, a floor is not met."""
    options = _options()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: `apt-get install wrk`")
    for number in _ENDING:
        signal.signal(number, _leave)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = _results_so_far(file, machine.describe())
    for name in sorted({CONTENDERS[contender].environment for contender in options.contenders}):
        try:
            environments.ensure(name, models=MODELS in options.works)
        except subprocess.CalledProcessError as error:
            options.contenders = tuple(one for one in options.contenders if CONTENDERS[one].environment != name)
            print(f"{name} can't be installed, and is left out: {error}", file=sys.stderr)
    environments.ensure("report")
    failed = []
    session = Session(options.contenders, quick=options.quick)
    with contextlib.closing(session):
        for number in options.works:
            began = time.monotonic()
            try:
                results["works"][str(number)] = _measure(session, number)
            except Exception:  # noqa: BLE001 - what was measured of other works is worth keeping
                traceback.print_exc()
                failed.append(f"work {number}")
                continue
            print(f"work {number} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
            (folder / "README.md").write_text(report.markdown(results))
    plots = [str(environments.python("report")), str(environments.ROOT / "benchmarks" / "plots.py"), str(file), str(folder)]
    if subprocess.run(plots, check=False).returncode:
        failed.append("plots")
    measured = {key: work for key, work in results["works"].items() if int(key) in options.works}
    judged = floors.outcomes(measured)
    print(report.terminal(measured, judged))
    print(f"\nThe report is in {folder}")
    if failed:
        print(f"FAILED: {', '.join(failed)}; what they met is above", file=sys.stderr)
    return int(bool(failed) or (options.check is not None and any(outcome.short_by > options.check for outcome in judged)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)}; works {', '.join(map(str, QUICK_WORKS))}; 3 minutes")
    parser.add_argument("--works", help="numbers, such as 1,4 (default: all)")
    parser.add_argument("--contenders", help=f"some of {','.join(CONTENDERS)} (default: all)")
    parser.add_argument(
        "--check",
        type=float,
        nargs="?",
        const=1.0,
        metavar="TIMES",
        help="fail where a floor is missed, by more than so many times",
    )
    parser.add_argument(
        "--output", type=Path, help=f"folder of the report (default: {_shown(PUBLISHED)}; if not all take part: {_shown(ASIDE)})"
    )
    options = parser.parse_args()
    if options.output is None:
        options.output = ASIDE if options.quick or options.contenders else PUBLISHED
    everyone = QUICK if options.quick else tuple(CONTENDERS)
    options.contenders = tuple(options.contenders.split(",")) if options.contenders else everyone
    every_work = QUICK_WORKS if options.quick else tuple(WORKS)
    options.works = [int(number) for number in options.works.split(",")] if options.works else list(every_work)
    unknown = [name for name in options.contenders if name not in CONTENDERS] + [number for number in options.works if number not in WORKS]
    if unknown:
        parser.error(f"unknown: {', '.join(map(str, unknown))}")
    return options


def _results_so_far(file: Path, here: dict[str, object]) -> dict[str, Any]:
    """What other runs have measured stays, as long as it was on this machine."""
    results: dict[str, Any] = {"format": FORMAT, "machine": here, "works": {}}
    if file.exists():
        before: dict[str, Any] = json.loads(file.read_text())
        if before["machine"] == here and before.get("format") == FORMAT:
            results["works"] = before["works"]
        else:
            print(f"{file} is of another machine or suite and will be replaced: {before['machine']}", file=sys.stderr)
    return results


def _measure(session: Session, number: int) -> dict[str, Any]:
    work: Any = importlib.import_module(f"benchmarks.works.{WORKS[number]}")
    began = time.monotonic()
    work.measure(session)
    measured = session.results(number)
    took_part = {name for case in measured["cases"] for name in case["figures"]}
    used = {CONTENDERS[name].environment for name in took_part if name in CONTENDERS}
    return {
        "title": work.TITLE,
        "measured": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "took_s": round(time.monotonic() - began),
        "quick": session.quick,
        "commit": machine.commit(),
        "versions": machine.versions(used, models=number == MODELS),
        "titles": {name: CONTENDERS[name].title for name in CONTENDERS if name in took_part},
        **measured,
    }


def _shown(folder: Path) -> str:
    return str(folder.relative_to(environments.ROOT))


def _leave(number: int, frame: FrameType | None) -> None:
    for ending in _ENDING:  # once is enough: ending all servers takes a while
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)  # by way of everything that ends servers


if __name__ == "__main__":
    sys.exit(main())
