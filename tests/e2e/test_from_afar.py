"""Can an instance be operated from another machine by who knows its admin token, over every death, and does nothing show that?"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headgate
from headgate import serve
from headgate.errors import (
    AddressInUseError,
    AdminTokenError,
    AdminUnreachableError,
    ConfigError,
    FromAfarError,
    NotFoundError,
    NotRunningError,
)
from headgate.router import admin, certificate
from headgate.serve import Instance
from tests import certificates
from tests.leaks import processes
from tests.support import wait_until

TOKEN = "recognisable-token-of-this-test-ß"
LOCAL = pytest.mark.local_engine("it has a supervisor, which holds the admin address")


def variables(request: Any) -> dict[str, str]:
    return dict(os.environ)


class Slow:
    def __init__(self, pause_s: float = 0.0) -> None:
        import time

        time.sleep(pause_s)

    def __call__(self, request: Any) -> str:
        return "slow"


@pytest.fixture
def near() -> Iterator[Instance]:
    """An instance with an admin address on loopback."""
    with serve.init("afar", http_port=0, admin_address="127.0.0.1:0", admin_token=TOKEN) as instance:
        yield instance


def url_of(instance: Instance) -> str:
    return f"tcp://{instance.status().admin_address}"


def connected(near: Instance, **how: Any) -> Instance:
    return serve.connect(address=url_of(near), **{"admin_token": TOKEN} | how)


def controller_of(instance: Instance) -> int:
    (pid,) = [process.pid for process in instance.status().processes if process.role == "controller"]
    return pid


def test_verbs_act_on_it_as_they_do_on_its_own_machine(near: Instance) -> None:
    with connected(near) as far:
        assert (far.name, far.http_urls) == ("afar", near.http_urls)
        far.create_backend("one", variables)
        far.create_backend("two", Slow)
        far.create_endpoint("e", "/e", backend="one")
        far.set_traffic("e", {"one": 0.5, "two": 0.5})
        far.update_backend_config("one", {"num_replicas": 2})
        far.update_backend("two", variables)
        assert len(near.list_backends()["one"].replicas) == 2
        assert near.list_endpoints()["e"].traffic == {"one": 0.5, "two": 0.5}
        assert far.get_declared() == near.get_declared()
        far.set_traffic("e", {"one": 1.0})
        far.delete_backend("two")
        assert far.stat().replica_starts == near.stat().replica_starts
        with pytest.raises(NotFoundError, match="there is no backend 'tow'"):
            far.get_backend_config("tow")
    assert near.ended == ""


def test_code_from_afar_meets_the_surroundings_of_the_instance_and_not_those_of_who_sent_it(
    near: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_THERE", "1")
    monkeypatch.setenv(admin.TOKEN_VARIABLE, TOKEN)
    with serve.connect(address=url_of(near)) as far:  # the token is in the environment
        far.create_backend("one", variables)
        far.create_endpoint("e", "/e", backend="one")
    found = json.loads(answer_of(f"{near.http_url}/e"))
    assert "ONLY_THERE" not in found
    assert found["PATH"] == os.environ["PATH"]
    assert admin.TOKEN_VARIABLE not in found


def test_calls_by_handle_are_refused_and_say_what_can_be_done(near: Instance) -> None:
    near.create_endpoint("e", "/e")
    with connected(near) as far, pytest.raises(FromAfarError, match="called over HTTP"):
        far.get_handle("e")


def test_a_wrong_token_is_refused_at_once_and_changes_nothing(near: Instance) -> None:
    for token in ("another-token-than-that", f"{TOKEN}-", TOKEN.upper()):
        with pytest.raises(AdminTokenError, match="has another admin token") as raised:
            connected(near, admin_token=token)
        assert token not in str(raised.value)
    with pytest.raises(AdminTokenError, match="asks for the instance's admin token"):
        serve.connect(address=url_of(near))
    with connected(near) as far:
        assert far.name == "afar"


def test_another_name_than_that_of_the_instance_there_is_refused(near: Instance) -> None:
    with pytest.raises(NotRunningError, match=r"no instance 'other' is running at tcp://127\.0\.0\.1:\d+; there is 'afar'"):
        connected(near, name="other")
    with connected(near, name="afar") as far:
        assert far.name == "afar"
    with pytest.raises(ConfigError, match="engine='ray'"):
        connected(near, engine="ray")


def test_an_instance_without_an_admin_address_listens_nowhere_and_init_compares_it(near: Instance) -> None:
    with serve.init("closed", http_port=0) as closed:
        assert closed.status().admin_address == ""
        with pytest.raises(ConfigError, match=r"admin_token \(it runs with none\)"):
            serve.init("closed", admin_token=TOKEN)
    with serve.init("afar", admin_address="127.0.0.1:0", admin_token=TOKEN) as again:
        assert again.name == "afar"
    with pytest.raises(ConfigError, match=r"admin_token \(it runs with another one\)") as raised:
        serve.init("afar", admin_address="127.0.0.1:0", admin_token="another-token-than-that")
    assert "another-token" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"admin_address='127\.0\.0\.1:1' \(it runs with '127\.0\.0\.1:0'\)"):
        serve.init("afar", admin_address="127.0.0.1:1", admin_token=TOKEN)


@LOCAL
def test_a_port_that_is_taken_is_named_and_nothing_is_left_running() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUseError, match=f"{address} is in use by another program or instance; give another admin_address"):
            serve.init("taken", http_port=0, admin_address=address, admin_token=TOKEN)
    assert not processes()
    with serve.init("taken", http_port=0, admin_address=address, admin_token=TOKEN) as near:
        assert near.status().admin_address == address


@LOCAL
def test_a_shutdown_from_afar_returns_when_nothing_is_left(near: Instance) -> None:
    url = url_of(near)
    with connected(near) as far:
        far.shutdown()
        wait_until(lambda: not processes(), what="its supervisor, whose parent is this process, is reaped")
        assert (far.ended, near.ended) == ("was shut down", "was shut down")
        with pytest.raises(NotRunningError):
            far.status()
    with pytest.raises(AdminUnreachableError, match="Connection refused"):
        serve.connect(address=url, admin_token=TOKEN)


@LOCAL
def test_a_controller_that_is_killed_listens_there_again_and_verbs_are_applied_once(near: Instance) -> None:
    with connected(near) as far:
        address, first = near.status().admin_address, controller_of(near)
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for number in range(30):
                    far.create_endpoint(f"e{number}", f"/e{number}")
                far.create_backend("slow", Slow, 0.5)
            except BaseException as error:  # noqa: BLE001  # for the test to raise
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        for wanted in (3, 15, 30):
            wait_until(lambda wanted=wanted: len(near.list_endpoints()) >= wanted or failed)  # type: ignore[misc]  # mypy can't type it
            os.kill(controller_of(near), signal.SIGKILL)
        thread.join(60)
        assert not failed
        assert not thread.is_alive()
        assert sorted(near.list_endpoints()) == sorted(f"e{number}" for number in range(30))
        assert near.list_backends()["slow"].state == "ready"
        assert controller_of(far) != first
        assert near.status().admin_address == address
    with connected(near) as again:
        assert again.name == "afar"


@LOCAL
def test_an_instance_of_another_token_at_the_same_place_is_not_taken_for_the_same() -> None:
    with serve.init("first", http_port=0, admin_address="127.0.0.1:0", admin_token=TOKEN) as first:
        address = first.status().admin_address
        far = serve.connect(address=f"tcp://{address}", admin_token=TOKEN)
    with serve.init("second", http_port=0, admin_address=address, admin_token="another-token-than-that"):
        with pytest.raises((AdminTokenError, NotRunningError)):
            far.status()
        with pytest.raises(AdminTokenError):
            serve.connect(address=f"tcp://{address}", admin_token=TOKEN)
        with serve.connect(address=f"tcp://{address}", admin_token="another-token-than-that") as there:
            assert there.name == "second"
        far.__exit__(None, None, None)


@LOCAL
def test_beyond_loopback_it_speaks_tls_and_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.write(tmp_path, "localhost", "127.0.0.1")
    first = Path(files.authority).read_bytes()
    how: dict[str, Any] = {"ssl_certfile": files.cert, "ssl_keyfile": files.key, "admin_address": "0.0.0.0:0", "admin_token": TOKEN}
    with pytest.warns(UserWarning, match="http_host"):
        near = serve.init("tls", http_port=0, http_host="0.0.0.0", **how)
    with near:
        port = near.status().admin_address.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1"):
            with serve.connect(address=f"tcp://{host}:{port}", admin_token=TOKEN, admin_cafile=files.authority) as far:
                far.create_endpoint(host)
        with pytest.raises(AdminUnreachableError, match=r"certificate that isn't believed: .*admin_cafile"):
            serve.connect(address=f"tcp://localhost:{port}", admin_token=TOKEN)
        days = near.status().certificate_days
        assert days is not None
        assert days > 1

        renewed = certificates.write(tmp_path, "localhost")
        assert Path(renewed.authority).read_bytes() != first

        def both_show_it() -> bool:
            trusting = ssl.create_default_context(cafile=renewed.authority)
            with socket.create_connection(("localhost", int(near.http_url.rpartition(":")[2]))) as sock:
                trusting.wrap_socket(sock, server_hostname="localhost").close()
            serve.connect(address=f"tcp://localhost:{port}", admin_token=TOKEN, admin_cafile=renewed.authority).__exit__(None, None, None)
            return True

        def shown() -> bool:
            try:
                return both_show_it()
            except OSError:
                return False

        wait_until(shown, 5 * certificate.LOOK_S)


PROGRAM = """
import os, sys, time
from headgate import serve
from headgate.errors import HeadgateError

