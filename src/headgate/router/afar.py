"""How does a process on another machine reach an instance?

By the admin address of its controller, for verbs alone: requests go over HTTP, as everybody's. The connection is encrypted unless it
stays on this machine, such as at the end of an SSH tunnel, and both sides prove that they know the admin token (`router/admin.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, NoReturn, cast

import msgspec

from headgate.core.specs import Definition, InstanceSettings
from headgate.errors import AdminTokenError, AdminUnreachableError, FromAfarError, InvalidValueError, WireError
from headgate.router import admin
from headgate.router.remote import HANDSHAKE_S, join, receive, set_options
from headgate.router.way import Way

_LOOK_S: Final = 0.25
"""Between two looks whether an instance has ended, or lets one in again: less often than strangers are taken in (`core/strangers.py`)."""
_HUNG_UP_S: Final = 1.5
"""For so long who is hung up on tries again: longer than places are kept from strangers, and mostly than a new controller takes."""
_CLOSED_LOOKS: Final = 3
"""So many looks in a row at which a connection was closed without a word: a tunnel or proxy whose instance has ended."""


class AfarWay(Way):
    """The way to the instance whose controller listens at this host and port.

    Args:
        key: of the token, as by `admin.key_of`.
        cafile: a PEM file with the authorities that are trusted, or the controller's own certificate; None: those of this machine.
    """

    is_afar = True

    def __init__(self, host: str, port: int, key: bytes, cafile: str | None = None) -> None:
        self._key = key
        super().__init__("")
        self.host_and_port = (host, port)
        self.url = admin.url(host, port)
        self.id = f"{self.url} {hashlib.sha256(self._key).hexdigest()}"
        self._cafile = cafile
        self._context: ssl.SSLContext | None = None
        if cafile is not None:
            self._trust()  # here, where what is wrong with it is the caller's error

    @property
    def folder(self) -> str:
        """There is none here."""
        refuse("links to replicas", "endpoints are called over HTTP, by their routes")

    async def controller(self) -> str | None:
        """Where it listens."""
        return join(*self.host_and_port)

    async def reach(self, address: str, make: Callable[[], asyncio.Protocol]) -> None:
        """See `Way`."""
        host, port = self.host_and_port
        async with asyncio.timeout(HANDSHAKE_S):
            sock = await _connected(host, port)
            try:
                set_options(sock, admin.LOST_AFTER_S)
                proving = _Proving(self._key, self.url)
                context = await self._encryption(sock)
                name = None if context is None else host
                await asyncio.get_running_loop().create_connection(lambda: proving, sock=sock, ssl=context, server_hostname=name)
            except ssl.SSLCertVerificationError as error:
                sock.close()
                raise WireError(
                    f"what listens at {self.url} shows a certificate that isn't believed: {error.verify_message.rstrip('.')}; connect by a "
                    "name that is in the certificate, and give admin_cafile where no authority that this machine knows has signed it"
                ) from error
            except BaseException:
                sock.close()
                raise
            try:
                await proving.proved
            except BaseException:
                proving.end()
                raise
        proving.become(make())

    async def meet(self) -> None:
        """See that the controller is there and lets this process in.

        Raises `AdminTokenError`, or `AdminUnreachableError` that says what is there instead.
        """
        try:
            await self._reach_patiently()
        except AdminTokenError:
            raise
        except WireError as error:
            raise AdminUnreachableError(error.message) from error
        except TimeoutError as error:
            raise AdminUnreachableError(f"what listens at {self.url}, if anything, said nothing of use within {HANDSHAKE_S:g} s") from error
        except OSError as error:
            why = str(error) if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
            raise AdminUnreachableError(f"no instance takes commands at {self.url}: {why}; init(admin_address=…) has one listen") from error

    async def _reach_patiently(self) -> None:
        """Also where it hangs up at first."""
        deadline = time.monotonic() + _HUNG_UP_S
        while True:
            try:
                await self.reach("", _Left)
                return
            except _HungUpError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S)

    def is_there(self) -> bool:
        """Its connection learns of its end."""
        return True

    def portable(self, definition: Definition) -> Definition:
        """The code; folders and variables of this machine stay here."""
        return msgspec.structs.replace(definition, sys_path=(), cwd="", environ={})

    async def _encryption(self, sock: socket.socket) -> ssl.SSLContext | None:
        try:
            greeting = await receive(sock, len(admin.OPEN))
        except ConnectionResetError:
            raise _HungUpError(
                f"{self.url} has hung up at once, as after too many wrong tries, or between two controllers; try again in a moment"
            ) from None
        if greeting == admin.TLS:
            return self._trust()
        if greeting != admin.OPEN:
            raise WireError(f"what listens at {self.url} is no admin address of this version of Headgate")
        if not admin.is_loopback(sock.getpeername()[0]):
            raise WireError(
                f"what listens at {self.url} doesn't encrypt, and is on another machine, where who is in between could change commands; "
                "have it use ssl_certfile, or reach it by an SSH tunnel"
            )
        return None

    def _trust(self) -> ssl.SSLContext:
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self._cafile)
            except (OSError, ValueError) as error:
                raise InvalidValueError(f"admin_cafile={self._cafile!r} can't be used (PEM): {error.args[-1]}") from error
        return self._context


class _HungUpError(ConnectionResetError):
    """It has closed the connection before it has said anything."""


class AfarStarter:
    """See `Starter`: as far as one can deal with an instance from afar. Nothing is started there."""

    def find(self, name: str) -> Way | None:
        """Names are for those who are near."""
        return None

    def running(self) -> list[str]:
        """As `find`."""
        return []

    def start(self, settings: InstanceSettings) -> Way | None:
        """Never."""
        refuse("the start of an instance", "there are the verbs of one that runs")

    def wait_ended(self, way: Way, timeout_s: float) -> bool:
        """Until nobody listens there any more, or what listens in its place has nothing to say; its supervisor lets go last of all.

        False also where that can't be seen, such as without a way there.
        """
        assert isinstance(way, AfarWay)
        deadline = time.monotonic() + timeout_s
        closed = 0
        while time.monotonic() < deadline and closed < _CLOSED_LOOKS:
            try:
                with socket.create_connection(way.host_and_port, max(deadline - time.monotonic(), _LOOK_S)) as sock:
                    # Somebody holds the socket. Where that is an instance's last process, its end closes this, too.
                    sock.settimeout(max(deadline - time.monotonic(), _LOOK_S))
                    closed = 0 if sock.recv(1) else closed + 1
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                closed += 1
            except OSError:  # out of reach, which says nothing of its end
                closed = 0
            time.sleep(_LOOK_S)
        return closed >= _CLOSED_LOOKS

    def has_ended(self, way: Way) -> bool:
        """Its connection learns of that."""
        return False

    def abandon(self, way: Way) -> None:
        """It isn't this process's."""

    def leave(self, way: Way) -> None:
        """Nothing of it is here."""


def refuse(what: str, instead: str) -> NoReturn:
    """Raise `FromAfarError`."""
    raise FromAfarError(f"{what}: only on the instance's own machine, or its cluster; from afar {instead}")


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Where to connect, each with its family. Raises `OSError`."""
    try:
        return [(socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET, (host, port))]
    except ValueError:
        try:
            told = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:  # what no name can be, such as with two dots in a row
            raise OSError(f"{host!r} is no name of a host") from None
        return [(family, address) for family, _, _, _, address in told]


