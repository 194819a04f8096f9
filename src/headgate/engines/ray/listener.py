"""On which socket does the ingress of a node take HTTP connections?"""

from __future__ import annotations

import errno
import socket
import time
from typing import Final

from headgate.core.specs import IngressSpec, InstanceSettings
from headgate.errors import AddressInUseError, HeadgateError, InvalidValueError

_BACKLOG: Final = 2048
_FREE_WITHIN_S: Final = 2.0
"""An ingress that has just died may hold the port for a moment."""


def listen(settings: InstanceSettings, spec: IngressSpec, node: str) -> socket.socket:
    """Bind and listen on the node of that address, at the port that was asked for, or at the one that the ingress before this one had.

    Nodes may share a machine, and with it the port: whoever binds it first does so alone, so that it fails where a stranger
    listens, and lets those of the same instance in afterwards. Raises `AddressInUseError`, or
    `InvalidValueError` where this node has no such address.
    """
    host, port = settings.http_host, spec.port or settings.http_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spec.shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        deadline = time.monotonic() + _FREE_WITHIN_S
        while True:
            try:
                listener.bind((host, port))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise _bind_error(error, host, port, node) from error
                time.sleep(0.01)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_error(error: OSError, host: str, port: int, node: str) -> HeadgateError:
    where = f"{host}:{port} on node {node}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(f"{where} is in use by another program or instance; give another http_port, or 0 for any")
    return InvalidValueError(f"{where} can't be listened on: {error.strerror}; give an http_host that each node with an ingress has")
