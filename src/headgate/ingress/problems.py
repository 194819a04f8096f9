"""What does a client see of an error? An RFC 9457 problem document with the request's id.

Tracebacks stay in the log, unless the instance runs with `debug`; so does what user code said when it raised.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec

from headgate.errors import CALLER_LEFT, ErrorInfo

_encode = msgspec.json.encode


class Reply(msgspec.Struct, frozen=True):
    """A whole answer of the ingress's own. `lines` are encoded header lines, each with its CRLF."""

    status: int
    lines: bytes = b""
    body: bytes = b""


class Refusal(msgspec.Struct, frozen=True):
    """Why the ingress itself does not hand a request on; becomes a `Reply` with the id of that request."""

    status: int
    detail: str
    lines: bytes = b""
    reason: str = ""
    retry_after_s: float | None = None

    def reply(self, request_id: str) -> Reply:
        """The problem document."""
        return _problem(self.status, self.detail, request_id, self.reason, self.retry_after_s, {}, self.lines)


def from_error(error: ErrorInfo, request_id: str, *, debug: bool) -> Reply:
    """The problem document of a request that failed."""
    more: dict[str, Any] = {"error": error.kind}
    detail = error.message
    if debug and error.traceback:
        more["traceback"] = error.traceback
    if error.kind == "UserCodeError" and not debug:
        raised = error.message.partition(":")[0]
        detail = f"the handler raised {raised}; its traceback is in the log, under this request's id"
    return _problem(error.status, detail, request_id, error.reason, error.retry_after_s, more, b"")


def phrase(status: int) -> str:
    """The reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == CALLER_LEFT else "Unknown"


def _problem(
    status: int, detail: str, request_id: str, reason: str, retry_after_s: float | None, more: dict[str, Any], lines: bytes
) -> Reply:
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
    if reason:
        document["reason"] = reason
    document.update(more)
    lines += b"content-type: application/problem+json\r\n"
    if status == 503:
        lines += b"retry-after: %d\r\n" % _whole(retry_after_s)
    return Reply(status, lines, _encode(document))


def _whole(seconds: float | None) -> int:
    """At least one second, and at most a day: replicas may send any number, or none that is one."""
    return math.ceil(min(seconds, 86400.0)) if seconds is not None and seconds > 0 else 1
