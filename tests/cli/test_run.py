"""Does an instance begin, serve and end with `headgate run`, and outlive `headgate start`?"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from headgate import serve
from headgate.cli import output
from headgate.cli.target import failure
from headgate.errors import ReplicaStartError
from tests.cli.console import COMMAND, Terminal, environment, here, on_terminal, piped
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("the commands start instances of this machine")

APP = """
import sys
from headgate import serve

class Greeter:
    def __init__(self, who):
        self.who = who

    def __call__(self, request):
        return f"hello {self.who}"

def setup():
    with serve.init():
        serve.create_backend("greeter:v1", Greeter, sys.argv[1] if len(sys.argv) > 1 else "world")
        serve.create_endpoint("greeter", "/hello", backend="greeter:v1")

if __name__ == "__main__":
    setup()
"""

SLOW = """
import time
from headgate import serve

def slow():
    print("called", flush=True)
    time.sleep(1000)

serve.init()
serve.create_backend("slow", slow, config={"graceful_shutdown_timeout": 1000})
serve.create_endpoint("slow", backend="slow")
serve.get_handle("slow").remote()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.joinpath("app.py").write_text(APP)
    return tmp_path


def answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def url_in(terminal: Terminal) -> str:
    """Where its endpoint is, once that serves."""
    terminal.until("(GET) greeter:v1=1")
    return str(re.findall(r"http://[\d.:]+/hello", terminal.text)[-1])


@pytest.mark.parametrize(("target", "said"), [(["app.py", "Ada"], "hello Ada"), (["app:setup"], "hello world")])
def test_run_serves_what_a_file_or_a_function_sets_up_until_ctrl_c(folder: Path, target: list[str], said: str) -> None:
    with on_terminal("run", "--name", "cli-run", "--http-port", "0", *target, cwd=folder) as terminal:
        assert answer(url_in(terminal)) == said
        terminal.press("\x03")
        ended = terminal.end()
    assert ended.status == 0
    assert "draining" in ended.out
    assert "cli-run" not in serve.list_instances()


def test_sigterm_drains_and_an_end_by_others_ends_run(folder: Path) -> None:
    command = [*COMMAND, "run", "--name", "cli-run", "--http-port", "0", "app.py"]
    for by_signal in (True, False):
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=folder) as process:
            assert process.stderr is not None
            while "greeter:v1=1" not in process.stderr.readline():
                assert process.poll() is None
            if by_signal:
                process.send_signal(signal.SIGTERM)
            else:
                assert piped("shutdown", "--name", "cli-run").status == 0
            assert process.wait(30) == 0


def test_a_second_ctrl_c_ends_everything_at_once(folder: Path) -> None:
    folder.joinpath("slow.py").write_text(SLOW)
    with on_terminal("run", "--name", "cli-run", "--http-port", "0", "slow.py", cwd=folder) as terminal:
        terminal.until("called")  # which takes longer than the test may
        terminal.press("\x03")
        terminal.until("draining")
        terminal.press("\x03")
        assert terminal.end().status == 130
    assert "cli-run" not in serve.list_instances()


def test_a_target_that_fails_leaves_nothing_running_and_exits_with_1(folder: Path) -> None:
    folder.joinpath("bad.py").write_text("import sys\nraise KeyError(sys.argv[1])\n")
    for command in ("run", "start"):
        said = piped(command, "--name", "cli-run", "--http-port", "0", "bad.py", "why", cwd=folder)
        assert said.status == 1
        assert "KeyError: 'why'" in said.err
        assert "headgate/cli" not in said.err  # the traceback is of the user's code
        assert "cli-run" not in serve.list_instances()


