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
from benchmarks import environments
from benchmarks.contenders import CONTENDERS
from tests.docs.pages import Block, PageError, blocks, commands, pattern, programs
from tests.support import leave_out

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/tutorial/**/*.md")), *sorted(ROOT.glob("docs/how-to/**/*.md"))]
MOVING = [page for page in PAGES if page.name.startswith("moving-from-")]
_PROGRAMS = ("unshare", "setsid", "bash", "curl", "openssl")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.local_engine("the pages start instances of their own")
@pytest.mark.timeout(300)
def test_what_a_page_shows_is_what_happens(page: Path) -> None:
    type_along(page)


def type_along(page: Path, *contender: str, **variables: str) -> None:
    """Fail where a page shows what doesn't happen; a contender comes with the folder of its environment, and its variables."""
    missing = [program for program in (*_PROGRAMS, *programs(page)) if shutil.which(program) is None]
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
        **variables,
    }
    done = subprocess.run(
        [*own_network, sys.executable, "-m", "tests.docs.typing_along", page, *contender],
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
        if block.file and not block.why_not and not block.borrowed:
            later = [other.text for other in found[at + 1 :] if not other.why_not]
            stem = Path(block.file).stem
            assert any(re.search(rf"\b{stem}\b", text) for text in later), f"line {block.line}: nothing uses {block.file}"


def needed(page: Path) -> set[str]:
    """The contenders that a page is about."""
    return {block.needs for block in blocks(page)} - {""}


@pytest.mark.parametrize("page", MOVING, ids=lambda page: page.stem)
@pytest.mark.local_engine("the pages start instances of their own")
@pytest.mark.timeout(900)  # with `--peers` it may have to install one first
def test_what_a_page_shows_of_another_server_is_what_happens(page: Path, request: pytest.FixtureRequest) -> None:
    if not needed(page):
        pytest.skip(f"{page.name} says why nothing of it is run")
    (name,) = needed(page)
    contender = CONTENDERS[name]
    if not request.config.getoption("--peers"):
        pytest.skip(f"{contender.title} is another project's: with --peers it is installed, and both halves of the page are run")
    environments.ensure(contender.environment, models=True)
    type_along(page, name, str(environments.FOLDER / contender.environment), **contender.variables)


@pytest.mark.parametrize("page", MOVING, ids=lambda page: page.stem)
def test_a_page_on_another_server_says_which_version_it_was_tried_with(page: Path) -> None:
    for name in needed(page):
        pinned = environments.ENVIRONMENTS[CONTENDERS[name].environment][0]
        assert pinned.partition("==")[2] in page.read_text(), f"the benchmarks have {pinned}"


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


def test_a_comment_tells_which_other_server_a_block_needs(tmp_path: Path) -> None:
    page = page_of(tmp_path, "<!-- needs: mosec -->\n\n```console\n$ old/bin/python -c 'print(1)'\n```\n\n```console\n$ echo 2\n2\n```\n")
    assert [block.needs for block in blocks(page)] == ["mosec", ""]
    type_along(page)  # without it, that block isn't typed: there is no `old`
    type_along(page, "mosec", sys.prefix)
    page.write_text(page.read_text().replace("print(1)", "1 / 0"))
    type_along(page)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        type_along(page, "mosec", sys.prefix)


def test_a_page_may_use_the_files_of_another(tmp_path: Path) -> None:
    page_of(tmp_path, "```python\n# one.py\nx = 1\n```\n\n```python\nprint(2)\n```\n")
    using = tmp_path / "using.md"
    using.write_text("<!-- files of: page.md -->\n\n```console\n$ python -c 'import one; print(one.x)'\n1\n```\n")
    assert [(block.file, block.borrowed) for block in blocks(using)] == [("one.py", True), ("", False)]
    type_along(using)


def test_a_block_in_a_comment_is_run_as_if_it_were_seen(tmp_path: Path) -> None:
    (block,) = blocks(page_of(tmp_path, "<!-- what the reader has done\n```console\n$ true\n```\n-->\n"))
    assert (block.language, block.text, block.why_not) == ("console", "$ true\n", "")


def test_a_page_names_the_programs_that_it_needs(tmp_path: Path) -> None:
    page = page_of(tmp_path, "<!-- programs: no-such-program, nor-this -->\n\n```python\nx = 1\n```\n")
    assert programs(page) == ["no-such-program", "nor-this"]
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
