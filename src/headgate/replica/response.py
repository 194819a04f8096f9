"""What does an HTTP client get for what user code returned or raised?

`encode_http` turns a result into status, header lines and body; `open_stream` does so for results that come in parts;
`answer_of` and `raised` for exceptions. Types of other libraries are recognised without importing those libraries.
"""

from __future__ import annotations

import collections.abc
import datetime as dt
import http
import inspect
import operator
import pickle
import re
import sys
import types
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Final, Self

import msgspec

from headgate import errors
from headgate.errors import (
    BadRequestError,
    BatchResultError,
    EncodeError,
    ErrorInfo,
    InvalidTypeError,
    InvalidValueError,
    ObjectLostError,
    SignatureError,
    UserCodeError,
)
from headgate.router import byvalue, payload
from headgate.router.references import Lending

OCTETS: Final = b"content-type: application/octet-stream\r\n"
_TEXT: Final = b"content-type: text/plain; charset=utf-8\r\n"
_JSON: Final = b"content-type: application/json\r\n"
_PROBLEM: Final = "application/problem+json"

_DROPPED = frozenset(
    (
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    )
)
"""Headers of the connection rather than the answer, and those that the ingress writes itself."""
_MOST_HEADER_BYTES = 128 * 1024
"""Of all headers of an answer together, and of the media type: more than clients take, and far below what a frame holds."""
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_WITHOUT_BODY = frozenset((204, 205, 304))


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """An answer, ready to be sent. `header_lines` end in CR LF each and lack those that the ingress writes."""

    status: int
    header_lines: bytes
    body: bytes


class Response:
    """An answer with a status and headers of its own.

    Args:
        body: what a handler may also return by itself: None, bytes, str, something for JSON, or an iterator to stream.
        status: the HTTP status, 200 to 599.
        headers: a mapping or pairs of strings; headers of the connection, such as `Content-Length`, are dropped.
        media_type: the content type, in place of the one that the body would have.

    Raises `InvalidTypeError` (`TypeError`) or `InvalidValueError` (`ValueError`), also for a header that can't be sent.
    """

    __slots__ = ("_body", "_header_lines", "_headers", "_media_type", "_names", "_status")

    def __new__(cls, body: Any = None, *args: Any, **kwargs: Any) -> Self:
        """Streams are known by their class, so that other answers don't pay for the question."""
        return super().__new__(_StreamingResponse if _is_iterator(body) else cls)  # type: ignore[return-value]  # a subclass

    def __init__(
        self,
        body: Any = None,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        media_type: str | None = None,
    ) -> None:
        if isinstance(status, bool) or not isinstance(status, int):
            raise InvalidTypeError(f"Response: status must be a whole number, got {type(status).__name__}: {status!r}")
        if not 200 <= status <= 599:
            raise InvalidValueError(f"Response: status must be 200 to 599, got {status}")
        if media_type is not None:
            if not isinstance(media_type, str):
                raise InvalidTypeError(f"Response: media_type must be a string, got {type(media_type).__name__}: {media_type!r}")
            _header_value("content-type", media_type)
        self._body = body
        self._status = int(status)
        self._media_type = media_type
        self._headers: tuple[tuple[str, str], ...] = ()
        if headers is not None:
            items = headers.items() if isinstance(headers, Mapping) else headers
            self._headers = tuple((name, value) for name, value in items)
        self._header_lines, self._names = _header_lines(self._headers, without_content_type=media_type is not None)

    @property
    def body(self) -> Any:
        """The body as given."""
        return self._body

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers as given, in pairs."""
        return self._headers

    @property
    def media_type(self) -> str | None:
        """The content type, where it was given."""
        return self._media_type

    def __repr__(self) -> str:
        return f"<Response {self.status} of {type(self.body).__name__}>"


# What `help` shows. A subclass may take whatever its own constructor takes.
Response.__new__.__signature__ = inspect.signature(Response.__init__)  # type: ignore[attr-defined]  # functions have attributes


class _StreamingResponse(Response):
    __slots__ = ()


STREAMS: Final = (types.GeneratorType, types.AsyncGeneratorType, _StreamingResponse)
"""Results that come in parts: for `open_stream` rather than `encode_http`."""

_EMPTY = Encoded(200, b"", b"")


def encode_http(result: Any) -> Encoded:
    """Encode what a handler returned. Raises `EncodeError` that names the type that can't be sent, and where it is."""
    kind = type(result)
    if kind is bytes:
        return Encoded(200, OCTETS, result)
    if kind is str:
        return Encoded(200, _TEXT, _utf8(result))
    if kind is dict or kind is list:
        return Encoded(200, _JSON, _json(result))
    if result is None:
        return _EMPTY
    if isinstance(result, Response):
        lines, body = _content(result.body)
        status = result.status
        if status in _WITHOUT_BODY:
            return Encoded(status, result._header_lines, b"")
        return Encoded(status, _with_content_type(result, lines, text=isinstance(result.body, str)), body)
    foreign = _foreign_response(result)
    if foreign is not None:
        return foreign
    lines, body = _content(result)
    return Encoded(200, lines, body)