def test_what_a_constructor_raises_is_shown_once(folder: Path) -> None:
    folder.joinpath("unbuilt.py").write_text(
        "from headgate import serve\n"
        "class Model:\n"
        "    def __init__(self):\n"
        "        raise KeyError('weights')\n"
        "    def __call__(self, request): ...\n"
        "serve.create_backend('model', Model)\n"
    )
    said = piped("run", "--name", "cli-run", "--http-port", "0", "unbuilt.py", cwd=folder)
    assert said.status == 1
    assert [
        said.err.count(part) for part in ("in __init__", "in <module>", "backend 'model' could not be started: KeyError: 'weights'")
    ] == [1] * 3
    assert said.err.index("in __init__") < said.err.index("in <module>")


def test_where_replicas_have_a_log_of_their_own_what_a_constructor_raised_comes_with_the_error() -> None:
    def told(*, log_is_here: bool) -> str:
        return failure(ReplicaStartError("it did not start", remote_traceback="Traceback: why"), log_is_here=log_is_here)

    assert "Traceback: why" in told(log_is_here=False)
    assert told(log_is_here=True).endswith("it did not start")


def test_a_wrong_target_or_option_is_told_the_nearest_before_anything_starts(folder: Path) -> None:
    for given, why in ((["ap.py"], "did you mean 'app.py'?"), (["app"], "module:function"), (["--http-prt", "0", "app.py"], "--http-port")):
        said = piped("run", *given, cwd=folder)
        assert said.status == 2
        assert why in said.err
    said = piped("run", "--name", "cli-run", "--http-port", "0", "app:setpu", cwd=folder)
    assert said.status == 1
    assert "did you mean 'setup'?" in said.err


def test_what_a_verb_refuses_is_told_where_the_program_asked_for_it_and_who_started_the_instance(folder: Path) -> None:
    folder.joinpath("wrong.py").write_text(
        "import urllib.parse\n"
        "from headgate import errors, serve\n"
        "port = urllib.parse.urlsplit(serve.init().http_url).port\n"
        "for name, other in ((None, port + 1), ('cli-other', port)):\n"
        "    try:\n"
        "        serve.init(name, http_port=other)\n"
        "    except errors.HeadgateError as error:\n"
        "        print(error.__notes__)\n"
        "serve.create_backend('big', print, ray_actor_options={'num_gpus': 1000})\n"
    )
    said = piped("run", "--name", "cli-run", "--http-port", "0", "wrong.py", cwd=folder)
    assert said.status == 1
    differs, taken = said.out.splitlines()
    assert "by options there, such as --http-port" in differs
    assert "'cli-other' is another instance than 'cli-run'" in taken
    assert "in <module>" in said.err
    assert "InsufficientResourcesError: backend 'big'" in said.err
    assert "connection.py" not in said.err


def test_run_says_what_can_not_be_asked_yet_and_which_options_it_did_not_get(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.joinpath("bare.py").write_text("from headgate import serve\nserve.create_endpoint('bare', '/bare')\n")
    with on_terminal("run", "--name", "cli-run", "--http-port", "0", "bare.py", "--http-port", "9", "--help", cwd=folder) as terminal:
        terminal.until("/bare (GET) no traffic yet: headgate traffic --name cli-run bare TAG=100%")
        assert "--http-port stands behind the program" in terminal.text
        assert "--help" not in terminal.text  # many programs have that
        terminal.press("\x03")
        assert terminal.end().status == 0
    folder.joinpath("nothing.py").write_text("")
    try:
        said = here(capsys, "start", "--name", "cli-run", "--http-port", "0", str(folder / "nothing.py"))
        assert said.status == 0
        assert "nothing.py has created no endpoint" in said.err
    finally:
        piped("stop", "--name", "cli-run")


def test_a_program_that_ends_before_anybody_asked_is_told_how_to_serve_on(folder: Path) -> None:
    folder.joinpath("plain.py").write_text(
        "import sys\n"
        "from headgate import serve\n"
        "serve.init('cli-plain', http_port=0)\n"
        "serve.create_backend('one', lambda request: 1)\n"
        "serve.create_endpoint('one', '/one', backend='one')\n"
        "sys.argv[1:] == ['ask'] and serve.get_handle('one').remote(0).result(timeout_s=10)\n"
        "sys.argv[1:] == ['fail'] and print(1 / 0)\n"
    )
    said = {}
    for does in ("nothing", "ask", "fail"):
        command = [sys.executable, "plain.py", does]
        said[does] = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True, check=False, timeout=60).stderr
    assert "`headgate run plain.py` serves until Ctrl-C" in said["nothing"]
    assert said["ask"] == ""
    assert said["fail"].endswith("ZeroDivisionError: division by zero\n")