TOKEN = os.environ["HEADGATE_ADMIN_TOKEN"]

class Shows:
    def __init__(self):
        print("variables", sorted(os.environ.items()), sorted(os.environ))
    def __call__(self, request):
        raise ValueError(f"{dict(os.environ)}")

folders = {"log_dir": sys.argv[1], "state_dir": sys.argv[2]}
with serve.init("secret", http_port=0, debug=True, access_log=True, admin_address="127.0.0.1:0", **folders) as near:
    url = "tcp://" + near.status().admin_address
    with serve.connect(address=url) as far:
        far.create_backend("shows", Shows)
        near.create_backend("near", Shows)
        near.create_endpoint("e", "/e", backend="near")
        for wrong in ("short", TOKEN + "\\n", TOKEN * 2, TOKEN.encode()):
            try:
                serve.connect(address=url, admin_token=wrong)
            except (HeadgateError, TypeError) as error:
                print(repr(error), error, error.args)
            try:
                serve.init("secret", admin_address=near.status().admin_address, admin_token=wrong)
            except (HeadgateError, TypeError) as error:
                print(repr(error), error, error.args)
        print(repr(near), repr(far), vars(far), vars(far._connection), vars(far._connection.way).keys())
        print(far.status(), far.stat(), far.get_declared())
    print("SERVES", near.http_url, flush=True)
    sys.stdin.readline()
