"""What do entries of the log look like, whose is which line, and when does a file end?"""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.logs import capture
from headgate.logs.capture import Handler, Speaker, Stream
from headgate.logs.entry import Entry, as_json, as_text, from_json
from headgate.logs.output import Output, forget_ended


class Written(Output):
    """Keeps what would be written."""

    def __init__(self) -> None:
        super().__init__(json=True)
        self.entries: list[Entry] = []

    def write(self, entry: Entry, descriptor: int | None = None) -> None:
        self.entries.append(entry)

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(",".join(entry.request_ids), entry.text) for entry in self.entries]


class FakeCall(msgspec.Struct, weakref=True):
    request_ids: tuple[str, ...]
    endpoint: str = "e"
    over: bool = False
    trace_ids: tuple[str, ...] = ()


current: contextvars.ContextVar[FakeCall | None] = contextvars.ContextVar("current", default=None)


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def out(written: Written) -> Stream:
    return Stream(io.StringIO(), "stdout", 1, Speaker(written, "replica", "1-ab", "v1", current.get))


@contextlib.contextmanager
def call(*ids: str) -> Iterator[FakeCall]:
    entered = FakeCall(ids)
    token = current.set(entered)
    yield entered
    entered.over = True
    current.reset(token)


texts = st.text(st.characters(codec="utf-8"), max_size=40)


@given(
    st.builds(
        Entry,
        time=st.integers(0, 4_000_000_000_000_000).map(lambda micros: micros / 1e6),
        role=texts.filter(bool),
        id=texts,
        backend=texts,
        endpoint=texts,
        request_ids=st.lists(texts.filter(bool), max_size=4).map(tuple),
        stream=st.sampled_from(["", "stdout", "stderr"]),
        level=st.sampled_from(["", "INFO", "ERROR"]),
        logger=texts,
        text=texts,
    )
)
def test_an_entry_is_one_line_of_json_from_which_it_can_be_read_again(entry: Entry) -> None:
    line = as_json(entry)
    assert line.count(b"\n") == 1
    assert re.match(rb'{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",', line)
    read = from_json(line)
    assert read is not None
    assert abs(read.time - entry.time) < 2e-6
    assert msgspec.structs.replace(read, time=entry.time) == entry


@pytest.mark.parametrize("line", [b"", b"segmentation fault", b"{}", b'{"time": "noon", "role": "replica", "text": "x"}', b"\xff"])
def test_other_lines_are_not_taken_for_entries(line: bytes) -> None:
    assert from_json(line) is None


def test_each_line_for_people_says_whose_it_is_and_a_large_batch_does_not_hide_it() -> None:
    entry = Entry(time=0.0, role="replica", id="1-ab", backend="v1", endpoint="e", request_ids=("r1",), level="ERROR", text="two\nlines")
    assert as_text(entry) == "[v1/1-ab e r1] ERROR two\n[v1/1-ab e r1] ERROR lines"
    batch = msgspec.structs.replace(entry, request_ids=tuple("abcdef"), level="", text="x")
    assert as_text(batch) == "[v1/1-ab e a,b,c,+3] x"
    assert as_text(msgspec.structs.replace(batch, request_ids=(), text="x\n")) == "[v1/1-ab] x"
    assert as_text(Entry(time=0.0, role="controller", text="y", level="WARNING")) == "headgate: WARNING y"
    assert as_text(entry, time=True).endswith(" [v1/1-ab e r1] ERROR lines")


def test_what_is_printed_says_its_request_and_what_is_printed_outside_of_one_says_none(written: Written, out: Stream) -> None:
    print("made", file=out)
    with call("r1"):
        print("one", 2, file=out)
        print("several\nlines", file=out)
        print(file=out)
    with call("r2", "r3"):
        out.write("a batch\n")
    assert written.said == [("", "made"), ("r1", "one 2"), ("r1", "several"), ("r1", "lines"), ("r1", ""), ("r2,r3", "a batch")]
    assert {(entry.backend, entry.id, entry.stream) for entry in written.entries} == {("v1", "1-ab", "stdout")}


