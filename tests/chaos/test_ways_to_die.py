"""What do a client and the operator see of each way in which a replica can end or get stuck?"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from headgate import serve
from headgate.serve import Instance
from tests.chaos.conftest import Figures
from tests.chaos.moments import process, ready
from tests.support import TIME_FACTOR, under_way, wait_until


def exit_at_once() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def close_every_socket() -> None:
    os.closerange(3, 4096)
    time.sleep(600)


def stop_in_the_middle_of_a_frame() -> None:
    for number in range(3, 256):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
            if copy.family == socket.AF_UNIX:
                copy.send(b"\0\0\0\x10\0")  # of a frame's head, and of a message's length
    close_every_socket()


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for_oneself() -> None:
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


ENDS: dict[str, Callable[[], None]] = {
    end.__name__: end
    for end in (exit_at_once, be_killed, crash, close_every_socket, stop_in_the_middle_of_a_frame, freeze, wait_for_oneself)
}


class Mortal:
    """Does in its first line what the request says, once: where `mark` exists it has been done."""

    def __init__(self, mark: str, begun: str) -> None:
        self._mark = Path(mark)
        self._begun = os.open(begun, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, request: Any) -> str:
        name: str = request.data.decode()
        if name in ENDS and not self._mark.exists():
            self._mark.touch()
            os.write(self._begun, f"{name}\n".encode())
            ENDS[name]()
        os.write(self._begun, f"{name}\n".encode())
        return name


@pytest.mark.parametrize("idempotent", [False, True], ids=["once", "idempotent"])
@pytest.mark.parametrize("end", ENDS)
def test_what_had_not_started_runs_elsewhere_and_what_runs_fails_or_runs_again(
    end: str, idempotent: bool, instance: Instance, tmp_path: Path, figure: Figures
):
    stuck = end == "wait_for_oneself"  # only its time limit tells
    config = {
        "idempotent": idempotent,
        "health_check_period": 0.1,
        "health_check_timeout": 0.5,
        "request_timeout": 0.5 if stuck else 10.0,
        "max_concurrent_queries": 8,  # so that others wait behind it in the same replica
    }
    instance.create_backend("b", Mortal, str(tmp_path / "mark"), str(tmp_path / "begun"), config=config)
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    url = f"{instance.http_url}/e"

    def post(body: str) -> requests.Response:
        return requests.post(url, body, timeout=20)

    def post_and_look() -> tuple[requests.Response, float]:
        return post(end), time.monotonic()

    assert post("hello").text == "hello"
    (victim,) = ready(instance, "b")
    with ThreadPoolExecutor(8) as threads:
        ended = threads.submit(post_and_look)
        wait_until((tmp_path / "mark").exists)
        ended_at = time.monotonic()
        others: list[Future[requests.Response]] = [threads.submit(post, f"other-{number}") for number in range(6)]
        replaced_s = wait_until(lambda: ready(instance, "b") not in ([victim], []) and time.monotonic() - ended_at, 20)
        answers = [other.result() for other in others]
    answer, answered_at = ended.result()
    if stuck:
        assert answer.status_code == 504
        assert {answer.status_code for answer in answers} <= {200, 504}  # their own time may be over, too
    else:
        assert [answer.status_code for answer in answers] == [200] * 6, answers
        assert answer.status_code == (200 if idempotent else 502)
    assert requests.get(f"{instance.http_url}/-/healthz", timeout=5).status_code == 200
    wait_until(lambda: requests.get(f"{instance.http_url}/-/readyz", timeout=5).json() == {"status": "ready"})
    lines = (tmp_path / "begun").read_text().split()
    assert lines.count(end) == (2 if idempotent and not stuck else 1)
    assert all(lines.count(f"other-{number}") <= 1 for number in range(6))
    found_s = {"freeze": 0.7, "wait_for_oneself": 1.2, "close_every_socket": 1.1, "stop_in_the_middle_of_a_frame": 1.1}.get(end, 0.0)
    figure(f"{end}: another serves", replaced_s, at_most_s=1.0 + found_s)
    figure(f"{end}: answered", answered_at - ended_at, at_most_s=(1.0 if idempotent else 0.5) + found_s)


class Guarded:
    """Can't be constructed while the file `forbidden` exists."""

    def __init__(self, forbidden: str) -> None:
        if Path(forbidden).exists():
            raise RuntimeError("the model file is broken")

    def __call__(self, request: Any) -> str:
        if request.data == b"die":
            os._exit(1)
        return "well"


