"""Who gets through the admin address, and what do strangers cost?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
import uvloop

from headgate.controller import admin as doors
from headgate.controller.server import Connection, ControlServer
from headgate.core import messages, strangers
from headgate.core.messages import PROTOCOL, BrokenReplica, Describe, Hello, Message, VerbCall, VerbDone, Welcome
from headgate.engines.local.listeners import listen_from_afar
from headgate.errors import AdminTokenError, AdminUnreachableError, InvalidValueError, NotRunningError
from headgate.router import admin, afar, certificate
from headgate.router.afar import AfarWay
from headgate.router.certificate import Certificate
from headgate.router.control import ControlLink
from headgate.router.remote import split
from headgate.router.way import Way
from tests import certificates
from tests.controller.rig import Engine, Rig, settings_in
from tests.support import until

TOKEN = "the-token-of-these-tests-ß"
KEY = admin.key_of(TOKEN)
OTHER_KEY = admin.key_of("another-token-than-that")
LOOPS = pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


class Owner:
    """Answers verbs, and keeps what else it is told."""

    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.others: list[Message] = []

    def connected(self, connection: Connection, hello: Hello) -> bool:
        self.hellos.append(hello)
        connection.send(Welcome("theirs", (), "id"))
        return True

    def received(self, connection: Connection, message: Message) -> None:
        if isinstance(message, VerbCall):
            connection.send(VerbDone(message.id, b"\x01"))
        else:
            self.others.append(message)

    def lost(self, connection: Connection) -> None: ...


class Place:
    """A controller's server with an admin address."""

    def __init__(self, folder: Path, files: certificates.Files | None = None) -> None:
        self.owner = Owner()
        self.server = ControlServer(Way(str(folder)), self.owner)
        certificate = None if files is None else Certificate(files.cert, files.key)
        self.server.add_door(listen_from_afar("127.0.0.1:0"), KEY, certificate)
        self.host, self.port = split(self.server.admin_address)

    def way(self, key: bytes = KEY, cafile: str | None = None, host: str = "127.0.0.1") -> AfarWay:
        return AfarWay(host, self.port, key, cafile)

    async def stranger(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        return sock


def play(
    folder: Path,
    scene: Callable[[Place], Awaitable[None]],
    files: certificates.Files | None = None,
    make_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    async def main() -> None:
        place = Place(folder, files)
        await place.server.open()
        try:
            await asyncio.wait_for(scene(place), 30)
        finally:
            await place.server.close()
        await until(lambda: len(asyncio.all_tasks()) == 1, "no task is left")

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


async def rest_of(sock: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := await asyncio.get_running_loop().sock_recv(sock, 65536):
            data += more
    return data


def link_by(way: AfarWay, **changes: Any) -> ControlLink:
    hello = msgspec.structs.replace(Hello(PROTOCOL, "client", "c", 1), **changes)
    link = ControlLink(way, lambda: hello, lambda message: None, gone_after_s=0.2)
    link.start()
    return link


@LOOPS
@pytest.mark.parametrize("encrypted", [False, True])
def test_who_knows_the_token_has_verbs_done(tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop], encrypted: bool) -> None:
    files = certificates.write(tmp_path, "localhost") if encrypted else None

    async def scene(place: Place) -> None:
        way = place.way(cafile=files.authority, host="localhost") if files is not None else place.way()
        await way.meet()
        link = link_by(way)
        assert (await link.connected()).name == "theirs"
        assert (await link.call(Describe())).result == b"\x01"
        await link.close()

    play(tmp_path, scene, files, make_loop)


@LOOPS
@pytest.mark.parametrize("encrypted", [False, True])
def test_who_does_not_know_it_is_told_so_and_named_in_the_log_without_a_word_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_loop: Callable[[], asyncio.AbstractEventLoop], encrypted: bool
) -> None:
    files = certificates.write(tmp_path, "localhost") if encrypted else None

    async def scene(place: Place) -> None:
        way = place.way(OTHER_KEY, files.authority, "localhost") if files is not None else place.way(OTHER_KEY)
        with pytest.raises(AdminTokenError, match="has another admin token"):
            await way.meet()
        link = link_by(way)
        for _ in range(2):  # also later, and without another try
            with pytest.raises(AdminTokenError, match="has another admin token"):
                await link.connected()
        await link.close()
        assert not place.owner.hellos

    play(tmp_path, scene, files, make_loop)
    said = [record.getMessage() for record in caplog.records if record.name == "headgate.controller"]
    assert said == ["refused a connection from 127.0.0.1 to the admin address: its admin token is wrong"] * 2


STRANGE = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10,
    "chance": os.urandom(200),
    "zeros": bytes(64),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
    "too little": b"x" * 63,
}


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("said", list(STRANGE.values()), ids=list(STRANGE))
def test_garbage_gets_nobody_in_and_keeps_nobody_out(tmp_path: Path, said: bytes, encrypted: bool) -> None:
    files = certificates.write(tmp_path, "localhost") if encrypted else None

    async def scene(place: Place) -> None:
        with await place.stranger() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, said)
            sock.shutdown(socket.SHUT_WR)
            told = await rest_of(sock)
            assert told.startswith(admin.TLS if encrypted else admin.OPEN)
            assert len(told) < 100
        await (place.way(cafile=files.authority, host="localhost") if files is not None else place.way()).meet()
        assert not place.owner.hellos

    play(tmp_path, scene, files)


