"""Are files of many processes one log, in the order of time, also while they are written and put aside?"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headgate.logs.entry import Entry, as_json
from headgate.logs.reading import Folder


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
