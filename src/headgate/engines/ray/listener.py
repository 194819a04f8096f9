"""On which socket does the ingress of a node take HTTP connections?"""

from __future__ import annotations

import socket
import time
from typing import Final

from headgate.core.specs import IngressSpec, InstanceSettings
from headgate.errors import AddressInUseError

_BACKLOG: Final = 2048
_FREE_WITHIN_S: Final = 2.0
"""An ingress that has just died may hold the port for a moment."""


def listen(settings: InstanceSettings, spec: IngressSpec) -> socket.socket:
    """Bind and listen, at the port that was asked for, or at the one that the ingress before this one had.

    Nodes may share a machine, and with it the port: whoever binds it first does so alone, so that it fails where a stranger
    listens, and lets those of the same instance in afterwards. Raises `AddressInUseError`.
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
                if time.monotonic() > deadline:
                    raise AddressInUseError(f"{host}:{port} can't be listened on: {error.strerror}; give another http_port") from error
                time.sleep(0.01)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