@pytest.mark.parametrize("encrypted", [False, True])
def test_who_says_nothing_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool) -> None:
    monkeypatch.setattr(doors, "HANDSHAKE_S", 0.05)
    files = certificates.write(tmp_path, "localhost") if encrypted else None

    async def scene(place: Place) -> None:
        with await place.stranger() as sock:
            assert len(await rest_of(sock)) < 100

    play(tmp_path, scene, files)


def test_who_says_nothing_in_tls_has_the_same_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HANDSHAKE_S", 0.5)
    files = certificates.write(tmp_path, "localhost")

    def listens(place: Place) -> bytes:
        trusting = ssl.create_default_context(cafile=files.authority)
        with socket.create_connection((place.host, place.port)) as sock:
            assert sock.recv(len(admin.TLS)) == admin.TLS
            with trusting.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=True) as secured:
                said = b""
                with contextlib.suppress(ConnectionResetError):
                    while more := secured.recv(100):
                        said += more
                return said

    async def scene(place: Place) -> None:
        assert len(await asyncio.to_thread(listens, place)) == admin.NONCE_BYTES

    play(tmp_path, scene, files)


def test_one_address_has_few_tries_a_second_and_the_log_a_line_for_all_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(place: Place) -> None:
        place.server._door._strangers = strangers.Strangers(hold_s=60.0)  # type: ignore[union-attr]  # it has one
        refused: list[type[Exception]] = []
        for _ in range(50):
            try:
                await place.way(OTHER_KEY).reach("", asyncio.Protocol)
            except (AdminTokenError, afar._HungUpError) as error:
                refused.append(type(error))
        assert refused == [AdminTokenError] * strangers.MOST_OF_ONE + [afar._HungUpError] * (50 - strangers.MOST_OF_ONE)
        reader, writer = await asyncio.open_unix_connection(place.server._path)  # the local way is open
        writer.write(messages.encode(Hello(PROTOCOL, "client", "near", 1)))
        assert messages.MessageDecoder().received(await reader.read(1000)) == [Welcome("theirs", (), "id")]
        writer.close()

    play(tmp_path, scene)
    said = [record.getMessage() for record in caplog.records if record.name == "headgate.controller"]
    assert said == [
        "refused a connection from 127.0.0.1 to the admin address: its admin token is wrong",
        "refused 49 connections to the admin address, the latest from 127.0.0.1: there are too many tries",
    ]


def test_those_who_are_let_in_are_not_counted_among_the_strangers(tmp_path: Path) -> None:
    async def scene(place: Place) -> None:
        links = [link_by(place.way(), id=f"c{number}") for number in range(3 * strangers.MOST_OF_ONE)]
        for link in links:
            await link.connected()
        assert len(place.server._door._strangers) == 0  # type: ignore[union-attr]  # it has one
        for link in links:
            await link.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("changes", [{"role": "replica"}, {"role": "ingress"}, {"routes": True}, {"owner": True}])
def test_from_afar_one_can_be_nothing_but_a_client_that_asks_for_verbs(tmp_path: Path, changes: dict[str, Any]) -> None:
    async def scene(place: Place) -> None:
        link = link_by(place.way(), **changes)
        with contextlib.suppress(Exception):
            await link.connected()
        await link.close()
        assert not place.owner.hellos

    play(tmp_path, scene)


def test_from_afar_nothing_is_taken_but_verbs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(place: Place) -> None:
        link = link_by(place.way())
        await link.connected()
        link.send(BrokenReplica("1", "so I say"))
        await until(lambda: "from afar verbs alone are taken" in caplog.text, "it is told")
        await link.close()
        assert not place.owner.others

    play(tmp_path, scene)


