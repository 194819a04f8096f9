"""What a handler sees of an HTTP request, what it costs, and what stands there when there is none."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from headgate.core import wire
from headgate.errors import BadRequestError, NotHttpError, UnsupportedMediaTypeError
from headgate.replica.request import PlaceholderRequest, Request
from headgate.router import payload

JSON = ("content-type", "application/json")


def request(
    body: bytes | bytearray = b"",
    *headers: tuple[str, str],
    method: str = "POST",
    target: str = "/",
    client: str = "192.0.2.7",
    scheme: str = "http",
) -> Request:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    head = wire.HttpHead(method, target.encode(), "1.1", pairs, scheme, "127.0.0.1:8000", client)
    return Request(msgspec.Raw(msgspec.msgpack.encode(head)), body)


def test_the_body_is_bytes_whatever_it_arrived_in() -> None:
    assert request(b"abc").data == b"abc"
    large = request(bytearray(b"abc"))
    assert large.data == b"abc"
    assert type(large.data) is bytes
    assert large.get_data() is large.data
    assert request("grüße".encode()).get_data(as_text=True) == "grüße"
    assert request(b"\xff").get_data(as_text=True) == "\ufffd"
    assert request(b"abc").stream.read(2) == b"ab"


def test_the_body_of_a_form_is_there_too_also_after_the_form_was_read() -> None:
    form = request(b"a=1&b=2", ("content-type", "application/x-www-form-urlencoded"))
    assert form.form["b"] == "2"
    assert form.data == b"a=1&b=2"
    assert form.values["a"] == "1"


def test_line_and_headers_are_read_as_flask_reads_them() -> None:
    seen = request(
        b"",
        ("host", "example.org:8080"),
        ("x-one", "1"),
        ("x-twice", "a"),
        ("x-twice", "b"),
        ("cookie", "session=s; k=v"),
        ("user-agent", "test/1"),
        ("accept", "text/html;q=0.5, application/json"),
        ("authorization", "Bearer abc"),
        method="PUT",
        target="/caf%C3%A9/a%2Fb?x=1&x=2&y=%C3%A9",
    )
    assert (seen.method, seen.path, seen.query_string) == ("PUT", "/café/a/b", b"x=1&x=2&y=%C3%A9")
    assert seen.args.getlist("x") == ["1", "2"]
    assert seen.args["y"] == "é"
    assert (seen.scheme, seen.host, seen.remote_addr) == ("http", "example.org:8080", "192.0.2.7")
    assert seen.base_url.startswith("http://example.org:8080/caf")
    assert seen.full_path == "/café/a/b?x=1&x=2&y=%C3%A9"
    assert seen.headers["X-One"] == seen.headers.get("x-one") == "1"
    assert seen.headers.getlist("X-Twice") == ["a", "b"]
    assert dict(seen.cookies) == {"session": "s", "k": "v"}
    assert seen.user_agent.string == "test/1"
    assert seen.accept_mimetypes.best == "application/json"
    assert seen.authorization.token == "abc"
    assert repr(seen) == "<Request PUT '/caf%C3%A9/a%2Fb?x=1&x=2&y=%C3%A9'>"


def test_path_is_the_same_with_and_without_werkzeug() -> None:
    for target in ("/a%20b", "/caf%C3%A9?q=/x", "/", "http://proxied.example/a/b?c=1", "http://proxied.example"):
        seen = request(target=target)
        path, query = seen.path, seen.query_string
        full = seen._full
        assert (path, query) == (full.path, full.query_string)


def test_a_header_with_an_underscore_is_not_taken_for_another() -> None:
    seen = request(b"", ("x-user", "real"), ("x_user", "forged"), ("content_type", "application/json"))
    assert seen.headers["X-User"] == "real"
    assert "forged" not in str(seen.environ)
    assert seen.content_type is None


def test_files_and_fields_of_a_multipart_form() -> None:
    field = "v" * 600_000  # Werkzeug's own limit is lower
    body = (
        b'--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n\x00\x01\r\n'
        b'--X\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + field.encode() + b"\r\n--X--\r\n"
    )
    seen = request(bytearray(body), ("content-type", "multipart/form-data; boundary=X"))
    assert seen.files["image"].read() == b"\x00\x01"
    assert seen.files["image"].filename == "a.png"
    assert seen.form["text"] == field


def test_json_is_parsed_once() -> None:
    seen = request(b'{"a": [1.5, null]}', JSON)
    assert seen.json == {"a": [1.5, None]}
    assert seen.json is seen.get_json()
    assert seen.get_json(cache=False) is not seen.json


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"])
def test_content_types_that_are_json(content_type: str) -> None:
    assert request(b"[1]", ("content-type", content_type)).json == [1]


@pytest.mark.parametrize("body", [b"[NaN]", b"\xef\xbb\xbf[1]", "[1]".encode("utf-16"), b"[123456789012345678901234567890]"])
def test_json_that_only_python_writes_is_read(body: bytes) -> None:
    assert len(request(body, JSON).json) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[1]]", b"\xff", b"[" * 100_000, b"9" * 5000 + b"x"])
def test_malformed_json_is_the_client_s_fault(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="the body is empty" if not body else "the body is not JSON") as caught:
        _ = request(body, JSON).json
    assert caught.value.status == 400
    assert request(body, JSON).get_json(silent=True) is None


def test_another_content_type_is_not_json_unless_forced() -> None:
    for headers in ([], [("content-type", "text/plain")]):
        seen = request(b"[1]", *headers)
        with pytest.raises(UnsupportedMediaTypeError) as caught:
            _ = seen.json
        assert caught.value.status == 415
        assert seen.get_json(silent=True) is None
        assert seen.get_json(force=True) == [1]


def test_json_null_is_not_mistaken_for_nothing() -> None:
    seen = request(b"null", JSON)
    assert seen.json is None
    assert seen.get_json() is None


def test_a_request_can_be_an_argument_of_another_call() -> None:
    for body in (b"small", bytearray(b"x" * 100_000)):
        sent = request(body, ("x-a", "b"), target="/p?q=1")
        for got in (payload.load(payload.dump(sent)), payload.load(bytearray(payload.dump(sent))), copy.deepcopy(sent)):
            assert (got.data, got.headers["x-a"], got.args["q"]) == (bytes(body), "b", "1")


def test_an_attribute_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = request().no_such_thing
    assert "args" in dir(request())


def test_a_handler_that_reads_the_body_or_json_does_not_import_werkzeug() -> None:
    code = """
import sys, msgspec
from headgate.core import wire
from headgate.replica.request import Request
head = wire.HttpHead("POST", b"/p", "1.1", [(b"content-type", b"application/json")], "http", "127.0.0.1:8000", "")
request = Request(msgspec.msgpack.encode(head), b"[1]")
assert request.data == b"[1]" and request.json == [1] and request.method == "POST" and request.path == "/p"
print("werkzeug" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["data", "json", "args", "headers", "method", "get_json"])
def test_without_http_each_attribute_says_that_it_has_none(name: str) -> None:
    with pytest.raises(NotHttpError, match=rf"request\.{name}: this call came from Python"):
        getattr(PlaceholderRequest(), name)


def test_a_placeholder_can_be_printed_tested_copied_and_pickled() -> None:
    placeholder = PlaceholderRequest()
    assert "no HTTP request" in repr(placeholder)
    assert bool(placeholder)
    copies: list[Any] = [copy.copy(placeholder), copy.deepcopy(placeholder), pickle.loads(pickle.dumps(placeholder))]
    assert all(isinstance(each, PlaceholderRequest) for each in copies)
    assert not hasattr(placeholder, "args")
