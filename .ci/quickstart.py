"""Does the README's program, run as the README says, answer the README's curl as it says? Run by the Python it is to be run with.

Only the port is changed, to one that is free. Usage: quickstart.py README.md
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Run the program, send the request, compare; raises on the first difference."""
    text = Path(sys.argv[1]).read_text()
    program = _block(text, "python")
    command, expected = _block(text, "console", "$ curl ").removeprefix("$ ").strip().split("\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = _replace(command, "127.0.0.1:8000", f"127.0.0.1:{port}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(program)
        run = [sys.executable, "-m", "headgate", "run", f"--http-port={port}", "app.py"]
        with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, cwd=folder) as running:
            assert running.stderr is not None
            said = ""
            while not said.endswith("/hello (GET) greeter:v1=1\n"):
                line = running.stderr.readline()
                if not line:
                    raise SystemExit(f"headgate run said {said!r} and ended with {running.wait()}")
                said += line
            try:
                answer = subprocess.run(
                    [*shlex.split(command), "--silent", "--fail-with-body"], capture_output=True, text=True, check=True
                ).stdout
            finally:
                running.terminate()
                running.communicate(timeout=30)
    if json.loads(answer) != json.loads(expected):
        raise SystemExit(f"the README promises {expected!r}; the answer was {answer!r}")
    if running.returncode != 0:
        raise SystemExit(f"headgate run ended with {running.returncode}")
    print(f"the README's program answered {answer.strip()}, and headgate run ended when it was told to")


def _block(text: str, language: str, beginning: str = "") -> str:
    found = re.search(rf"^```{language}\n({re.escape(beginning)}.*?)^```", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"no {language} block in the README")
    return found[1]


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise SystemExit(f"{old!r} should stand once in: {text}")
    return text.replace(old, new)


if __name__ == "__main__":
    main()
