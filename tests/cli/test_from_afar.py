"""Do all commands act on an instance on another machine, and does none of them show the token?"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from headgate import serve
from headgate.serve import Instance
from tests.cli.console import Said, completed, on_terminal, piped, shown
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("it has a supervisor, which holds the admin address")

TOKEN = "recognisable-token-of-the-command-line"
NAME = "cli-afar"


class Place(NamedTuple):
    """An instance with an admin address, and the options by which commands reach it."""

    instance: Instance
    options: tuple[str, ...]

    def piped(self, *arguments: str, **how: str) -> Said:
        said = piped(*arguments, *self.options, **how)
        assert TOKEN not in said.out + said.err
        return said


@pytest.fixture(scope="module")
def place(_nothing_left_by_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    with serve.init(NAME, http_port=0, resources={"CPU": 4}, admin_address="127.0.0.1:0", admin_token=TOKEN) as instance:
        instance.create_backend("greet:v1", lambda who="world": f"hello {who}")
        instance.create_backend("greet:v2", lambda who="world": {"hello": who})
        instance.create_endpoint("greet", "/greet", ("GET", "POST"), backend="greet:v1")
        yield Place(instance, ("--address", f"tcp://{instance.status().admin_address}", "--admin-token-file", str(file)))


def test_what_runs_is_looked_at_and_changed_as_on_its_own_machine(place: Place) -> None:
    assert place.piped("status").out == piped("status", "--name", NAME).out
    assert json.loads(place.piped("status", "--json").out)["name"] == NAME
    assert place.piped("backends").out.splitlines()[0].startswith("greet:v1\tready")
    assert place.piped("endpoints").out == piped("endpoints", "--name", NAME).out
    assert place.piped("traffic", "greet", "greet:v1=0.5", "greet:v2=0.5").status == 0
    assert place.instance.list_endpoints()["greet"].traffic == {"greet:v1": 0.5, "greet:v2": 0.5}
    assert place.piped("scale", "greet:v2", "2").out == "greet:v2: 1 -> 2 replicas\n"
    assert place.piped("scale", "greet:v2", "1").status == 0
    place.instance.create_endpoint("gone")
    assert place.piped("delete", "--yes", "endpoint", "gone").out == "endpoint gone is deleted\n"
    assert "gone" not in place.instance.list_endpoints()
    told = place.piped("doctor")
    assert "looked at cli-afar alone" in told.err
    assert all("open files" not in line for line in told.out.splitlines())


def test_what_config_prints_changes_nothing_and_a_file_is_deployed(place: Place, tmp_path: Path) -> None:
    printed = place.piped("config").out
    assert place.piped("deploy", "--yes", "-", stdin=printed).out == f"{NAME} runs what is declared: nothing to do\n"
    file = tmp_path / "app.yaml"
    file.write_text(f"{printed}  added:\n    route: /added\n")
    with on_terminal("deploy", str(file), *place.options) as terminal:
        terminal.until("Do it?")
        terminal.press("y\n")
        assert terminal.end().status == 0
    assert "added" in place.instance.list_endpoints()


def test_on_a_terminal_it_looks_the_same_and_the_token_comes_from_the_environment_too(place: Place) -> None:
    address = place.options[:2]
    said = shown("status", *address, HEADGATE_ADMIN_TOKEN=TOKEN)
    assert said.status == 0
    assert "greet:v1" in said.out
    assert TOKEN not in said.out
    missing = piped("status", *address)
    assert missing.status == 1
    assert "asks for the instance's admin token: give admin_token (--admin-token-file), or set HEADGATE_ADMIN_TOKEN" in missing.err


def test_what_can_not_be_done_from_there_says_what_can(place: Place, tmp_path: Path) -> None:
    for arguments, why in (
        (
            ("call", "greet"),
            "calls by handle: only on the instance's own machine, or its cluster; from afar an endpoint is called over HTTP",
        ),
        (("call", "greet", "--http"), "for its own machine alone"),
        (("bench", "/greet"), "for its own machine alone"),
        (("logs",), "keeps no log"),
        (("status", "--name", "other"), f"there is '{NAME}'"),
    ):
        said = place.piped(*arguments)
        assert (said.status, said.out) == (1, "")
        assert why in said.err
    assert place.piped("stop", "--all").status == 2
    wrong = tmp_path / "wrong"
    wrong.write_text("a-token-that-is-wrong")
    for file, why in ((wrong, "has another admin token"), (tmp_path / "none", "can't be read: No such file")):
        said = piped("status", *place.options[:2], "--admin-token-file", str(file))
        assert (said.status, said.out) == (1, "")
        assert why in said.err
        assert "a-token-that" not in said.err
    said = piped("status", "--address", "tcp://127.0.0.1:1", HEADGATE_ADMIN_TOKEN=TOKEN)
    assert "no instance takes commands at tcp://127.0.0.1:1: Connection refused" in said.err
    assert piped("status", "--admin-token-file", str(wrong)).status == 1


def test_http_that_others_can_reach_is_called_at_the_host_of_the_admin_address(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with pytest.warns(UserWarning, match="http_host"):
        near = serve.init("reached", http_port=0, http_host="0.0.0.0", admin_address="127.0.0.1:0", admin_token=TOKEN)
    with near:
        near.create_backend("one", lambda request: request.host)
        near.create_endpoint("one", "/one", backend="one")
        port = near.status().admin_address.rpartition(":")[2]
        said = piped("call", "one", "--http", "--address", f"tcp://localhost:{port}", "--admin-token-file", str(file))
    assert said.out == f"localhost:{near.http_url.rpartition(':')[2]}", said.err


def speak(text: str) -> None:
    import logging

    logging.getLogger("mine").warning("warned of %s", text)


def test_the_log_is_shown_from_afar_and_followed_over_the_death_of_the_controller_until_the_end(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with serve.init("spoken", http_port=0, log_dir=tmp_path / "log", admin_address="127.0.0.1:0", admin_token=TOKEN) as near:
        near.create_backend("one", speak)
        near.create_endpoint("one", backend="one")
        handle = near.get_handle("one")
        for number in range(5):
            handle.remote(f"<{number}>").result(30)
        options = ("--address", f"tcp://{near.status().admin_address}", "--admin-token-file", str(file))
        narrow = ("--backend", "one", "--level", "warning")
        assert piped("logs", *options, *narrow).out == piped("logs", "--name", "spoken", *narrow).out
        assert [line[-3:] for line in piped("logs", *options, *narrow, "--lines", "2").out.splitlines()] == ["<3>", "<4>"]
        with on_terminal("logs", *options, *narrow, "--follow", "--lines", "1") as terminal:
            terminal.until("<4>")
            handle.remote("<5>").result(30)
            terminal.until("<5>")
            (controller,) = [process.pid for process in near.status().processes if process.role == "controller"]
            os.kill(controller, signal.SIGKILL)
            handle.remote("<6>").result(30)
            terminal.until("<6>")
            near.shutdown()
            said = terminal.end()
    assert said.status == 0
    assert [said.out.count(f"<{number}>") for number in range(7)] == [0, 0, 0, 0, 1, 1, 1]


def test_start_takes_the_token_from_a_file_and_stop_ends_it_from_afar(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-token-that-start-is-given")
    started = piped("start", "--name", "started", "--http-port", "0", "--admin-address", "127.0.0.1:0", "--admin-token-file", str(file))
    assert started.status == 0, started.err
    (url,) = [line.removeprefix("commands are taken at ") for line in started.err.splitlines() if line.startswith("commands")]
    try:
        assert piped("status", "--address", url, "--admin-token-file", str(file)).out.startswith("instance\tstarted\tready")
    finally:
        assert piped("stop", "--address", url, "--admin-token-file", str(file)).out == "started is shut down\n"
    wait_until(lambda: "started" not in serve.list_instances())
    refused = piped("start", "--name", "started", "--http-port", "0", "--admin-address", "0.0.0.0:0", "--admin-token-file", str(file))
    assert refused.status == 1
    assert "over TLS alone" in refused.err
    assert "--admin-token " not in piped("start", "--help").out, "a command line is there for all to see"


def test_the_shell_completes_from_afar(place: Place) -> None:
    assert completed("scale", *place.options, "greet") == ["greet:v1", "greet:v2"]
