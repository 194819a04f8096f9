"""What does serving look like on real input? Two classifiers of handwritten digits behind one endpoint, measured, then yours to draw at.

The input is scikit-learn's copy of the UCI handwritten digits: 1,797 real scans of 8 by 8 pixels, shipped with the package. Both
classifiers are trained at start on the first half and are backends of one endpoint, split 70/30. The second half is posted over HTTP.

Usage: digits.py [--port PORT] [--check]
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from headgate import serve
from headgate.errors import AddressInUseError

TRAFFIC = {"digits:v1": 0.7, "digits:v2": 0.3}
CONFIG = {"num_replicas": 2, "max_batch_size": 16, "batch_wait_timeout": 0.002}
CONNECTIONS = 16
PASSES = 4  # times that each scan is posted


class Classifier:
    """A backend: answers a batch of requests with one call of the model."""

    def __init__(self, model: ClassifierMixin) -> None:
        self.model = model

    @serve.accept_batch
    def __call__(self, requests: list[serve.Request]) -> list[object]:
        """Take `{"pixels": [64 numbers from 0 to 16]}` each; a request that isn't that fails by itself, not the batch."""
        scans = [_pixels_of(request) for request in requests]
        good = [scan for scan in scans if scan is not None]
        answers = iter(self.model.predict_proba(np.array(good)) if good else ())
        return [_WRONG if scan is None else _describe(next(answers)) for scan in scans]


def page(request: serve.Request) -> serve.Response:
    """The page to draw at, and nothing else below `/`."""
    if request.path != "/":
        return serve.Response("not here\n", status=404)
    return serve.Response(PAGE, media_type="text/html; charset=utf-8")


PAGE = Path(__file__).with_name("page.html").read_text()

_WRONG = serve.Response('{"error": "pixels must be 64 numbers from 0 to 16"}', status=400, media_type="application/json")


def _pixels_of(request: serve.Request) -> list[float] | None:
    given = request.get_json(force=True, silent=True)  # as curl -d sends it, too
    pixels = given.get("pixels") if isinstance(given, dict) else None
    if not isinstance(pixels, list) or len(pixels) != 64:
        return None
    return pixels if all(isinstance(value, int | float) and 0 <= value <= 16 for value in pixels) else None


def _describe(probabilities: np.ndarray) -> dict[str, object]:
    return {
        "digit": int(probabilities.argmax()),
        "probabilities": probabilities.round(4),
        "backend": serve.context.backend,
        "replica": serve.context.replica,
        "batch_size": serve.context.batch_size,
    }


class Answer(NamedTuple):
    """What came back for one scan."""

    digit: int  # what it is
    status: int
    body: dict[str, Any]
    latency_s: float


