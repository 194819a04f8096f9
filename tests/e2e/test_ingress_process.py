"""Does an ingress' process do what its controller says, and serve without one? The controller is played by the test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from headgate.core import messages, reports
from headgate.core.messages import (
    Applied,
    Count,
    Counted,
    Drain,
    EndpointEntry,
    Hello,
    Message,
    Ping,
    Pong,
    RoutingChanges,
    SendTable,
    VerbCall,
    VerbDone,
    Welcome,
)
from headgate.core.reports import RequestCount
from headgate.core.specs import IngressSpec
from headgate.errors import CALLER_LEFT
from headgate.logs.reading import Folder
from headgate.router.way import Way
from tests.ingress_server import CERTIFICATE, KEY, TABLE, Client
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("no engine takes part")

M = TypeVar("M", bound=Message)
TABLE = msgspec.structs.replace(TABLE, backends={}, endpoints={})
GET = b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
PROGRAM = """
import socket, sys, msgspec
from headgate.core.specs import IngressSpec, LogSettings
from headgate.ingress.main import run
from headgate.logs.begin import begin
from headgate.router.way import Way
begin(LogSettings("json", sys.argv[4]), "ingress")
run(msgspec.json.decode(sys.argv[1], type=IngressSpec), Way(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])))
"""


class Controller:
    """Takes one connection at a time, and remembers what it was told."""

    def __init__(self, path: str) -> None:
        self.told: list[Message] = []
        self.answers = True
        """Whether it answers what it is asked, such as for the metrics."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def say(self, message: Message) -> None:
        connected: socket.socket = wait_until(lambda: self._socket)  # type: ignore[assignment]  # never None when true
        connected.sendall(messages.encode(message))

    def heard(self, kind: type[M]) -> M:
        """The latest message of this kind, once there is one."""
        return wait_until(lambda: next((told for told in reversed(self.told) if isinstance(told, kind)), None), what=kind.__name__)  # type: ignore[return-value]  # never None when true

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._socket is not None:
            self._socket.close()
        self._thread.join(10)

    def _serve(self) -> None:
        try:
            self._socket, _ = self._listener.accept()
            decoder = messages.MessageDecoder()
            while data := self._socket.recv(1 << 16):
                for message in decoder.received(data):
                    self.told.append(message)
                    if isinstance(message, Hello):
                        self.say(Welcome("test", ()))
                        self.say(TABLE)
                    elif isinstance(message, VerbCall) and self.answers:
                        self.say(VerbDone(message.id, msgspec.msgpack.encode(reports.Measurement(reports.Counters(), {}, {}, 7))))
        except OSError:  # closed by the test
            return


class Running:
    def __init__(self, process: subprocess.Popen[bytes], controller: Controller | None, port: int) -> None:
        self.process, self.port, self._controller = process, port, controller

    @property
    def controller(self) -> Controller:
        assert self._controller is not None
        return self._controller


@contextmanager
def ingress_process(*, controller: bool = True, tls: bool = False, logs: str = "", access_log: bool = False) -> Iterator[Running]:
    """An ingress in a process of its own, on a listening socket that it inherits; its log goes into the folder `logs`."""
    with tempfile.TemporaryDirectory(prefix="hg-", dir="/tmp") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        files: dict[str, Any] = {"ssl_certfile": CERTIFICATE, "ssl_keyfile": KEY} if tls else {}
        spec = IngressSpec(id="ingress-0", token="secret", place="0", access_log=access_log, **files)
        played = Controller(Way(folder).control_path) if controller else None
        arguments = [sys.executable, "-c", PROGRAM, msgspec.json.encode(spec).decode(), folder, str(listener.fileno()), logs]
        source = str(Path(messages.__file__).parents[2])
        process = subprocess.Popen(
            arguments, pass_fds=[listener.fileno()], env={**os.environ, "PYTHONPATH": source}, stderr=subprocess.DEVNULL
        )
        try:
            yield Running(process, played, listener.getsockname()[1])
        finally:
            process.kill()
            process.wait(10)
            if played is not None:
                played.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with ingress_process() as process:
        yield process


