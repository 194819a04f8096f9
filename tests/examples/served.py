"""How is an example run and asked in a test? As its first lines tell a person to, but for the port and the name."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.cli.console import COMMAND, environment
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: Any


class Served:
    """An example that serves."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def ask(self, path: str, body: object = None, **headers: str) -> Answer:
        """GET it, or POST that as JSON; the answer is JSON, too."""
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **named})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error))

    def metric(self, name: str) -> float:
        """What its replicas have counted of that, together."""
        with urllib.request.urlopen(f"{self.url}/-/metrics", timeout=30) as response:
            return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", response.read().decode(), re.MULTILINE)))

    def try_commands(self) -> list[str]:
        """Run each command that its first lines give after `headgate run`; returns what they printed. Fails where one of them does."""
        first, *others = commands(self.name)
        assert first == f"headgate run examples/{self.name}.py"
        printed = []
        for command in others:
            here = command.replace("http://127.0.0.1:8000", self.url).replace("curl ", "curl --silent --show-error --fail-with-body ")
            if here.startswith("headgate "):
                here = f"{shlex.join(COMMAND)} {here.removeprefix('headgate ')} --name {instance_of(self.name)}"
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", here], env=environment(), capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            printed.append(done.stdout)
        return printed


def commands(name: str) -> list[str]:
    """The commands in the first lines of an example; one may go on over several lines."""
    told = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    block = "\n".join(line for line in told.splitlines() if line.startswith("    "))
    return [re.sub(r"\n\s*", " ", command).strip() for command in re.split(r"^    \$ ", block, flags=re.MULTILINE)[1:]]


def instance_of(name: str) -> str:
    """What the instance is called that it runs on here."""
    return f"example-{name}"


@contextlib.contextmanager
def serving(program: Path, route: str, log: Path, **extra: str) -> Iterator[Served]:
    """Run it, from when the route is served, which is the last that it makes. What it says goes into the file; it is to exit with 0."""
    name = program.stem
    command = [*COMMAND, "run", "--name", instance_of(name), "--http-port", "0", str(program)]
    with log.open("w") as said, subprocess.Popen(command, env=environment(extra), stdout=said, stderr=said, cwd=program.parent) as process:
        try:

            def url() -> str:
                assert process.poll() is None, f"{name} has ended"
                found = re.search(rf"(http://[\d.:]+){re.escape(route)} \(", log.read_text())
                return found[1] if found else ""

            yield Served(name, wait_until(url, 90, f"{name} serves {route}"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        except BaseException as error:
            error.add_note(f"{name} said:\n{log.read_text()}")
            raise
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
