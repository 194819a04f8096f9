"""The whole way over HTTP, with clients that people use: what goes in arrives, and what user code returns comes out."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import requests

from headgate import serve
from headgate.errors import ReplicaDiedError
from headgate.router import payload
from tests.support import under_way, wait_until


@dataclass
class Point:
    x: int
    y: float


def _numpy() -> Any:
    import numpy as np

    return {"array": np.arange(3), "scalar": np.float32(0.5), "nan": float("nan")}


def _stream() -> Iterator[str]:
    yield "a"
    yield "bc"


async def _stream_async() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"bc"


def _raise() -> None:
    raise KeyError("secret of the handler")


async def _cancel_itself() -> None:
    raise asyncio.CancelledError


ID = uuid.UUID(int=7)
RESULTS: dict[str, tuple[Callable[[], Any], int, str, bytes]] = {
    "none": (lambda: None, 200, "", b""),
    "bytes": (lambda: b"\x00\xff", 200, "application/octet-stream", b"\x00\xff"),
    "str": (lambda: "é", 200, "text/plain; charset=utf-8", "é".encode()),
    "json": (lambda: {"a": [1, None, True]}, 200, "application/json", b'{"a":[1,null,true]}'),
    "dataclass": (lambda: Point(1, 0.5), 200, "application/json", b'{"x":1,"y":0.5}'),
    "uuid": (lambda: [ID], 200, "application/json", json.dumps([str(ID)]).encode()),
    "numpy": (_numpy, 200, "application/json", b'{"array":[0,1,2],"scalar":0.5,"nan":null}'),
    "response": (lambda: serve.Response("<p>", 418, {"X-A": "b"}, "text/html"), 418, "text/html; charset=utf-8", b"<p>"),
    "stream": (_stream, 200, "text/plain; charset=utf-8", b"abc"),
    "async stream": (_stream_async, 200, "application/octet-stream", b"abc"),
    "typed stream": (lambda: serve.Response(_stream(), media_type="text/event-stream"), 200, "text/event-stream; charset=utf-8", b"abc"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_kind_of_result_comes_out_as_the_table_says(shared_instance: serve.Instance, name: str) -> None:
    handler, status, media_type, body = RESULTS[name]
    tag = name.replace(" ", "-")
    shared_instance.create_backend(tag, handler)
    shared_instance.create_endpoint(tag, f"/{tag}", backend=tag)
    response = requests.get(f"{shared_instance.http_url}/{tag}", timeout=10)
    assert (response.status_code, response.headers.get("content-type", ""), response.content) == (status, media_type, body)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_parts_of_a_stream_of_any_size_arrive_whole_and_in_order(shared_instance: serve.Instance, asynchronous: bool) -> None:
    parts = [b"first", *(b"%d" % number for number in range(500)), b"", b"x" * 16_384, b"y" * 16_385, b"z" * 300_000, b"", b"\r\n0\r\n\r\n"]

    def handler() -> Iterator[bytes]:
        yield from parts

    async def handler_async() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    name = f"parts-{asynchronous}"
    shared_instance.create_backend(name, handler_async if asynchronous else handler)
    shared_instance.create_endpoint(name, f"/{name}", backend=name)
    with httpx.stream("GET", f"{shared_instance.http_url}/{name}", timeout=10) as response:
        assert b"".join(response.iter_raw()) == b"".join(parts)
    for version in (b"1.1", b"1.0"):
        address = urlsplit(shared_instance.http_url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
            sock.sendall(b"GET /%b HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % (name.encode(), version))
            head, _, body = b"".join(iter(lambda sock=sock: sock.recv(65536), b"")).partition(b"\r\n\r\n")  # type: ignore[misc]  # mypy can't type a lambda with a default
        if version == b"1.0":
            assert b"chunked" not in head
            assert body == b"".join(parts)
        else:  # what is yielded is a chunk of its own
            assert body == b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*filter(None, parts), b""])


def test_the_request_object_has_what_the_client_sent(shared_instance: serve.Instance) -> None:
    def handler(request: Any) -> Any:
        return {
            "method": request.method,
            "path": request.path,
            "args": request.args.to_dict(),
            "json": request.get_json(silent=True),
            "form": request.form.to_dict(),
            "files": {name: file.read().decode() for name, file in request.files.items()},
            "cookies": dict(request.cookies),
            "header": request.headers.get("X-A"),
            "size": len(request.data),
            "remote": request.remote_addr,
        }

    shared_instance.create_backend("echo", handler)
    shared_instance.create_endpoint("echo", "/echo/", ["GET", "POST"], backend="echo")
    url = f"{shared_instance.http_url}/echo/deep%20path?a=1&b=%C3%A9"
    with httpx.Client(cookies={"c": "d"}) as client:
        got = client.post(url, json={"k": [1]}, headers={"X-A": "yes"}).json()
        assert got["method"] == "POST"
        assert got["path"] == "/echo/deep path"
        assert got["args"] == {"a": "1", "b": "é"}
        assert got["json"] == {"k": [1]}
        assert got["cookies"] == {"c": "d"}
        assert got["header"] == "yes"
        assert got["remote"] == "127.0.0.1"
        form = client.post(url, data={"f": "1"}, files={"up": ("n.txt", b"content")}).json()
        assert form["form"] == {"f": "1"}
        assert form["files"] == {"up": "content"}
        chunked = client.post(url, content=iter([b"x" * 70_000, b"y"])).json()
        assert chunked["size"] == 70_001
    curl = subprocess.run(["curl", "-sS", "-d", "{}", url], capture_output=True, text=True, check=True, timeout=10)
    assert json.loads(curl.stdout)["form"] == {"{}": ""}


def test_what_user_code_raises_is_a_problem_document_without_its_traceback(shared_instance: serve.Instance) -> None:
    shared_instance.create_backend("raises", _raise)
    shared_instance.create_endpoint("raises", "/raises", backend="raises")
    response = requests.get(f"{shared_instance.http_url}/raises", headers={"X-Request-Id": "mine-1"}, timeout=10)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine-1"
    problem = response.json()
    assert problem["status"] == 500
    assert "mine-1" in json.dumps(problem)
    assert "Traceback" not in response.text
    assert "test_http_answers" not in response.text


def _repeat_in_an_error(request: Any) -> None:
    raise ValueError(f"unknown name {request.json['name']}")


def test_half_a_surrogate_pair_in_an_error_is_500_and_ends_no_replica(shared_instance: serve.Instance) -> None:
    shared_instance.create_backend("repeats", _repeat_in_an_error)
    shared_instance.create_endpoint("repeats", "/repeats", ["POST"], backend="repeats")
    before = [replica.pid for replica in shared_instance.list_backends()["repeats"].replicas]
    for _ in range(2):
        answer = requests.post(
            f"{shared_instance.http_url}/repeats", rb'{"name": "\ud83d"}', headers={"Content-Type": "application/json"}, timeout=10
        )
        assert answer.status_code == 500
    assert [replica.pid for replica in shared_instance.list_backends()["repeats"].replicas] == before


def test_with_debug_the_client_gets_the_traceback() -> None:
    with serve.init(http_port=0, debug=True) as instance:
        instance.create_backend("raises", _raise)
        instance.create_endpoint("raises", "/raises", backend="raises")
        assert "raise KeyError" in requests.get(f"{instance.http_url}/raises", timeout=10).text


class _WithoutCall:
    def answer(self, request: Any) -> str:
        return "answer"


@pytest.mark.parametrize(
    ("handler", "status", "word"),
    [
        (lambda: Point, 500, "type"),
        (lambda request: request.json, 400, "JSON"),
        (lambda request, other: None, 500, "other"),
        (lambda request, other, *, named: None, 500, "named"),
        (lambda: (_ for _ in [object()]), 500, "object"),
        (lambda: serve.Response("x", headers={"x-large": "a" * 2_000_000}), 500, "InvalidValueError"),
        (_cancel_itself, 500, "CancelledError"),
        (_WithoutCall, 500, "X-SERVE-CALL-METHOD"),
        (lambda request: request.args["n"], 400, "'n'"),
    ],
    ids=[
        "cannot be encoded",
        "malformed JSON",
        "other required parameters",
        "also those by name",
        "chunk of a wrong type",
        "headers that no frame holds",
        "a cancellation of its own",
        "a class without __call__",
        "an argument that isn't there",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # that HTTP can't call it, which is asserted elsewhere
def test_what_is_wrong_is_named(shared_instance: serve.Instance, handler: Any, status: int, word: str) -> None:
    tag = f"wrong-{uuid.uuid4().hex}"
    shared_instance.create_backend(tag, handler)
    shared_instance.create_endpoint(tag, f"/{tag}", ["POST"], backend=tag)
    headers = {"content-type": "application/json"}
    response = requests.post(f"{shared_instance.http_url}/{tag}", data=b"{", headers=headers, timeout=10)
    assert response.status_code == status
    assert word in response.json()["detail"]
    assert response.json()["request_id"] == response.headers["x-request-id"]


class _Planted:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_that_a_client_sends_is_unpickled(shared_instance: serve.Instance, tmp_path: Path) -> None:
    @serve.accept_batch
    def batched(request: list[Any]) -> list[int]:
        return [len(each.data) for each in request]

    shared_instance.create_backend("sizes", lambda request: len(request.data))
    shared_instance.create_backend("sizes-batched", batched)
    planted = tmp_path / "planted"
    bodies = [pickle.dumps(_Planted(planted)), payload.dump(_Planted(planted)), payload.dump(((_Planted(planted),), {}))]
    for tag in ("sizes", "sizes-batched"):
        shared_instance.create_endpoint(tag, f"/{tag}", ["POST"], backend=tag)
        for body in bodies:
            answer = requests.post(
                f"{shared_instance.http_url}/{tag}", data=body, headers={"content-type": "application/x-python-pickle"}, timeout=10
            )
            assert answer.json() == len(body)
    assert not planted.exists()
    payload.load(bodies[1])  # what it would have done
    assert planted.exists()


def test_only_listed_methods_can_be_named_by_a_client(shared_instance: serve.Instance) -> None:
    class Tools:
        def __call__(self, request: Any) -> str:
            return "call"

        def listed(self, request: Any) -> str:
            return "listed"

        def hidden(self, request: Any) -> str:
            return "hidden"

    shared_instance.create_backend("tools", Tools, config={"http_methods": ["listed"]})
    shared_instance.create_endpoint("tools", "/tools", backend="tools")

    def call(method: str) -> tuple[int, str]:
        response = requests.get(f"{shared_instance.http_url}/tools", headers={"X-SERVE-CALL-METHOD": method}, timeout=10)
        return response.status_code, response.text

    assert call("listed") == (200, "listed")
    for name in ("hidden", "__init__", "__class__", "nothing", "__reduce__"):
        assert call(name)[0] == 400
    assert shared_instance.get_handle("tools").options(method_name="hidden").remote(None).result(10) == "hidden"


def test_a_copy_for_a_shadow_never_runs_a_method_that_the_shadow_does_not_list(shared_instance: serve.Instance, tmp_path: Path) -> None:
    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def _note(self, method: str) -> str:
            with open(tmp_path / self.name, "a") as file:
                file.write(f"{method} ")
            return method

        def __call__(self, request: Any) -> str:
            return self._note("call")

        def predict(self, request: Any) -> str:
            return self._note("predict")

    shared_instance.create_backend("noted", Noted, "main", config={"http_methods": ["predict"]})
    shared_instance.create_backend("noted-shadow", Noted, "shadow")
    shared_instance.create_endpoint("noted", "/noted", backend="noted")
    shared_instance.shadow_traffic("noted", "noted-shadow", 1.0)
    url = f"{shared_instance.http_url}/noted"
    assert requests.get(url, headers={"X-SERVE-CALL-METHOD": "predict"}, timeout=10).text == "predict"
    assert requests.get(url, timeout=10).text == "call"  # copied after the other, to the same replica
    wait_until(lambda: "call" in (tmp_path / "shadow").read_text() if (tmp_path / "shadow").exists() else False)
    assert (tmp_path / "shadow").read_text() == "call "
    shared_instance.shadow_traffic("noted", "noted-shadow", 0)


class Slow:
    """Writes whom it runs, and waits until it may go on."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def __call__(self, request: Any) -> str:
        with (self.path / "ran").open("a") as ran:
            ran.write(request.args["n"])
        wait_until((self.path / "go").exists, 20)
        return "done"


