"""Who may talk to the controller, and what does it bear from those who talk nonsense, or don't listen?"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from headgate.controller.server import Connection, ControlServer
from headgate.core import messages, tables
from headgate.core.messages import (
    PROTOCOL,
    Applied,
    Count,
    CreateEndpoint,
    Describe,
    Hello,
    Message,
    RoutingChanges,
    RoutingTable,
    Unwanted,
    VerbCall,
    Welcome,
)
from headgate.errors import NotRunningError
from headgate.router import remote
from headgate.router.control import ControlLink
from headgate.router.tls import Tls
from headgate.router.way import Way
from tests.certificates import made_for
from tests.controller.rig import PATIENCE_S, Process, Rig, play
from tests.support import until


async def say(rig: Rig, data: bytes) -> bytes:
    """Connect, send this, and return all that comes until the controller closes the connection."""
    reader, writer = await asyncio.open_unix_connection(rig.way.control_path)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
        b"\x00\x00\x00\x05hello",
        messages.encode(VerbCall("id-1", Describe())),
        messages.encode(Hello(PROTOCOL + 1, "client", "x", 1)),
        messages.encode(Hello(PROTOCOL, "emperor", "x", 1)),
    ],
)
def test_who_does_not_begin_with_a_proper_hello_is_told_nothing_and_harms_nobody(data: bytes):
    async def scene(rig: Rig) -> None:
        if data[:4] == b"GET ":  # its first bytes claim a message that never comes
            reader, writer = await asyncio.open_unix_connection(rig.way.control_path)
            writer.write(data)
            await rig.describe()
            writer.close()
            assert await reader.read() == b""
        else:
            assert await say(rig, data) == b""
        await rig.create("v1")

    play(scene)


@pytest.mark.parametrize("role", ["ingress", "replica"])
def test_a_process_that_is_not_known_or_not_any_more_is_told_to_end(role: str):
    async def scene(rig: Rig) -> None:
        assert await say(rig, messages.encode(Hello(PROTOCOL, role, "no-such-one", 1, "token"))) == messages.encode(Unwanted())
        await rig.create("v1")

    play(scene)


def test_an_ingress_with_the_wrong_token_is_refused():
    async def scene(rig: Rig) -> None:
        hello = Hello(PROTOCOL, "ingress", rig.ingress.id, 1, "not the token", routes=True)
        assert await say(rig, messages.encode(hello)) == messages.encode(Unwanted())

    play(scene)


def test_garbage_after_the_hello_ends_that_connection_only():
    async def scene(rig: Rig) -> None:
        answer = await say(rig, messages.encode(Hello(PROTOCOL, "client", "x", 1)) + b"\x00\x00\x00\x01\xc1")
        arrived = messages.MessageDecoder().received(answer)
        assert arrived == [Welcome("test", ("http://127.0.0.1:1234",))] or arrived == []
        await rig.create("v1")

    play(scene)


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch):
    async def scene(rig: Rig) -> None:
        own = os.getuid()
        with monkeypatch.context() as patched:
            patched.setattr(os, "getuid", lambda: own + 1)
            assert await say(rig, messages.encode(Hello(PROTOCOL, "client", "x", 1))) == b""

    play(scene)


def test_only_the_user_may_open_the_socket_and_it_is_gone_after_a_shutdown():
    async def scene(rig: Rig) -> None:
        path = rig.way.control_path
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
        await rig.shut_down()
        assert not os.path.exists(path)

    play(scene)


def test_messages_that_make_no_sense_from_a_client_are_ignored():
    async def scene(rig: Rig) -> None:
        client: Process = rig.process("client", routes=False)
        await client.link.connected()
        nonsense: list[Message] = [Applied(10**12), Count(1), RoutingTable(version=10**12)]
        for message in nonsense:
            client.link.send(message)
        await rig.create("v1")
        assert rig.ingress.table.version < 10**12

    play(scene)


def test_who_does_not_read_is_sent_only_the_latest_table_once_it_reads_again():
    async def scene(rig: Rig) -> None:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(rig.way.control_path)
        peer.sendall(messages.encode(Hello(PROTOCOL, "client", "deaf", 1, routes=True)))
        count = 300
        created = [asyncio.create_task(rig.verb(CreateEndpoint(f"{n:03}" + "x" * 100, None, ("GET",), None))) for n in range(count)]
        await until(lambda: len(rig.ingress.table.endpoints) == count, "all are in force in the ingress")
        await asyncio.gather(*created)
        peer.settimeout(PATIENCE_S)
        decoder, followed, arrived = messages.MessageDecoder(), None, 0
        while followed is None or len(followed.endpoints) < count:
            data = await asyncio.to_thread(peer.recv, 1 << 20)
            for message in decoder.received(data):
                if isinstance(message, RoutingTable | RoutingChanges):
                    arrived += 1
                    followed = tables.follow(followed, message)
                    assert followed is not None
        peer.close()
        assert followed == rig.ingress.table
        assert arrived < count

    play(scene)


class _Listener:
    """What a server tells."""

    def __init__(self) -> None:
        self.received_messages: list[Message] = []

    def connected(self, connection: Connection, hello: Hello) -> bool:
        connection.send(Welcome("test", ()))
        return True

    def received(self, connection: Connection, message: Message) -> None:
        self.received_messages.append(message)

    def lost(self, connection: Connection) -> None: ...


class _Across(Way):
    """The way of a process on another node than the controller's."""

    def __init__(self, folder: str, controllers: _Published, secret: bytes, tls: Tls | None = None) -> None:
        super().__init__(folder, node="theirs", secret=secret, tls=tls)
        self._controllers = controllers

    async def controller(self) -> str:
        return remote.as_seen_from(self.node, self._controllers.address)