def encode_chunk(chunk: Any) -> bytes:
    """Encode a chunk of a stream: bytes or str. Raises `EncodeError` that names any other type."""
    if type(chunk) is bytes:  # as most are
        return chunk
    if isinstance(chunk, str):
        return _utf8(chunk)
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    raise EncodeError(
        f"a stream's chunks must be bytes or str, got {_type_name(chunk)}; encode it before you yield it, such as with json.dumps"
    )


class StreamEncoder:
    """Encodes the chunks of one stream; the first one decides the head. `first` is until the caller has sent one."""

    __slots__ = ("_lending", "_response", "_web", "first", "header_lines", "status")

    def __init__(self, response: Response | None, *, web: bool, lending: Lending | None) -> None:
        self._lending = lending
        self._response = response
        self._web = web
        self.first = True
        self.status = 200
        self.header_lines = b""  # until the first chunk those of a stream without any
        if web and response is not None:
            self.status = response.status
            self.header_lines = _with_content_type(response, b"", text=False)

    def encode(self, chunk: Any) -> bytes:
        """The bytes of a chunk: over HTTP of bytes or str, for Python callers of anything. Raises `EncodeError`."""
        if not self._web:
            return payload.dump(chunk, lending=self._lending)
        body = encode_chunk(chunk)
        if self.first:
            is_text = isinstance(chunk, str)
            lines = _TEXT if is_text else OCTETS
            self.header_lines = lines if self._response is None else _with_content_type(self._response, lines, text=is_text)
        return body


def open_stream(result: Any, *, web: bool, lending: Lending | None = None) -> tuple[Iterator[Any] | AsyncIterator[Any], StreamEncoder]:
    """The chunks of a result that is one of `STREAMS`, and what encodes them for an HTTP client (`web`) or a Python caller.

    References in what goes to a Python caller go as `lending` says, where there is one.
    """
    if isinstance(result, Response):
        return result.body, StreamEncoder(result, web=web, lending=lending)
    return result, StreamEncoder(None, web=web, lending=lending)


def answer_of(error: BaseException, request_id: str) -> Encoded | None:
    """The answer that an exception stands for, where it is one of Werkzeug's or Starlette's HTTP exceptions; else None."""
    try:
        return _answer_of(error, request_id)
    except BaseException:  # noqa: BLE001 - a status, header or detail that can't be sent, or methods of user code: it stays an error
        return None


def _answer_of(error: BaseException, request_id: str) -> Encoded | None:
    module = sys.modules.get("werkzeug.exceptions")
    if module is not None and isinstance(error, module.HTTPException):
        if error.response is not None:
            return _foreign_response(error.response)
        if error.code is None:
            return None
        headers = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
        detail = error.description
        if isinstance(error, module.BadRequestKeyError) and error.args:
            detail = f"the request has no {error.args[0]!r}"  # Werkzeug's own text doesn't say what is missing
        return _problem(error.code, detail, request_id, headers)
    module = sys.modules.get("starlette.exceptions")
    if module is not None and isinstance(error, module.HTTPException):
        return _problem(error.status_code, error.detail, request_id, list((error.headers or {}).items()))
    return None


def raised(error: BaseException) -> ErrorInfo:
    """The record of what ended a call, for the caller.

    A `BadRequestError` stays one: the request was wrong, whoever noticed it first. So do `SignatureError`, `EncodeError` and
    `BatchResultError`, which say what is wrong with the handler, and `ObjectLostError`, which comes before it. All else is an error of
    user code, also errors of calls that it made itself through a handle: of this call something did run.
    """
    ours = isinstance(error, BadRequestError | SignatureError | EncodeError | BatchResultError | ObjectLostError)
    if ours and not isinstance(error, UserCodeError):
        return errors.describe(error)
    if isinstance(error, UserCodeError):
        # From a call that user code made: its class was put together in this process, but its cause can travel on.
        inner = errors.describe(error)
        return _with_cause(msgspec.structs.replace(inner, traceback=errors.format_traceback(error)), error.cause)
    return _with_cause(errors.describe_user_error(error), error)


