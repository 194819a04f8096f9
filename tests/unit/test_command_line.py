"""Is the command line quick, and does every command have what people look for?"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from rich.console import Console

import headgate
from headgate import serve
from headgate.cli import init_options, output, reference, starting
from headgate.cli.main import COMMANDS, run
from headgate.cli.main import headgate as group
from headgate.cli.output import Column, seconds_text, table_for
from headgate.cli.status import page, records
from headgate.cli.where import Where
from headgate.core.reports import Coming, Counters, Description, Measurement

PAGE = Path(__file__).parents[2] / "docs/reference/command-line.md"
NAMES = [name for names in COMMANDS.values() for name in names]


def test_help_imports_nothing_that_it_does_not_need() -> None:
    heavy = {"asyncio", "headgate.serve", "msgspec", "rich", "uvloop", "httptools", "watchfiles", "ssl", "http.client"}
    code = (
        "import sys; from headgate.cli.main import run; run(['--help']); "
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr); print(len(sys.modules))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(headgate.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_sentence_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Examples:" in said
    assert f"headgate {name}" in said
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert not command.get_short_help_str(90).endswith("..."), "its first sentence is too long for `headgate --help`"


def test_the_page_about_the_command_line_is_made_from_the_commands() -> None:
    assert PAGE.read_text() == reference.text(), "python -m headgate.cli.reference > docs/reference/command-line.md"


def test_options_of_init_are_those_of_its_signature() -> None:
    made = {option.name: option for option in init_options.options()}
    assert {"http_port", "state_dir", "num_ingresses", "resources", "debug"} <= made.keys()
    assert {"name", "engine", "address", "detached"}.isdisjoint(made)
    assert all(option.help for option in made.values())
    values = {"http_port": 0, "resources": (("CPU", 2.0),), "debug": None, "other": 1}
    assert init_options.given(values) == {"http_port": 0, "resources": {"CPU": 2.0}}
    assert values == {"other": 1}


def test_where_it_is_not_known_that_an_instance_has_ended_it_is_not_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[str] = []
    way = SimpleNamespace(is_afar=True, is_there=lambda: True)
    connection: Any = SimpleNamespace(
        name="there", way=way, replica="", over="", forked=False, verb=lambda verb: b"", close=lambda: closed.append("it"), users=2
    )
    starter: Any = SimpleNamespace(wait_ended=lambda way, timeout_s: False, has_ended=lambda way: False, leave=lambda way: None)
    monkeypatch.setattr(Where, "connect", lambda where: serve.Instance(connection, starter, owned=False))
    with pytest.warns(RuntimeWarning, match=r"'there' was told to shut down, and whether it has ended isn't known: after 30 s it is out"):
        serve.Instance(connection, starter, owned=False).shutdown()
    assert closed == ["it"]
    for command in ("stop", "shutdown"):
        assert run([command, "--address", "tcp://there:8100"]) == 1
        said = capsys.readouterr()
        assert "whether it has ended isn't known" in said.err
        assert "is shut down" not in said.out


def test_alone_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    alone = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == alone


def test_wrong_commands_and_options_exit_with_2_and_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["satus"]) == 2
    assert "did you mean 'status'?" in capsys.readouterr().err
    assert run(["status", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err
    assert run(["traffic"]) == 2
    assert "Missing argument 'ENDPOINT'" in capsys.readouterr().err


def test_a_table_leaves_out_what_does_not_fit_by_rank() -> None:
    columns = (Column("name"), Column("most"), Column("less", rank=1), Column("least", rank=2))
    rows = [["n" * 10, "m" * 10, "l" * 10, "x" * 10]]
    for width, kept in ((80, 4), (40, 3), (25, 2), (5, 2)):
        assert len(table_for(columns, rows, width).columns) == kept


def test_what_a_table_cuts_ends_in_an_ellipsis() -> None:
    columns = (Column("name"), Column("traffic", flexible=True), Column("why", flexible=True))
    for width, ends in ((23, ["one=0.9 t…", "short"]), (60, ["one=0.9 two=0.1", "short"]), (16, ["one…", "sho…"])):
        said = io.StringIO()
        console = Console(file=said, width=width)
        console.print(table_for(columns, [["name", "one=0.9 two=0.1", "short"]], width), no_wrap=True)
        row = said.getvalue().splitlines()[-1]
        assert len(row) <= width
        assert [each for each in row.split("  ") if each.strip()][1:] == ends


def test_a_number_that_is_none_and_a_file_that_is_not_there_are_told_with_what_was_expected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("app.yaml", "app.py"):
        (tmp_path / file).touch()
    for arguments, said in (
        (["scale", "x", "many"], "'many' is not a valid whole number"),
        (["bench", "/", "--rate", "quick"], "'quick' is not a valid number"),
        (["deploy", "--yes", "ap.yaml"], "there is no file 'ap.yaml'; did you mean 'app.yaml'?"),
        (["run", "ap.py"], "there is no file 'ap.py'; did you mean 'app.py'?"),
    ):
        assert run(arguments) == 2
        assert said in capsys.readouterr().err


def test_status_says_which_replicas_are_coming() -> None:
    described = Description("default", (), {}, {}, (), {}, {}, (), ready=True, coming={"digits:v2": Coming(3, 1)})
    assert ["coming", "digits:v2", "1/3"] in records(described, Measurement(Counters()))
    said = io.StringIO()
    Console(file=said, width=60).print(page(described, Measurement(Counters()), 60))
    assert "coming: digits:v2, 1/3 ready" in said.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000005, "0.5 us"), (0.0042, "4.2 ms"), (12.0, "12 s"), (180.0, "3 min"), (10000.0, "2.78 h"), (3e5, "3 d")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_who_waits_for_slow_constructors_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    told, said = threading.Event(), []

    def note(text: str) -> None:
        said.append(text)
        told.set()

    monkeypatch.setattr(starting, "_TELL_AFTER_S", 0.001)
    monkeypatch.setattr(output, "note", note)
    monkeypatch.setattr(output, "to_stderr", lambda: SimpleNamespace(is_terminal=True))
    slow: Any = SimpleNamespace(status=lambda: SimpleNamespace(coming={"large": Coming(2, 1)}))
    with starting._telling_what_starts(slow):
        assert told.wait(30)
    assert said[0] == "large: 1 of 2 replicas are ready so far; their constructors go on"
