"""Does `headgate deploy` show, ask and do as it says, and does it change nothing for what `headgate config` printed?"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

import pytest

from headgate import schema, serve
from headgate.cli.deploy import _do
from headgate.config import ReplicaOptions
from headgate.core.messages import Deploy
from headgate.core.plan import Plan
from headgate.errors import AdminTokenError
from headgate.serve import Instance
from tests.cli.console import NAME, on_terminal, piped
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("the commands find instances of this machine")

HERE = ("--name", NAME)
SHOP = """
import os, time

def handler(request):
    return "handler"

class Model:
    def __init__(self, word="hi", gate=None):
        self.word = word
        while gate and not os.path.exists(gate):
            time.sleep(0.01)

    def __call__(self, request=None):
        return self.word

class Broken:
    def __init__(self):
        raise RuntimeError("no weights")

    def __call__(self, request=None): ...
"""
APP = """
backends:
  model: {import_path: "shop_of_deploy:Model", init_kwargs: {word: hello}, config: {num_replicas: 2}}
endpoints:
  shop: {route: /shop, traffic: {model: 1}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop_of_deploy.py").write_text(SHOP)
    (tmp_path / "app.yaml").write_text(APP)
    return tmp_path


def declare(folder: Path, text: str) -> str:
    (folder / "other.yaml").write_text(text)
    return str(folder / "other.yaml")


def state(instance: Instance) -> str:
    return instance.status().state_id


@pytest.fixture
def deployed(running: Instance, folder: Path) -> Instance:
    """An instance that runs what `app.yaml` declares, with code that could be imported from another folder."""
    running.deploy(str(folder / "app.yaml"), update=["model"])
    return running


def test_deploying_what_config_printed_changes_nothing(running: Instance, tmp_path: Path) -> None:
    before = state(running)
    printed = piped("config", *HERE)
    assert printed.status == 0
    assert "greet:v1: its code or its arguments can't be named by a file" in printed.err  # it was given as a lambda
    said = piped("deploy", *HERE, "--yes", "-", stdin=printed.out)
    assert (said.status, said.out, said.err) == (0, f"{NAME} runs what is declared: nothing to do\n", "")
    for notation in ("toml", "json"):
        (tmp_path / f"app.{notation}").write_text(piped("config", *HERE, f"--{notation}").out)
        assert running.deploy(tmp_path / f"app.{notation}").steps == ()
    assert state(running) == before


def test_code_by_value_is_refused_by_an_instance_that_does_not_have_it(running: Instance) -> None:
    text = piped("config", *HERE).out.replace("greet:v2", "greet:v3")
    said = piped("deploy", *HERE, "--yes", "-", stdin=text)
    assert said.status == 1
    assert "standard input:" in said.err
    assert "is code that only the instance has which printed it, and the backend doesn't run here" in said.err


def test_the_schema_for_editors_is_printed_without_an_instance() -> None:
    assert piped("config", "--schema", "--name", "none").out == schema.text()


def test_a_plan_is_shown_with_colour_on_a_terminal_alone_and_its_status_says_whether_there_is_something_to_do(
    running: Instance, folder: Path
) -> None:
    before = state(running)
    said = piped("deploy", *HERE, "--dry-run", "app.yaml", cwd=folder)
    assert (said.status, said.err) == (3, "")
    assert said.out.splitlines()[:3] == [
        "+ backend model (2 replicas)",
        "    + import_path: shop_of_deploy:Model",
        "    + init_kwargs.word: hello",
    ]
    assert "- backend greet:v1\n- backend greet:v2\n" in said.out
    assert said.out.endswith("- endpoint greet\n2 to create, 3 to delete\n")
    with on_terminal("deploy", *HERE, "--dry-run", "app.yaml", cwd=folder, width=60) as terminal:
        shown = terminal.end()
        assert shown.status == 3
        assert shown.out.endswith(said.out)
        assert "\x1b[32m+ backend model" in terminal.raw
        assert "\x1b[31m- endpoint greet" in terminal.raw
    assert state(running) == before


def test_without_a_terminal_to_ask_on_nothing_is_done(running: Instance, folder: Path) -> None:
    before = state(running)
    said = piped("deploy", *HERE, "app.yaml", cwd=folder)
    assert (said.status, said.out) == (2, "")
    assert "there is no terminal to ask on: give --yes to do it, or --dry-run to see it" in said.err
    assert state(running) == before


def test_a_wrong_file_is_told_with_its_line_before_anything_else(folder: Path) -> None:
    said = piped("deploy", "--yes", "--name", "none", declare(folder, APP.replace("num_replicas", "num_replica")))
    assert said.status == 1
    assert "other.yaml:3: backend 'model': config: unknown key 'num_replica'; did you mean 'num_replicas'?" in said.err


def test_on_a_terminal_it_asks_and_shows_how_many_replicas_are_ready(running: Instance, folder: Path) -> None:
    before, gate = state(running), folder / "gate"
    file = declare(folder, APP.replace("word: hello", f"word: hello, gate: {gate}"))
    for keys, status, says in (
        ("n\n", 1, "\nnothing has changed\n"),
        ("\x04", 1, "\nnothing has changed\n"),
        ("\x03", 130, "\ninterrupted: nothing has changed\n"),
    ):
        with on_terminal("deploy", *HERE, file) as terminal:
            terminal.until("Do it? [y/N]: ")
            terminal.until_it_reads()
            terminal.press(keys)
            said = terminal.end()
        assert said.status == status
        assert said.out.endswith(says)
        assert state(running) == before
    with on_terminal("deploy", *HERE, file) as terminal:
        terminal.until("Do it? [y/N]: ")
        terminal.press("y\n")
        terminal.until("0/2 ready")
        gate.touch()
        said = terminal.end()
    assert said.status == 0
    assert said.out.endswith(f"{NAME} runs what is declared\n")
    assert running.list_backends().keys() == {"model"}


def test_what_fails_is_told_with_its_traceback_and_leaves_everything_as_it_was(deployed: Instance, folder: Path) -> None:
    before, replicas = state(deployed), {replica.id for replica in deployed.list_backends()["model"].replicas}
    bad = APP.replace("endpoints:", '  bad: {import_path: "shop_of_deploy:Broken"}\nendpoints:')
    said = piped("deploy", *HERE, "--yes", declare(folder, bad))
    assert said.status == 1
    assert "error: backend 'bad' could not be started: RuntimeError: no weights" in said.err
    assert 'raise RuntimeError("no weights")' in said.err
    assert said.err.endswith("nothing has changed\n")
    assert state(deployed) == before
    assert {replica.id for replica in deployed.list_backends()["model"].replicas} == replicas


def test_code_whose_file_has_changed_is_replaced_and_all_of_it_where_that_is_asked_for(deployed: Instance, folder: Path) -> None:
    (folder / "shop_of_deploy.py").write_text(SHOP + "\n# newer\n")
    said = piped("deploy", *HERE, "--yes", "app.yaml", cwd=folder)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("~ backend model (2 replicas replaced)\n    ~ import_path: shop_of_deploy:Model (its file has changed)\n")
    assert piped("deploy", *HERE, "--dry-run", "app.yaml", cwd=folder).status == 0
    said = piped("deploy", *HERE, "--dry-run", "--update", "model", "app.yaml", cwd=folder)
    assert said.status == 3
    assert "(asked for)" in said.out
    assert "has no backend 'x'; it has 'model'" in piped("deploy", *HERE, "--dry-run", "--update", "x", "app.yaml", cwd=folder).err
    assert "did you mean 'model'?" in piped("deploy", *HERE, "--dry-run", "--update", "modle", "app.yaml", cwd=folder).err


def test_what_the_instance_cannot_do_is_refused_with_its_line(deployed: Instance, folder: Path) -> None:
    said = piped(
        "deploy", *HERE, "--yes", declare(folder, APP.replace("config: {", "ray_actor_options: {label_selector: {a: b}}, config: {"))
    )
    assert said.status == 1
    assert "other.yaml:3: backend 'model': ray_actor_options: 'label_selector' means something on a cluster only" in said.err
    said = piped("deploy", *HERE, "--yes", declare(folder, "http:\n  debug: true\n" + APP))
    assert said.status == 1
    assert "other.yaml:1: http: instance 'cli-test' is running already, and differs in debug=True" in said.err


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGKILL"])
def test_ctrl_c_leaves_everything_as_it_was_and_a_kill_the_old_or_the_new(deployed: Instance, folder: Path, how: str) -> None:
    before, gate = state(deployed), folder / "gate"
    file = declare(folder, APP.replace("word: hello", f"word: newer, gate: {gate}"))
    with on_terminal("deploy", *HERE, "--yes", file) as terminal:
        terminal.until("0/2 ready")
        wait_until(lambda: deployed.status().coming, what="it has begun")
        if how == "Ctrl-C":
            terminal.press("\x03")
            said = terminal.end()
            assert said.status == 130
            assert "\rinterrupted: nothing has changed\n" in said.out
            wait_until(lambda: not deployed.status().coming, what="what had started has ended")
            assert state(deployed) == before
            return
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait(30)
    assert state(deployed) == before
    gate.touch()
    wait_until(lambda: state(deployed) != before, what="the instance goes on by itself")
    assert deployed.list_backends()["model"].code.init_kwargs["word"] == "newer"
    wait_until(lambda: not deployed.status().coming, what="nothing is under way")


def test_ctrl_c_while_the_controller_is_away_leaves_everything_as_it_was(deployed: Instance, folder: Path) -> None:
    before, gate = state(deployed), folder / "gate"
    pids = {process.role: process.pid for process in deployed.status().processes}
    file = declare(folder, APP.replace("word: hello", f"word: newer, gate: {gate}"))
    with on_terminal("deploy", *HERE, "--yes", file) as terminal:
        terminal.until("0/2 ready")
        wait_until(lambda: deployed.status().coming, what="it has begun")
        os.kill(pids["supervisor"], signal.SIGSTOP)  # which would start another controller at once
        try:
            os.kill(pids["controller"], signal.SIGKILL)
            terminal.press("\x03")
        finally:
            os.kill(pids["supervisor"], signal.SIGCONT)
        said = terminal.end()
    assert said.status == 130
    assert "interrupted: nothing has changed\n" in said.out
    gate.touch()
    wait_until(lambda: not deployed.status().coming, what="what had started has ended")
    assert state(deployed) == before


def test_where_no_instance_runs_none_is_started_unless_that_is_asked_for(folder: Path) -> None:
    other = ("--name", "cli-deploy-start")
    said = piped("deploy", *other, "--yes", "app.yaml", cwd=folder)
    assert said.status == 1
    assert "no instance 'cli-deploy-start' is running" in said.err
    assert "`headgate start` starts it, or deploy --start" in said.err
    broken = declare(folder, 'http: {http_port: 0}\nbackends: {bad: {import_path: "shop_of_deploy:Broken"}}')
    assert piped("deploy", *other, "--yes", "--start", broken).status == 1
    assert "cli-deploy-start" not in serve.list_instances()
    try:
        assert piped("deploy", *other, "--yes", "--start", declare(folder, "http: {http_port: 0}\n" + APP)).status == 0
        with serve.connect("cli-deploy-start") as started:
            assert started.list_backends().keys() == {"model"}
    finally:
        assert piped("stop", *other).status == 0


def test_an_instance_that_is_started_for_a_file_that_declares_nothing_to_run_stays(folder: Path) -> None:
    other = ("--name", "cli-deploy-http")
    try:
        said = piped("deploy", *other, "--yes", "--start", declare(folder, "http: {http_port: 0}"))
        assert (said.status, said.out) == (0, "cli-deploy-http runs what is declared: nothing to do\n")
        assert "cli-deploy-http" in serve.list_instances()
    finally:
        assert piped("stop", *other).status == 0


def test_where_the_token_is_refused_meanwhile_it_is_not_said_that_nothing_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    class Refused:
        def deploy(self, plan: Plan) -> None:
            raise AdminTokenError("it is another one by now")

    with pytest.raises(AdminTokenError):
        _do(cast(Instance, Refused()), Plan((), Deploy((), (), "before")))
    assert capsys.readouterr() == ("", "")


def test_what_a_replica_takes_is_planned_as_it_travels(running: Instance, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    travels = ReplicaOptions(resources={"checked": 1.0})
    monkeypatch.setattr(running._connection.way, "check", lambda options: travels)
    plan = running.plan(str(folder / "app.yaml"))
    assert [backend.options for backend in plan.verb.backends] == [travels]