def test_a_backend_that_crashes_again_and_again_says_why_everywhere_and_recovers_by_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    forbidden = tmp_path / "forbidden"
    with serve.init(http_port=0) as instance:
        instance.create_backend("b", Guarded, str(forbidden))
        instance.create_endpoint("e", "/e", ["POST"], backend="b")
        forbidden.touch()
        assert requests.post(f"{instance.http_url}/e", "die", timeout=10).status_code == 502
        wait_until(lambda: is_unhealthy(instance))
        assert requests.get(f"{instance.http_url}/-/healthz", timeout=5).status_code == 200
        starts = instance.stat().replica_starts["b"]
        forbidden.unlink()
        wait_until(lambda: requests.get(f"{instance.http_url}/-/readyz", timeout=5).status_code == 200, 10 * TIME_FACTOR)
        assert "unhealthy" not in requests.get(f"{instance.http_url}/-/readyz", timeout=5).json()
        assert requests.post(f"{instance.http_url}/e", "hello", timeout=10).text == "well"
        assert (instance.list_backends()["b"].state, instance.stat().unhealthy) == ("ready", {})
        assert instance.stat().replica_starts["b"] - starts <= 3, "it was started again and again without a pause"
    assert "the model file is broken" in capfd.readouterr().err


def is_unhealthy(instance: Instance) -> bool:
    backend = instance.list_backends()["b"]
    page = requests.get(f"{instance.http_url}/-/readyz", timeout=5)
    assert (backend.state, page.status_code) == ("unhealthy", 503)
    for text in (backend.reason, instance.stat().unhealthy["b"], page.json()["unhealthy"]["b"]):
        assert "the model file is broken" in text
        assert "Traceback" in text
    return True


