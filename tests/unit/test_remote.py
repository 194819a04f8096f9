"""Who gets through the gate, and who is sent away?"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest

from headgate.errors import WireError
from headgate.router import remote
from tests.support import until

SECRET = b"s" * 32


class Door:
    """A gate, and the sockets that came through it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.through: list[socket.socket] = []
        self.gate = remote.Gate(host, SECRET, 10, self.through.append)
        self.address = self.gate.open()

    def close(self) -> None:
        self.gate.close()
        for sock in self.through:
            sock.close()


def play(scene: Callable[[Door], Awaitable[None]], host: str = "127.0.0.1") -> None:
    async def main() -> None:
        door = Door(host)
        try:
            await asyncio.wait_for(scene(door), 20)
        finally:
            door.close()
        await until(lambda: len(asyncio.all_tasks()) == 1, "nobody is still proving anything")

    asyncio.run(main())


async def read_all(sock: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    try:
        while more := await asyncio.get_running_loop().sock_recv(sock, 65536):
            data += more
    except ConnectionResetError:
        pass
    return data


async def stranger(address: str) -> socket.socket:
    """Somebody who has connected, and says nothing yet."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, remote.split(address))
    return sock


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_knows_the_secret_comes_in_and_what_follows_is_untouched(host: str) -> None:
    async def scene(door: Door) -> None:
        loop = asyncio.get_running_loop()
        with await remote.connect(door.address, SECRET) as client:
            await until(lambda: door.through, "it is through")
            (server,) = door.through
            await loop.sock_sendall(client, b"to the server")
            await loop.sock_sendall(server, b"to the client")
            assert await loop.sock_recv(server, 100) == b"to the server"
            assert await loop.sock_recv(client, 100) == b"to the client"
            assert 0.0 <= remote.heard_ago_s(client) < 1.0

    play(scene, host)


def test_who_does_not_know_the_secret_is_sent_away_and_is_told_nothing() -> None:
    async def scene(door: Door) -> None:
        with pytest.raises(OSError):  # closed, in whatever way this comes to pass
            await remote.connect(door.address, b"another secret")
        assert not door.through

    play(scene)


def test_who_listens_without_knowing_the_secret_is_left() -> None:
    async def scene(door: Door) -> None:
        async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Passes on what a true gate says, and answers for it."""
            writer.write(remote._MAGIC + os.urandom(32))
            proof = (await reader.readexactly(64))[32:]
            writer.write(proof)  # the only one that it has seen
            await writer.drain()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(listens, "127.0.0.1", 0)
        async with server:
            address = remote.join(*server.sockets[0].getsockname()[:2])
            with pytest.raises(WireError, match="does not know this instance's secret"):
                await remote.connect(address, SECRET)

    play(scene)


STRANGE = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10,
    "chance": os.urandom(64),
    "zeros": bytes(64),
    "ones": b"\xff" * 63,
}


@pytest.mark.parametrize("said", list(STRANGE.values()), ids=list(STRANGE))
def test_strangers_are_closed_whatever_they_say_and_keep_nobody_out(said: bytes) -> None:
    async def scene(door: Door) -> None:
        with await stranger(door.address) as sock:
            await asyncio.get_running_loop().sock_sendall(sock, said)
            sock.shutdown(socket.SHUT_WR)
            assert len(await read_all(sock)) <= len(remote._MAGIC) + 32
            assert not door.through
            (await remote.connect(door.address, SECRET)).close()
            await until(lambda: door.through, "the next one is through")

    play(scene)


def test_who_says_nothing_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HANDSHAKE_S", 0.05)

    async def scene(door: Door) -> None:
        with await stranger(door.address) as sock:
            await read_all(sock)
        assert not door.through

    play(scene)


def test_only_so_many_strangers_are_listened_to_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MOST_STRANGERS", 3)

    async def scene(door: Door) -> None:
        first = [await stranger(door.address) for _ in range(3)]
        await until(lambda: len(door.gate._strangers) == 3, "three are listened to")
        with await stranger(door.address) as one_more:
            assert await read_all(one_more) == b""
        for sock in first:
            sock.close()
        await until(lambda: not door.gate._strangers, "they have left")
        (await remote.connect(door.address, SECRET)).close()
        await until(lambda: door.through, "another one is through")

    play(scene)


def test_an_address_is_seen_as_a_path_from_its_own_node_alone() -> None:
    both = remote.address_of("node1", "10.0.0.1:4711", "/a folder/r.sock")
    assert remote.as_seen_from("node1", both) == "/a folder/r.sock"
    assert remote.as_seen_from("node2", both) == "10.0.0.1:4711"
    assert remote.as_seen_from("node2", "/on one machine/r.sock") == "/on one machine/r.sock"


@pytest.mark.parametrize(("host", "port"), [("10.0.0.1", 1), ("::1", 65535), ("fe80::1%eth0", 80), ("a.b", 443)])
def test_host_and_port_come_back(host: str, port: int) -> None:
    assert remote.split(remote.join(host, port)) == (host, port)


def test_a_gate_that_can_not_be_opened_leaves_no_socket() -> None:
    gate = remote.Gate("203.0.113.1", b"secret", 1, lambda sock: None)  # no machine has that address
    with pytest.raises(OSError, match="assign"):
        gate.open()
