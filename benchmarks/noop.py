"""How many no-op requests a second, against a bare ASGI app with the same hop in the same run?

wrk sends 7-byte POSTs over 64 connections to `servers/asgi_hop_server.py` and to Headgate (one ingress, one replica) in turns, so that
whatever else the machine does meets both; the ratio of the medians is the figure, not the rates.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from headgate import serve

HERE = Path(__file__).resolve().parent
REQUEST = 'wrk.method = "POST"\nwrk.body = "{\\"x\\":1}"\nwrk.headers["Content-Type"] = "application/json"\n'


def noop(request: object) -> bytes:
    """What the replica runs."""
    return b"hello"


@contextlib.contextmanager
def plain() -> Iterator[str]:
    """The bare ASGI app; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "servers" / "asgi_hop_server.py"), "noop", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(HERE.parent)})
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("asgi_hop_server.py did not start") from None
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def served() -> Iterator[str]:
    """One ingress, one replica; yields its address."""
    with serve.init("benchmark-noop", http_port=0) as instance:
        serve.create_backend("noop", noop)
        serve.create_endpoint("noop", "/", methods=["POST"], backend="noop")
        yield f"{instance.http_url}/"


def measure(url: str, script: str, seconds: int) -> tuple[float, str]:
    """Run wrk once: requests a second, and its latency lines. Exits on any answer that is not 2xx or any socket error."""
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", "-s", script, url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"not every request was answered by {url}:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    latency = re.findall(r"^\s+(50|99)%\s+(\S+)", text, re.MULTILINE)
    assert rate is not None, text
    return float(rate[1]), "  ".join(f"p{share} {time}" for share, time in latency)


def main() -> int:
    """Measure both in turns; status 1 where `--assert-ratio` isn't met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="times that each is measured")
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 s")
    parser.add_argument("--assert-ratio", type=float, default=None, help="fail where Headgate does less than this share of the bare app")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 3, 2
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: `apt-get install wrk`")
    rates: dict[str, list[float]] = {"plain ASGI with a hop": [], "headgate": []}
    with tempfile.TemporaryDirectory() as folder, plain() as plain_url, served() as served_url:
        script = Path(folder, "post.lua")
        script.write_text(REQUEST)
        urls = dict(zip(rates, (plain_url, served_url), strict=True))
        for url in urls.values():  # not counted: windows grow, caches fill
            measure(url, str(script), 1)
        for number in range(options.rounds):
            for name, url in urls.items():
                rate, latency = measure(url, str(script), options.seconds)
                rates[name].append(rate)
                print(f"round {number + 1}  {name:22} {rate:9,.0f} requests/s  {latency}", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["headgate"] / medians["plain ASGI with a hop"]
    for name, median in medians.items():
        print(f"median   {name:22} {median:9,.0f} requests/s")
    print(f"ratio    {ratio:.2f} (asked for: at least 1.0)")
    if options.assert_ratio is not None and ratio < options.assert_ratio:
        print(f"FAILED: the ratio is below {options.assert_ratio}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
