"""Does every block of the pages that people type along do what its page shows?"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import headgate
from tests.docs.pages import Block, PageError, blocks, commands, needs, pattern
from tests.support import leave_out

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/tutorial/**/*.md")), *sorted(ROOT.glob("docs/how-to/**/*.md"))]
_PROGRAMS = ("unshare", "setsid", "bash", "curl", "openssl")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.local_engine("the pages start instances of their own")
@pytest.mark.timeout(300)
def test_what_a_page_shows_is_what_happens(page: Path) -> None:
    missing = [program for program in (*_PROGRAMS, *needs(page)) if shutil.which(program) is None]
    if missing:
        leave_out(f"not installed: {', '.join(missing)}")
    own_network = ["unshare", "--net", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    if subprocess.run([*own_network, "true"], check=False, capture_output=True).returncode:
        leave_out("a network of its own can't be had here")
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS", "LINES", "PYTHONPATH")}
    environ = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{Path(headgate.__file__).parents[1]}:{ROOT}",
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "",
    }
    done = subprocess.run(
        [*own_network, sys.executable, "-m", "tests.docs.typing_along", page],
        env=environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_a_page_is_used(page: Path) -> None:
    found = blocks(page)
    for at, block in enumerate(found):
        if block.file and not block.why_not:
            later = [other.text for other in found[at + 1 :] if not other.why_not]
            stem = Path(block.file).stem
            assert any(re.search(rf"\b{stem}\b", text) for text in later), f"line {block.line}: nothing uses {block.file}"


# The harness itself.


def page_of(tmp_path: Path, text: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(text)
    return page


def test_a_comment_tells_why_a_block_is_not_run(tmp_path: Path) -> None:
    text = "<!-- not run: no cluster here -->\n\n```console\n$ kubectl get pods\n```\n\n```python\nx = 1\n```\n"
    first, second = blocks(page_of(tmp_path, text))
    assert (first.why_not, first.text, second.why_not, second.line) == ("no cluster here", "$ kubectl get pods\n", "", 7)


def test_a_comment_that_tells_of_no_block_is_a_slip(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="none follows"):
        blocks(page_of(tmp_path, "<!-- not run: forgotten -->\n\nwords\n\n```python\nx = 1\n```\n"))


def test_a_block_in_an_unknown_language_is_a_slip(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="pyhton"):
        blocks(page_of(tmp_path, "```pyhton\nx = 1\n```\n"))


def test_a_block_in_a_comment_is_run_as_if_it_were_seen(tmp_path: Path) -> None:
    (block,) = blocks(page_of(tmp_path, "<!-- what the reader has done\n```console\n$ true\n```\n-->\n"))
    assert (block.language, block.text, block.why_not) == ("console", "$ true\n", "")


def test_a_page_names_the_programs_that_it_needs(tmp_path: Path) -> None:
    page = page_of(tmp_path, "<!-- needs: no-such-program, nor-this -->\n\n```python\nx = 1\n```\n")
    assert needs(page) == ["no-such-program", "nor-this"]
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception), match="not installed: no-such-program, nor-this"):
        test_what_a_page_shows_is_what_happens(page)


def test_commands_go_with_what_they_show() -> None:
    typed = commands(Block(1, "console", "$ echo a \\\n>   b\na b\n$ true\n"))
    assert [(command.text, command.shown) for command in typed] == [("echo a \\\n  b", ["a b"]), ("true", [])]


def test_what_is_shown_matches_only_what_it_may_be() -> None:
    assert pattern(["a ... c", "...", "z"], False).fullmatch("a b c\n1\n2\nz\n")
    assert not pattern(["a ... c"], False).fullmatch("a b d\n")
    assert not pattern(["took 1.5 ms"], False).fullmatch("took 1.6 ms\n")
    assert pattern(["took 1.5 ms  3"], True).fullmatch("took 12.25 ms 4\n")
    assert not pattern(["took 1.5 ms"], True).fullmatch("took long ms\n")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```console\n$ echo one\ntwo\n```\n", r"The page shows:\s+two"),
        ("```console\n$ false\n```\n", "ended with 1, not 0"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", r"The page shows:\s+2"),
    ],
)
def test_a_page_that_shows_what_does_not_happen_fails(tmp_path: Path, block: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        test_what_a_page_shows_is_what_happens(page_of(tmp_path, block))