"""


@LOCAL
def test_nothing_that_is_said_or_kept_shows_the_token(tmp_path: Path) -> None:
    token = "recognisable-token-in-clear-4711"
    log, state, program = tmp_path / "log", tmp_path / "state", tmp_path / "program.py"
    program.write_text(PROGRAM)
    environ = {**os.environ, "PYTHONPATH": str(Path(headgate.__file__).parents[1]), admin.TOKEN_VARIABLE: token}
    with subprocess.Popen(
        [sys.executable, str(program), str(log), str(state)],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            said = all_that_is_said_by(started, [log, state, Path(os.environ["HEADGATE_RUNTIME_DIR"])])
        finally:
            started.kill()
    said += "".join(path.read_text() for path in log.rglob("*") if path.is_file())
    assert "variables" in said
    assert "ValueError" in said
    assert "refused a connection from 127.0.0.1 to the admin address: its admin token is wrong" in said
    key = admin.key_of(token)
    for secret in (token, key.hex(), repr(key)[2:-1], key.decode("latin-1")):
        assert secret not in said


def all_that_is_said_by(started: subprocess.Popen[str], folders: list[Path]) -> str:
    """By the program, by its instance's processes and what the system shows of them, and in files."""
    assert started.stdin is not None
    assert started.stdout is not None
    said = ""
    while "SERVES" not in said:
        line = started.stdout.readline()
        assert line, said
        said += line
    (url,) = re.findall(r"SERVES (\S+)", said)
    said += answer_of(f"{url}/e")
    own = {pid for pid in processes() if pid not in (os.getpid(), started.pid)}
    assert len(own) >= 5, "supervisor, controller, ingress and two replicas"
    for pid in (*own, started.pid):
        said += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/comm").read_text()
        if pid != started.pid:  # who gave it has it in its own
            said += Path(f"/proc/{pid}/environ").read_text(errors="replace")
    said += "".join(path.read_bytes().decode("latin-1") for folder in folders for path in folder.rglob("*") if path.is_file())
    said += started.communicate("\n", timeout=60)[0]
    assert started.returncode == 0, said
    return said


def answer_of(url: str) -> str:
    """The body, whatever the status."""
    try:
        with urllib.request.urlopen(url) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def test_a_replica_can_not_be_taken_elsewhere_by_an_address(near: Instance) -> None:
    def connects(request: Any) -> str:
        return str(serve.connect(address="tcp://127.0.0.1:1").name)

    near.create_backend("connects", connects)
    near.create_endpoint("c", "/c", backend="connects")
    assert answer_of(f"{near.http_url}/c") == "afar"


def test_half_open_connections_starve_nobody(near: Instance, request: pytest.FixtureRequest) -> None:
    host, _, port = near.status().admin_address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(200)]
    end: Callable[[], object] = lambda: [sock.close() for sock in silent]  # noqa: E731  # also where an assertion fails
    request.addfinalizer(end)
    near.create_endpoint("meanwhile")
    assert "meanwhile" in near.list_endpoints()
    end()

    def is_in() -> bool:
        try:
            with connected(near) as far:
                return far.name == "afar"
        except AdminUnreachableError:
            return False

    assert wait_until(is_in)
