"""What becomes of calls when a connection between two nodes is lost, though both processes live?"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from headgate.core.messages import BrokenReplica
from headgate.router import link as link_module
from headgate.router import remote
from headgate.router.link import Link
from headgate.router.tls import Tls
from tests.certificates import made_for
from tests.data_path.rig import Rig
from tests.data_path.test_data_path import play
from tests.support import until


@pytest.fixture(autouse=True, params=["tcp", "tls"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here links go over TCP alone."""
    monkeypatch.setattr("tests.data_path.rig.REMOTE", True)
    if request.param == "tls":
        monkeypatch.setattr("tests.data_path.rig.TLS", Tls(*made_for("the cluster")))


def link_of(rig: Rig) -> Link:
    (link,) = rig.router._backends["b"].links.values()
    return link


def cut(link: Link) -> None:
    """As by a packet filter that has forgotten it."""
    assert link._channel is not None
    link._channel._sock.shutdown(socket.SHUT_RDWR)


def test_what_had_started_fails_and_the_rest_runs_once_on_a_new_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "DROPPED_AFTER_S", 0.3)
    let_go = threading.Event()
    ran: list[str] = []

    def handler(name: str) -> str:
        ran.append(name)
        if name == "runs":
            let_go.wait(10)
        return name

    async def scene() -> None:
        async with Rig(tmp_path, handler) as rig:
            await rig.ask("first").done
            runs = rig.ask("runs")
            await until(lambda: "runs" in ran)
            waits = rig.ask("waits")
            before = link_of(rig)
            await until(lambda: rig.replicas[0].links.load() >= 1)
            cut(before)
            await runs.done
            assert runs.info is not None
            assert runs.info.kind == "ReplicaDiedError"
            let_go.set()
            await waits.done
            assert waits.value == "waits"
            assert link_of(rig) is not before
            later = rig.ask("later")
            await later.done
            assert later.value == "later"
        assert ran == ["first", "runs", "waits", "later"]

    play(scene)


def fall_silent(link: Link) -> None:
    """As where nothing was heard of the replica's node for as long as the kernel waits."""

    def receive(*_: object) -> int:
        raise TimeoutError("out of reach")

    assert link._channel is not None
    link._channel._recv_into = receive  # type: ignore[assignment]  # it takes anything
    link._readable()


@pytest.mark.parametrize("idempotent", [False, True])
def test_where_a_node_falls_silent_all_that_was_there_may_have_started_and_runs_again_only_where_it_may(
    tmp_path: Path, idempotent: bool
) -> None:
    let_go = threading.Event()
    ran: list[str] = []

    def handler(name: str) -> str:
        ran.append(name)
        let_go.wait(10)
        return name

    async def scene() -> None:
        async with Rig(tmp_path, handler, idempotent=idempotent) as rig:
            await rig.linked()
            call, link = rig.ask("once"), link_of(rig)
            await until(lambda: ran and call.link is link and link.has_begun(call))
            link._page[call.place] = 0  # had the node fallen silent a moment before, this would not have arrived
            fall_silent(link)
            let_go.set()
            await call.done
            if idempotent:
                assert (call.value, ran) == ("once", ["once", "once"])
            else:
                assert call.info is not None
                assert (call.info.kind, "is out of reach" in call.info.message) == ("ReplicaDiedError", True)
                assert ran == ["once"]

    play(scene)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_nothing_starts_that_came_from_a_router_which_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    silent_s = [0.0]
    asked: list[float] = []

    def heard_ago_s(sock: socket.socket) -> float:
        asked.append(silent_s[0])
        return silent_s[0]

    monkeypatch.setattr(remote, "heard_ago_s", heard_ago_s)
    ran: list[float] = []

    def handler() -> str:
        ran.append(silent_s[0])
        return "fine"

    async def async_handler() -> str:
        return handler()

    async def scene() -> None:
        async with Rig(tmp_path, async_handler if is_async else handler) as rig:
            await rig.linked()
            silent_s[0] = remote.STARTS_UNTIL_S + 0.1
            call = rig.ask()
            await until(lambda: len(asked) >= 3, "it has come, and come back, and come again")
            assert not call.done.done()
            silent_s[0] = 0.0  # it was only slow
            await call.done
            assert call.value == "fine"
        assert ran == [0.0]

    play(scene)


def test_a_replica_that_nobody_can_reach_is_tried_until_it_can_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = remote.connect
    with socket.socket() as silent:  # bound, so that nobody else takes its port; as it doesn't listen, who connects is refused
        silent.bind(("127.0.0.1", 0))
        nowhere = remote.join(*silent.getsockname())
        refused: list[str] = []

        async def astray(address: str, secret: bytes, *, tls: bool = False) -> socket.socket:
            try:
                return await connect(nowhere, secret, tls=tls)
            except ConnectionRefusedError:
                refused.append(address)
                raise

        async def scene() -> None:
            async with Rig(tmp_path, lambda: "fine") as rig:
                await rig.linked()
                monkeypatch.setattr(remote, "connect", astray)
                before = link_of(rig)
                cut(before)
                await until(lambda: link_of(rig) is not before)
                call = rig.ask()
                await until(lambda: len(refused) > 2, "it goes on trying")
                monkeypatch.setattr(remote, "connect", connect)
                await call.done
                assert call.value == "fine"

        play(scene)


def test_a_router_without_a_certificate_of_the_cluster_is_told_and_the_replica_is_not_taken_for_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "_STRANGER_S", 0.01)
    monkeypatch.setattr("tests.data_path.rig.TLS", Tls(*made_for("the cluster")))

    async def scene() -> None:
        async with Rig(tmp_path, lambda: "fine") as rig:
            await rig.linked()
            trusted, rig.router.way.tls = rig.router.way.tls, Tls(*made_for("another cluster"))
            before = link_of(rig)
            cut(before)
            await until(lambda: sum("can't be reached: TLS failed" in message for message in caplog.messages) > 3, "it goes on trying")
            await until(lambda: sum("refused a router: TLS failed" in message for message in caplog.messages) > 3, "so does the replica")
            assert not any(isinstance(message, BrokenReplica) for message in rig.reported)
            rig.router.way.tls = trusted
            call = rig.ask()
            await call.done
            assert call.value == "fine"

    play(scene)
