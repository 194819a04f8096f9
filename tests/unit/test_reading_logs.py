"""Are files of many processes one log, in the order of time, also while they are written and put aside?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.logs import reading
from headgate.logs.entry import Entry, as_json
from headgate.logs.reading import Folder, Part, Wanted


def line(time: float, text: str) -> bytes:
    return as_json(Entry(time=time, role="replica", id="x", backend="v1", text=text))


def read(folder: Folder) -> list[str]:
    return [entry.text for entry in folder.read()]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3), st.booleans()), max_size=30))
def test_what_several_processes_have_written_is_read_by_time_and_once_however_it_comes(written: list[tuple[int, int, bool]]) -> None:
    latest = dict.fromkeys(range(4), 0)
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        new: list[tuple[int, str]] = []
        for number, (step, process, look) in enumerate(written):
            latest[process] += step  # the time of a process never goes back
            with Path(path, f"replica-{process}.log").open("ab") as file:
                file.write(line(latest[process], str(number)))
            new.append((latest[process], str(number)))
            if look:
                came = list(folder.read())
                assert [entry.time for entry in came] == sorted(entry.time for entry in came)
                assert sorted((int(entry.time), entry.text) for entry in came) == sorted(new)
                new = []
        assert sorted(read(folder)) == sorted(text for _, text in new)
        folder.close()


def test_nothing_is_missed_or_read_twice_where_a_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "replica-x.log"
    (tmp_path / "replica-x.log.1").write_bytes(line(1, "first"))
    path.write_bytes(line(2, "second"))
    folder = Folder(str(tmp_path))
    assert read(folder) == ["first", "second"]
    with path.open("ab") as file:
        file.write(line(3, "third"))
    path.rename(tmp_path / "replica-x.log.1")
    path.write_bytes(line(4, "fourth"))
    assert read(folder) == ["third", "fourth"]
    assert read(folder) == []
    path.unlink()  # its process has ended long ago
    assert read(folder) == []
    folder.close()


def test_a_line_that_is_being_written_waits_and_one_past_python_has_the_time_before_it(tmp_path: Path) -> None:
    path = tmp_path / "replica-1-ab.log"
    whole = line(5, "whole")
    path.write_bytes(line(4, "before") + b"Fatal: \xff\n" + whole[:10])
    (tmp_path / "notes.txt").write_text("not a log\n")
    folder = Folder(str(tmp_path))
    before, fatal = folder.read()
    assert (before.text, fatal.text) == ("before", "Fatal: \ufffd")
    assert (fatal.time, fatal.role, fatal.id, fatal.backend) == (4.0, "replica", "1-ab", "v1")
    with path.open("ab") as file:
        file.write(whole[10:])
    assert read(folder) == ["whole"]
    folder.close()


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["write", "write", "write", "put aside", "read"])), max_size=60))
def test_who_reads_on_from_marks_reads_everything_once_also_what_was_put_aside_meanwhile(steps: list[tuple[int, str]]) -> None:
    said: list[str] = []
    with tempfile.TemporaryDirectory() as path:
        part, count = Part([], {}), 0
        for process, step in steps:
            current = Path(path, f"replica-{process}.log")
            if step == "write":
                with current.open("ab") as file:
                    file.write(line(count, str(count)))
                count += 1
            elif step == "put aside" and current.exists():
                for number in range(9, 0, -1):
                    if Path(f"{current}.{number}").exists():
                        Path(f"{current}.{number}").rename(f"{current}.{number + 1}")
                current.rename(f"{current}.1")
            elif step == "read":
                part = reading.following(path, part.marks, Wanted())
                said += [entry.text for entry in part.entries]
        for process in range(3):
            Path(path, f"replica-{process}.log").touch()  # its next file, which may not have been there yet
        said += [entry.text for entry in reading.following(path, part.marks, Wanted()).entries]
    assert sorted(map(int, said)) == list(range(count))


def test_a_part_has_no_more_than_so_many_and_the_next_goes_on_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST", 3)
    for process in "ab":
        Path(tmp_path, f"replica-{process}.log").write_bytes(b"".join(line(time, f"{process}{time}") for time in range(4)))
    assert [entry.text for entry in reading.latest(str(tmp_path), 0, Wanted()).entries] == ["b2", "a3", "b3"]
    marks: dict[str, reading.Mark] = {}
    said: list[list[str]] = []
    while not said or said[-1]:
        part = reading.following(str(tmp_path), marks, Wanted())
        marks = part.marks
        said.append([entry.text for entry in part.entries])
    assert said == [["a0", "b0", "a1"], ["b1", "a2", "b2"], ["a3", "b3"], []]


def test_only_what_is_wanted_is_said_and_the_rest_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "replica-x.log"
    entries = [
        Entry(time=1, role="replica", id="x", backend="one", request_ids=("r1", "r2"), level="WARNING", text="first"),
        Entry(time=2, role="replica", id="x", backend="two", level="ERROR", text="second"),
        Entry(time=3, role="replica", id="x", backend="one", stream="stdout", text="third"),
    ]
    path.write_bytes(b"".join(map(as_json, entries)))
    for wanted, texts in (
        (Wanted("one"), ["first", "third"]),
        (Wanted(request="r2"), ["first"]),
        (Wanted(level="ERROR"), ["second"]),
        (Wanted("one", level="DEBUG"), ["first"]),
    ):
        part = reading.latest(str(tmp_path), 10, wanted)
        assert [entry.text for entry in part.entries] == texts
        assert part.marks == {"replica-x.log": (path.stat().st_ino, path.stat().st_size)}