def _with_cause(info: ErrorInfo, cause: BaseException | None) -> ErrorInfo:
    if info.pickled or cause is None:
        return info
    try:
        # Its class is of the caller's `__main__`, perhaps, which has to travel by value to be the caller's own class again.
        pickled = byvalue.dumps(errors.portable(cause))
        pickle.loads(pickled)
    except BaseException:  # noqa: BLE001 - user classes may fail in any way; the message and traceback still travel
        return info
    return msgspec.structs.replace(info, pickled=pickled)


# Bodies.


def _content(body: Any) -> tuple[bytes, bytes]:
    if body is None:
        return b"", b""
    if isinstance(body, str):
        return _TEXT, _utf8(body)
    if isinstance(body, bytes | bytearray | memoryview):
        return OCTETS, bytes(body)
    return _JSON, _json(body)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"a string can't be sent as UTF-8: {error}") from None


def _json(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except Exception as error:
        # Also what methods of user classes raise on the way; and what is nested too deeply, such as in itself.
        raise EncodeError(f"the answer can't be encoded as JSON: {_culprit(value, '')}: {error}") from error


def _plain(value: Any) -> Any:
    """Turn what `msgspec` doesn't know into what it does."""
    kind = type(value)
    if value is None or kind is bool:  # asked for keys only
        return "null" if value is None else str(value).lower()
    if kind in _ONLY_AS_KEYS:
        raise NotImplementedError("it can't be a key in JSON")
    if hasattr(kind, "tolist"):  # NumPy arrays and scalars, tensors, Series
        if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):
            # Finer than microseconds they would come out as bare numbers.
            value = value.astype(f"{value.dtype.kind}8[us]") if kind.__module__ == "numpy" else value
        return value.tolist()
    if hasattr(kind, "model_dump"):  # pydantic
        return value.model_dump(mode="json")
    if kind.__module__.partition(".")[0] == "pandas":
        if hasattr(kind, "to_dict"):  # a DataFrame
            return value.to_dict(orient="records")
        if kind.__name__ in ("NaTType", "NAType"):
            return None
    for base, turn in _BASES:
        if isinstance(value, base):
            return turn(value)
    raise NotImplementedError("it has no form in JSON")


def _plain_datetime(value: dt.datetime) -> dt.datetime:
    return dt.datetime.combine(value.date(), value.timetz())


def _plain_timedelta(value: dt.timedelta) -> dt.timedelta:
    return dt.timedelta(value.days, value.seconds, value.microseconds)


_BASES: tuple[tuple[Any, Any], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (dt.datetime, _plain_datetime),
    (dt.timedelta, _plain_timedelta),
    (collections.abc.Mapping, dict),
    ((collections.abc.Sequence, collections.abc.Set, collections.abc.MappingView), list),
)
"""Subclasses, and containers, of what `msgspec` takes."""

_ONLY_AS_KEYS = frozenset((list, tuple, dict, set, frozenset))
"""Types that `msgspec` knows, except as keys of an object."""

_encoder = msgspec.json.Encoder(enc_hook=_plain)


def _is_iterator(value: Any) -> bool:
    kind = type(value)
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__")


def _culprit(value: Any, name: str) -> str:
    """Name the innermost part that can't be encoded."""
    children: list[tuple[str, Any]] = []
    if len(name) < 200:  # what contains itself has no innermost part
        if isinstance(value, dict):
            for key, item in value.items():
                if not _encodes({key: None}):
                    return f"a key of type {_type_name(key)}{_at(name)}"
                children.append((f"{name}[{key!r}]", item))
        elif isinstance(value, list | tuple):
            children = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, msgspec.Struct):
            children = [(f"{name}.{field}", getattr(value, field)) for field in value.__struct_fields__]
        elif hasattr(type(value), "__dataclass_fields__"):
            children = [(f"{name}.{field}", getattr(value, field)) for field in type(value).__dataclass_fields__ if hasattr(value, field)]
    for child_name, child in children:
        if not _encodes(child):
            return _culprit(child, child_name)
    return f"an object of type {_type_name(value)}{_at(name)}"