def test_who_listens_without_knowing_the_token_is_left(tmp_path: Path) -> None:
    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Says what a true one would, and gives back the only proof that it has seen."""
        writer.write(admin.OPEN + admin.nonce())
        writer.write(admin.ADMITTED + (await reader.readexactly(64))[32:])
        await reader.read()
        writer.close()

    async def scene(place: Place) -> None:
        server = await asyncio.start_server(listens, "127.0.0.1", 0)
        async with server:
            with pytest.raises(AdminUnreachableError, match="doesn't know the admin token itself"):
                await AfarWay("127.0.0.1", server.sockets[0].getsockname()[1], KEY).meet()

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no admin address of this version"),
        (b"headgate\x01" + bytes(32), "no admin"),
        (b"headgate" + bytes([PROTOCOL + 1]) + bytes(32), "no admin address of this version"),
        (b"headgate" + bytes([0x80 | PROTOCOL + 1]), "no admin address of this version"),
        (b"", "hung up"),
    ],
)
def test_what_is_no_admin_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, why: str) -> None:
    monkeypatch.setattr(afar, "_HUNG_UP_S", 0.0)

    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async def scene(place: Place) -> None:
        server = await asyncio.start_server(listens, "127.0.0.1", 0)
        async with server:
            with pytest.raises(AdminUnreachableError, match=why):
                await AfarWay("127.0.0.1", server.sockets[0].getsockname()[1], KEY).meet()

    play(tmp_path, scene)


def test_who_was_connected_is_told_what_is_there_now(tmp_path: Path) -> None:
    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"headgate" + bytes([PROTOCOL + 1]) + bytes(32))
        writer.close()

    async def scene(place: Place) -> None:
        link = link_by(place.way())
        await link.connected()
        await place.server.close()
        async with await asyncio.start_server(listens, place.host, place.port):
            for _ in range(2):  # also once it is taken for gone
                with pytest.raises(NotRunningError, match=r"not be reached for 0.2 s: what listens .* no admin address of this version"):
                    await link.call(Describe())
        await link.close()

    play(tmp_path, scene)


def test_who_is_hung_up_on_at_first_is_let_in_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afar, "_LOOK_S", 0.01)
    tries: list[str] = []

    async def scene(place: Place) -> None:
        door = place.server._door
        assert door is not None
        taken = door._taken

        def taken_at_last(sock: socket.socket) -> None:
            tries.append("one more")
            if len(tries) < 3:
                sock.close()
            else:
                taken(sock)

        assert door._listening is not None
        door._listening._taken = taken_at_last
        await place.way().meet()
        assert len(tries) == 3

    play(tmp_path, scene)


def test_an_address_that_drops_what_is_sent_there_leaves_time_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afar, "HANDSHAKE_S", 2.0)
    connect = asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    async def dropped(loop: asyncio.BaseEventLoop, sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "192.0.2.1":
            await asyncio.Event().wait()
        await connect(loop, sock, address)

    async def scene(place: Place) -> None:
        async def addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
            return [(socket.AF_INET, (each, port)) for each in ("192.0.2.1", "127.0.0.1")]

        monkeypatch.setattr(afar, "_addresses", addresses)
        monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", dropped)
        await place.way(host="a.test").meet()

    play(tmp_path, scene, make_loop=asyncio.SelectorEventLoop)


class Tunnel:
    """Listens on this machine, and hands on what comes to a port of another; whoever comes when nobody listens there is closed."""

    def __init__(self, port: int) -> None:
        self.handed_on = self.closed = 0
        self._port = port
        self._under_way: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            self.closed += 1
            writer.close()
            return
        self.handed_on += 1
        ways = [asyncio.ensure_future(_hand_on(*way)) for way in ((reader, back), (there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for side in (writer, back):
                side.close()


async def _hand_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)


def test_an_end_is_seen_through_a_tunnel_which_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afar, "_LOOK_S", 0.05)

    async def scene(place: Place) -> None:
        async with Tunnel(place.port) as tunnel:
            way = AfarWay("127.0.0.1", tunnel.port, KEY)
            await way.meet()
            waiting = asyncio.ensure_future(asyncio.to_thread(afar.AfarStarter().wait_ended, way, 20.0))
            await until(lambda: tunnel.handed_on > 2, "it looks, and the instance is there")
            assert not waiting.done()
            await place.server.close()
            assert await waiting
            assert tunnel.closed >= 3

    play(tmp_path, scene)


def test_that_an_instance_has_ended_is_not_said_where_it_goes_on_or_can_not_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(afar, "_LOOK_S", 0.02)

    async def scene(place: Place) -> None:
        assert not await asyncio.to_thread(afar.AfarStarter().wait_ended, place.way(), 0.1)

        def unreachable(*given: object) -> None:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

        monkeypatch.setattr(socket, "create_connection", unreachable)
        assert not afar.AfarStarter().wait_ended(place.way(), 0.1)

    play(tmp_path, scene)


def test_a_controller_whose_certificate_can_not_be_used_lets_in_from_afar_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate, "LOOK_S", 0.01)
    monkeypatch.setattr(admin, "is_loopback", lambda host: False)
    files = certificates.write(tmp_path, "localhost")
    Path(files.cert).write_text("half of it")

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="hg-") as folder:
            told = {"admin_address": "127.0.0.1:0", "admin_key": KEY, "ssl_certfile": files.cert, "ssl_keyfile": files.key}
            rig = Rig(folder, Engine(), settings_in(folder, **told))
            rig.way.admin_listener = listener = listen_from_afar("127.0.0.1:0")
            host, port = listener.getsockname()
            try:
                await rig.start()
                assert (await rig.describe()).admin_address == ""
                certificates.write(tmp_path, "localhost")
                await until(lambda: rig._controller._server.admin_address, "the files can be used")
                assert (await rig.describe()).admin_address == f"{host}:{port}"
                await AfarWay("localhost", port, KEY, files.authority).meet()
            finally:
                await rig.close()

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if record.name == "headgate.certificate"]
    assert [text.partition(": ")[0] for text in said] == ["no connection is taken until the certificate can be used"]


def stand_in_between(listener: socket.socket, place: Place, shown: certificates.Files, authority: str) -> None:
    """Take one connection; decrypt what either side says, and encrypt it anew for the other."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(shown.cert, shown.key)
    client, _ = listener.accept()
    with client, socket.create_connection((place.host, place.port)) as server:
        client.sendall(server.recv(len(admin.TLS)))
        trusting = ssl.create_default_context(cafile=authority)
        with trusting.wrap_socket(server, server_hostname="localhost") as there, own.wrap_socket(client, server_side=True) as here:
            here.sendall(there.recv(admin.NONCE_BYTES))
            there.sendall(here.recv(admin.NONCE_BYTES + admin.PROOF_BYTES))
            here.sendall(there.recv(100))
            here.recv(1)


