"""How do two processes of one instance talk over TCP: who may connect, and when is the other one out of reach?

Before anything else both prove by HMAC, over numbers drawn for this connection, that they know the instance's secret, which
is never sent; where both have certificates, TLS begins after that (`router/tls.py`). The kernel asks idle peers for a sign of life, so
that neither a busy interpreter nor a missing packet looks like an end: a connection over which nothing was heard for `LOST_AFTER_S`
is closed.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from headgate.errors import WireError
from headgate.router.listening import Listening

LOST_AFTER_S: Final = 3.0
"""So long after the last packet from its peer a connection is lost."""
STARTS_UNTIL_S: Final = 2.0
"""So long after the last packet from a router a replica starts what came from it, and no longer."""
DROPPED_AFTER_S: Final = 2.5
"""So long after it has lost the connection a router may be sure that the replica starts nothing of its own any more."""
HANDSHAKE_S: Final = 5.0

_MOST_STRANGERS: Final = 100
"""So many may be proving at once that they belong to the instance."""
_log = logging.getLogger("headgate.router")
_MAGIC: Final = b"headgate\x01"
_MAGIC_TLS: Final = b"headgate\x81"  # as long: TLS follows the proofs
_NONCE_BYTES: Final = 32
_PROOF_BYTES: Final = 32
_LAST_ACK_RECV: Final = struct.Struct("<56xI")  # of the kernel's `struct tcp_info`, in ms


def address_of(node: str, host_and_port: str, path: str) -> str:
    """The address of what can be reached in two ways: by a Unix socket from its own node, by TCP from all."""
    return f"{node} {host_and_port} {path}"


def as_seen_from(node: str, address: str) -> str:
    """The way to an address: the path of a Unix socket, which is all that there is on one machine, or `host:port`."""
    if is_path(address):
        return address
    its_node, host_and_port, path = address.split(" ", 2)
    return path if its_node == node else host_and_port


def is_path(address: str) -> bool:
    """Whether this is the path of a Unix socket."""
    return address.startswith("/")


def split(address: str) -> tuple[str, int]:
    """Host and port of an address such as `10.0.0.1:4711` or `[::1]:4711`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join(host: str, port: int) -> str:
    """The address of a host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Gate:
    """Takes TCP connections on a free port of `host`, and hands on those whose peers know the secret.

    `admitted` is called with each such socket, on the event loop on which the gate was opened; with `tls`, TLS is to begin on it.
    """

    def __init__(self, host: str, secret: bytes, backlog: int, admitted: Callable[[socket.socket], object], *, tls: bool = False) -> None:
        self._host = host
        self._secret = secret
        self._backlog = backlog
        self._admitted = admitted
        self._tls = tls
        self._listening: Listening | None = None
        self._strangers: set[asyncio.Task[None]] = set()

    def open(self) -> str:
        """Take connections from now on, at a free port; returns host and port."""
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind((self._host, 0))
            listener.listen(self._backlog)
        except OSError:
            listener.close()
            raise
        self._listening = Listening(listener, self._meet)
        return join(*listener.getsockname()[:2])

    def close(self) -> None:
        """Take no more; who is still proving itself is sent away."""
        if self._listening is not None:
            self._listening.close()
        for task in self._strangers:
            task.cancel()

    def _meet(self, sock: socket.socket) -> None:
        if len(self._strangers) >= _MOST_STRANGERS:
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._admit(sock))
        self._strangers.add(task)
        task.add_done_callback(self._strangers.discard)

    async def _admit(self, sock: socket.socket) -> None:
        try:
            await admit(sock, self._secret, tls=self._tls)
        except BaseException as error:
            sock.close()
            if isinstance(error, WireError):
                _log.warning("refused a connection: %s", error)
            elif not isinstance(error, OSError):
                raise
        else:
            self._admitted(sock)


async def connect(address: str, secret: bytes, *, tls: bool = False) -> socket.socket:
    """Connect, and have both sides prove that they know the secret. With `tls`, TLS is to begin on the socket.

    Raises `OSError` where nobody listens, or too late, and `WireError` where the other one is of another instance, or only one of
    both wants TLS.
    """
    magic = _MAGIC_TLS if tls else _MAGIC
    loop = asyncio.get_running_loop()
    host, port = split(address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(HANDSHAKE_S):
            await loop.sock_connect(sock, (host, port))
            set_options(sock)
            theirs = await receive(sock, len(magic) + _NONCE_BYTES)
            if not theirs.startswith(magic):
                if theirs.startswith((_MAGIC, _MAGIC_TLS)):
                    others, own = ("doesn't use TLS", "does") if tls else ("uses TLS", "doesn't")
                    raise WireError(f"what listens at {address} {others}, and this process {own}; set TLS up on every node, or on none")
                raise WireError(f"what listens at {address} is not of this version of Headgate")
            ours = secrets.token_bytes(_NONCE_BYTES)
            theirs = theirs[len(magic) :]
            await loop.sock_sendall(sock, ours + _proof(secret, magic + b"connects", theirs, ours))
            if not hmac.compare_digest(await receive(sock, _PROOF_BYTES), _proof(secret, magic + b"accepts", theirs, ours)):
                raise WireError(f"what listens at {address} does not know this instance's secret")
    except BaseException:
        sock.close()
        raise
    return sock


async def admit(sock: socket.socket, secret: bytes, *, tls: bool = False) -> None:
    """Have who has connected prove that they know the secret, and prove it to them. With `tls`, TLS is to begin on the socket.

    Raises `OSError` where they leave or take too long, and `WireError` where they don't. The socket stays the caller's.
    """
    magic = _MAGIC_TLS if tls else _MAGIC
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    set_options(sock)
    async with asyncio.timeout(HANDSHAKE_S):
        ours = secrets.token_bytes(_NONCE_BYTES)
        await loop.sock_sendall(sock, magic + ours)
        answer = await receive(sock, _NONCE_BYTES + _PROOF_BYTES)
        theirs, proof = answer[:_NONCE_BYTES], answer[_NONCE_BYTES:]
        if not hmac.compare_digest(proof, _proof(secret, magic + b"connects", ours, theirs)):
            raise WireError("who connected does not know this instance's secret")
        await loop.sock_sendall(sock, _proof(secret, magic + b"accepts", ours, theirs))


def heard_ago_s(sock: socket.socket) -> float:
    """How long ago the last packet of the peer came, its kernel's signs of life included; 0 where this system doesn't tell."""
    if sys.platform != "linux":
        return 0.0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_RECV.size)
    return float(_LAST_ACK_RECV.unpack(info)[0]) / 1e3


def _proof(secret: bytes, role: bytes, accepts: bytes, connects: bytes) -> bytes:
    return hmac.digest(secret, role + accepts + connects, "sha256")


async def receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes, of a socket that doesn't block. Raises `OSError` where the peer leaves before."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise ConnectionResetError("the peer has left in the middle of the handshake")
        data += more
    return data


def set_options(sock: socket.socket, lost_after_s: float = LOST_AFTER_S) -> None:
    """Have small messages leave at once, and the kernel end the connection so many seconds after the last packet of the peer."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        every_s = max(int(lost_after_s / 3), 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(lost_after_s * 1e3))
