"""Does an instance behind nginx, with the configuration that the page shows, serve as it does without?"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from headgate import serve
from headgate.serve import Instance
from tests import certificates
from tests.docs.pages import blocks
from tests.support import leave_out, wait_until

pytestmark = pytest.mark.local_engine("what stands before HTTP doesn't see the engine")

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
PAGE = HOW_TO / "behind-nginx.md"


def seen(request: Any) -> dict[str, Any]:
    names = ("Host", "X-Forwarded-For", "X-Forwarded-Proto")
    sent = {name: request.headers[name] for name in names}
    return {"id": serve.context.request_id, "bytes": len(request.data), "key": request.headers.get("X-SERVE-SHARD-KEY"), **sent}


class Stream:
    """Its second word comes when somebody asks for it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.broken_off = 0

    async def words(self) -> AsyncIterator[str]:
        try:
            yield "first"
            await self.asked.wait()
            yield "second"
        except BaseException:
            self.broken_off += 1
            raise

    async def __call__(self, request: Any) -> Any:
        if "broken_off" in request.args:
            return self.broken_off
        if "ask" in request.args:
            self.asked.set()
            return "asked"
        return self.words()


class Nginx(NamedTuple):
    """One that runs."""

    port: int
    plain_port: int
    authority: str
    behind: Instance

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=ssl.create_default_context(cafile=self.authority))

    def ask(self, target: str, body: bytes = b"", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """One request on a connection of its own."""
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request("POST" if body else "GET", target, body or None, named)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def ports_behind(self) -> set[str]:
        """From which ports there are connections to the instance."""
        wanted = f":{int(self.behind.http_url.rpartition(':')[2]):04X}"
        established = "01"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {remote for _, local, remote, state, *_ in lines if local.endswith(wanted) and state == established}


@pytest.fixture(scope="module")
def nginx(shared_instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The page's, but for its ports."""
    if shutil.which("nginx") is None:
        leave_out("nginx is not installed")
    serve.create_backend("seen", seen)
    serve.create_endpoint("seen", "/seen", ("GET", "POST"), backend="seen")
    serve.create_backend("stream", Stream)
    serve.create_endpoint("stream", "/stream", backend="stream")
    folder = tmp_path_factory.mktemp("nginx")
    files = certificates.write(folder, "127.0.0.1")
    shutil.copy(files.cert, folder / "fullchain.pem")
    shutil.copy(files.key, folder / "privkey.pem")
    config, plain = ({block.file: block.text for block in blocks(PAGE)}[name] for name in ("headgate.conf", "nginx.conf"))
    with socket.socket() as kept, socket.socket() as kept_too, (folder / "log").open("w") as log:
        ports = []
        for one in (kept, kept_too):  # a port that is ours stays ours until nginx listens there, too
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
        (session,) = (block.text for block in blocks(HOW_TO / "sticky-sessions.md") if block.language == "nginx")
        for shown, ours in (
            ("proxy_pass http://headgate;", f"proxy_pass http://headgate;\n{session}"),
            ("server 127.0.0.1:8000;", f"server {shared_instance.http_url.removeprefix('http://')};"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{ports[0]} ssl reuseport;"),
            ("listen 80;", f"listen 127.0.0.1:{ports[1]} reuseport;"),
        ):
            assert config.count(shown) == 1
            config = config.replace(shown, ours)
        (folder / "headgate.conf").write_text(config)
        (folder / "nginx.conf").write_text(plain)
        process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"], stdout=log, stderr=log)
        try:
            running = Nginx(ports[0], ports[1], files.authority, shared_instance)

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                with socket.socket() as client:
                    return client.connect_ex(("127.0.0.1", running.port)) == 0

            wait_until(answers, 20, "nginx listens")
            yield running
        finally:
            process.terminate()
            process.wait(20)


def test_a_cookie_becomes_the_shard_key(nginx: Nginx) -> None:
    assert json.loads(nginx.ask("/seen")[1])["key"] is None
    assert json.loads(nginx.ask("/seen", Cookie="other=bob; session=ada")[1])["key"] == "ada"


def test_its_connections_to_the_instance_are_kept(nginx: Nginx) -> None:
    assert nginx.ask("/seen")[0].status == 200
    before = nginx.ports_behind()
    assert len(before) == 1
    assert [nginx.ask("/seen")[0].status for _ in range(20)] == [200] * 20
    assert nginx.ports_behind() == before


def test_the_code_learns_who_the_client_is_and_nobody_can_say_otherwise(nginx: Nginx) -> None:
    response, body = nginx.ask("/seen", Host="models.example", X_Forwarded_For="192.0.2.1", X_Forwarded_Proto="http", X_Request_Id="mine")
    found = json.loads(body)
    assert (found["Host"], found["X-Forwarded-For"], found["X-Forwarded-Proto"]) == ("models.example", "127.0.0.1", "https")
    assert found["id"] == response.headers["X-Request-Id"] != "mine"
    assert len(found["id"]) == 32


def test_a_body_passes_that_is_larger_than_nginx_takes_by_itself(nginx: Nginx) -> None:
    response, body = nginx.ask("/seen", body=bytes(3 << 20))
    assert response.status == 200
    assert json.loads(body)["bytes"] == 3 << 20


def test_each_part_of_a_stream_arrives_before_the_next_is_made(nginx: Nginx) -> None:
    connection = nginx.connect()
    connection.request("GET", "/stream")
    response = connection.getresponse()
    assert response.read1(100) == b"first"
    nginx.ask("/stream?ask")
    assert response.read() == b"second"
    connection.close()


def test_a_client_that_leaves_ends_its_stream(nginx: Nginx) -> None:
    nginx.behind.update_backend("stream", Stream)  # nobody has asked this one for its second word
    connection = nginx.connect()
    connection.request("GET", "/stream")
    response = connection.getresponse()
    assert response.read1(100) == b"first"
    assert nginx.ask("/stream?broken_off")[1] == b"0"
    response.close()
    connection.close()
    wait_until(lambda: nginx.ask("/stream?broken_off")[1] == b"1", what="the stream was broken off")


@pytest.mark.parametrize(
    "target", ["/-/", "/-/metrics", "/%2D/metrics", "/-%2Fmetrics", "//-/metrics", "/seen/../-/metrics", "/./-/metrics"]
)
def test_what_is_under_the_reserved_prefix_stays_inside_however_it_is_written(nginx: Nginx, target: str) -> None:
    response, body = nginx.ask(target)
    assert response.status == 404
    assert b"headgate" not in body


def test_plain_http_is_sent_to_https(nginx: Nginx) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", nginx.plain_port, timeout=10)
    connection.request("GET", "/seen?n=1")
    response = connection.getresponse()
    assert (response.status, response.headers["Location"]) == (301, "https://127.0.0.1/seen?n=1")
    response.read()
    connection.close()
