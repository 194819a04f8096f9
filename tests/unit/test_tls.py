"""Who is believed between nodes with TLS, and is what a link does over it what it does without?"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headgate.core import wire
from headgate.engines.ray.security import tls as tls_of_ray
from headgate.errors import InvalidValueError, WireError
from headgate.router import remote
from headgate.router.channel import Channel, channel_over
from headgate.router.tls import SecureSocket, Tls
from tests.certificates import made_for
from tests.support import until

SECRET = b"s" * 32


@pytest.fixture
def ours() -> Tls:
    return Tls(*made_for("the cluster"))


@pytest.fixture
def theirs() -> Tls:
    """Of another cluster."""
    return Tls(*made_for("another cluster"))


async def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection; the second one was accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
    return one, other


async def met(connects: Tls, accepts: Tls) -> tuple[SecureSocket, SecureSocket]:
    one, other = await pair()
    begun = await asyncio.gather(connects.begin(one, server_side=False), accepts.begin(other, server_side=True))
    return begun[0], begun[1]


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scene(), 20)

    asyncio.run(main())


def readable(sock: SecureSocket) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def received(sock: SecureSocket, count: int) -> bytes:
    data, buffer = b"", memoryview(bytearray(100_000))
    while len(data) < count:
        try:
            more = sock.recv_into(buffer)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        assert more
        data += bytes(buffer[:more])
    return data


def test_what_is_sent_arrives_and_none_of_it_can_be_read_on_the_way(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await met(ours, ours)
        said = b"nobody else's affair"
        assert one.send(said) == len(said)
        await until(lambda: readable(other))
        seen = other._sock.recv(65536, socket.MSG_PEEK)
        assert len(seen) > len(said)
        assert said not in seen
        assert await received(other, len(said)) == said
        other.send(said[::-1])
        assert await received(one, len(said)) == said[::-1]
        for sock in (one, other):
            sock.close()

    play(scene)


def test_what_follows_the_handshake_at_once_is_left_where_who_watches_the_socket_sees_it(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await pair()
        accepting = asyncio.ensure_future(ours.begin(other, server_side=True))
        secure = await ours.begin(one, server_side=False)
        secure.send(b"first")
        accepted = await accepting
        await until(lambda: readable(accepted))
        assert await received(accepted, 5) == b"first"
        for sock in (secure, accepted):
            sock.close()

    play(scene)


@pytest.mark.parametrize("stranger_connects", [True, False], ids=["connects", "listens"])
def test_whom_the_authority_has_not_signed_for_is_refused_and_both_are_told(ours: Tls, theirs: Tls, stranger_connects: bool) -> None:
    async def scene() -> None:
        one, other = await pair()
        connects, accepts = (theirs, ours) if stranger_connects else (ours, theirs)

        async def begin(tls: Tls, sock: socket.socket, server_side: bool) -> object:
            try:
                return await tls.begin(sock, server_side=server_side)
            finally:
                sock.close()

        ends = await asyncio.gather(begin(connects, one, False), begin(accepts, other, True), return_exceptions=True)
        assert all(isinstance(end, WireError) for end in ends), ends
        assert all("the others' authority has signed" in str(end) for end in ends)

    play(scene)


def test_who_trusts_the_right_authority_and_has_a_certificate_of_another_is_refused(ours: Tls) -> None:
    """Else whoever knows the authority's public certificate would be in."""
    wrong = made_for("another cluster")._replace(authority=made_for("the cluster").authority)

    async def scene() -> None:
        one, other = await pair()
        accepting = asyncio.ensure_future(ours.begin(other, server_side=True))
        with pytest.raises(WireError, match="TLS failed"):
            await Tls(*wrong).begin(one, server_side=False)
        with pytest.raises(WireError, match="TLS failed"):
            await accepting
        for sock in (one, other):
            sock.close()

    play(scene)


