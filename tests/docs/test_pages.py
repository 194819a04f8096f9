"""Does every block of the pages that people type along do what its page shows?"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import headgate
from benchmarks import environments
from benchmarks.contenders import CONTENDERS
from tests.docs.pages import Block, PageError, blocks, commands, pattern, programs
from tests.support import leave_out

ROOT = Path(__file__).parents[2]


def typed(*patterns: str) -> list[Path]:
    """The pages of these names of which something is typed."""
    pages = [page for pattern in patterns for page in sorted(ROOT.glob(pattern))]
    return [page for page in pages if any(block.is_typed for block in blocks(page))]


LESSONS = typed("README.md", "docs/tutorial/**/*.md", "docs/how-to/**/*.md")
"""Those that begin where a reader may begin, each typed along by itself."""
ON_RAY = [page for page in LESSONS if "ray" in programs(page)]
"""Those that start a cluster, typed along in tests/on_ray."""
PAGES = [page for page in LESSONS if page not in ON_RAY]
REFERENCE = typed("docs/reference/**/*.md", "docs/concepts/**/*.md", "examples/*.md")
"""Those of which a reader looks something up: they share an instance, and leave it as they found it."""
MOVING = [page for page in PAGES if page.name.startswith("moving-from-")]
_LEFT_OUT = ("FORCE_COLOR", "COLUMNS", "LINES")
_PROGRAMS = ("unshare", "setsid", "bash", "curl", "openssl")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.local_engine("the pages start instances of their own")
@pytest.mark.timeout(300)
def test_what_a_page_shows_is_what_happens(page: Path) -> None:
    type_along(page)


@pytest.mark.local_engine("the pages start instances of their own")
@pytest.mark.timeout(300)
def test_what_the_reference_shows_is_what_happens() -> None:
    type_along(*REFERENCE)


def type_along(*pages: Path, contender: str = "", environment: Path | str = "", spaces: Sequence[str] = (), **variables: str) -> None:
    """Fail where a page shows what doesn't happen; a contender comes with its environment and variables.

    The network is always the pages' own; `spaces` is what else of the machine is to be, by the options of `unshare`.
    """
    needed = dict.fromkeys([*_PROGRAMS, *(program for page in pages for program in programs(page))])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    missing = [program for program in needed if shutil.which(program, path=path) is None]
    if missing:
        leave_out(f"not installed: {', '.join(missing)}")
    apart = ["unshare", "--net", *spaces, *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        leave_out(f"this can't be had here: {' '.join(apart)}")
    # Nothing of Ray's: a process that has started a cluster has it in its environment that clusters use tokens.
    kept = {name: value for name, value in os.environ.items() if name not in (*_LEFT_OUT, "PYTHONPATH") and not name.startswith("RAY_")}
    environ = {
        **kept,
        "PATH": path,
        "PYTHONPATH": f"{Path(headgate.__file__).parents[1]}:{ROOT}",
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),  # several that train wait for each other where others work, too
        **variables,
    }
    program = [sys.executable, "-m", "tests.docs.typing_along", *pages, "--contender", contender, "--environment", environment]
    # The first process of processes that are apart takes leave of those that nobody else does: a shell sees to that.
    first = ["bash", "-c", '"$@"; exit', "bash"] if "--pid" in spaces else []
    done = subprocess.run(
        [*apart, *first, *program],
        env=environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", [*LESSONS, *REFERENCE], ids=lambda page: str(page.relative_to(ROOT)))
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
    type_along(page, contender=name, environment=environments.FOLDER / contender.environment, **contender.variables)


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


@pytest.mark.parametrize(
    "slip", ["figure vary", "Not run: why", "figures vary.", "not run:", "not run: over\ntwo lines", "file of: other.md"]
)
def test_a_comment_that_is_not_known_is_a_slip(tmp_path: Path, slip: str) -> None:
    with pytest.raises(PageError, match="nothing is known of a comment such as"):
        blocks(page_of(tmp_path, f"<!-- {slip} -->\n\n```python\nx = 1\n```\n"))


@pytest.mark.parametrize("held", ["```python\nx = 1\n```\n```python\nx = 2\n```\n", "status: 1\n```console\n$ false\n```\n"])
def test_a_comment_that_holds_more_than_a_block_is_a_slip(tmp_path: Path, held: str) -> None:
    with pytest.raises(PageError, match="a comment holds one block"):
        blocks(page_of(tmp_path, f"<!--{held}-->\n"))


@pytest.mark.parametrize("text", ["```python\nx = 1\n", "```python\nx = 1\n ```\n\n```text\n1\n```\n", "~~~python\nx = 1\n~~~\n"])
def test_a_block_that_is_not_closed_is_a_slip(tmp_path: Path, text: str) -> None:
    with pytest.raises(PageError, match=r"doesn't end as it begins|blocks are in"):
        blocks(page_of(tmp_path, text))


def test_pages_together_share_an_interpreter_and_no_names_nor_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text("```python\nimport os, sys\nopen('one', 'w').close()\nsys.before, x = os.getpid(), 1\n```\n")
    second.write_text(
        "```python\nimport os, sys\nprint(sys.before == os.getpid(), os.listdir(), 'x' in globals())\n```\n\n```text\nTrue [] False\n```\n"
    )
    type_along(first, second)


def test_a_comment_tells_which_other_server_a_block_needs(tmp_path: Path) -> None:
    page = page_of(tmp_path, "<!-- needs: mosec -->\n\n```console\n$ old/bin/python -c 'print(1)'\n```\n\n```console\n$ echo 2\n2\n```\n")
    assert [block.needs for block in blocks(page)] == ["mosec", ""]
    type_along(page)  # without it, that block isn't typed: there is no `old`
    type_along(page, contender="mosec", environment=sys.prefix)
    page.write_text(page.read_text().replace("print(1)", "1 / 0"))
    type_along(page)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        type_along(page, contender="mosec", environment=sys.prefix)


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
    assert pattern(["of 3fa21c9d"], True).fullmatch("of feedbeef\n")  # an id may have no digit
    assert not pattern(["of 3"], True).fullmatch("of feedbeef\n")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```console\n$ echo one\ntwo\n```\n", r"The page shows:\s+two"),
        ("```console\n$ false\n```\n", "ended with 1, not 0"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", r"The page shows:\s+2"),
        ("```python\nx = 1\n```\n\n```text\n2\n```\n", r"said:\s+The page shows:\s+2"),
        ("```python\nprint(1)\n```\n\n```console\n$ true\n```\n\n```text\n1\n```\n", "a block of text is what the block of Python before"),
    ],
)
def test_a_page_that_shows_what_does_not_happen_fails(tmp_path: Path, block: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        test_what_a_page_shows_is_what_happens(page_of(tmp_path, block))