def test_lines_of_calls_that_run_at_the_same_time_do_not_mix(written: Written, out: Stream) -> None:
    turns = threading.Barrier(2, timeout=10)

    def serve(id: str) -> None:
        with call(id):
            for part in "abc":
                turns.wait()
                out.write(part + id)
            turns.wait()
            out.write("\n")

    threads = [threading.Thread(target=serve, args=(id,)) for id in ("1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written.said) == [("1", "a1b1c1"), ("2", "a2b2c2")]


def test_a_line_that_has_not_ended_comes_out_after_its_call_by_flush_and_at_the_end(written: Written, out: Stream) -> None:
    with call("r1"):
        out.write("left")
        with call("r2"):
            out.write("half")
            out.flush()
        out.write(" open")
        assert written.said == [("r2", "half")]
    assert written.said == [("r2", "half"), ("r1", "left open")]
    out.write("last")
    out.finish()
    assert written.said[2:] == [("", "last")]


def test_a_line_of_a_call_that_somebody_still_holds_comes_out_with_the_next_one(written: Written, out: Stream) -> None:
    with call("r1") as held:
        out.write("left open")
    assert held.over
    assert written.said == []
    print("next", file=out)
    assert written.said == [("r1", "left open"), ("", "next")]


def test_lines_that_several_threads_of_a_call_have_begun_come_out_when_it_ends(written: Written, out: Stream) -> None:
    with call("r1"):
        out.write("mine")
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(out.write, "another's"))
        thread.start()
        thread.join()
        del context, thread
    assert sorted(written.said) == [("r1", "another's"), ("r1", "mine")]


def test_a_line_that_has_ended_is_written_at_once_though_another_has_begun(written: Written, out: Stream) -> None:
    print("question", end="\n> ", file=out)
    assert written.said == [("", "question")]
    out.flush()
    assert written.said == [("", "question"), ("", "> ")]


def test_who_prints_while_he_is_interrupted_in_a_print_loses_nothing(written: Written) -> None:
    interrupted: list[str] = ["handler\n"]

    class Interrupts(Speaker):
        def say(self, text: str, *rest: object, **how: object) -> None:
            while interrupted:
                streams[0].write(interrupted.pop())  # as a signal handler does
            super().say(text, *rest, **how)  # type: ignore[arg-type]  # passed on as they are

    streams = [Stream(io.StringIO(), "stdout", 1, Interrupts(written, "replica", "1-ab"))]
    streams[0].write("first\n")
    streams[0].write("second\n")
    assert [text for _, text in written.said] == ["handler", "first", "second"]


def test_text_that_can_not_be_encoded_is_escaped() -> None:
    entry = Entry(time=0.0, role="replica", text="caf\u00e9 \udcff")
    read = from_json(as_json(entry))
    assert read is not None
    assert read.text == "caf\u00e9 \\udcff"


def test_a_progress_bar_that_rewrites_its_line_gives_lines_and_a_line_without_end_is_bounded(written: Written, out: Stream) -> None:
    for percent in (0, 50, 100):
        out.write(f"\r{percent} %")
        out.flush()
    out.write("x" * (capture.MAX_LINE + 1))
    assert [text for _, text in written.said] == ["0 %", "50 %", "100 %", "x" * (capture.MAX_LINE + 1)]


def test_a_stream_is_what_libraries_take_it_for(written: Written) -> None:
    original = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    out = Stream(original, "stdout", 1, Speaker(written, "replica", "1-ab"))
    assert (out.encoding, out.errors, out.isatty(), out.writable(), out.closed) == ("utf-8", "backslashreplace", False, True, False)
    out.buffer.write(b"raw")
    out.flush()
    assert original.buffer.getvalue() == b"raw"
    with contextlib.redirect_stdout(out):
        print("redirected")  # noqa: T201  # that is what is tested
    assert written.said == [("", "redirected")]


FORKS = """
import os, sys, threading
from headgate.core.specs import LogSettings
from headgate.logs.begin import begin
begin(LogSettings("text", ""), "replica", "1-ab", backend="v1", call=lambda: None)
stream = sys.stdout
stream._lock.acquire()  # as a thread has it that is printing just now
stream._speaker._output._lock.acquire()
sys.stdout._unfinished.clear()
def fork():
    if os.fork() == 0:
        print("from the fork")
        os._exit(0)
    os.wait()
thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""


def test_a_fork_of_user_code_can_print_whatever_other_threads_were_at() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], check=False, timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[v1/1-ab] from the fork\n"), done.stderr


def test_what_is_logged_carries_level_logger_request_and_traceback(written: Written) -> None:
    logger = logging.getLogger("mine")
    handler = Handler(Speaker(written, "replica", "1-ab", "v1", current.get))
    logger.addHandler(handler)
    with call("r1"):
        try:
            raise ValueError("no model")
        except ValueError:
            logger.exception("failed for %s", "x")
    logger.removeHandler(handler)
    (entry,) = written.entries
    assert (entry.level, entry.logger, entry.request_ids, entry.endpoint) == ("ERROR", "mine", ("r1",), "e")
    assert entry.text.startswith("failed for x\nTraceback")
    assert entry.text.endswith("ValueError: no model")


ROTATES = """
import os, sys
from headgate.logs.entry import Entry
from headgate.logs.output import File
out = File(sys.argv[1], max_bytes=300, kept=2)
for number in range(20):
    out.write(Entry(time=0.0, role="replica", text=str(number)))
    os.write(2, b"raw\\n")
"""


def test_a_file_that_is_long_is_put_aside_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "replica-1.log"
    subprocess.run([sys.executable, "-c", ROTATES, str(path)], check=True, timeout=30)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["replica-1.log", "replica-1.log.1", "replica-1.log.2"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(0 < file.stat().st_size < 450 for file in files)
    lines = [line for file in reversed(files) for line in file.read_bytes().splitlines()]
    numbers = [int(entry.text) for line in lines if (entry := from_json(line)) is not None]
    assert numbers == list(range(20 - len(numbers), 20)), "the latest ones, in order"
    assert lines.count(b"raw") == len(numbers), "what is written past Python is in the same file"


def test_of_processes_that_have_ended_the_latest_files_stay_and_those_of_living_ones_all(tmp_path: Path) -> None:
    for number in range(6):
        for name in (f"replica-{number}.log", f"replica-{number}.log.1"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (number, number))
    for number in range(6):
        (tmp_path / f"mine-{number}.log").touch()
        os.utime(tmp_path / f"mine-{number}.log", (0, 0))
    (tmp_path / "replica-of-mine.log").mkdir()
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"
    program = [sys.executable, "-c", hold, str(tmp_path / "replica-0.log")]
    living = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert living.stdout is not None
    living.stdout.readline()
    forget_ended(str(tmp_path), kept=2)
    living.communicate()
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_file() and not path.name.startswith("mine"))
    assert left == sorted(f"replica-{number}.log{aside}" for number in (0, 4, 5) for aside in ("", ".1"))
    assert len(list(tmp_path.glob("mine-*"))) == 6, "only what Headgate has written goes"


def test_a_file_takes_descriptors_of_its_own_process_alone(tmp_path: Path) -> None:
    program = "import sys; from headgate.logs.output import File; File(sys.argv[1]); print('printed')"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.log")], check=True, timeout=30, capture_output=True)
    assert done.stdout == b""
    assert (tmp_path / "x.log").read_text() == "printed\n"
