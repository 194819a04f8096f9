"""How long does it take until something is served, and how much memory does it hold?

Prints the medians of several fresh processes: from `import` to the first answered HTTP request of a no-op backend; `import headgate.serve`
alone; one more replica of a running no-op backend; and the proportional set size of supervisor, controller, ingress and one replica.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

# Each figure: what it is, its unit, and what is asked for on an idle machine.
FIGURES = {
    "first_answer_s": ("import to the first answered request", "s", 0.7),
    "import_s": ("import headgate.serve", "s", 0.120),
    "replica_s": ("one more replica", "s", 0.050),
    "pss_mb": ("instance with one replica (PSS)", "MB", 100.0),
}

IMPORT = """
import time
began = time.perf_counter()
import headgate.serve
print(time.perf_counter() - began)
"""

# The client's own imports come before the clock starts: they are not Headgate's.
FIRST_ANSWER = """
import http.client, json, os, statistics, sys, time
from pathlib import Path
began = time.perf_counter()
from headgate import serve

def noop(request):
    return b"hello"

def descendants(pid):
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
            yield child
            yield from descendants(child)

def pss_kb(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

with serve.init("benchmark-startup", http_port=0) as instance:
    serve.create_backend("noop", noop)
    serve.create_endpoint("noop", "/noop", backend="noop")
    connection = http.client.HTTPConnection(instance.http_url.removeprefix("http://"))
    connection.request("GET", "/noop")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"hello"), answer.status
    first_answer_s = time.perf_counter() - began
    connection.close()
    pss_mb = sum(map(pss_kb, descendants(os.getpid()))) * 1024 / 1e6
    replica_s = []
    for count in (2, 3, 4):
        before = time.perf_counter()
        serve.update_backend_config("noop", {"num_replicas": count})
        replica_s.append(time.perf_counter() - before)
json.dump({"first_answer_s": first_answer_s, "pss_mb": pss_mb, "replica_s": statistics.median(replica_s)}, sys.stdout)
"""


def run(program: str) -> str:
    """Run a program in a fresh interpreter; returns what it printed."""
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> int:
    """Measure and print; status 1 where a figure is over what is asserted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for each figure")
    parser.add_argument(
        "--assert-times-factor", type=float, default=None, help="fail where a time is over this many times what is asked for"
    )
    options = parser.parse_args()
    run(IMPORT)  # not counted: writes the byte code
    runs = [{"import_s": float(run(IMPORT)), **json.loads(run(FIRST_ANSWER))} for _ in range(options.runs)]
    failed = False
    for key, (name, unit, asked) in FIGURES.items():
        values = [figures[key] for figures in runs]
        median = statistics.median(values)
        print(f"{name:38} {median:8.3f} {unit:2} (asked for: under {asked:g}; {min(values):.3f} to {max(values):.3f})")
        if options.assert_times_factor is not None and median > asked * (options.assert_times_factor if unit == "s" else 1):
            print(f"FAILED: {name}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
