"""What is an admin token, and how do two processes prove to each other that they know it?

Whoever knows it may do with an instance, from another machine, what its own user may do. It is never sent: each side proves that it
knows the token, over numbers drawn for this connection, and over the certificate that is shown on it. So who stands in between
learns nothing to use, and can't pass the proofs on over a certificate of its own, whoever has signed that. (On loopback there is
none to bind them to: there a user of the same machine who listens in the instance's place could pass them on.)

Beyond loopback there is TLS, or nothing: the proofs say who has connected, and only TLS that nobody changes what follows.

Browsers can't prove anything in this way: a page sends the token itself, see `ingress/changes.py`.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import unicodedata
from collections.abc import Mapping
from typing import Final

from headgate.core.messages import PROTOCOL
from headgate.errors import AdminTokenError, InvalidTypeError, InvalidValueError
from headgate.router.remote import join

TOKEN_VARIABLE: Final = "HEADGATE_ADMIN_TOKEN"
"""In the environment of those who give the token; of no process of an instance."""
LEAST_CHARACTERS: Final = 16
MOST_CHARACTERS: Final = 1024
"""What strangers give is looked at in full only up to this: to normalise a long text of combining marks takes seconds."""
SCHEME: Final = "tcp://"
LOST_AFTER_S: Final = 20.0
"""So long after the last packet from the other side a connection is lost."""

OPEN: Final = b"headgate" + bytes([PROTOCOL])
"""What a controller says first, on loopback; what follows is not encrypted. Who speaks another protocol is known by it at once."""
TLS: Final = b"headgate" + bytes([0x80 | PROTOCOL])
"""The same, and TLS follows."""
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
REFUSED: Final = b"\x00"
ADMITTED: Final = b"\x01"

_MADE_BY: Final = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"


def key_of(token: object) -> bytes:
    """What proves that one knows a token. Raises `AdminTokenError` for what is none, `InvalidTypeError`; neither shows it."""
    if not isinstance(token, str):
        raise InvalidTypeError(f"admin_token must be a string, got {type(token).__name__}")
    if not LEAST_CHARACTERS <= len(token) <= MOST_CHARACTERS:
        raise AdminTokenError(
            f"an admin token has {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters, and this one {len(token)}; {_MADE_BY}"
        )
    if token != token.strip() or any(unicodedata.category(char) in ("Cc", "Cs") for char in token):
        raise AdminTokenError(
            f"an admin token has no blanks at its ends, no control characters, and is text that UTF-8 can say; {_MADE_BY}"
        )
    return hmac.digest(b"headgate admin token", unicodedata.normalize("NFC", token).encode(), "sha256")


def check_of(key: bytes) -> bytes:
    """What one needs to tell the token when it is given. It proves nothing to the controller, so that an ingress may have it."""
    return hmac.digest(b"headgate admin token, given", key, "sha256")


def is_token(given: str, check: bytes) -> bool:
    """Whether it is the token that the check is of, in a time that doesn't tell how nearly."""
    try:
        key = key_of(given)
    except AdminTokenError:
        return False
    return hmac.compare_digest(check_of(key), check)


def from_environment(environ: Mapping[str, str] = os.environ) -> str | None:
    """The token of `HEADGATE_ADMIN_TOKEN`; None where that isn't set."""
    return environ.get(TOKEN_VARIABLE) or None


def in_file(path: str) -> str:
    """The token that a file has in its only line. Raises `AdminTokenError` where it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise AdminTokenError(f"the file {path!r} with the admin token can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise AdminTokenError(f"the file {path!r} has no admin token: it is not text in UTF-8") from None


def address(given: object) -> tuple[str, int]:
    """Host and port of `0.0.0.0:8100`, `[::1]:8100` or `tcp://host:8100`. Raises `InvalidTypeError`, `InvalidValueError`."""
    if not isinstance(given, str):
        raise InvalidTypeError(f"an admin address must be a string, got {type(given).__name__}: {given!r}")
    host, colon, port = given.removeprefix(SCHEME).rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not port.isascii() or not port.isdecimal() or int(port) > 65535 or "/" in bare or bare.startswith("["):
        raise InvalidValueError(f"an admin address is host:port, such as 127.0.0.1:8100 or [::1]:8100, got {given!r}")
    if ":" in bare and host == bare:
        raise InvalidValueError(f"an address of IPv6 stands in brackets, such as [{bare}]:{port}; got {given!r}")
    return bare, int(port)


def url(host: str, port: int) -> str:
    """The address as clients give it."""
    return f"{SCHEME}{join(host, port)}"


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach it."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def nonce() -> bytes:
    """A number for this connection alone."""
    return secrets.token_bytes(NONCE_BYTES)


def proof(key: bytes, *, by_client: bool, shown: bytes, of_server: bytes, of_client: bytes) -> bytes:
    """That one knows the key. `shown` is the digest of the certificate, empty without TLS; the rest are the numbers of both."""
    role = b"headgate admin connects" if by_client else b"headgate admin accepts"
    return hmac.digest(key, role + bytes([len(shown)]) + shown + of_server + of_client, "sha256")


def is_proof(given: bytes, wanted: bytes) -> bool:
    """Whether they are the same, in a time that doesn't tell how nearly."""
    return hmac.compare_digest(given, wanted)
