"""What does the service manager hear that has started `headgate run`, such as systemd with `Type=notify`?

It has given this process the address of a socket in `NOTIFY_SOCKET` (see sd_notify(3)), to which a datagram with a line for each thing is
sent. Without one nobody is told.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from headgate.cli import output

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
_VARIABLE: Final = "NOTIFY_SOCKET"
_PATIENCE_S: Final = 1.0

_address: str | None = None


def take() -> None:
    """Remember the socket, and take it out of the environment: what this process starts is not to speak for it."""
    global _address
    _address = os.environ.pop(_VARIABLE, None)


def tell(what: str, status: str) -> None:
    """Say that, and for people what it means. What can't be said is said on the terminal: the manager might wait for it."""
    if not _address:
        return
    # An address that begins with @ is no file: it stands for a zero byte.
    address = f"\0{_address[1:]}" if _address.startswith("@") else _address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_PATIENCE_S)
            sock.connect(address)
            sock.sendall(f"{what}\nSTATUS={status}".encode())
    except OSError as error:
        output.note(f"the service manager can't be told {what}: {error.strerror or error} ({_VARIABLE}={_address})")
