"""On which sockets does an instance take connections: HTTP, and commands from afar?"""

from __future__ import annotations

import errno
import socket
import time
from typing import Any, Final

from headgate.engines.base import InstanceSettings
from headgate.errors import AddressInUseError, HeadgateError, InvalidValueError
from headgate.router.listening import ALL_ADDRESSES
from headgate.router.remote import join, split

BACKLOG: Final = 4096
"""Connections that the kernel keeps for an ingress that is starting or was lost."""
_ADMIN_BACKLOG: Final = 32


def listen(settings: InstanceSettings, free_timeout_s: float = 0.0) -> list[socket.socket]:
    """One listening socket for each ingress, all on one port.

    The first is bound without SO_REUSEPORT, so that it fails where anybody else listens. It is set on it afterwards, and on
    its siblings before they are bound, so that these share the port. Raises `AddressInUseError` naming the port.
    """
    host, port = settings.http_host, settings.http_port
    family, address = _resolved("http_host", host, port)
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
                        raise _bind_error(error, f"http_host={host!r}, http_port={port}", f"port {port} on {host}", "http_port") from error
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
    host = ALL_ADDRESSES.get(settings.http_host, settings.http_host)
    scheme = "https" if settings.ssl_certfile else "http"
    return (f"{scheme}://{join(host, port)}",)


def listen_from_afar(admin_address: str, free_timeout_s: float = 0.0) -> socket.socket:
    """A listening socket at the admin address, at which nobody else listens. Raises `AddressInUseError`, or `InvalidValueError`."""
    host, port = split(admin_address)
    family, address = _resolved("admin_address", host, port)
    deadline = time.monotonic() + free_timeout_s
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                listener.bind(address)
                listener.listen(_ADMIN_BACKLOG)
                return listener
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise _bind_error(error, f"admin_address={admin_address!r}", admin_address, "admin_address") from error
                time.sleep(0.01)
    except BaseException:
        listener.close()
        raise


def _resolved(what: str, host: str, port: int) -> tuple[int, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidValueError(f"{what}={host!r} is no address of this machine: {error}") from error
    return family, address


def _bind_error(error: OSError, given: str, where: str, option: str) -> HeadgateError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(f"{where} is in use by another program or instance; give another {option}, or port 0 for any")
    return InvalidValueError(f"{given} can't be listened on: {error.strerror}")
