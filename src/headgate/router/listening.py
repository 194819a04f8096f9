"""How are connections taken from a listening socket, also where this process has no descriptor left for one; and which hosts are all?"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

ALL_ADDRESSES: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
"""The hosts by which a socket listens at all addresses of its machine, and by which of them that machine itself reaches it."""
_AGAIN_S: Final = 0.1


class Listening:
    """Hands each connection that comes to `taken`, on the loop on which this was made. `close` closes the socket, too."""

    def __init__(self, sock: socket.socket, taken: Callable[[socket.socket], object]) -> None:
        self.deaf_since = 0.0
        """Since when none could be taken, for want of a descriptor (time.monotonic()); 0 where they are."""
        self._sock = sock
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Take no more."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _watch(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionError):  # they have given up already
            return
        except OSError:  # no descriptor is left, perhaps: it waits in the backlog, which would call here all the time
            self.deaf_since = self.deaf_since or time.monotonic()
            self._loop.remove_reader(self._sock)
            self._loop.call_later(_AGAIN_S, self._watch)
            return
        self.deaf_since = 0.0
        self._taken(sock)
