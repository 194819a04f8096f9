"""What does one entry of the log say, and how is it written: for people, or as JSON?"""

from __future__ import annotations

import datetime as dt
import functools

import msgspec

IDS_SHOWN = 3
"""Of the requests of a batch, in a line for people; JSON has all."""


class HttpFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP request that has ended."""

    method: str  # empty where its head could not be read
    target: str  # path and query
    status: int  # `CALLER_LEFT`: the client had left before
    sent_bytes: int  # of the body
    duration_s: float  # from the whole request's arrival to the answer
    client: str  # its address

    @property
    def text(self) -> str:
        """On one line, for people."""
        what = f"{self.method} {self.target}" if self.method else "a request that could not be read"
        return f"{self.client or '-'} {what} {self.status} {self.sent_bytes} B {1e3 * self.duration_s:.1f} ms"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that a process has to say, at one moment, of one call or of none.

    What user code prints has a `stream`; what is logged has a `level` and the name of its `logger`.
    """

    time: float  # seconds since 1970
    role: str  # supervisor, controller, ingress, replica
    id: str = ""  # of the process, such as `replica`'s
    backend: str = ""
    endpoint: str = ""
    request_ids: tuple[str, ...] = ()  # several in a batch
    trace_ids: tuple[str, ...] = ()  # of those that are traced
    stream: str = ""  # stdout or stderr
    level: str = ""
    logger: str = ""
    http: HttpFacts | None = None  # of an access log
    text: str


class _Written(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """As JSON: the time as others write it, and one request under the name that everybody looks for."""

    time: str
    level: str = ""
    role: str
    id: str = ""
    backend: str = ""
    endpoint: str = ""
    request_id: str = ""
    request_ids: tuple[str, ...] = ()
    trace_id: str = ""
    trace_ids: tuple[str, ...] = ()
    stream: str = ""
    logger: str = ""
    http: HttpFacts | None = None
    text: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Written)


def as_json(entry: Entry) -> bytes:
    """One line of JSON, its time in UTC by RFC 3339. What UTF-8 can't encode, as a lone surrogate, is escaped."""
    several, traced = len(entry.request_ids) > 1, len(entry.trace_ids)
    written = _Written(
        time=_rfc3339(entry.time),
        level=entry.level,
        role=entry.role,
        id=entry.id,
        backend=entry.backend,
        endpoint=entry.endpoint,
        request_id="" if several or not entry.request_ids else entry.request_ids[0],
        request_ids=entry.request_ids if several else (),
        trace_id=entry.trace_ids[0] if traced == 1 else "",
        trace_ids=entry.trace_ids if traced > 1 else (),
        stream=entry.stream,
        logger=entry.logger,
        http=entry.http,
        text=entry.text if entry.text.isascii() else entry.text.encode("utf-8", "backslashreplace").decode(),
    )
    return _encoder.encode(written) + b"\n"


def _rfc3339(unix_s: float) -> str:
    seconds, micros = divmod(int(1e6 * unix_s + 0.5), 1_000_000)
    return f"{_to_the_second(seconds)}.{micros:06d}Z"


@functools.lru_cache(8)
def _to_the_second(unix_s: int) -> str:
    """Of an access log thousands of entries have the same."""
    return f"{dt.datetime.fromtimestamp(unix_s, dt.UTC):%Y-%m-%dT%H:%M:%S}"


def from_json(line: bytes) -> Entry | None:
    """What `as_json` wrote; None for any other line, such as what a library in C prints."""
    try:
        written = _decoder.decode(line)
        time = dt.datetime.fromisoformat(written.time).timestamp()
    except (msgspec.MsgspecError, ValueError):
        return None
    return Entry(
        time=time,
        role=written.role,
        id=written.id,
        backend=written.backend,
        endpoint=written.endpoint,
        request_ids=written.request_ids or ((written.request_id,) if written.request_id else ()),
        trace_ids=written.trace_ids or ((written.trace_id,) if written.trace_id else ()),
        stream=written.stream,
        level=written.level,
        logger=written.logger,
        http=written.http,
        text=written.text,
    )


def as_text(entry: Entry, *, time: bool = False) -> str:
    """For people, each of its lines with whose it is; without a line end. Local time, where it is wanted."""
    at = f"{dt.datetime.fromtimestamp(entry.time).astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3] + " " if time else ""
    begins = at + (_whose(entry) if entry.http is not None or not entry.level else f"{_whose(entry)}{entry.level} ")
    lines = entry.text.splitlines()
    return begins + lines[0] if len(lines) == 1 else "\n".join([begins + line for line in lines or [""]])


def _whose(entry: Entry) -> str:
    if entry.http is not None:
        who = entry.id
    elif entry.role == "replica":
        who = f"{entry.backend}/{entry.id}"
    else:
        return "headgate: "
    ids = entry.request_ids
    if not ids:
        return f"[{who}] "
    more = len(ids) - IDS_SHOWN
    shown = ids[0] if len(ids) == 1 else ",".join(ids) if more <= 0 else f"{','.join(ids[:IDS_SHOWN])},+{more}"
    return f"[{who} {entry.endpoint or '-'} {shown}] "
