"""Which certificate does a server show, may it be shown, and what if its files change?

Of the ingresses, and of the controller where it takes commands from afar. Files that are renewed are read again, without a
restart: connections that come later get the new certificate. Files that can't be used change nothing, or are waited for.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
import re
import ssl
import time
from typing import Final

from headgate.errors import InvalidValueError

LOOK_S: Final = 2.0
"""How often files are looked at."""

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_BEGINS: Final = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
"""Each by which OpenSSL knows a certificate. It shows the first, of which a digest can be told where it begins as everybody's does."""
_NOT_YET_VALID: Final = 9  # of OpenSSL's X509_V_ERR_…
_HAS_EXPIRED: Final = 10

_log = logging.getLogger("headgate.certificate")


class Certificate:
    """A server's certificate and key, from PEM files.

    Args:
        certfile: the certificate, and behind it those of the authorities between it and the one that clients know.
        keyfile: its private key; None: it is in the same file.
        protocols: what is spoken in TLS, by the names of ALPN.

    Raises `InvalidValueError` that says which file can't be used, and why. One that has expired can be: see `check`.
    """

    def __init__(self, certfile: str, keyfile: str | None, *, protocols: tuple[str, ...] = ()) -> None:
        self._files = (certfile, keyfile)
        self._seen = _stamp(certfile, keyfile)
        self.context = _context(certfile, keyfile)
        """What every new connection is served by; the same object for good."""
        if protocols:
            self.context.set_alpn_protocols(list(protocols))
        self.digest = _digest(certfile)
        """The SHA-256 of the certificate that connections which begin now are shown."""

    def renew(self) -> bool:
        """Read the files again if they have changed; True if they had. Raises as `check`, once for each change, and keeps what it had."""
        found = _stamp(*self._files)
        if found == self._seen:
            return False
        self._seen = found
        check(*self._files)  # in a context of its own: this one must never be without a key
        try:
            self.context.load_cert_chain(*self._files, password=_no_password)
            self.digest = _digest(self._files[0])
        except (OSError, ValueError):
            self._seen = None  # they have changed since just now: it is looked at again
            return False
        return True

    async def keep_renewed(self) -> None:
        """Read the files again whenever they change, for good."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self.renew():
                    _log.info("%s was renewed: new connections get the new certificate", self._files[0])
            except InvalidValueError as error:
                _log.error("the certificate stays the one that was read before: %s", error)


async def once_usable(certfile: str, keyfile: str | None) -> Certificate:
    """Wait until the files can be used. Why they can't is said once for each change of them."""
    seen: object = ()
    while True:
        stamp = _stamp(certfile, keyfile)
        if stamp != seen:
            seen = stamp
            try:
                return Certificate(certfile, keyfile)
            except InvalidValueError as error:
                _log.error("no connection is taken until the certificate can be used: %s", error)
        await asyncio.sleep(LOOK_S)


def check(certfile: str, keyfile: str | None) -> float | None:
    """When a server's certificate expires (time.time()); None where that can't be told.

    Raises `InvalidValueError` that names the file: it can't be read, isn't PEM with the usual first lines, or is protected by a password;
    the key isn't that of the certificate; it has expired, or isn't valid yet.
    """
    server = _context(certfile, keyfile)
    _digest(certfile)  # which whoever shows it needs
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever has signed it: what is asked is only from when to when it is valid
    try:
        client.load_verify_locations(cadata=_first_in(certfile))
        expires = _shown(server, client)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_NOT_YET_VALID, _HAS_EXPIRED):
            which = "has expired" if error.verify_code == _HAS_EXPIRED else "is not valid yet"
            raise InvalidValueError(f"the certificate in {certfile!r} {which}; clients refuse it: renew it, or set this clock") from error
        return None
    except ssl.SSLError:
        return None
    return ssl.cert_time_to_seconds(expires) if expires else None


def days_left(certfile: str, keyfile: str | None) -> float | None:
    """For how many days it is valid yet: 0 where it can't be used, or not any more; None where that can't be told, or it isn't here."""
    stamp = _stamp(certfile, keyfile)
    expires_at = None if stamp is None else _expires_at(certfile, keyfile, stamp)
    return None if expires_at is None else max((expires_at - time.time()) / 86400, 0.0)


@functools.lru_cache(maxsize=2)
def _expires_at(certfile: str, keyfile: str | None, stamp: object) -> float | None:
    """Of the files as of that stamp: `days_left` is asked again and again, and to look costs milliseconds."""
    try:
        return check(certfile, keyfile)
    except InvalidValueError:
        return 0.0


def _stamp(certfile: str, keyfile: str | None) -> tuple[tuple[int, int, int], ...] | None:
    """Another one where the files have changed; None where one of them isn't there."""
    try:
        found = [os.stat(file) for file in (certfile, keyfile) if file is not None]
    except OSError:
        return None
    return tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in found)


def _shown(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Have both meet in memory; until when what the server shows is valid."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepts = server.wrap_bio(to_server, to_client, server_side=True)
    connects = client.wrap_bio(to_client, to_server)
    undone = [connects, accepts]
    while undone:
        for side in list(undone):
            try:
                side.do_handshake()
                undone.remove(side)
            except ssl.SSLWantReadError:
                continue
    return str((connects.getpeercert() or {}).get("notAfter", ""))


def _context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """TLS by Python's defaults."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except (OSError, ValueError) as error:
        both = f"{certfile!r} can't be used as certificate and key" if keyfile is None else f"{certfile!r} with the key {keyfile!r}: no use"
        raise InvalidValueError(f"{both} (PEM): {_said(error)}") from error
    return context


def _first_in(certfile: str) -> str:
    """The PEM of the certificate that is shown. Raises `InvalidValueError` where it begins in another way than with `_BEGIN`."""
    try:
        with open(certfile, encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError as error:  # it was there a moment ago
        raise InvalidValueError(f"{certfile!r} can't be read: {error.strerror}") from error
    begin = _BEGINS.search(text)
    if begin is None or begin[0] != _BEGIN:
        raise InvalidValueError(f"the certificate in {certfile!r} must begin with {_BEGIN}; `openssl x509 -in FILE` writes it so")
    return f"{_BEGIN}{text[begin.end() :].partition(_END)[0]}{_END}"


def _digest(certfile: str) -> bytes:
    first = _first_in(certfile)
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).digest()
    except ValueError as error:
        raise InvalidValueError(f"the certificate in {certfile!r} is no base64") from error


def _no_password() -> str:
    raise ValueError("the key is protected by a password; give one that isn't")


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of this certificate"
    if reason is None and isinstance(error, ssl.SSLError):
        return "there is no certificate in it, or no private key"
    return getattr(error, "strerror", None) or str(error)
