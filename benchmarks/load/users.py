"""What do N users get, each of whom waits for an answer and then asks again? A closed loop over HTTP, or over handles in Python.

A load runs on without a pause while it is measured several times, until three windows in a row agree within 10 %: where 64 users share
10 requests a second, each new start would cost 6.4 s until everyone waits behind everyone else. A window goes from one answer to another,
so that no part of a request is counted or lost at its ends. Users don't begin in step: replicas that did would stay so, and every wait
would be a multiple of the handler's time.

Usage: users.py TARGET --capacity 10 --levels 1,4,16,64 (prints one JSON object: level -> windows)
TARGET is an address (http://…), `headgate:INSTANCE/ENDPOINT`, or `ray:APP` of the Ray that runs on this machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from benchmarks.session import AGREEING, ROOT, agree

BODY: Final = b'{"x":1}'
TIMEOUT_S: Final = 60.0
LEAD_S: Final = 0.3
"""Before the first window, beside the time after which everyone waits behind everyone else."""
PAUSE_S: Final = 0.1
"""How long a user waits after a failure, so that refusals don't become a load of their own."""

Call = Callable[[], None]
"""One request from beginning to end; raises where it fails."""


class Answer(NamedTuple):
    """One request of one user, in seconds of one clock."""

    ended: float
    took_s: float
    failed: bool


def over_http(url: str) -> Callable[[], Call]:
    """Users with a connection each."""
    parts = urlsplit(url)

    def user() -> Call:
        connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_S)

        def call() -> None:
            try:
                connection.request("POST", parts.path, BODY, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens another
                raise
            if answer.status >= 300:
                raise ConnectionError(f"status {answer.status}")

        return call

    return user


def over_headgate(instance: str, endpoint: str) -> Callable[[], Call]:
    """Users who share a handle of a running instance."""
    from headgate import serve

    serve.init(instance)
    handle = serve.get_handle(endpoint)
    return lambda: lambda: handle.remote(BODY).result(timeout_s=TIMEOUT_S)


def over_ray(app: str) -> Callable[[], Call]:
    """Users who share a handle of a running application."""
    import ray
    from ray import serve

    ray.init(address="auto", log_to_driver=False)
    handle = serve.get_app_handle(app)
    return lambda: lambda: handle.remote(BODY).result(timeout_s=TIMEOUT_S)


def measure(
    new_user: Callable[[], Call], users: int, *, capacity: float, handler_s: float, window_s: float, most: int, wait_for_rest: bool
) -> list[dict[str, float]]:
    """Let so many users ask; once all wait in turn, measure windows until the last three agree, at most so many."""
    answers: list[Answer] = []
    stopped = threading.Event()

    def use(call: Call, number: int) -> None:
        stopped.wait(min(number / capacity, handler_s))
        while not stopped.is_set():
            began = time.perf_counter()
            failed = False
            try:
                call()
            except Exception:  # noqa: BLE001 - whatever a contender raises is a request that failed
                failed = True
            ended = time.perf_counter()
            answers.append(Answer(ended, ended - began, failed))
            if failed:
                stopped.wait(PAUSE_S)

    threads = [threading.Thread(target=use, args=(new_user(), number), daemon=True) for number in range(users)]
    start = time.perf_counter() + users / capacity + LEAD_S
    for thread in threads:
        thread.start()
    windows: list[dict[str, float]] = []
    while len(windows) < most and not agree([window["requests/s"] for window in windows[-AGREEING:]]):
        end = start + window_s
        time.sleep(max(0.0, end - time.perf_counter()))
        # A window ends with an answer, unless none comes any more.
        while time.perf_counter() < end + window_s and not any(answer.ended >= end and not answer.failed for answer in answers[-users:]):
            time.sleep(0.005)
        windows.append(figures(sorted(answers), start, window_s))
        start = end
    stopped.set()
    if wait_for_rest:
        for thread in threads:
            thread.join()
    return windows


def figures(answers: Sequence[Answer], start: float, window_s: float) -> dict[str, float]:
    """What came between the first answer after `start` and the first one a window later; 0 requests a second where nothing came."""
    good = [answer for answer in answers if not answer.failed]
    ends = [answer.ended for answer in good]
    begin = next((end for end in ends if end >= start), math.inf)
    until = next((end for end in ends if end >= start + window_s), ends[-1] if ends else 0.0)
    took_s = sorted(answer.took_s for answer in good if begin < answer.ended <= until)
    failed = sum(answer.failed for answer in answers if start <= answer.ended < start + window_s)
    if not took_s:
        return {"requests/s": 0.0, "failed": failed}
    return {
        "requests/s": len(took_s) / (until - begin),
        "p50": took_s[max(0, math.ceil(0.5 * len(took_s)) - 1)] * 1000,
        "p99": took_s[max(0, math.ceil(0.99 * len(took_s)) - 1)] * 1000,
        "failed": failed,
    }


def run(
    target: str,
    *,
    capacity: float,
    levels: Sequence[int],
    most: int,
    python: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> dict[int, list[dict[str, float]]]:
    """Run this program, by another interpreter where one is given: windows by number of users."""
    command = [str(python or sys.executable), __file__, target, "--capacity", str(capacity), "--most", str(most)]
    command += ["--levels", ",".join(map(str, levels))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300, env=environment)
    return {int(level): measured for level, measured in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Measure the levels one after the other, and end at once, whatever is still under way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--capacity", type=float, required=True, help="requests a second that are served at best: says how long to lead in")
    parser.add_argument(
        "--handler-s", type=float, default=0.1, help="how long a request takes: as many users as are served at once begin spread over that"
    )
    parser.add_argument("--levels", default="1,4,16,64", help="numbers of users, ascending")
    parser.add_argument("--most", type=int, default=6, help="windows at each level, where they don't agree before")
    parser.add_argument("--window-s", type=float, default=1.0, help="length of a window; a sixth of a user's wait where that is more")
    options: Any = parser.parse_args()
    scheme, _, rest = options.target.partition(":")
    if scheme == "headgate":
        new_user = over_headgate(*rest.split("/", 1))
    elif scheme == "ray":
        new_user = over_ray(rest)
    else:
        new_user = over_http(options.target)
    levels = [int(level) for level in options.levels.split(",")]
    measured = {}
    for level in levels:
        measured[level] = measure(
            new_user,
            level,
            capacity=options.capacity,
            handler_s=options.handler_s,
            window_s=max(options.window_s, level / options.capacity / 6),
            most=options.most,
            wait_for_rest=level != levels[-1],
        )
    sys.stdout.write(json.dumps(measured) + "\n")
    sys.stdout.flush()
    os._exit(0)  # requests may be under way for seconds; the server is ended next


if __name__ == "__main__":
    main()
