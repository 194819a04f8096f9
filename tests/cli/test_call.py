"""Does `headgate call` send what was written, and print what came back?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from headgate import serve
from headgate.cli.call import parse_items
from headgate.cli.load import Plan, _bytes_of
from headgate.serve import Instance
from tests.cli.console import here, piped, shown

pytestmark = pytest.mark.local_engine("the commands find instances of this machine")

NAME = "cli-call"
HERE = ("--name", NAME)


class Echo:
    def __call__(self, *args, **kwargs):
        if not args or not hasattr(args[0], "headers"):
            return {"args": args, "kwargs": kwargs}
        request = args[0]
        body = request.data.decode()
        told = {"method": request.method, "args": request.args.to_dict(), "body": body, "key": request.headers.get("X-A")}
        if len(request.headers.getlist("X-A")) > 1:
            told |= {"keys": request.headers.getlist("X-A"), "types": request.headers.getlist("Content-Type")}
        return told

    def twice(self, text):
        return text * 2

    def chunks(self, count):
        for number in range(count):
            yield f"{number}\n"

    def asks(self, request):
        return request.method

    def fail(self):
        raise ValueError("not today")


@pytest.fixture(scope="module")
def called(_nothing_left_by_module: None) -> Iterator[Instance]:
    with serve.init(NAME, http_port=0) as instance:
        instance.create_backend("echo:v1", Echo, config={"http_methods": ["fail"]})
        instance.create_endpoint("echo", "/echo", ("GET", "POST"), backend="echo:v1")
        instance.create_endpoint("inner", backend="echo:v1")
        yield instance


def test_items_are_sorted_by_what_they_are() -> None:
    assert parse_items(("3", "Ada", "[1]", "x=1", "y:=1", "z=a=b", "http://a?b=c"), over_http=False) == (
        [3, "Ada", [1], "http://a?b=c"],
        {"x": "1", "y": 1, "z": "a=b"},
        [],
    )
    assert parse_items(("q==1", "x=1", "y==2"), over_http=True) == ([], {"x": "1"}, [("q", "1"), ("y", "2")])


def test_arguments_go_by_handle_as_json_or_text(called: Instance) -> None:
    said = piped("call", *HERE, "echo", "1", "Ada", "top:=3")
    assert said.status == 0
    assert json.loads(said.out) == {"args": [1, "Ada"], "kwargs": {"top": 3}}
    assert piped("call", *HERE, "inner", "--method", "twice", "ab").out == "abab\n"
    assert '  "args": [' in shown("call", *HERE, "echo", "1").out


def test_a_stream_is_printed_as_it_comes(called: Instance) -> None:
    assert piped("call", *HERE, "echo", "--method", "chunks", "3").out == "0\n1\n2\n"


def test_data_goes_over_http(called: Instance, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_text("from a file")
    for given, stdin, body in (
        (["-d", "as it is"], "", "as it is"),
        (["-d", f"@{file}"], "", "from a file"),
        (["-d", "@-"], "typed", "typed"),
    ):
        told = json.loads(piped("call", *HERE, "echo", *given, "-H", "X-A: b", stdin=stdin).out)
        assert told == {"method": "POST", "args": {}, "body": body, "key": "b"}
    told = json.loads(piped("call", *HERE, "echo", "--http", "q==1", "x:=[2]").out)
    assert (told["method"], told["args"], json.loads(told["body"])) == ("POST", {"q": "1"}, {"x": [2]})
    assert json.loads(piped("call", *HERE, "echo", "--http").out)["method"] == "GET"


def test_what_only_http_has_goes_over_http_or_is_told_to(called: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(piped("call", *HERE, "echo", "q==1").out)["args"] == {"q": "1"}
    said = here(capsys, "call", *HERE, "echo", "--method", "asks")
    assert said.status == 1
    assert said.err == "error: echo wants an HTTP request, and this call went by handle; --http sends one\n"


def test_what_fails_is_said_and_exits_with_1(called: Instance) -> None:
    said = piped("call", *HERE, "echo", "--method", "fail")
    assert (said.status, said.out) == (1, "")
    assert "not today" in said.err
    said = piped("call", *HERE, "echo", "--http", "--method", "fail")
    assert said.status == 1
    assert json.loads(said.out)["status"] == 500
    assert "500" in said.err


def test_what_is_wrong_is_said_before_anything_is_sent(called: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    for given, why in (
        (["echo", "[1"], "no JSON"),
        (["echo", "x:=1."], "no JSON"),
        (["inner", "--http"], "no route"),
        (["inner", "q==1"], "no route"),
        (["echo", "-d", "x", "y=1"], "-d is the whole body"),
        (["echo", "-H", "x"], "NAME:VALUE"),
    ):
        said = here(capsys, "call", *HERE, *given)
        assert said.status == 2
        assert why in said.err
    assert "did you mean 'echo'?" in here(capsys, "call", *HERE, "eco").err


def test_a_header_that_is_given_twice_is_sent_twice_and_one_that_is_given_takes_the_place_of_the_commands_own(called: Instance) -> None:
    told = json.loads(piped("call", *HERE, "echo", "x=1", "-H", "X-A: 1", "-H", "X-A: 2", "-H", "content-type: text/plain").out)
    assert (told["keys"], told["types"], told["body"]) == (["1", "2"], ["text/plain"], '{"x": "1"}')
    plan = Plan("http://a/b", 1, 1, headers=(("X-A", "1"), ("Accept", "text/plain"), ("X-A", "2")))
    assert _bytes_of(plan) == b"GET /b HTTP/1.1\r\nhost: a\r\nuser-agent: headgate-bench\r\nX-A: 1\r\nAccept: text/plain\r\nX-A: 2\r\n\r\n"
