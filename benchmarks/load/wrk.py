"""How fast does a server answer so many connections, each of which sends its next request when it has its answer? Runs wrk once."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.session import NOOP, VoidWindow, post

SECONDS = 2
WARM_UP_S = 1
ENOUGH = 10  # answers for each connection, for percentiles
UNITS = {"requests/s": "1/s", "p50": "ms", "p99": "ms"}

# wrk prints rounded figures for people; its Lua interface has the exact ones. The body comes from a file because it may be of any size.
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "%(content_type)s"
local file = io.open("%(body)s", "rb")
wrk.body = file:read("*a")
file:close()

function done(summary, latency, requests)
    local errors = summary.errors
    local counted = {
        requests = summary.requests, us = summary.duration,
        p50_us = latency:percentile(50), p99_us = latency:percentile(99),
        refused = errors.connect, broken = errors.read + errors.write, timeouts = errors.timeout, not_2xx = errors.status,
    }
    local fields = {}
    for key, value in pairs(counted) do
        fields[#fields + 1] = string.format('"%%s": %%d', key, value)
    end
    print("JSON {" .. table.concat(fields, ", ") .. "}")
end
"""


class NotAnswered(VoidWindow):
    """Some requests weren't answered, or not by 2xx: such a run measures something else."""


def closed_loop(
    url: str,
    connections: int,
    *,
    body: bytes = NOOP,
    content_type: str = "application/json",
    seconds: int = SECONDS,
    timeout_s: float = 30.0,
    lua: str = "",
) -> dict[str, float]:
    """POST `body` over so many connections for so long; returns `requests/s`, and `p50` and `p99` in ms.

    `lua` is for wrk, too, where not all requests are to be the same. Before it begins, what an earlier window has left behind is answered.
    Percentiles are left out where a connection got fewer than 10 answers: those that wrk doesn't wait for would be missing in them.
    Raises `NotAnswered` where a request was not answered by 2xx.
    """
    post(url, body, timeout_s, content_type=content_type)
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "body")
        content.write_bytes(body)
        script = Path(folder, "post.lua")
        script.write_text(SCRIPT % {"body": content, "content_type": content_type} + lua)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={timeout_s:.0f}s", "-s", str(script), url]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + timeout_s + 30)
    line = next((line for line in run.stdout.splitlines() if line.startswith("JSON ")), None)
    if run.returncode or line is None:
        raise NotAnswered(f"wrk ended with status {run.returncode}: {run.stdout}{run.stderr}")
    counted: Mapping[str, int] = json.loads(line.removeprefix("JSON "))
    wrong = {key: counted[key] for key in ("refused", "broken", "timeouts", "not_2xx") if counted[key]}
    if wrong or not counted["requests"]:
        raise NotAnswered(f"of {counted['requests']} requests to {url}: {wrong or 'none was answered'}")
    elapsed_s = counted["us"] / 1e6
    figures = {"requests/s": counted["requests"] / elapsed_s}
    if counted["requests"] >= ENOUGH * connections:
        figures |= {"p50": counted["p50_us"] / 1e3, "p99": counted["p99_us"] / 1e3}
    return figures


def warm_up(url: str, connections: int = 16, *, body: bytes = NOOP, content_type: str = "application/json") -> None:
    """Load that isn't counted: caches fill, windows grow. Once for each server."""
    closed_loop(url, connections, body=body, content_type=content_type, seconds=WARM_UP_S)
