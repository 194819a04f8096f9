"""How are connections between nodes encrypted, and who is believed to be of the cluster?

By TLS 1.3 over the same TCP socket, once both sides have proved that they know the instance's secret (`router/remote.py`). Each shows
a certificate that the other's authority has signed. Links read and write such a socket themselves, without a thread or a buffer in
between: what the socket's kernel says of the peer, and what it has taken to send, mean the same as without TLS.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final, TypeVar, cast

from headgate.errors import InvalidValueError, WireError
from headgate.router import remote

T = TypeVar("T")

_RECEIVE_BYTES: Final = 256 * 1024
_SEND_BYTES: Final = 64 * 1024
"""So much is encrypted at once, and may be held back where the kernel takes no more."""
_RECORD_HEAD_BYTES: Final = 5
_READY: Final = b"\0"


class Tls:
    """The certificate of this process, and the authority that it trusts. Both ends of a connection need one.

    Args:
        certfile, keyfile, cafile: paths of PEM files. The certificate must do for servers and clients alike. Names in it aren't
            looked at: nodes know each other by address, and whoever the authority has signed for is one of the cluster.

    Raises `InvalidValueError` that names a file which can't be used.
    """

    def __init__(self, certfile: str, keyfile: str, cafile: str) -> None:
        self.server = _context(ssl.PROTOCOL_TLS_SERVER, certfile, keyfile, cafile)
        """For transports of event loops, as `client` is."""
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, certfile, keyfile, cafile)

    async def begin(self, sock: socket.socket, *, server_side: bool) -> SecureSocket:
        """Have what is sent from now on encrypted, as the peer does just now, too. The socket stays the caller's.

        Raises `OSError` where the peer leaves or takes too long, and `WireError` where one of both doesn't believe the other.
        """
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = (self.server if server_side else self.client).wrap_bio(incoming, outgoing, server_side=server_side)
        loop = asyncio.get_running_loop()

        async def finish(step: Callable[[], T]) -> T:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    pass
                finally:  # also the reason, where it fails
                    if outgoing.pending:
                        await loop.sock_sendall(sock, outgoing.read())
                # No more than one record is taken: what follows the last of them is for who reads the link.
                head = await remote.receive(sock, _RECORD_HEAD_BYTES)
                incoming.write(head + await remote.receive(sock, int.from_bytes(head[3:])))

        try:
            async with asyncio.timeout(remote.HANDSHAKE_S):
                await finish(tls.do_handshake)
                # Who connects learns only by this that its own certificate was believed.
                if server_side:
                    await finish(lambda: tls.write(_READY))
                else:
                    await finish(lambda: tls.read(len(_READY)))
        except ssl.SSLError as error:
            raise WireError(why(error)) from error
        return SecureSocket(sock, tls, incoming, outgoing)


class SecureSocket:
    """As much of a socket as a channel asks for. Never blocks. One thread may receive while another one sends."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._sock = sock
        self._tls = tls
        self._incoming = incoming  # received, and not decrypted yet: less than a record once all has been read
        self._outgoing = outgoing
        self._using = threading.Lock()  # OpenSSL has none of its own
        self._unsent = memoryview(b"")  # encrypted
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking
        self.setsockopt = sock.setsockopt
        self.getsockopt = sock.getsockopt
        self.shutdown = sock.shutdown
        self.close = sock.close  # the end of a link is no secret, and needs no word of its own

    def recv_into(self, buffer: memoryview) -> int:
        """As of a socket: what is there, 0 where the peer has closed its end, or `BlockingIOError`. See `rest_into`."""
        while not (count := self.rest_into(buffer)):
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                return 0
            with self._using:
                self._incoming.write(data)
        return count

    def rest_into(self, buffer: memoryview) -> int:
        """What was received already, and the kernel won't tell of again; 0 where that is no whole record."""
        count = 0
        with self._using:
            while count < len(buffer):
                try:
                    more = cast("int", self._tls.read(len(buffer) - count, buffer[count:]))  # into a buffer: how much
                except ssl.SSLWantReadError:
                    break
                if not more:
                    raise ConnectionResetError("the peer has ended TLS")
                count += more
        return count

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """As of a socket: how much of it was taken, or `BlockingIOError`. Some of that may wait for `flush` yet."""
        if not self.flush():
            raise BlockingIOError
        view, count = memoryview(data), 0
        while count < len(view):
            with self._using:
                count += self._tls.write(view[count : count + _SEND_BYTES])
                self._unsent = memoryview(self._outgoing.read())
            if not self.flush():
                break
        return count

    def flush(self) -> bool:
        """Send what waits. False where the kernel doesn't take all of it now."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[sent:]
        return True

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._unsent


def why(error: ssl.SSLError) -> str:
    """What to tell of a failed handshake."""
    return f"TLS failed: {error.strerror or error}; every node needs a certificate that the others' authority has signed"


def _context(protocol: int, certfile: str, keyfile: str, cafile: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody resumes
    try:
        context.load_verify_locations(cafile)
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{cafile!r} can't be used as the authority's certificates (PEM): {_said(error)}") from error
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{certfile!r} and {keyfile!r} can't be used as certificate and key (PEM): {_said(error)}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is protected by a password; give one that isn't")


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
