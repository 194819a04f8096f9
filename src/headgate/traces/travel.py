"""In which form does a trace travel: in the head of a request, and on a link?

On a link it is bytes: the trace's id, the span's id, its flags, and what `tracestate` says. A request brings it, by W3C's Trace Context,
in the headers `traceparent` and `tracestate`. This needs no OpenTelemetry, so that whoever writes a log can name a trace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

TRACE_BYTES: Final = 16
SPAN_BYTES: Final = 8
FLAGS_AT: Final = TRACE_BYTES + SPAN_BYTES
SAMPLED: Final = 1
MOST_STATE_BYTES: Final = 512
"""Of `tracestate`. A longer one is left out, as the standard allows; so is one that it doesn't allow."""
_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch
_KEY: Final = rb"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_VALUE: Final = rb"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE: Final = re.compile(rb"%b=%b(?:[ \t]*,[ \t]*%b=%b){0,31}" % (_KEY, _VALUE, _KEY, _VALUE)).fullmatch


def from_headers(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The span that a request is a part of, by its headers, with names in lower case; empty where they name none."""
    parents = [value for name, value in headers if name == b"traceparent"]
    parent = _PARENT(parents[0].strip()) if len(parents) == 1 else None
    if parent is None:
        return b""
    version, trace, span, flags, rest = parent.groups()
    if version == b"ff" or (version == b"00" and rest) or not trace.strip(b"0") or not span.strip(b"0"):
        return b""
    state = b",".join(value for name, value in headers if name == b"tracestate")
    return bytes.fromhex((trace + span + flags).decode()) + (state if len(state) <= MOST_STATE_BYTES and _STATE(state) else b"")


def is_sampled(trace: bytes) -> bool:
    """Whether its root has decided that it is recorded."""
    return bool(trace[FLAGS_AT] & SAMPLED)


def unsampled(trace: bytes) -> bytes:
    """The same span, of which nothing more is recorded; made up where there is none."""
    if not trace:
        return os.urandom(FLAGS_AT) + b"\0"
    return trace[:FLAGS_AT] + bytes((trace[FLAGS_AT] & ~SAMPLED & 0xFF,)) + trace[FLAGS_AT + 1 :]


def trace_id(trace: bytes) -> str:
    """The trace's id as others write it: 32 hexadecimal digits."""
    return trace[:TRACE_BYTES].hex()