@pytest.mark.parametrize(
    "said", [b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n" * 9, wire.encode(wire.HELLO, 0) * 9, b"\x16\x03\x01\xff\xff" + b"a" * 70000]
)
def test_who_speaks_no_tls_is_refused(ours: Tls, said: bytes) -> None:
    async def scene() -> None:
        one, other = await pair()
        one.send(said)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises((WireError, ConnectionError)):
            await ours.begin(other, server_side=True)
        for sock in (one, other):
            sock.close()

    play(scene)


def test_who_says_nothing_is_left_after_a_while(ours: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HANDSHAKE_S", 0.05)

    async def scene() -> None:
        one, other = await pair()
        with pytest.raises(TimeoutError):
            await ours.begin(other, server_side=True)
        for sock in (one, other):
            sock.close()

    play(scene)


@pytest.mark.parametrize("gate_wants_it", [True, False])
def test_where_only_one_side_wants_tls_neither_goes_on_without_it_and_it_is_said(gate_wants_it: bool) -> None:
    async def scene() -> None:
        through: list[socket.socket] = []
        gate = remote.Gate("127.0.0.1", SECRET, 10, through.append, tls=gate_wants_it)
        address = gate.open()
        with pytest.raises(WireError, match="set TLS up on every node, or on none"):
            await remote.connect(address, SECRET, tls=not gate_wants_it)
        assert not through
        gate.close()

    play(scene)


def test_who_takes_the_word_tls_out_on_the_way_gets_nothing_for_it() -> None:
    async def scene() -> None:
        through: list[socket.socket] = []
        gate = remote.Gate("127.0.0.1", SECRET, 10, through.append, tls=True)
        address = gate.open()

        async def downgrades(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            from_gate, to_gate = await asyncio.open_connection(*remote.split(address))
            first = await from_gate.readexactly(len(remote._MAGIC) + 32)
            writer.write(remote._MAGIC + first[len(remote._MAGIC) :])
            to_gate.write(await reader.readexactly(64))
            assert await from_gate.read() == b""
            for each in (writer, to_gate):
                each.close()

        async with await asyncio.start_server(downgrades, "127.0.0.1", 0) as server:
            with pytest.raises(ConnectionError):
                await remote.connect(remote.join(*server.sockets[0].getsockname()[:2]), SECRET)
        assert not through
        gate.close()

    play(scene)


def test_what_was_changed_on_the_way_ends_the_link(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await met(ours, ours)
        one.send(b"true")
        await until(lambda: readable(other))
        record = bytearray(other._sock.recv(65536))
        record[-1] ^= 1
        other._incoming.write(record)
        with pytest.raises(OSError, match=r"(?i)bad record mac|decrypt"):
            other.rest_into(memoryview(bytearray(100)))
        for sock in (one, other):
            sock.close()

    play(scene)


def _is_empty(channel: Channel) -> bool:
    return channel.empty


def test_pushed_means_that_the_kernel_has_all_of_it_encrypted(ours: Tls) -> None:
    """What a replica starts is told by a frame that outlives it."""

    async def scene() -> None:
        one, other = await met(ours, ours)
        loop = asyncio.get_running_loop()
        channel, peer = channel_over(one, loop, wire.Decoder(), wire.ANSWERS), channel_over(other, loop, wire.Decoder(), wire.CALLS)
        large = os.urandom(20_000_000)
        channel.put([wire.HEAD.pack(0, len(large), 1, 0, 0, 0, 0, wire.CHUNK, 0), large], 1.0)
        channel.flush()
        assert not _is_empty(channel), "the peer doesn't read"
        channel.put(wire.encode(wire.STARTED, 7), 2.0)
        pushing = asyncio.ensure_future(asyncio.to_thread(channel.push))
        frames: list[wire.Frame] = []

        def read() -> bool:
            frames.extend(peer.read() or [])
            return pushing.done()

        await until(read)
        assert await pushing
        assert _is_empty(channel)
        channel.close()  # as by the end of the process: what the kernel has still arrives
        await until(lambda: (read(), len(frames) == 2)[1])
        assert frames[0].body == large
        assert (frames[1].kind, frames[1].number) == (wire.STARTED, 7)
        with pytest.raises(ConnectionResetError):
            peer.read()
        peer.close()

    play(scene)


class _Full:
    """A socket that takes nothing until it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.is_full = True
        self.asked = 0

    def send(self, data: memoryview) -> int:
        self.asked += 1
        if self.is_full:
            raise BlockingIOError
        return self._sock.send(data)


def test_what_was_encrypted_and_not_sent_yet_counts_as_waiting(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await met(ours, ours)
        loop = asyncio.get_running_loop()
        channel, peer = channel_over(one, loop, wire.Decoder(), wire.ANSWERS), channel_over(other, loop, wire.Decoder(), wire.CALLS)
        one._sock = full = _Full(one._sock)  # type: ignore[assignment]  # it has what is asked of it from here on
        channel.put(wire.encode(wire.STARTED, 7), 1.0)
        pushing = asyncio.ensure_future(asyncio.to_thread(channel.push))
        await until(lambda: full.asked > 2)
        assert not pushing.done()
        assert not _is_empty(channel)
        full.is_full = False
        assert await pushing
        assert _is_empty(channel)
        frames: list[wire.Frame] = []
        await until(lambda: frames.extend(peer.read() or []) or frames)
        assert [(frame.kind, frame.number) for frame in frames] == [(wire.STARTED, 7)]
        channel.close()
        peer.close()

    play(scene)


def test_what_waits_for_the_peer_is_encrypted_only_as_it_leaves(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await met(ours, ours)
        data = bytes(50_000_000)
        with pytest.raises(BlockingIOError):
            all(iter(lambda: one.send(data), 0))  # until the kernel takes no more
        assert 0 < len(one._unsent) < 70_000
        assert one._outgoing.pending == 0
        for sock in (one, other):
            sock.close()

    play(scene)


def test_a_read_takes_no_more_off_the_kernel_than_a_bounded_piece(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await met(ours, ours)
        data = bytes(50_000_000)
        one.send(data)
        buffer = memoryview(bytearray(1000))
        assert other.recv_into(buffer) == 1000
        assert other._incoming.pending <= 256 * 1024
        for _ in range(50):
            assert other.recv_into(buffer) > 0
        assert other._incoming.pending <= 256 * 1024
        for sock in (one, other):
            sock.close()

    play(scene)


def test_how_long_ago_a_peer_was_heard_is_asked_of_the_tcp_connection(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await met(ours, ours)
        channel = channel_over(one, asyncio.get_running_loop(), wire.Decoder(), wire.ANSWERS)
        assert 0.0 <= channel.heard_ago_s() < 5.0
        assert channel.fd == one._sock.fileno()
        channel.close()
        assert channel.heard_ago_s() == float("inf")
        other.close()

    play(scene)


def test_without_certificates_a_link_is_a_plain_channel() -> None:
    async def scene() -> None:
        one, other = await pair()
        channel = channel_over(one, asyncio.get_running_loop(), wire.Decoder(), wire.ANSWERS)
        assert type(channel) is Channel
        assert channel._sock is one
        channel.close()
        other.close()

    play(scene)


def test_nothing_older_than_tls_1_3_is_spoken(ours: Tls) -> None:
    async def scene() -> None:
        one, other = await pair()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        files = made_for("the cluster")
        old.load_verify_locations(files.authority)
        old.load_cert_chain(files.cert, files.key)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        ours.client = old
        with pytest.raises(WireError):
            await asyncio.gather(ours.begin(one, server_side=False), ours.begin(other, server_side=True))
        for sock in (one, other):
            sock.close()

    play(scene)


# What Ray's settings say.


def as_ray_says(**changes: str) -> dict[str, str]:
    files = made_for("the cluster")
    given = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": files.cert, "RAY_TLS_SERVER_KEY": files.key, "RAY_TLS_CA_CERT": files.authority}
    return {name: value for name, value in (given | changes).items() if value}


@pytest.mark.parametrize("switch", ["", "0", "false"])
def test_where_ray_does_not_use_tls_neither_do_links(switch: str) -> None:
    assert tls_of_ray(as_ray_says(RAY_USE_TLS=switch)) is None


@pytest.mark.parametrize("switch", ["1", "true", "True"])
def test_where_ray_uses_tls_links_use_its_files(switch: str) -> None:
    assert isinstance(tls_of_ray(as_ray_says(RAY_USE_TLS=switch)), Tls)


@pytest.mark.parametrize("missing", ["RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"])
def test_a_setting_that_is_missing_is_named(missing: str) -> None:
    with pytest.raises(InvalidValueError, match=missing):
        tls_of_ray(as_ray_says(**{missing: ""}))


@pytest.mark.parametrize("wrong", ["RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"])
@pytest.mark.parametrize("what", ["there is none", "it is no PEM file"])
def test_a_file_that_can_not_be_used_is_named(wrong: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pem"
    if what == "it is no PEM file":
        path.write_text("not a certificate")
    with pytest.raises(InvalidValueError, match=r"file\.pem"):
        tls_of_ray(as_ray_says(**{wrong: str(path)}))


def test_a_key_that_is_not_the_certificates_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="can't be used as certificate and key"):
        tls_of_ray(as_ray_says(RAY_TLS_SERVER_KEY=made_for("another cluster").key))
