"""Is the command line quick, and does every command have what people look for?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import headgate
from headgate import serve
from headgate.cli import init_options, reference
from headgate.cli.main import COMMANDS, run
from headgate.cli.main import headgate as group
from headgate.cli.output import Column, seconds_text, table_for
from headgate.cli.where import Where

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


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000005, "0.5 us"), (0.0042, "4.2 ms"), (12.0, "12 s"), (180.0, "3 min"), (10000.0, "2.78 h"), (3e5, "3 d")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
