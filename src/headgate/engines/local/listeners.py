"""On which sockets does an instance take HTTP connections?"""

from __future__ import annotations

import errno
import socket
import time
from typing import Final

from headgate.engines.base import InstanceSettings
from headgate.errors import AddressInUseError, HeadgateError, InvalidValueError

BACKLOG: Final = 4096
"""Connections that the kernel keeps for an ingress that is starting or was lost."""


def listen(settings: InstanceSettings, free_timeout_s: float = 0.0) -> list[socket.socket]:
    """One listening socket for each ingress, all on one port.

    The first is bound without SO_REUSEPORT, so that it fails where anybody else listens. It is set on it afterwards, and on
    its siblings before they are bound, so that these share the port. Raises `AddressInUseError` naming the port.
    """
    host, port = settings.http_host, settings.http_port
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidValueError(f"http_host={host!r} is no address of this machine: {error}") from error
    deadline = time.monotonic() + free_timeout_s
    listeners: list[socket.socket] = []
    try:
        for number in range(int(settings.num_ingresses)):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            while True:
                try:
                    listener.bind(address)
                    break
                except OSError as error:
                    if time.monotonic() >= deadline:
                        raise _bind_error(error, host, port) from error
                    time.sleep(0.01)
            if not number:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                address = (address[0], listener.getsockname()[1], *address[2:])
        for listener in listeners:
            listener.listen(BACKLOG)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def urls(settings: InstanceSettings, listeners: list[socket.socket]) -> tuple[str, ...]:
    """Where clients on this machine reach the instance."""
    port = listeners[0].getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)
    scheme = "https" if settings.ssl_certfile else "http"
    return (f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",)


def _bind_error(error: OSError, host: str, port: int) -> HeadgateError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(f"port {port} on {host} is in use by another program or instance; give another http_port, or 0 for any")
    return InvalidValueError(f"http_host={host!r}, http_port={port} can't be listened on: {error.strerror}")