def test_a_clients_deadline_is_kept_and_queued_work_never_starts(shared_instance: serve.Instance, tmp_path: Path) -> None:
    shared_instance.create_backend("slow", Slow, str(tmp_path))
    shared_instance.create_endpoint("slow", "/slow", backend="slow")
    url = f"{shared_instance.http_url}/slow"
    first: list[requests.Response] = []
    thread = threading.Thread(target=lambda: first.append(requests.get(f"{url}?n=1", timeout=30)))
    thread.start()
    wait_until((tmp_path / "ran").exists)
    late = requests.get(f"{url}?n=2", headers={"X-SERVE-TIMEOUT-MS": "50"}, timeout=10)
    assert late.status_code == 504
    assert "never started" in late.json()["detail"]
    (tmp_path / "go").touch()
    thread.join(20)
    assert first[0].text == "done"
    assert requests.get(f"{url}?n=3", timeout=10).status_code == 200
    assert (tmp_path / "ran").read_text() == "13"


def test_a_client_that_leaves_cancels_async_code(shared_instance: serve.Instance, tmp_path: Path) -> None:
    class Async:
        def __init__(self, path: str) -> None:
            self.path = Path(path)

        async def __call__(self, request: Any) -> None:
            (self.path / "started").touch()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                (self.path / "cancelled").touch()
                raise

    shared_instance.create_backend("async", Async, str(tmp_path))
    shared_instance.create_endpoint("async", "/async", backend="async")
    host, port = shared_instance.http_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as client:
        client.sendall(b"GET /async HTTP/1.1\r\nhost: h\r\n\r\n")
        wait_until((tmp_path / "started").exists)
    wait_until((tmp_path / "cancelled").exists)