def test_who_stands_in_between_with_a_certificate_that_is_believed_can_pass_no_proofs_on(tmp_path: Path) -> None:
    (tmp_path / "true").mkdir()
    (tmp_path / "false").mkdir()
    true, false = (certificates.write(tmp_path / name, "localhost") for name in ("true", "false"))
    both = tmp_path / "both.pem"
    both.write_bytes(Path(true.authority).read_bytes() + Path(false.authority).read_bytes())

    async def through(place: Place, shown: certificates.Files) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            between = asyncio.create_task(asyncio.to_thread(stand_in_between, listener, place, shown, true.authority))
            try:
                await AfarWay("localhost", listener.getsockname()[1], KEY, str(both)).meet()
            finally:
                with contextlib.suppress(OSError):
                    await between

    async def scene(place: Place) -> None:
        with pytest.raises(AdminTokenError):
            await through(place, false)
        await through(place, true)  # the same, were it to know the true one's key

    play(tmp_path, scene, true, asyncio.SelectorEventLoop)


@pytest.mark.parametrize(
    ("host", "trusted", "why"), [("localhost", False, "isn't believed"), ("127.0.0.1", True, "isn't believed: IP address mismatch")]
)
def test_a_certificate_that_is_not_believed_is_told_and_nothing_is_proved(
    tmp_path: Path, host: str, trusted: bool, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = certificates.write(tmp_path, "localhost")
    cafile = files.authority if trusted else certificates.made_for("others").authority

    async def scene(place: Place) -> None:
        with pytest.raises(AdminUnreachableError, match=why):
            await place.way(cafile=cafile, host=host).meet()

    play(tmp_path, scene, files)
    assert "admin token is wrong" not in caplog.text


def test_what_does_not_encrypt_is_not_talked_to_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(place: Place) -> None:
        monkeypatch.setattr(admin, "is_loopback", lambda host: False)
        with pytest.raises(AdminUnreachableError, match="doesn't encrypt, and is on another machine"):
            await place.way().meet()

    play(tmp_path, scene)


def test_a_file_of_authorities_that_can_not_be_used_is_told() -> None:
    with pytest.raises(InvalidValueError, match=r"admin_cafile='/nowhere.pem' can't be used"):
        AfarWay("localhost", 1, KEY, "/nowhere.pem")
