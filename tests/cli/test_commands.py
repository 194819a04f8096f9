"""Do the commands that look at a running instance, and change it, do what they say, on a terminal and in a pipe?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headgate import serve
from headgate.errors import ConfigError, NotRunningError
from headgate.serve import Instance
from tests.cli.console import NAME, completed, environment, here, on_terminal, piped, shown

pytestmark = pytest.mark.local_engine("the commands find instances of this machine")

HERE = ("--name", NAME)


def test_status_in_a_pipe_is_one_record_to_a_line(running: Instance) -> None:
    said = piped("status", *HERE)
    assert (said.status, said.err) == (0, "")
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [line[0] for line in lines] == ["instance", "endpoint", "backend", "backend"]
    assert lines[0][1:] == [NAME, "ready", running.http_url]
    assert lines[2][:4] == ["backend", "greet:v1", "ready", "1/1"]


def test_status_as_json_is_what_the_verbs_return(running: Instance) -> None:
    told = json.loads(piped("status", *HERE, "--json").out)
    assert told["name"] == NAME
    assert told["backends"]["greet:v1"]["config"]["num_replicas"] == 1
    assert "counters" in told["measured"]


@pytest.mark.parametrize("width", [60, 200])
def test_status_on_a_terminal_fits_its_width(running: Instance, width: int) -> None:
    said = shown("status", *HERE, width=width)
    assert said.status == 0
    assert max(map(len, said.out.splitlines())) <= width
    assert "greet:v2" in said.out
    assert ("CODE" in said.out) is (width == 200)  # the first that is left out


def test_colours_are_for_terminals_alone_and_not_where_no_color_is_set(running: Instance) -> None:
    with on_terminal("status", *HERE) as terminal:
        terminal.end()
        assert "\x1b[32m" in terminal.raw
    with on_terminal("status", *HERE, NO_COLOR="1") as terminal:
        terminal.end()
        assert "\x1b[32m" not in terminal.raw
    assert "\x1b" not in piped("status", *HERE).out


def test_status_is_watched_until_ctrl_c(running: Instance) -> None:
    with on_terminal("status", *HERE, "--watch", "--every", "0.1") as terminal:
        terminal.until("greet:v2")
        terminal.raw = ""
        terminal.until("greet:v2")  # once more
        terminal.press("\x03")
        assert terminal.end().status == 0


def test_a_backend_is_shown_with_its_replicas(running: Instance) -> None:
    assert [line.split("\t")[0] for line in piped("backends", *HERE).out.splitlines()] == ["greet:v1", "greet:v2"]
    said = shown("backends", "greet:v1", *HERE)
    assert "ready: 1/1" in said.out
    assert "REPLICA" in said.out
    assert json.loads(piped("backends", *HERE, "greet:v1", "--json").out)["tag"] == "greet:v1"


def test_an_endpoint_is_shown_with_its_url(running: Instance) -> None:
    assert piped("endpoints", *HERE).out.split("\t")[:3] == ["greet", "/greet", "GET,POST"]
    assert f"url: {running.http_url}/greet" in shown("endpoints", "greet", *HERE).out


def test_traffic_is_shown_and_set(running: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    said = here(capsys, "traffic", *HERE, "greet", "greet:v1=25%", "greet:v2=0.75")
    assert (said.status, said.out) == (0, "greet:v1\t0.25\tready\ngreet:v2\t0.75\tready\n")
    assert running.list_endpoints()["greet"].traffic == {"greet:v1": 0.25, "greet:v2": 0.75}
    assert "greet:v2" in shown("traffic", "greet", *HERE).out


@pytest.mark.parametrize(
    ("weights", "status", "why"),
    [
        (["greet:v1=0.5"], 1, "0.5"),
        (["greet:v1=90%", "greet:v2=30%"], 2, "they are 120% together, and must be 100%"),
        (["greet:v1"], 2, "TAG=WEIGHT"),
        (["greet:v1=much"], 2, "no number"),
        (["greet:v3=1"], 1, "did you mean"),
    ],
)
def test_weights_that_are_wrong_change_nothing(
    running: Instance, weights: list[str], status: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = running.list_endpoints()["greet"].traffic
    said = here(capsys, "traffic", *HERE, "greet", *weights)
    assert said.status == status
    assert why in said.err
    assert running.list_endpoints()["greet"].traffic == before


def test_a_backend_is_scaled(running: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(capsys, "scale", *HERE, "greet:v2", "2").out == "greet:v2: 1 -> 2 replicas\n"
    assert len(running.list_backends()["greet:v2"].replicas) == 2
    assert here(capsys, "scale", *HERE, "greet:v2", "1").status == 0


def test_an_endpoint_is_deleted_and_a_backend_once_nobody_uses_it(running: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    running.create_backend("old", lambda: "old")
    running.create_backend("copied", lambda: "copied")
    running.create_endpoint("old", "/old", backend="old")
    running.shadow_traffic("old", "copied", 0.5)
    for tag, what, helps in (
        ("old", "sends it requests", "`headgate traffic old OTHER=100%`"),
        ("copied", "sends it copies", "`serve.shadow_traffic('old', 'copied', 0)`"),
    ):
        said = here(capsys, "delete", *HERE, "--yes", "backend", tag)
        assert (said.status, said.out) == (1, "")
        assert f"backend '{tag}' is used by endpoint 'old', which {what}" in said.err
        assert helps in said.err
    assert here(capsys, "delete", *HERE, "--yes", "endpoint", "old") == (0, "endpoint old is deleted\n", "")
    assert running.list_endpoints().keys() == {"greet"}
    for tag in ("old", "copied"):
        assert here(capsys, "delete", *HERE, "-y", "backend", tag) == (0, f"backend {tag} is deleted\n", "")
    assert running.list_backends().keys() == {"greet:v1", "greet:v2"}


def test_nothing_is_deleted_unasked(running: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    running.create_endpoint("asked", "/asked")
    said = here(capsys, "delete", *HERE, "endpoint", "asked")
    assert (said.status, said.out) == (2, "")
    assert "there is no terminal to ask on: give --yes to do it" in said.err
    for key, status, ends in (("n", 1, "nothing has changed\n"), ("y", 0, "endpoint asked is deleted\n")):
        assert "asked" in running.list_endpoints()
        with on_terminal("delete", *HERE, "endpoint", "asked") as terminal:
            terminal.until("- endpoint asked (/asked, no traffic)\nDo it? [y/N]: ")
            terminal.press(f"{key}\n")
            told = terminal.end()
        assert told.status == status
        assert told.out.endswith(ends)
    assert "asked" not in running.list_endpoints()


def test_a_wrong_name_is_told_the_nearest(running: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    said = here(capsys, "scale", *HERE, "gret:v2", "2")
    assert (said.status, said.out) == (1, "")
    assert "there is no backend 'gret:v2'; did you mean 'greet:v2'?" in said.err
    assert "did you mean 'greet'?" in here(capsys, "traffic", *HERE, "gret").err
    assert "there is no backend 'gret:v2'; did you mean 'greet:v2'?" in here(capsys, "delete", *HERE, "-y", "backend", "gret:v2").err
    assert "there is no endpoint 'gret'; did you mean 'greet'?" in here(capsys, "delete", *HERE, "-y", "endpoint", "gret").err
    assert here(capsys, "delete", *HERE, "-y", "greet").status == 2  # which of the two?
    assert here(capsys, "scale", *HERE, "greet:v2", "0").status == 2
    assert "did you mean 'status'?" in here(capsys, "statsu").err
    assert "--watch" in here(capsys, "status", "--wath").err


def test_a_command_that_needs_an_instance_starts_none_and_names_those_that_run(
    running: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status"], ["shutdown"], ["scale", "x", "2"], ["traffic", "greet"], ["delete", "-y", "backend", "x"]):
        said = here(capsys, *command, "--name", "cli-tset")
        assert said.status == 1
        assert f"no instance 'cli-tset' is running; there is {NAME!r}" in said.err


def test_the_shell_completes_commands_instances_backends_and_endpoints(running: Instance) -> None:
    assert "status" in completed("st")
    assert completed("status", "--name", "cli") == [NAME]
    assert completed("scale", "--name", NAME, "greet") == ["greet:v1", "greet:v2"]
    assert completed("traffic", "--name", NAME, "g") == ["greet"]
    assert completed("delete", "b") == ["backend"]
    assert completed("delete", "--name", NAME, "backend", "g") == ["greet:v1", "greet:v2"]
    assert completed("delete", "--name", NAME, "endpoint", "g") == ["greet"]
    assert completed("scale", "--name", "nobody", "greet", tries=1) == []


def test_bash_completes_words_that_have_colons_and_equal_signs_in_them(running: Instance, tmp_path: Path) -> None:
    command = tmp_path / "headgate"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m headgate "$@"\n')
    command.chmod(0o755)
    script = f"""
        {piped("completion", "bash").out}
        compopt() {{ :; }}  # there is no line that is typed
        COMP_WORDBREAKS=$' \\t\\n"=:' COMP_LINE=$1 COMP_POINT=${{#1}}
        _headgate_completion "{command}"
        echo "${{COMPREPLY[*]}}"
    """

    def offered(line: str) -> list[str]:
        for _ in range(5):  # nothing where the machine is busy
            done = subprocess.run(["bash", "-c", script, "bash", line], env=environment(), capture_output=True, text=True, check=True)
            if done.stdout.split():
                break
        assert done.stderr == ""
        return done.stdout.split()

    assert offered(f"headgate scale --name {NAME} greet:") == ["v1", "v2"]
    assert offered(f"headgate traffic --name {NAME} greet greet:v1=0.5 greet:v") == ["v1=", "v2="]
    assert offered(f"headgate deploy --name={NAME} --update=greet:v2") == ["v2"]
    assert offered(f"headgate call --name {NAME} -d '{{\"a\": 1}}' gr") == ["greet"]


def test_doctor_names_what_is_wrong_and_what_helps(running: Instance) -> None:
    running.create_endpoint("lonely", "/lonely")
    try:
        said = piped("doctor", *HERE)
        shown_there = shown("doctor", *HERE, width=60)
    finally:
        running.delete_endpoint("lonely")
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert ["warning", "endpoint lonely", "it has no traffic, so requests get 503", "headgate traffic lonely TAG=1"] in lines
    assert said.status == int(any(line[0] == "problem" for line in lines))
    assert "warning: endpoint lonely" in shown_there.out
    absent = piped("doctor", "--name", "cli-tset")
    assert absent.out.startswith("problem\tinstance cli-tset\tno instance 'cli-tset' is running")
    assert absent.status == 1


def test_connect_and_list_instances_start_nothing(running: Instance) -> None:
    assert serve.list_instances() == [NAME]
    with serve.connect(NAME) as other:
        assert other.http_url == running.http_url
    assert running.ended == ""  # to leave it only disconnects
    with pytest.raises(NotRunningError, match=f"no instance 'default' is running; there is '{NAME}'"):
        serve.connect()
    with pytest.raises(ConfigError, match="unknown"):
        serve.connect(engine="locl")
    assert serve.list_instances() == [NAME]