class Client(threading.Thread):
    """One connection that posts scans, one after the other, until there are no more."""

    def __init__(self, host: str, scans: itertools.chain[tuple[np.ndarray, int]], lock: threading.Lock) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection(host, timeout=30)
        self.scans = scans
        self.lock = lock
        self.answers: list[Answer] = []

    def run(self) -> None:
        while True:
            with self.lock:
                scan = next(self.scans, None)
            if scan is None:
                break
            pixels, digit = scan
            body = json.dumps({"pixels": pixels.tolist()})
            began = time.perf_counter()
            self.connection.request("POST", "/digits", body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            text = response.read()
            self.answers.append(Answer(digit, response.status, json.loads(text), time.perf_counter() - began))
        self.connection.close()


class Measured(NamedTuple):
    """All answers of one run, and how long it took."""

    answers: list[Answer]
    seconds: float


def post_all(host: str, images: np.ndarray, digits: np.ndarray) -> Measured:
    """Post every scan `PASSES` times over `CONNECTIONS` connections at once."""
    scans = itertools.chain.from_iterable(zip(images, digits.tolist(), strict=True) for _ in range(PASSES))
    lock = threading.Lock()
    clients = [Client(host, scans, lock) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return Measured([answer for client in clients for answer in client.answers], time.perf_counter() - began)


def show(console: Console, measured: Measured, models: dict[str, ClassifierMixin]) -> None:
    """Print accuracy, latency and the observed split, backend by backend."""
    table = Table("backend", "model", title=f"{len(measured.answers):,} scans over {CONNECTIONS} connections")
    for heading in ("traffic: asked", "observed", "accuracy", "mean batch", "p50", "p95", "p99"):
        table.add_column(heading, justify="right")
    for tag, weight in TRAFFIC.items():
        answers = [answer for answer in measured.answers if answer.body.get("backend") == tag]
        table.add_row(tag, type(models[tag]).__name__, f"{weight:.0%}", *_row(answers, len(measured.answers)))
    table.add_section()
    answered = [answer for answer in measured.answers if answer.status == 200]
    table.add_row("all", "", "100%", *_row(answered, len(measured.answers)), style="bold")
    console.print(table)
    console.print(f"{len(measured.answers) / measured.seconds:,.0f} requests a second for {measured.seconds:.1f} s, client included\n")


def _row(answers: list[Answer], total: int) -> list[str]:
    if len(answers) < 2:
        return [f"{len(answers) / total:.1%}", *["-"] * 5]
    cuts = statistics.quantiles([answer.latency_s * 1000 for answer in answers], n=100)
    return [
        f"{len(answers) / total:.1%}",
        f"{_accuracy(answers):.1%}",
        f"{statistics.mean(answer.body['batch_size'] for answer in answers):.1f}",
        *(f"{cuts[at - 1]:.1f} ms" for at in (50, 95, 99)),
    ]


def _accuracy(answers: list[Answer]) -> float:
    return sum(bool(answer.body["digit"] == answer.digit) for answer in answers) / len(answers)


def check(host: str, measured: Measured) -> list[str]:
    """What is not as it should be, in words."""
    wrong = []
    failed = Counter(answer.status for answer in measured.answers if answer.status != 200)
    if failed:
        wrong.append(f"answers that are not 200: {dict(failed)}")
    by_tag = {tag: [answer for answer in measured.answers if answer.body.get("backend") == tag] for tag in TRAFFIC}
    total = len(measured.answers)
    chi_square = sum((len(by_tag[tag]) - weight * total) ** 2 / (weight * total) for tag, weight in TRAFFIC.items())
    if chi_square > 15.1:  # one degree of freedom: chance exceeds it once in 10,000 runs
        wrong.append(f"the split is implausible: { ({tag: len(answers) for tag, answers in by_tag.items()}) }, chi-square {chi_square:.1f}")
    for tag, answers in by_tag.items():
        if answers and _accuracy(answers) < 0.9:
            wrong.append(f"{tag}: accuracy {_accuracy(answers):.1%}, below 90 %")
        replicas = {answer.body["replica"] for answer in answers}
        if len(replicas) != CONFIG["num_replicas"]:
            wrong.append(f"{tag}: {len(replicas)} replicas have answered, not {CONFIG['num_replicas']}")
    if max((answer.body.get("batch_size", 0) for answer in measured.answers), default=0) < 2:
        wrong.append("no two requests shared a batch")
    return wrong + _check_single_requests(host)


def _check_single_requests(host: str) -> list[str]:
    wrong = []
    connection = http.client.HTTPConnection(host, timeout=30)

    def ask(method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()

    status, text = ask("GET", "/")
    if status != 200 or "<canvas" not in text:
        wrong.append(f"the page: status {status}")
    status, text = ask("POST", "/digits", '{"pixels": "no"}')
    if status != 400:
        wrong.append(f"a request without pixels: status {status}, not 400")
    blank = json.dumps({"pixels": [0] * 64})
    met = {json.loads(ask("POST", "/digits", blank, **{"X-SERVE-SHARD-KEY": "somebody"})[1])["backend"] for _ in range(20)}
    if len(met) != 1:
        wrong.append(f"one shard key met {sorted(met)}")
    connection.close()
    return wrong


def main() -> int:
    """Train, serve, measure; then check and end, or serve on until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=None, help="HTTP port; 0 takes a free one (default: 8000, with --check a free one)")
    parser.add_argument("--check", action="store_true", help="check accuracy, split and answers, then exit: 0 if all is well")
    options = parser.parse_args()
    port = options.port if options.port is not None else 0 if options.check else 8000
    console = Console(width=None if sys.stdout.isatty() else 120)

    images, digits = load_digits(return_X_y=True)
    half = len(images) // 2
    models = {"digits:v1": LogisticRegression(C=0.01, max_iter=1000), "digits:v2": KNeighborsClassifier(5, weights="distance")}
    for model in models.values():
        model.fit(images[:half], digits[:half])
    console.print(f"trained {len(models)} classifiers on {half} scans")

    try:
        instance = serve.init(f"digits-demo-{os.getpid()}", http_port=port)
    except AddressInUseError as error:
        console.print(f"{error}\nuse another one: --port 8001", style="red")
        return 1
    with instance:
        for tag, model in models.items():
            serve.create_backend(tag, Classifier, model, config=CONFIG)
        serve.create_endpoint("digits", "/digits", methods=["POST"])
        serve.set_traffic("digits", TRAFFIC)
        serve.create_backend("page", page)
        serve.create_endpoint("page", "/", backend="page")
        host = instance.http_url.removeprefix("http://")
        measured = post_all(host, images[half:], digits[half:])
        show(console, measured, models)
        if options.check:
            wrong = check(host, measured)
            for line in wrong:
                console.print(f"wrong: {line}", style="red")
            console.print("all as it should be" if not wrong else f"{len(wrong)} checks failed")
            return int(bool(wrong))
        pixels = ",".join(str(int(value)) for value in images[-1])
        console.print(f"Draw a digit:  {instance.http_url}/", highlight=False)
        console.print(f"""Or post one:   curl {instance.http_url}/digits -d '{{"pixels":[{pixels}]}}'""", highlight=False, soft_wrap=True)
        console.print("Ctrl-C ends it.")
        try:
            signal.pause()
        except KeyboardInterrupt:
            console.print("\nshutting down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