def test_start_outlives_the_command_and_stop_ends_it_and_what_was_kept_has_to_be_looked_at_first(folder: Path) -> None:
    command = ("start", "--name", "cli-start", "--http-port", "0", "--state-dir", "state", "app.py")
    said = piped(*command, cwd=folder)
    try:
        assert said.status == 0
        assert os.path.exists(re.findall("its log: (.*)", said.out)[0])
        assert answer(re.findall(r"http://[\d.:]+/hello", said.err)[-1]) == "hello world"
        again = piped("start", "--name", "cli-start", cwd=folder)
        assert again.status == 1
        assert "running already" in again.err
    finally:
        assert piped("stop", "--name", "cli-start").out == "cli-start is shut down\n"
    kept = piped(*command, cwd=folder)
    assert kept.status == 1
    assert "AlreadyExistsError: backend 'greeter:v1' exists already" in kept.err
    assert f"it creates what {folder / 'state'} has kept. Have it look first" in kept.err
    said = piped("stop", "--name", "cli-start")
    assert (said.status, said.out) == (0, "no instance 'cli-start' is running\n")


@pytest.mark.parametrize("command", [("start",), ("deploy", "--yes", "--start")], ids=["start", "deploy"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_instance_that_is_to_stay_is_gone_where_its_set_up_is_ended(tmp_path: Path, command: tuple[str, ...], number: int) -> None:
    waiting = "open('waits', 'w').close(); time.sleep(1000)"
    if command[0] == "start":
        target = "app.py"
        (tmp_path / target).write_text(f"import time\nfrom headgate import serve\nwith serve.init():\n    pass\n{waiting}\n")
    else:
        target = "app.yaml"
        (tmp_path / "waiting_code.py").write_text(
            f"import time\nclass Waits:\n    def __init__(self):\n        {waiting}\n    def __call__(self): ...\n"
        )
        (tmp_path / target).write_text("http: {http_port: 0}\nbackends: {waits: {import_path: 'waiting_code:Waits'}}\n")
    port = ("--http-port", "0") if command[0] == "start" else ()
    call = [*COMMAND, *command, "--name", "cli-ended", *port, target]
    with subprocess.Popen(call, env=environment(), stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        wait_until((tmp_path / "waits").exists, timeout_s=30)
        assert "cli-ended" in serve.list_instances()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert "cli-ended" not in serve.list_instances()


@pytest.mark.parametrize("command", [("start", "--http-port", "0"), ("deploy", "--yes", "--start")], ids=["start", "deploy"])
def test_an_instance_that_is_to_stay_is_gone_where_its_start_is_interrupted_at_the_last_moment(
    folder: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def interrupted(what: str) -> Iterator[None]:
        yield
        assert "cli-interrupted" in serve.list_instances()
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "working", interrupted)
    (folder / "app.yaml").write_text("http: {http_port: 0}")
    file = [str(folder / "app.yaml")] if command[0] == "deploy" else []
    try:
        assert here(capsys, *command, "--name", "cli-interrupted", *file).status == 130
        assert "cli-interrupted" not in serve.list_instances()
    finally:
        piped("stop", "--name", "cli-interrupted")


@pytest.fixture
def reloading(folder: Path) -> Iterator[Terminal]:
    with on_terminal("run", "--name", "cli-reload", "--http-port", "0", "--reload", "app.py", cwd=folder) as terminal:
        yield terminal


def test_reload_serves_on_while_new_code_warms_and_when_it_is_broken(folder: Path, reloading: Terminal) -> None:
    file, terminal = folder / "app.py", reloading
    terminal.until("set up in")
    url = re.findall(r"http://[\d.:]+", terminal.text)[0] + "/hello"
    assert answer(url) == "hello world"
    file.write_text(APP.replace("hello {", "good day {").replace('else "world")', 'else "world", ray_actor_options={"num_cpus": 0.5})'))
    wait_until(lambda: answer(url) == "good day world")
    with serve.connect("cli-reload") as instance:
        assert instance.list_backends()["greeter:v1"].options.num_cpus == 0.5
    terminal.raw = ""
    file.write_text(APP + "oops(\n")
    terminal.until("serves on")
    assert "SyntaxError" in terminal.text
    assert answer(url) == "good day world"
    terminal.raw = ""
    file.write_text(APP.replace("greeter:v1", "greeter:v2").replace('"/hello"', '"/hi"'))
    terminal.until("set up in")
    assert answer(url.replace("hello", "hi")) == "hello world"
    with serve.connect("cli-reload") as instance:
        wait_until(lambda: list(instance.list_backends()) == ["greeter:v2"], what="what is no longer set up is gone")
    terminal.press("\x03")
    assert terminal.end().status == 0


PAGES = """
import os, sys, time
from headgate import serve

def pages(request):
    if request.args.get("stream"):
        return until_gate()
    return "page"

def until_gate():
    while not os.path.exists("gate"):
        yield "."
        time.sleep(0.01)

serve.init()
if "pages" not in serve.list_backends():
    serve.create_backend("pages", pages, config={"concurrency": 4, "graceful_shutdown_timeout": 60})
serve.create_endpoint("pages", "/old", backend="pages")
"""


def status_of(url: str) -> int:
    try:
        answer(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.mark.parametrize(("before", "after"), [('"/old"', '"/new"'), ('("pages", "/old"', '("other", "/old"')], ids=["route", "name"])
def test_a_reload_that_changes_an_endpoint_is_one_moment_for_clients_and_waits_for_no_stream(
    folder: Path, reloading: Terminal, before: str, after: str
) -> None:
    file, terminal = folder / "app.py", reloading
    file.write_text(PAGES)
    terminal.until("set up in")
    old = re.findall(r"http://[\d.:]+", terminal.text)[0] + "/old"
    wait_until(lambda: status_of(old) == 200)
    new = old.replace("old", "new")
    seen: set[tuple[int, ...]] = set()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            first = status_of(old)
            seen.add((first,) if first == 200 else (first, status_of(new)))

    terminal.raw = ""
    client = threading.Thread(target=ask)
    client.start()
    try:
        with urllib.request.urlopen(f"{old}?stream=1", timeout=10) as stream, serve.connect("cli-reload") as instance:
            assert stream.read(1) == b"."
            file.write_text(PAGES.replace(before, after))
            terminal.until("set up in")
            wait_until(lambda: len(instance.list_endpoints()) == 1 and seen)
            assert stream.read(1) == b"."  # still open
            over.set()
            client.join()
            assert (status_of(old), status_of(new)) == ((404, 200) if "new" in after else (200, 404))
            terminal.raw = ""
            file.write_text(PAGES.replace(before, after) + "\n")  # another change is seen, though the stream is still open
            terminal.until("set up in")
            (folder / "gate").touch()
            assert set(stream.read()) <= {ord(".")}
    finally:
        over.set()
        client.join()
    assert seen <= {(200,), (404, 200)}


def test_a_reload_knows_names_however_long_they_are_together(folder: Path, reloading: Terminal) -> None:
    many = """
from headgate import serve

serve.init()
for number in range(75):
    serve.create_endpoint(f"{number}:" + "x" * 1000)
"""
    terminal = reloading

    def has(count: int) -> bool:
        with serve.connect("cli-reload") as instance:
            return len(instance.list_endpoints()) == count

    for count in (75, 2):
        (folder / "app.py").write_text(many.replace("75", str(count)))
        terminal.until("set up in")
        wait_until(functools.partial(has, count))
