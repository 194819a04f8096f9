"""Does `headgate logs` show what processes have said, and go on until their end?"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from headgate import serve
from headgate.cli.logs import in_order
from headgate.logs.entry import Entry
from headgate.serve import Instance
from tests.cli.console import NAME, on_terminal, piped, shown
from tests.support import wait_until


def speak(text: str) -> str:
    import logging

    print("said", text)  # noqa: T201  # that is what is tested
    logging.getLogger("mine").warning("warned of %s", text)
    return str(serve.context.request_id)


@pytest.fixture(scope="module")
def kept(_nothing_left_by_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance whose processes have files; one call was made."""
    folder = tmp_path_factory.mktemp("kept")
    with serve.init(NAME, http_port=0, log_dir=folder / "logs") as instance:
        instance.create_backend("one", speak)
        instance.create_backend("two", speak)
        instance.create_endpoint("one", backend="one")
        instance.create_endpoint("two", backend="two")
        instance.get_handle("one").remote("a").result(30)
        yield instance


def folder_of(instance: Instance) -> str:
    return instance.status().log_dir


def test_what_was_said_is_shown_by_time_and_can_be_narrowed(kept: Instance) -> None:
    id = kept.get_handle("two").remote("b").result(30)
    said = piped("logs", "--name", NAME)
    assert said.status == 0, said.err
    texts = [line.partition("] ")[2] for line in said.out.splitlines()]
    assert [text for text in texts if text] == ["said a", "WARNING warned of a", "said b", "WARNING warned of b"]
    narrowed = piped("logs", "--name", NAME, "--backend", "two", "--level", "warning", "--json")
    (entry,) = map(json.loads, narrowed.out.splitlines())
    assert (entry["text"], entry["logger"], entry["request_id"], entry["backend"]) == ("warned of b", "mine", id, "two")
    of_request = piped("logs", "--name", NAME, "--request", id, "--lines", "1")
    assert of_request.out.endswith(f"two {id}] WARNING warned of b\n")
    assert of_request.out.count("\n") == 1


def test_warnings_are_coloured_on_a_terminal_and_not_where_colour_is_unwanted(kept: Instance) -> None:
    with on_terminal("logs", "--name", NAME, "--level", "warning", "--backend", "one", width=60) as terminal:
        assert terminal.end().status == 0
        assert "\x1b[33m" in terminal.raw
    assert "warned of a" in shown("logs", "--name", NAME, NO_COLOR="1").out


def test_it_follows_until_the_instance_ends_and_the_folder_can_be_read_afterwards(kept: Instance, tmp_path: Path) -> None:
    with serve.init("follows", http_port=0, log_dir=tmp_path) as instance:
        instance.create_backend("one", speak)
        instance.create_endpoint("one", backend="one")
        with on_terminal("logs", "--name", "follows", "--follow") as terminal:
            instance.get_handle("one").remote("c").result(30)
            terminal.until("warned of c")
            instance.shutdown()
            assert terminal.end().status == 0
    assert "warned of c" in piped("logs", "--dir", str(tmp_path)).out


def test_ctrl_c_ends_it(kept: Instance) -> None:
    with on_terminal("logs", "--name", NAME, "--follow") as terminal:
        terminal.until("warned of a")
        terminal.press("\x03")
        assert terminal.end().status == 0


def test_an_instance_that_keeps_no_log_says_where_it_is(kept: Instance) -> None:
    with serve.init("keeps-none", http_port=0):
        said = piped("logs", "--name", "keeps-none")
    assert said.status == 1
    assert "keeps no log" in said.err
    assert "log_dir" in said.err
    wait_until(lambda: "keeps-none" not in serve.list_instances())


class Looks:
    """What is found at one look after the other, of processes that write meanwhile; then Ctrl-C, or the end."""

    def __init__(self, *looks: list[int], ends: bool) -> None:
        self._looks = deque([[Entry(time=moment, role="replica", text=str(moment)) for moment in look] for look in looks])
        self._ends = ends

    def has_ended(self) -> bool:
        return self._ends and len(self._looks) == 1

    def latest(self, lines: int) -> list[Entry]:
        return self._looks.popleft()[-lines:]

    def following(self) -> list[Entry]:
        if not self._looks:
            raise KeyboardInterrupt
        return self._looks.popleft()


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_followed_is_by_time_though_it_is_found_later(ends: bool) -> None:
    seen: list[int] = []
    looks = Looks([1, 2, 5], [3, 4, 8], [], [6, 10], [9, 12], [11], ends=ends)
    with contextlib.nullcontext() if ends else pytest.raises(KeyboardInterrupt):
        seen.extend(int(entry.time) for entry in in_order(looks, 2, every_s=0))
    assert seen == [2, 3, 4, 5, 8, 6, 9, 10, 11, 12]  # 1 is before the latest two; 8 was held for one look, and 6 came later than that