def test_a_client_that_leaves_gives_its_place_in_the_queue_to_others_and_never_runs(
    shared_instance: serve.Instance, tmp_path: Path
) -> None:
    config = {"max_concurrent_queries": 1, "max_queued_queries": 1}
    shared_instance.create_backend("full", Slow, str(tmp_path), config=config)
    shared_instance.create_endpoint("full", "/full", backend="full")
    url = f"{shared_instance.http_url}/full"
    host, port = shared_instance.http_url.removeprefix("http://").split(":")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(requests.get, f"{url}?n=1", timeout=30)
        wait_until((tmp_path / "ran").exists)
        with socket.create_connection((host, int(port)), 10) as leaves:
            leaves.sendall(b"GET /full?n=2 HTTP/1.1\r\nhost: h\r\n\r\n")
            wait_until(lambda: under_way(shared_instance, "full") == 2)
            assert requests.get(f"{url}?n=3", timeout=10).status_code == 503
        wait_until(lambda: under_way(shared_instance, "full") == 1)
        second = threads.submit(requests.get, f"{url}?n=4", timeout=30)
        wait_until(lambda: under_way(shared_instance, "full") == 2)
        (tmp_path / "go").touch()
        assert (first.result().text, second.result().text) == ("done", "done")
    assert (tmp_path / "ran").read_text() == "14"


