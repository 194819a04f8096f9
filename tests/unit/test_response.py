"""What an HTTP client gets for what user code returned or raised."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import http
import inspect
import json
import pickle
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pydantic
import pytest
import starlette.exceptions
import starlette.responses
import werkzeug.datastructures
import werkzeug.exceptions
import werkzeug.wrappers

from headgate.errors import (
    BadRequestError,
    EncodeError,
    InvalidTypeError,
    InvalidValueError,
    UnavailableError,
    describe_user_error,
    rebuild,
)
from headgate.replica import response
from headgate.replica.response import Response, answer_of, encode_http, open_stream, raised

OCTETS = b"content-type: application/octet-stream\r\n"
TEXT = b"content-type: text/plain; charset=utf-8\r\n"
JSON = b"content-type: application/json\r\n"


def as_json(value: Any) -> Any:
    encoded = encode_http(value)
    assert (encoded.status, encoded.header_lines) == (200, JSON)
    return json.loads(encoded.body)


@pytest.mark.parametrize(
    ("result", "lines", "body"),
    [
        (None, b"", b""),
        (b"\x00\xff", OCTETS, b"\x00\xff"),
        (bytearray(b"ab"), OCTETS, b"ab"),
        (memoryview(b"abcd")[::2], OCTETS, b"ac"),
        ("grüße", TEXT, "grüße".encode()),
        (np.str_("x"), TEXT, b"x"),
        ({"a": [1, None, True]}, JSON, b'{"a":[1,null,true]}'),
        ([], JSON, b"[]"),
        (0, JSON, b"0"),
        (False, JSON, b"false"),
        (("body", 404), JSON, b'["body",404]'),
    ],
)
def test_each_kind_of_result_has_its_content_type(result: Any, lines: bytes, body: bytes) -> None:
    encoded = encode_http(result)
    assert (encoded.status, encoded.header_lines, encoded.body) == (200, lines, body)
    assert type(encoded.body) is bytes


@dataclasses.dataclass
class Point:
    x: float


class Record(msgspec.Struct):
    y: Any


class Model(pydantic.BaseModel):
    name: str
    when: dt.datetime


class Color(enum.Enum):
    RED = "red"


class Count(int): ...


class Share(float): ...


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(7), 7),
        ({"score": np.float64("nan"), "all": np.array([1.0, np.inf])}, {"score": None, "all": [1.0, None]}),
        (float("nan"), None),
        ({np.int64(3): 1, None: 2, True: 3, 4: 5}, {"3": 1, "null": 2, "true": 3, "4": 5}),
        (np.array(["2024-01-02T03:04:05", "NaT"], "M8[ns]"), ["2024-01-02T03:04:05", None]),
        (np.datetime64("2024-01-02T03:04:05", "ns"), "2024-01-02T03:04:05"),
        (np.array([1500], "m8[ms]"), ["PT1.5S"]),
        (Point(1.5), {"x": 1.5}),
        (Record(Point(2)), {"y": {"x": 2}}),
        (Model(name="m", when=dt.datetime(2024, 1, 2, tzinfo=dt.UTC)), {"name": "m", "when": "2024-01-02T00:00:00Z"}),
        ([Model(name="m", when=dt.datetime(2024, 1, 2, tzinfo=dt.UTC))], [{"name": "m", "when": "2024-01-02T00:00:00Z"}]),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (dt.date(2024, 1, 2), "2024-01-02"),
        ({1}, [1]),
        (Color.RED, "red"),
        ([Count(3), Share(0.25), 2**70], [3, 0.25, 2**70]),
        (collections.deque([1, 2]), [1, 2]),
        ({"a": 1}.keys(), ["a"]),
        (types.MappingProxyType({"a": range(2)}), {"a": [0, 1]}),
    ],
)
def test_everything_else_is_json(result: Any, expected: Any) -> None:
    assert as_json(result) == expected


class Tensor:
    """As much of a tensor as is asked of it."""

    def tolist(self) -> list[float]:
        return [1.0, float("nan")]


def test_a_tensor_is_json_whatever_library_it_comes_from() -> None:
    assert as_json({"out": Tensor()}) == {"out": [1.0, None]}


def test_a_data_frame_is_a_list_of_its_rows() -> None:
    class DataFrame:
        def to_dict(self, orient: str) -> Any:
            assert orient == "records"
            return [{"a": 1}, {"a": 2}]

    DataFrame.__module__ = "pandas.core.frame"
    assert as_json(DataFrame()) == [{"a": 1}, {"a": 2}]


def test_real_data_frames_and_series_are_json() -> None:
    import pandas as pd

    frame = pd.DataFrame({"when": pd.to_datetime(["2024-01-02", None]), "n": [1.5, None]})
    assert as_json(frame) == [{"when": "2024-01-02T00:00:00", "n": 1.5}, {"when": None, "n": None}]
    assert as_json({"s": frame["n"], "t": frame["when"]}) == {"s": [1.5, None], "t": ["2024-01-02T00:00:00", None]}


def nested_in_itself() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (threading.Lock(), "an object of type _thread.lock"),
        ({"a": [1, {"b": 1j}]}, r"an object of type complex at \['a'\]\[1\]\['b'\]"),
        ({"a": Point(threading.Lock())}, r"_thread.lock at \['a'\].x"),  # type: ignore[arg-type]  # user code is not checked
        (Record(object()), "object at .y"),
        ({"a": {(1, 2): 3}}, r"a key of type tuple at \['a'\]"),
        (np.array([1j]), "numpy.ndarray"),
        ("\ud800", "UTF-8"),
        (["\ud800"], "str at \\[0\\]"),
        (nested_in_itself(), "recursion"),
        ((x for x in "ab"), "generator"),
        (ValueError("returned"), "ValueError"),
    ],
)
def test_what_cannot_be_encoded_is_named_with_its_place(result: Any, named: str) -> None:
    with pytest.raises(EncodeError, match=named):
        encode_http(result)


def test_a_response_has_its_own_status_headers_and_content_type() -> None:
    encoded = encode_http(Response("<p>", 201, {"X-A": "b", "Set-Cookie": "c=d"}, "text/html"))
    assert encoded.status == 201
    assert encoded.header_lines == b"content-type: text/html; charset=utf-8\r\nx-a: b\r\nset-cookie: c=d\r\n"
    assert encode_http(Response({"a": 1}, http.HTTPStatus.ACCEPTED)).header_lines == JSON
    assert encode_http(Response({"a": 1}, media_type="application/ld+json")).header_lines == b"content-type: application/ld+json\r\n"
    assert encode_http(Response(b"x", media_type="text/html")).header_lines == b"content-type: text/html\r\n"
    assert (
        encode_http(Response("x", media_type="text/html; charset=latin-1")).header_lines == b"content-type: text/html; charset=latin-1\r\n"
    )


def test_a_subclass_of_response_takes_what_its_own_constructor_takes() -> None:
    class Problem(Response):
        def __init__(self, message: str, *, code: int) -> None:
            super().__init__({"problem": message}, code)

    answer = Problem(message="no", code=404)
    assert (answer.status, answer.body) == (404, {"problem": "no"})
    assert list(inspect.signature(Response).parameters) == ["body", "status", "headers", "media_type"]


def test_a_response_has_one_content_type() -> None:
    assert encode_http(Response("x", headers={"Content-Type": "text/csv"})).header_lines == b"content-type: text/csv\r\n"
    both = Response("x", headers={"Content-Type": "text/csv"}, media_type="text/plain; charset=utf-8")
    assert encode_http(both).header_lines == TEXT


def test_headers_may_repeat_and_hold_more_than_ascii() -> None:
    encoded = encode_http(Response(None, headers=[("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-l", "é"), ("x-u", "→")]))
    assert encoded.header_lines == b"set-cookie: a=1\r\nset-cookie: b=2\r\nx-l: \xe9\r\nx-u: \xe2\x86\x92\r\n"


def test_headers_of_the_connection_are_dropped() -> None:
    dropped = ("Connection", "Content-Length", "Transfer-Encoding", "Keep-Alive", "Upgrade", "TE", "Trailer", "Date", "X-Request-ID")
    assert encode_http(Response(None, headers=dict.fromkeys(dropped, "1"))).header_lines == b""


@pytest.mark.parametrize("status", [204, 205, 304])
def test_an_answer_that_has_no_body_is_sent_without(status: int) -> None:
    assert encode_http(Response({"a": 1}, status, {"etag": "x"})) == response.Encoded(status, b"etag: x\r\n", b"")


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 99},
        {"status": 101},
        {"status": 600},
        {"headers": {"a b": "x"}},
        {"headers": {"a": "x\r\nset-cookie: evil=1"}},
        {"headers": {"a": "x\x00"}},
        {"headers": {"a\r\n": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"a": "\ud800"}},
        {"media_type": "text/plain\r\nx: y"},
    ],
)
def test_a_response_that_would_break_the_protocol_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        Response("x", **wrong)


@pytest.mark.parametrize("wrong", [{"status": "200"}, {"status": True}, {"headers": {"a": 1}}, {"headers": {1: "a"}}, {"media_type": 3}])
def test_a_response_of_wrong_types_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidTypeError):
        Response("x", **wrong)


def test_a_response_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(Response("x", 201, {"a": "b"}, "text/html")))
    assert encode_http(copy) == encode_http(Response("x", 201, {"a": "b"}, "text/html"))


def test_responses_of_starlette_and_werkzeug_are_taken_as_they_are() -> None:
    for foreign in (
        starlette.responses.JSONResponse({"a": 1}, 418, {"x-a": "b"}),
        werkzeug.wrappers.Response(b'{"a":1}', 418, {"X-A": "b"}, content_type="application/json"),
    ):
        encoded = encode_http(foreign)
        assert (encoded.status, encoded.body) == (418, b'{"a":1}')
        assert sorted(encoded.header_lines.splitlines()) == [b"content-type: application/json", b"x-a: b"]


@pytest.mark.parametrize(
    "foreign",
    [
        starlette.responses.StreamingResponse(iter([b"a"])),
        starlette.responses.FileResponse("/dev/null"),
        werkzeug.wrappers.Response(iter([b"a"])),
    ],
)
def test_responses_without_a_ready_body_are_refused_by_name(foreign: Any) -> None:
    with pytest.raises(EncodeError, match=f"{type(foreign).__name__} can't be sent, since its body isn't ready"):
        encode_http(foreign)


def test_a_background_task_is_refused_rather_than_forgotten() -> None:
    from starlette.background import BackgroundTask

    with pytest.raises(EncodeError, match="background task"):
        encode_http(starlette.responses.Response("x", background=BackgroundTask(print)))


# Streams.


async def asynchronous():
    yield b"x"


@pytest.mark.parametrize(
    ("result", "streams"), [((x for x in "ab"), True), (Response(iter("ab")), True), (Response("ab"), False), ("ab", False)]
)
def test_generators_and_responses_of_iterators_stream(result: Any, streams: bool) -> None:
    assert isinstance(result, response.STREAMS) == streams


def test_async_generators_stream() -> None:
    assert isinstance(asynchronous(), response.STREAMS)
    assert isinstance(Response(asynchronous()), response.STREAMS)


def stream(result: Any, *, web: bool = True) -> tuple[int, bytes, list[bytes]]:
    chunks, encoder = open_stream(result, web=web)
    assert isinstance(chunks, Iterator)
    bodies = [encoder.encode(next(chunks))]
    encoder.first = False
    head = encoder.header_lines
    bodies += [encoder.encode(chunk) for chunk in chunks]
    assert encoder.header_lines == head
    return encoder.status, head, bodies


def test_the_first_chunk_decides_the_content_type() -> None:
    assert stream(iter(["é", b"x"])) == (200, TEXT, ["é".encode(), b"x"])
    assert stream(iter([b"x", "é"])) == (200, OCTETS, [b"x", "é".encode()])
    events = b"content-type: text/event-stream; charset=utf-8\r\nx-a: b\r\n"
    assert stream(Response(iter(["x"]), 201, {"x-a": "b"}, "text/event-stream")) == (201, events, [b"x"])


def test_a_stream_without_chunks_has_the_head_that_it_was_given() -> None:
    _, encoder = open_stream(Response(iter(()), 202, media_type="text/csv"), web=True)
    assert (encoder.status, encoder.header_lines) == (202, b"content-type: text/csv\r\n")


def test_a_chunk_of_another_type_is_named() -> None:
    with pytest.raises(EncodeError, match="chunks must be bytes or str, got dict"):
        stream(iter([{"a": 1}]))


def test_python_callers_get_chunks_of_any_type() -> None:
    from headgate.router import payload

    assert [payload.load(chunk) for chunk in stream(iter([{"a": 1}, 2]), web=False)[2]] == [{"a": 1}, 2]


# Exceptions.


def test_http_exceptions_of_werkzeug_and_starlette_are_answers() -> None:
    for error in (werkzeug.exceptions.NotFound("no such model"), starlette.exceptions.HTTPException(404, "no such model")):
        encoded = answer_of(error, "id-1")
        assert encoded is not None
        assert encoded.status == 404
        assert encoded.header_lines.startswith(b"content-type: application/problem+json\r\n")
        problem = {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no such model", "request_id": "id-1"}
        assert json.loads(encoded.body) == problem


def test_a_field_that_a_request_lacks_is_named() -> None:
    arguments = werkzeug.datastructures.MultiDict([("a", "1")])
    with pytest.raises(werkzeug.exceptions.BadRequestKeyError) as caught:
        arguments["b"]
    encoded = answer_of(caught.value, "id-1")
    assert encoded is not None
    assert (encoded.status, json.loads(encoded.body)["detail"]) == (400, "the request has no 'b'")


def test_headers_of_http_exceptions_are_kept() -> None:
    encoded = answer_of(starlette.exceptions.HTTPException(401, headers={"WWW-Authenticate": "Basic"}), "id-1")
    assert encoded is not None
    assert b"www-authenticate: Basic\r\n" in encoded.header_lines
    encoded = answer_of(werkzeug.exceptions.MethodNotAllowed(["GET"]), "id-1")
    assert encoded is not None
    assert b"allow: GET\r\n" in encoded.header_lines
    encoded = answer_of(werkzeug.exceptions.HTTPException(response=werkzeug.wrappers.Response("x", 409)), "id-1")
    assert encoded is not None
    assert (encoded.status, encoded.body) == (409, b"x")


class _NoHeaders(werkzeug.exceptions.HTTPException):
    code = 418

    def get_headers(self, *args: Any, **kwargs: Any) -> Any:
        raise SystemExit


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        werkzeug.exceptions.HTTPException(),
        starlette.exceptions.HTTPException(599, headers={"a": "x\r\n"}),
        starlette.exceptions.HTTPException(700),
        _NoHeaders(),
    ],
)
def test_other_exceptions_are_none_and_neither_are_those_that_cannot_be_sent(error: Exception) -> None:
    assert answer_of(error, "id-1") is None


def test_other_libraries_are_never_imported() -> None:
    code = """