async def _connected(host: str, port: int) -> socket.socket:
    """A socket that is connected there; raises the last address's `OSError`. Each has its share of the time, as where one drops packets."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HANDSHAKE_S
    found = await _addresses(host, port)
    failure: OSError = OSError(f"{host!r} has no address")
    for tried, (family, address) in enumerate(found):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout((deadline - loop.time()) / (len(found) - tried)):
                await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


class _Proving(asyncio.Protocol):
    """A connection on which both sides have yet to prove themselves. `proved` is done once they have, or have failed."""

    def __init__(self, key: bytes, url: str) -> None:
        self._key = key
        self._url = url
        self._ours = admin.nonce()
        self._theirs = b""
        self._said = b""
        self._shown = b""
        self._transport: asyncio.Transport | None = None
        self.proved: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._shown = hashlib.sha256(tls.getpeercert(binary_form=True)).digest()

    def data_received(self, data: bytes) -> None:
        self._said += data
        if self._transport is None or self.proved.done():
            return
        if not self._theirs:
            if len(self._said) < admin.NONCE_BYTES:
                return
            self._theirs, self._said = self._said[: admin.NONCE_BYTES], self._said[admin.NONCE_BYTES :]
            self._transport.write(self._ours + self._proof(by_client=True))
        if self._said.startswith(admin.REFUSED):
            self.proved.set_exception(
                AdminTokenError(f"the instance at {self._url} has another admin token; give that, or look where its own comes from")
            )
        elif len(self._said) >= len(admin.ADMITTED) + admin.PROOF_BYTES:
            given, self._said = self._said[: 1 + admin.PROOF_BYTES], self._said[1 + admin.PROOF_BYTES :]
            if admin.is_proof(given, admin.ADMITTED + self._proof(by_client=False)):
                self._transport.pause_reading()
                self.proved.set_result(None)
            else:
                self.proved.set_exception(WireError(f"what listens at {self._url} doesn't know the admin token itself; don't trust it"))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.proved.done():
            self.proved.set_exception(
                error if isinstance(error, OSError) else ConnectionResetError(f"{self._url} has closed the connection")
            )

    def end(self) -> None:
        """Let go of the connection."""
        self.proved.cancel()
        if self._transport is not None:
            self._transport.abort()

    def become(self, protocol: asyncio.Protocol) -> None:
        """Hand the connection over."""
        transport = self._transport
        if transport is None:
            raise ConnectionResetError(f"{self._url} has closed the connection")
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._said:
            protocol.data_received(self._said)
        if not transport.is_closing():
            transport.resume_reading()

    def _proof(self, *, by_client: bool) -> bytes:
        return admin.proof(self._key, by_client=by_client, shown=self._shown, of_server=self._theirs, of_client=self._ours)


class _Left(asyncio.Protocol):
    """What only wanted to see whether it would be let in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        with contextlib.suppress(OSError):
            cast(asyncio.Transport, transport).abort()
