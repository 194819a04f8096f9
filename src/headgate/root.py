"""The composition root: which programs make an instance of the local engine?

`python -m headgate.root` is what a driver executes; it reads a `Boot` from its standard input and supervises. With the
arguments `replica <spec file> <log format> <log folder>` it runs one replica, in an interpreter of its own.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headgate.engines.base import IngressSpec, InstanceSettings, ReplicaSpec
    from headgate.engines.local.programs import Programs
    from headgate.router.way import Way


def controller(settings: InstanceSettings, way: Way, supervisor: socket.socket, http_urls: tuple[str, ...]) -> None:
    """The controller's process."""
    from headgate.controller.main import run
    from headgate.controller.store import Store
    from headgate.engines.local.engine import LocalEngine

    run(settings, LocalEngine(settings, supervisor, http_urls), way, lambda: Store(settings.state_dir, durable=settings.state_kept))


def ingress(spec: IngressSpec, way: Way, listener: socket.socket) -> None:
    """An ingress' process."""
    from headgate.ingress.main import run

    run(spec, way, listener)


def replica(spec: ReplicaSpec, way: Way) -> None:
    """A replica's process."""
    from headgate.replica.main import run

    run(spec, way)


def warm() -> None:
    """Import what ingresses and replicas need, once for all of them; nothing that starts threads or reads the environment."""
    import cloudpickle  # noqa: F401  # replicas open definitions with it

    import headgate.ingress.main
    import headgate.replica.main  # noqa: F401  # imported for their sake


def programs() -> Programs:
    """All programs of a local instance, by name."""
    from headgate.engines.local.programs import Programs

    return Programs(controller=controller, ingress=ingress, replica=replica, warm=warm)


def main() -> None:
    """Be a supervisor, or the replica that the command line names."""
    from headgate.engines.local.boot import main

    main(programs())


if __name__ == "__main__":
    main()