import sys
from headgate.replica import response
response.encode_http({"a": [1]}); response.encode_http(response.Response("x")); response.answer_of(ValueError(), "id-1")
print([name for name in ("numpy", "werkzeug", "starlette", "pydantic", "pandas", "torch", "cloudpickle") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_user_code_raises_is_its_error_with_the_traceback() -> None:
    try:
        dict[str, int]()["no such key"]
    except KeyError as error:
        info = raised(error)
    assert (info.kind, info.status, info.message) == ("UserCodeError", 500, "KeyError: 'no such key'")
    assert "Traceback" in info.traceback
    assert isinstance(rebuild(info), KeyError)


def test_a_bad_request_stays_the_client_s_fault() -> None:
    assert raised(BadRequestError("no")).status == 400


def test_an_answer_that_cannot_be_encoded_keeps_its_message() -> None:
    info = raised(EncodeError("an object of type x"))
    assert (info.kind, info.status, info.message) == ("EncodeError", 500, "an object of type x")


def test_errors_of_calls_that_user_code_made_are_user_errors_with_their_class() -> None:
    info = raised(UnavailableError("busy"))
    assert (info.kind, info.status) == ("UserCodeError", 500)
    assert isinstance(rebuild(info), UnavailableError)


def test_an_error_of_an_inner_backend_keeps_its_class_and_both_tracebacks() -> None:
    def inner() -> None:
        raise ValueError("inner")

    def outer() -> None:
        raise rebuild(describe_user_error(caught))

    caught: Exception = ValueError()
    try:
        inner()
    except ValueError as error:
        caught = error
    try:
        outer()
    except ValueError as error:
        info = raised(error)
    assert info.message == "ValueError: inner"
    assert "in inner" in info.traceback
    assert "in outer" in info.traceback
    assert isinstance(rebuild(info), ValueError)


DRIVER = """
import subprocess, sys
import msgspec
from headgate.errors import ErrorInfo, UserCodeError, rebuild
from headgate.router import payload

class Refused(Exception):
    def __init__(self, code): super().__init__(f"refused with {code}"); self.code = code

def handler(): raise Refused(7)

child = subprocess.run([sys.executable, "-c", sys.argv[1]], input=payload.dump(handler), capture_output=True)
assert child.returncode == 0, child.stderr.decode()
try:
    raise rebuild(msgspec.msgpack.decode(child.stdout, type=ErrorInfo))
except Refused as error:
    print(isinstance(error, UserCodeError), error.code, error.message)
"""

REPLICA = """
import sys
import msgspec
from headgate.replica.response import raised
from headgate.router import payload

try:
    payload.load(sys.stdin.buffer.read())()
except Exception as error:
    sys.stdout.buffer.write(msgspec.msgpack.encode(raised(error)))
"""


def test_an_exception_of_the_caller_s_main_comes_home_as_itself() -> None:
    run = subprocess.run([sys.executable, "-c", DRIVER, REPLICA], capture_output=True, text=True, check=False)
    assert run.stdout == "True 7 Refused: refused with 7\n", run.stderr