class _Published(Way):
    """The controller's own."""

    address: str

    async def publish(self, address: str) -> None:
        self.address = address


def test_over_tcp_only_those_are_heard_who_know_the_secret(tmp_path: Path) -> None:
    async def scene() -> None:
        owner = _Listener()
        way = _Published(str(tmp_path), node="ours", host="127.0.0.1", secret=b"secret")
        server = ControlServer(way, owner)
        await server.open()
        hello = Hello(PROTOCOL, "client", "x", 1)
        friend = ControlLink(_Across(str(tmp_path), way, b"secret"), lambda: hello, lambda message: None)
        stranger = ControlLink(_Across(str(tmp_path), way, b"guessed"), lambda: hello, lambda message: None, gone_after_s=0.3)
        for link in (friend, stranger):
            link.start()
        assert (await friend.connected()).name == "test"
        friend.send(Applied(1))
        with pytest.raises(NotRunningError):
            await stranger.connected()
        await until(lambda: owner.received_messages == [Applied(1)], "it is heard")
        for link in (friend, stranger):
            await link.close()
        await server.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_with_tls_only_those_are_heard_whose_certificate_is_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scene() -> None:
        owner = _Listener()
        tls = Tls(*made_for("the cluster"))
        way = _Published(str(tmp_path), node="ours", host="127.0.0.1", secret=b"secret", tls=tls)
        server = ControlServer(way, owner)
        await server.open()
        hello = Hello(PROTOCOL, "client", "x", 1)
        other = made_for("another cluster")
        strangers = (Tls(*other), Tls(*other._replace(authority=made_for("the cluster").authority)), None)
        ways = [_Across(str(tmp_path), way, b"secret", each) for each in (tls, *strangers)]
        links = [ControlLink(each, lambda: hello, lambda message: None, gone_after_s=0.3) for each in ways]
        friend = links[0]
        for link in links:
            link.start()
        assert (await friend.connected()).name == "test"
        friend.send(Applied(1))
        for refused in links[1:]:
            with pytest.raises(NotRunningError):
                await refused.connected()
        await until(lambda: owner.received_messages == [Applied(1)], "it is heard")
        assert sum("can't be reached: TLS failed" in message for message in caplog.messages) == 1
        assert sum("can't be reached: what listens" in message for message in caplog.messages) == 1
        assert any("refused a connection: TLS failed" in message for message in caplog.messages)
        for link in links:
            await link.close()
        await server.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(scene(), 20))