class DiesFirst:
    """Dies of its first request while the file `forbidden` exists; `journal` tells when each was constructed, and when it died."""

    def __init__(self, forbidden: str, journal: str) -> None:
        self._forbidden, self._journal = Path(forbidden), Path(journal)
        self._note("constructed")

    def __call__(self, request: Any) -> str:
        if self._forbidden.exists():
            self._note("dies")
            os._exit(7)
        return "well"

    def _note(self, what: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{what} {time.monotonic()}\n")


def test_a_backend_that_dies_of_every_first_request_is_started_after_longer_and_longer_pauses_and_says_why(
    instance: Instance, tmp_path: Path
):
    forbidden, journal = tmp_path / "forbidden", tmp_path / "journal"
    forbidden.touch()
    instance.create_backend("b", DiesFirst, str(forbidden), str(journal))
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    url = f"{instance.http_url}/e"

    def dies() -> bool:
        answer = requests.post(url, timeout=20)
        assert (answer.status_code == 503 and answer.headers["Retry-After"]) or answer.status_code == 502
        return answer.status_code == 502

    for _ in range(5):
        wait_until(dies)  # in a pause it is told when to come back
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert [what for what, _ in lines] == ["constructed", "dies"] * 5
    pauses_s = [float(lines[at + 1][1]) - float(lines[at][1]) for at in range(1, 9, 2)]
    assert all(pause_s >= least_s for pause_s, least_s in zip(pauses_s, (0.0, 0.2, 0.4, 0.8), strict=True)), pauses_s

    def is_told() -> bool:
        backend = instance.status().backends["b"]
        page = requests.get(f"{instance.http_url}/-/readyz", timeout=5)
        assert (backend.state, page.status_code) == ("unhealthy", 503)
        for text in (backend.reason, instance.stat().unhealthy["b"], page.json()["unhealthy"]["b"]):
            assert "exit status 7" in text
        return True

    wait_until(is_told)
    forbidden.unlink()
    wait_until(lambda: requests.post(url, timeout=20).status_code == 200, 20 * TIME_FACTOR)
    wait_until(lambda: instance.status().backends["b"].state == "ready")
    assert requests.get(f"{instance.http_url}/-/readyz", timeout=5).json() == {"status": "ready"}


def always_die(request: Any) -> None:
    os._exit(1)


def test_a_request_that_met_three_deaths_is_given_up_and_named_in_the_log(capfd: pytest.CaptureFixture[str]):
    with serve.init(http_port=0) as instance:
        instance.create_backend("b", always_die, config={"idempotent": True, "num_replicas": 2})
        instance.create_endpoint("e", "/e", ["POST"], backend="b")
        answer = requests.post(f"{instance.http_url}/e", "x", headers={"X-Request-Id": "poison-1"}, timeout=20)
        assert answer.status_code == 502
        assert "too many deaths" in answer.json()["detail"]
    assert "request poison-1 to endpoint 'e' met the deaths of 3 replicas" in capfd.readouterr().err


class Streams:
    """Sends one chunk of a stream that never ends, where it is asked for one; each begin is a line in the file `begun`."""

    def __init__(self, begun: str) -> None:
        self._begun = os.open(begun, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, request: Any) -> str | Iterator[str]:
        name: str = request.data.decode()
        os.write(self._begun, f"{name}\n".encode())
        return self._stream() if name == "stream" else name

    def _stream(self) -> Iterator[str]:
        yield "one"
        time.sleep(600)


@pytest.mark.parametrize("idempotent", [False, True], ids=["once", "idempotent"])
def test_a_stream_whose_replica_is_killed_after_a_chunk_is_cut_and_nothing_runs_twice(idempotent: bool, instance: Instance, tmp_path: Path):
    instance.create_backend("b", Streams, str(tmp_path / "begun"), config={"idempotent": idempotent})
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    url = f"{instance.http_url}/e"
    host, port = instance.http_url.removeprefix("http://").split(":")
    (victim,) = ready(instance, "b")
    with socket.create_connection((host, int(port)), timeout=20) as connection, ThreadPoolExecutor(1) as threads:
        connection.sendall(b"POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nstream")
        received = b""
        while not received.endswith(b"\r\n\r\n3\r\none\r\n"):
            more = connection.recv(65536)
            assert more, received
            received += more
        behind = threads.submit(requests.post, url, "behind", timeout=20)
        wait_until(lambda: under_way(instance, "b") == 2)
        os.kill(victim, signal.SIGKILL)
        assert connection.recv(65536) == b"", "the connection ends, and the body has no end"
        assert behind.result().text == "behind"
    assert requests.post(url, "next", timeout=20).text == "next"
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding: chunked\r\n" in received
    assert (tmp_path / "begun").read_text().split() == ["stream", "behind", "next"]


class OneAnswer:
    """Answers once, and dies of the second request."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: Any) -> str:
        self.count += 1
        if self.count > 1:
            os._exit(1)
        return "once"


def test_a_replica_that_dies_at_once_after_its_first_answer_slows_no_start(instance: Instance):
    instance.create_backend("b", OneAnswer)
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    host, port = instance.http_url.removeprefix("http://").split(":")
    request = b"POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for _ in range(8):
            connection.sendall(request * 2)
            received = b""
            while received.count(b"HTTP/1.1 ") < 2 or not received.endswith(b"}"):  # the second is a problem document
                received += connection.recv(65536)
            assert [line[:3] for line in received.split(b"HTTP/1.1 ")[1:]] == [b"200", b"502"], received


def take_all_memory(request: Any) -> str:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if request.data == b"greedy":
        return str(len(bytes(1 << 40)))
    return "modest"


def test_a_request_that_finds_no_memory_fails_alone_and_its_replica_serves_on(instance: Instance):
    instance.create_backend("b", take_all_memory)
    instance.create_endpoint("e", "/e", ["POST"], backend="b")
    before = ready(instance, "b")
    greedy = requests.post(f"{instance.http_url}/e", "greedy", timeout=20)
    assert (greedy.status_code, "MemoryError" in greedy.json()["detail"]) == (500, True)
    assert requests.post(f"{instance.http_url}/e", "modest", timeout=20).text == "modest"
    assert ready(instance, "b") == before


class Leaks:
    """Has as many descriptors left after a request as that says."""

    def __call__(self, request: Any) -> str:
        left = request.data.decode()
        if left:
            highest = max(map(int, os.listdir("/proc/self/fd")))
            while os.open("/dev/null", os.O_RDONLY) < highest:  # no number below it is free
                pass
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + int(left), hard))
        return str(os.getpid())


@pytest.mark.parametrize("left", [0, -5], ids=["one to take a link, and none for its page", "none to take a link"])
def test_a_replica_without_a_descriptor_for_a_new_ingress_is_replaced(left: int, figure: Figures, capfd: pytest.CaptureFixture[str]):
    with serve.init(http_port=0) as instance:
        instance.create_backend("b", Leaks, config={"request_timeout": 20.0, "health_check_period": 0.1, "health_check_timeout": 0.5})
        instance.create_endpoint("e", "/e", ["POST"], backend="b")
        url = f"{instance.http_url}/e"
        victim = requests.post(url, str(left), timeout=5).text
        (ingress,) = process(instance, "ingress")
        killed_at = time.monotonic()
        os.kill(ingress, signal.SIGKILL)
        answer = requests.post(url, "", timeout=20)  # it waits for the next replica
        assert answer.status_code == 200
        assert answer.text != victim
        figure("another answers", time.monotonic() - killed_at, at_most_s=5.0)
    said = capfd.readouterr().err
    assert ("it has not taken a router's link" if left == 0 else "it could not take the link of a router") in said, said