def test_a_replica_that_dies_is_502_at_once_and_the_rest_runs_elsewhere(shared_instance: serve.Instance, tmp_path: Path) -> None:
    class Dies:
        def __init__(self, path: str) -> None:
            self.path = Path(path)

        def __call__(self, request: Any) -> str:
            if request.args.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            return str(os.getpid())

    shared_instance.create_backend("dies", Dies, str(tmp_path))
    shared_instance.create_endpoint("dies", "/dies", backend="dies")
    url = f"{shared_instance.http_url}/dies"
    before = requests.get(url, timeout=10).text
    died = requests.get(f"{url}?die=1", timeout=10)
    assert died.status_code == 502
    assert died.json()["title"]
    after = requests.get(url, timeout=10)
    assert after.status_code == 200
    assert after.text != before
    with pytest.raises((ReplicaDiedError, ConnectionError)):
        shared_instance.get_handle("dies").remote(_Args()).result(10)


class _Args:
    """Stands for a request in a call from Python."""

    args = {"die": "1"}  # noqa: RUF012 - it is only read


def test_routes_health_readiness_and_metrics(instance: serve.Instance) -> None:
    url = instance.http_url
    instance.create_backend("b", lambda: "x")
    instance.create_endpoint("routed", "/a", ["GET", "POST"], backend="b")
    instance.create_endpoint("handle only")
    assert requests.get(f"{url}/-/routes", timeout=10).json() == {"/a": ["routed", ["GET", "POST"]]}
    assert requests.get(f"{url}/-/healthz", timeout=10).status_code == 200
    assert requests.get(f"{url}/-/readyz", timeout=10).status_code == 200
    for _ in range(3):
        assert requests.get(f"{url}/a", timeout=10).text == "x"
    text = requests.get(f"{url}/-/metrics", timeout=10).text
    line = next(line for line in text.splitlines() if 'endpoint="routed"' in line and "_total{" in line and 'status="200"' in line)
    assert line.endswith((" 3.0", " 3"))
    assert requests.get(f"{url}/-/nothing", timeout=10).status_code == 404


def test_over_tls_by_certificate_files(tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    openssl = shutil.which("openssl")
    assert openssl, "openssl makes the certificate of this test"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", *names]
    subprocess.run(make, check=True, capture_output=True)
    with serve.init(http_port=0, ssl_certfile=cert, ssl_keyfile=key) as instance:
        instance.create_backend("b", lambda request: {"scheme": request.scheme})
        instance.create_endpoint("e", "/e", backend="b")
        assert instance.http_url.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        with httpx.Client(verify=context) as client:
            assert client.get(f"{instance.http_url}/e").json() == {"scheme": "https"}


def test_two_ingresses_share_a_port_and_both_answer() -> None:
    with serve.init(http_port=0, num_ingresses=2) as instance:
        instance.create_backend("b", lambda: "x")
        instance.create_endpoint("e", "/e", backend="b")
        for _ in range(40):
            assert requests.get(f"{instance.http_url}/e", timeout=10).text == "x"
        counted = {count.count for count in instance.stat().counters.requests if count.endpoint == "e"}
        assert counted == {40}
