"""How does what code prints or logs become entries that say which request it was for?

`sys.stdout` and `sys.stderr` of a process are replaced. Text is kept until its line ends, apart for each call and thread, so
that lines of calls that run at the same time don't mix; at the latest it is written when its call ends. `logging` is left to the
user: a handler that writes to `sys.stderr`, as by `logging.basicConfig`, is covered by that; what nobody has configured says its
level and logger.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from headgate.logs.entry import Entry
from headgate.logs.output import Output

MAX_LINE: Final = 65536
"""Characters after which a line is written though it hasn't ended."""


class Origin(Protocol):
    """Of which requests a line is: what is said of a call."""

    @property
    def endpoint(self) -> str:
        """The name that its first request was addressed to."""
        ...

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The ids of its requests; several in a batch."""
        ...

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The ids of the traces that they belong to."""
        ...


class Call(Origin, Protocol):
    """A call that is being answered. It can be referred to weakly."""

    over: bool
    """It has been answered."""


class Speaker:
    """Who says what is said in this process: it makes entries of it, and writes them."""

    def __init__(self, output: Output, role: str, id: str, backend: str = "", call: Callable[[], Call | None] = lambda: None) -> None:
        self._output = output
        os.register_at_fork(after_in_child=output.begin_anew)
        self.role = role
        self.id = id
        self._backend = backend
        self.call = call
        """The call that is being answered in this thread or task."""

    def say(self, text: str, call: Origin | None, *, descriptor: int = 2, stream: str = "", level: str = "", logger: str = "") -> None:
        """Write one entry, of a call or of none."""
        entry = Entry(
            time=time.time(),
            role=self.role,
            id=self.id,
            backend=self._backend,
            endpoint="" if call is None else call.endpoint,
            request_ids=() if call is None else call.request_ids,
            trace_ids=() if call is None else call.trace_ids,
            stream=stream,
            level=level,
            logger=logger,
            text=text,
        )
        self._output.write(entry, descriptor)

    def say_all(self, entries: Iterable[Entry]) -> None:
        """Write these, which have its `role` and `id`."""
        self._output.write_all(entries)


class _Origin(msgspec.Struct, frozen=True):
    """The same of a call that may have gone."""

    endpoint: str
    request_ids: tuple[str, ...]
    trace_ids: tuple[str, ...]


class _Unfinished(msgspec.Struct, eq=False):
    """A line that hasn't ended yet."""

    call: weakref.ref[Call] | None
    origin: Origin | None
    thread: int
    text: str = ""

    def is_of(self, call: Call | None) -> bool:
        """Whether it is this call's, or with None nobody's."""
        return self.call is None if call is None else self.call is not None and self.call() is call

    @property
    def is_due(self) -> bool:
        """Its call has ended."""
        if self.call is None:
            return False
        call = self.call()
        return call is None or call.over


class Stream(io.TextIOBase):
    """What `sys.stdout` or `sys.stderr` is from now on. What isn't written through it, such as by `buffer`, goes where it did."""

    def __init__(self, original: Any, name: str, descriptor: int, speaker: Speaker) -> None:
        self._original = original
        self._name = name
        self._descriptor = descriptor
        self._speaker = speaker
        self._begin_anew()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """In a fork, too, which has one thread, and not what others have begun."""
        self._lock = threading.RLock()  # a signal handler may print, too, and a call may end while this holds it
        self._unfinished: list[_Unfinished] = []

    def write(self, text: str, /) -> int:
        """Write what ends its line, and keep the rest."""
        call, thread = self._speaker.call(), threading.get_ident()
        with self._lock:
            due = self._taken(lambda each: each.is_due)
            mine = next((each for each in self._unfinished if each.thread == thread and each.is_of(call)), None)
            if mine is None:
                mine = self._begun(call, thread)
            mine.text += text
            ends = max(mine.text.rfind("\n"), mine.text.rfind("\r")) + 1
            if len(mine.text) - ends > MAX_LINE:
                ends = len(mine.text)
            if ends:
                due.append(_Unfinished(None, mine.origin, thread, mine.text[:ends]))
                mine.text = mine.text[ends:]
            if not mine.text:
                self._taken(lambda each: each is mine)
        self._say(due)
        return len(text)

    def _begun(self, call: Call | None, thread: int) -> _Unfinished:
        if call is None:
            begun = _Unfinished(None, None, thread)
        else:
            # When a call has ended nobody holds it any more. To be told so costs nothing where nothing was printed.
            begun = _Unfinished(weakref.ref(call, self._gone), _Origin(call.endpoint, call.request_ids, call.trace_ids), thread)
        self._unfinished.append(begun)
        return begun

    def _gone(self, call: weakref.ref[Call]) -> None:
        """A call has ended without the end of its line."""
        with self._lock:
            due = self._taken(lambda each: each.call is call)
        self._say(due)

    def flush(self) -> None:
        """End the line of this call and thread."""
        call, thread = self._speaker.call(), threading.get_ident()
        with self._lock:
            due = self._taken(lambda each: each.thread == thread and each.is_of(call))
        self._say(due)
        self._original.flush()

    def finish(self) -> None:
        """End every line: this process is about to."""
        with self._lock:
            due = self._taken(lambda each: True)
        self._say(due)
        self._original.flush()

    def _taken(self, which: Callable[[_Unfinished], bool]) -> list[_Unfinished]:
        taken = []
        for each in [each for each in self._unfinished if which(each)]:
            with contextlib.suppress(ValueError):  # a call that has ended meanwhile, in this very thread, was faster
                self._unfinished.remove(each)
                taken.append(each)
        return taken

    def _say(self, lines: list[_Unfinished]) -> None:
        """Without the lock: who writes may have to wait."""
        for line in lines:
            text = line.text.strip("\r\n")
            if text or line.text.endswith("\n"):
                self._speaker.say(text, line.origin, descriptor=self._descriptor, stream=self._name)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        """As the original."""
        return str(self._original.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # a plain attribute there
        """As the original."""
        return str(self._original.errors)

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """As the original."""
        return bool(self._original.isatty())

    def fileno(self) -> int:
        """As the original."""
        return int(self._original.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class Handler(logging.Handler):
    """Makes entries of what is logged."""

    def __init__(self, speaker: Speaker, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._speaker = speaker

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, with its traceback."""
        try:
            self._speaker.say(self.format(record), self._speaker.call(), level=record.levelname, logger=record.name)
        except Exception:  # noqa: BLE001  # as every handler of logging: a message that can't be formatted is told, not raised
            self.handleError(record)


_captured: list[Stream] = []


def finish() -> None:
    """Write also what hasn't ended, or left: this process is about to end. Also where user code has put other streams before ours."""
    for stream in (sys.stdout, sys.stderr, *_captured):
        with contextlib.suppress(Exception):
            if isinstance(stream, Stream):
                stream.finish()
            else:
                stream.flush()


def capture(speaker: Speaker) -> None:
    """Have this process's output go through `speaker`: what is printed, and what is logged where nobody has configured that."""
    sys.stdout = Stream(sys.stdout, "stdout", 1, speaker)
    sys.stderr = Stream(sys.stderr, "stderr", 2, speaker)
    _captured[:] = [sys.stdout, sys.stderr]
    logging.lastResort = Handler(speaker, logging.WARNING)