def test_it_proves_itself_follows_the_table_and_says_so(running: Running) -> None:
    hello = running.controller.heard(Hello)
    assert (hello.role, hello.id, hello.token, hello.routes) == ("ingress", "ingress-0", "secret", True)
    assert running.controller.heard(Applied).version == TABLE.version
    with Client(running.port) as client:
        assert client.ask(GET).status == 404
        assert client.ask(b"GET /-/readyz HTTP/1.1\r\nHost: a\r\n\r\n").status == 200


def test_it_follows_changes_and_asks_for_the_whole_where_they_are_of_another_table() -> None:
    endpoint = EndpointEntry("e", "/e", ("GET",))

    def status(client: Client) -> int:
        return client.ask(b"GET /e HTTP/1.1\r\nHost: a\r\n\r\n").status

    with ingress_process() as running, Client(running.port) as client:
        assert status(client) == 404
        first = TABLE.version
        running.controller.say(RoutingChanges(first, first + 1, endpoints={"e": endpoint}))
        wait_until(lambda: running.controller.heard(Applied).version == first + 1)
        assert status(client) == 503  # it has no traffic
        running.controller.say(RoutingChanges(first, first + 2, endpoints_gone=("e",)))
        running.controller.heard(SendTable)
        assert status(client) == 503
        running.controller.say(msgspec.structs.replace(TABLE, version=first + 2))
        wait_until(lambda: running.controller.heard(Applied).version == first + 2)
        assert status(client) == 404


def test_it_gives_signs_of_life_and_its_counters_with_what_it_refused(running: Running) -> None:
    running.controller.say(Ping(5))
    assert running.controller.heard(Pong).number == 5
    with Client(running.port) as client:
        client.ask(b"BROKEN\r\n\r\n")
    running.controller.say(Count(6))
    counted = running.controller.heard(Counted)
    assert counted.number == 6
    assert RequestCount("", "", 400, 1, 0.0) in counted.counters.requests


def test_it_asks_the_controller_for_the_metrics_of_all(running: Running) -> None:
    with Client(running.port) as client:
        assert b"\nheadgate_routers 7.0\n" in client.ask(b"GET /-/metrics HTTP/1.1\r\nHost: a\r\n\r\n").body


@pytest.mark.parametrize(
    "tell", [lambda r: r.controller.say(Drain(5.0)), lambda r: r.process.send_signal(signal.SIGINT)], ids=["Drain", "SIGINT"]
)
def test_told_to_end_it_closes_what_is_idle_and_ends(tell: Callable[[Running], None]) -> None:
    with ingress_process() as running, Client(running.port) as client:
        assert client.ask(GET).status == 404
        tell(running)
        assert client.at_end()
        assert running.process.wait(10) == 0


def test_an_answer_that_takes_too_long_does_not_keep_it_from_ending_in_time_nor_its_last_words_from_coming(tmp_path: Path) -> None:
    grace_s = 3.0
    with ingress_process(logs=str(tmp_path), access_log=True) as running, Client(running.port) as client:
        running.controller.answers = False
        client.send(b"GET /-/metrics HTTP/1.1\r\nHost: a\r\n\r\n")  # which waits for the controller
        running.controller.heard(VerbCall)
        running.controller.say(Drain(grace_s))
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(grace_s)
        running.process.kill()  # as an engine does then
        assert running.process.wait() == 0
        assert client.rest() == b""
        assert running.controller.heard(Counted).number == 0
        with contextlib.closing(Folder(str(tmp_path))) as folder:
            assert [entry.http.status for entry in folder.read() if entry.http is not None] == [CALLER_LEFT]


def test_without_a_controller_it_answers_503_after_a_moment() -> None:
    with ingress_process(controller=False) as running, Client(running.port) as client:
        answer = client.ask(GET)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_with_certificate_files_it_speaks_tls() -> None:
    with ingress_process(tls=True) as running, Client(running.port, tls=True) as client:
        assert client.ask(GET).status == 404