def _encodes(value: Any) -> bool:
    try:
        _encoder.encode(value)
    except Exception:  # noqa: BLE001 - whatever it raises, this is the part to name
        return False
    return True


def _at(name: str) -> str:
    return f" at {name}" if name else ""


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


# Heads.


def _header_lines(pairs: Iterable[tuple[Any, Any]], *, without_content_type: bool = False) -> tuple[bytes, frozenset[bytes]]:
    lines: list[bytes] = []
    names: set[bytes] = set()
    for name, value in pairs:
        if isinstance(name, str):
            name = name.encode("utf-8", "replace")
        if not isinstance(name, bytes):
            raise InvalidTypeError(f"headers: names are strings, got {type(name).__name__}: {name!r}")
        if not _TOKEN.fullmatch(name):
            raise InvalidValueError(f"headers: {name!r} is not the name of a header")
        lower = name.lower()
        encoded = _header_value(name.decode(), value)
        if lower in _DROPPED or (without_content_type and lower == b"content-type"):
            continue
        names.add(lower)
        lines.append(b"%b: %b\r\n" % (lower, encoded))
    joined = b"".join(lines)
    if len(joined) > _MOST_HEADER_BYTES:
        raise InvalidValueError(f"headers: {len(joined)} bytes are over the limit of {_MOST_HEADER_BYTES}; send it in the body")
    return joined, frozenset(names)


def _header_value(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError:
            try:
                value = value.encode()
            except UnicodeEncodeError:
                raise InvalidValueError(f"headers: the value of {name!r} can't be encoded as UTF-8: {value!r}") from None
    if not isinstance(value, bytes):
        raise InvalidTypeError(f"headers: the value of {name!r} must be a string, got {type(value).__name__}: {value!r}")
    if len(value) > _MOST_HEADER_BYTES:
        raise InvalidValueError(f"headers: the value of {name!r} has {len(value)} bytes, over the limit of {_MOST_HEADER_BYTES}")
    if _CONTROL.search(value):
        raise InvalidValueError(f"headers: the value of {name!r} has control characters: {value!r}")
    return value.strip(b" \t")


def _with_content_type(response: Response, default: bytes, *, text: bool) -> bytes:
    given = response.media_type
    if given is None:
        return response._header_lines if b"content-type" in response._names else default + response._header_lines
    if text and given.startswith("text/") and "charset" not in given:
        given += "; charset=utf-8"
    return b"content-type: %b\r\n%b" % (_header_value("content-type", given), response._header_lines)


def _foreign_response(result: Any) -> Encoded | None:
    module = sys.modules.get("starlette.responses")
    if module is not None and isinstance(result, module.Response):
        if getattr(result, "background", None) is not None:
            raise EncodeError(f"a Starlette response with a background task can't be sent: {_type_name(result)}; start the task yourself")
        body = getattr(result, "body", None)
        if not isinstance(body, bytes | bytearray | memoryview):
            raise _not_ready(result)
        return _foreign(result.status_code, result.raw_headers, body)
    module = sys.modules.get("werkzeug.wrappers")
    if module is not None and isinstance(result, module.Response):
        if result.direct_passthrough or not result.is_sequence:
            raise _not_ready(result)
        return _foreign(result.status_code, result.headers.to_wsgi_list(), result.get_data())
    return None


def _foreign(status: int, headers: Iterable[tuple[Any, Any]], body: bytes | bytearray | memoryview) -> Encoded:
    if not 200 <= status <= 599:
        raise EncodeError(f"a response's status must be 200 to 599, got {status}")
    return Encoded(operator.index(status), _header_lines(headers)[0], b"" if status in _WITHOUT_BODY else bytes(body))


def _not_ready(result: Any) -> EncodeError:
    return EncodeError(
        f"a response of type {_type_name(result)} can't be sent, since its body isn't ready; "
        "return bytes, or stream with serve.Response(generator, media_type=...)"
    )


def _problem(status: int, detail: Any, request_id: str, headers: list[tuple[str, str]]) -> Encoded:
    try:
        title = http.HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    problem = {"type": "about:blank", "title": title, "status": status}
    if detail is not None:
        problem["detail"] = detail
    problem["request_id"] = request_id
    return encode_http(Response(problem, status, headers, _PROBLEM))
