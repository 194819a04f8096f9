"""Does the README's program, run as it stands, answer the README's curl as the README says? Run by the Python it is to be run with.

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
    program = _replace(program, "serve.init()", f"serve.init(http_port={port})")
    command = _replace(command, "127.0.0.1:8000", f"127.0.0.1:{port}")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "quickstart.py")
        script.write_text(program)
        with subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        ) as running:
            assert running.stdout is not None
            said = running.stdout.readline()
            if not said.startswith("Serving on"):
                raise SystemExit(f"the program said {said!r} and ended with {running.wait()}")
            answer = subprocess.run(
                [*shlex.split(command), "--silent", "--fail-with-body"], capture_output=True, text=True, check=True
            ).stdout
            running.communicate("\n", timeout=30)
    if json.loads(answer) != json.loads(expected):
        raise SystemExit(f"the README promises {expected!r}; the answer was {answer!r}")
    if running.returncode != 0:
        raise SystemExit(f"the program ended with {running.returncode}")
    print(f"the README's program answered {answer.strip()}, and ended when Enter was pressed")


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
