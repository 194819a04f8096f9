"""Who may tell the controller what to do from another machine, and what do strangers cost?

At an address of its own, whoever proves that they know the admin token (`router/admin.py`); beyond loopback over TLS. Strangers have
little time, few places and no word in the log that is theirs; they are heard of once in a while, by number and address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

from headgate.core.strangers import Strangers, source_of
from headgate.errors import AdminTokenError
from headgate.router import admin
from headgate.router.certificate import Certificate
from headgate.router.listening import Listening
from headgate.router.refusals import Refusals
from headgate.router.remote import HANDSHAKE_S, join, set_options

_LINGERS_S: Final = 1.0

_log = logging.getLogger("headgate.controller")


class Door:
    """Takes connections of a listening socket, and makes those that prove themselves connections of `accept`.

    Args:
        listener: listens already; closed by `close`.
        key: of the token, as by `admin.key_of`.
        certificate: what is shown; None: there is no TLS, and the socket must be one of loopback.
        accept: makes the protocol of a connection that has proved itself.
    """

    def __init__(
        self, listener: socket.socket, key: bytes, certificate: Certificate | None, accept: Callable[[], asyncio.Protocol]
    ) -> None:
        self.address: str = join(*listener.getsockname()[:2])
        self._listener = listener
        self._key = key
        self._certificate = certificate
        self._accept = accept
        self._strangers = Strangers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._listening: Listening | None = None
        self._refused = Refusals(
            _log, "a connection from {host} to the admin address", "{count} connections to the admin address, the latest from {host}"
        )

    def open(self) -> None:
        """Take connections from now on, on the running loop; nothing where it does."""
        if self._listening is not None:
            return
        self._listening = Listening(self._listener, self._taken)
        if self._certificate is not None:
            self._renewing = asyncio.get_running_loop().create_task(self._certificate.keep_renewed())

    async def close(self) -> None:
        """Take no more; who is still proving itself is sent away."""
        if self._listening is not None:
            self._listening.close()
        self._listener.close()
        tasks = [*self._tasks, *([self._renewing] if self._renewing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._refused.close()

    def _taken(self, sock: socket.socket) -> None:
        try:
            host = sock.getpeername()[0]
        except OSError:  # it has gone already
            sock.close()
            return
        source = source_of(host)
        if not self._strangers.enter(source, time.monotonic()):
            sock.close()
            self._refused.note(host, "there are too many tries")
            return
        task = asyncio.get_running_loop().create_task(self._meet(sock, host, source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _meet(self, sock: socket.socket, host: str, source: str) -> None:
        proved = False
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                stranger = await self._greet(sock)
                try:
                    await stranger.proved
                    proved = True
                finally:
                    if not proved:
                        stranger.end()
            stranger.become(self._accept)
        except AdminTokenError:
            self._refused.note(host, "its admin token is wrong")
        except TimeoutError:
            self._refused.note(host, f"it proved nothing within {HANDSHAKE_S:g} s")
        except ssl.SSLError as error:
            self._refused.note(host, f"TLS failed: {error.reason or type(error).__name__}")
        except OSError:  # it has left, which is its affair
            pass
        finally:
            self._strangers.leave(source, time.monotonic(), proved=proved)

    async def _greet(self, sock: socket.socket) -> _Stranger:
        loop = asyncio.get_running_loop()
        certificate = self._certificate
        shown, context = (b"", None) if certificate is None else (certificate.digest, certificate.context)
        made = _Stranger(self._key, shown)
        try:
            sock.setblocking(False)
            set_options(sock, admin.LOST_AFTER_S)
            await loop.sock_sendall(sock, admin.OPEN if context is None else admin.TLS)
            limit_s = None if context is None else HANDSHAKE_S
            await loop.connect_accepted_socket(lambda: made, sock, ssl=context, ssl_handshake_timeout=limit_s)
        except BaseException:
            made.proved.cancel()  # nobody will look at it
            sock.close()
            raise
        return made


class _Stranger(asyncio.Protocol):
    """A connection whose peer has to prove that it knows the token. `proved` is done once it has, or has left."""

    def __init__(self, key: bytes, shown: bytes) -> None:
        self._key = key
        self._shown = shown
        self._ours = admin.nonce()
        self._said = b""
        self._refused = False
        self._transport: asyncio.Transport | None = None
        self.proved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not asserted: uvloop's has no such base
        self._transport.write(self._ours)

    def data_received(self, data: bytes) -> None:
        self._said += data
        length = admin.NONCE_BYTES + admin.PROOF_BYTES
        if len(self._said) < length or self.proved.done() or self._transport is None:
            return
        self._transport.pause_reading()  # what follows is for who takes the connection over
        theirs, given = self._said[: admin.NONCE_BYTES], self._said[admin.NONCE_BYTES : length]
        self._said = self._said[length:]
        wanted = admin.proof(self._key, by_client=True, shown=self._shown, of_server=self._ours, of_client=theirs)
        if not admin.is_proof(given, wanted):
            self._refused = True
            self._transport.write(admin.REFUSED)
            self.proved.set_exception(AdminTokenError())
            return
        own = admin.proof(self._key, by_client=False, shown=self._shown, of_server=self._ours, of_client=theirs)
        self._transport.write(admin.ADMITTED + own)
        self.proved.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.proved.done():
            self.proved.set_exception(ConnectionResetError("it has left"))

    def end(self) -> None:
        """Close the connection: at once, or where there was a refusal to say a moment later, whether or not the peer takes it."""
        if self._transport is None:
            return
        if self._refused:
            self._transport.close()
            asyncio.get_running_loop().call_later(_LINGERS_S, self._transport.abort)
        else:
            self._transport.abort()

    def become(self, make: Callable[[], asyncio.Protocol]) -> None:
        """Hand the connection over to what that makes, unless the peer has left."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        protocol = make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._said:
            protocol.data_received(self._said)
        transport.resume_reading()
