"""How does a process reach its instance: where is the controller, and where are sockets made?

Every process that an engine starts is given a `Way`. A handle that comes out of a pickle knows only its instance's name:
engines, which know the rest, are above this layer; `headgate.serve`, which every handle is pickled as a part of, sets `find`
when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headgate.config import ReplicaOptions, refuse_for_one_machine

if TYPE_CHECKING:
    import asyncio
    import socket

    from headgate.core.specs import Definition
    from headgate.router.references import Objects
    from headgate.router.tls import Tls


class Way:
    """The way of a process on one node to its instance, all of which is on that node. Engines have their own below this."""

    objects: Objects | None = None
    """The store of objects that references among arguments refer to, where there is one."""
    admin_listener: socket.socket | None = None
    """In the controller's process: the listening socket for those from afar, where there is one."""
    is_afar = False
    """Whether it leads to another machine, from which there is no way to replicas."""

    def __init__(
        self, folder: str, *, node: str = "", host: str = "", secret: bytes = b"", tls: Tls | None = None, traces: bool = False
    ) -> None:
        self._folder = folder
        self.id = folder
        """Which instance it leads to: that of this folder, or as an engine says."""
        self.node = node
        """The name of this node, where the instance may have several."""
        self.host = host
        """The address at which other nodes reach this one; empty where nobody does."""
        self.secret = secret
        """What proves to other nodes that a process belongs to the instance."""
        self.tls = tls
        """What encrypts what goes to other nodes, where that is wanted."""
        self.traces = traces
        """Whether its requests are traced."""

    @property
    def folder(self) -> str:
        """Private to this user, short, and on this node: sockets, and the pages of links."""
        return self._folder

    @property
    def control_path(self) -> str:
        """The Unix socket of the controller, where it runs on this node."""
        return f"{self.folder}/control.sock"

    def link_path(self, id: str) -> str:
        """The Unix socket on which a replica takes links."""
        return link_path(self.folder, id)

    async def controller(self) -> str | None:
        """The address of the controller: a path, or `host:port`; empty where it isn't known yet, None where the instance has ended."""
        return self.control_path if self._runs() else None

    async def reach(self, address: str, make: Callable[[], asyncio.Protocol]) -> None:
        """Connect what `make` makes with the controller at this address, on the running loop.

        Raises `OSError` where that can't be now, `WireError` where it is another's, `AdminTokenError` where it will never be.
        """
        import asyncio

        from headgate.router import remote

        loop = asyncio.get_running_loop()
        if remote.is_path(address):
            await loop.create_unix_connection(make, address)
            return
        secured = self.tls
        sock = await remote.connect(address, self.secret, tls=secured is not None)
        try:
            how: dict[str, Any] = {}
            if secured is not None:
                how = {"ssl": secured.client, "server_hostname": "", "ssl_handshake_timeout": remote.HANDSHAKE_S}
            await loop.create_connection(make, sock=sock, **how)
        except BaseException:
            sock.close()
            raise

    async def publish(self, address: str) -> None:
        """The controller takes connections at this address from now on."""

    def check(self, options: ReplicaOptions) -> ReplicaOptions:
        """What a replica may be asked to take here, ready to travel. Raises `ConfigError` that names what this engine doesn't follow."""
        return refuse_for_one_machine(options)

    def portable(self, definition: Definition) -> Definition:
        """What of a definition, with the surroundings that this process has, is good where the instance's replicas run."""
        return definition

    def leave(self, patience_s: float = 0.0) -> None:
        """This process needs the folder no more. Where the instance has ended, its processes have so many seconds to leave it, too."""

    def is_there(self) -> bool:
        """False where the instance is known to have ended, at a glance."""
        return os.path.exists(self._folder)

    def was_killed(self) -> bool:
        """Whether it is known to have ended without having been shut down: what it would have removed is there."""
        return False

    def _runs(self) -> bool:
        return self.is_there()


def link_path(folder: str, id: str) -> str:
    """The Unix socket on which a replica takes links."""
    return f"{folder}/r-{id}.sock"


def _unknown(name: str) -> Way | None:
    return None


find: Callable[[str], Way | None] = _unknown
"""The way to the running instance of a name; None where there is none."""
