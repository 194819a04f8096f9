"""What is an instance, a replica, an ingress started from? The records that travel to their processes."""

from __future__ import annotations

import msgspec

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.messages import Definition


class InstanceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance was started with; the same for its whole life."""

    name: str
    folder: str  # private (0700), short, with the sockets; ends with the instance
    state_dir: str  # where the state is kept: the folder itself, or the user's own
    state_kept: bool  # the user gave a state_dir
    http_host: str
    http_port: int  # as asked for; 0 takes a free one
    num_ingresses: int
    max_body_bytes: int
    max_inflight_bytes: int
    resources: dict[str, float]  # overrides, as given
    detached: bool
    debug: bool
    ssl_certfile: str | None
    ssl_keyfile: str | None
    driver_pid: int
    id: str = ""  # drawn at each start: tells instances of one name apart

    @property
    def control_path(self) -> str:
        """The Unix socket of the controller."""
        return f"{self.folder}/control.sock"


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One replica to start."""

    id: str
    token: str
    backend: str
    definition: Definition
    config: BackendConfig
    options: ReplicaOptions
    folder: str  # the instance's
    control_path: str
    instance: str
    debug: bool = False
    generation: int = 0  # which version of the backend's code it runs: tells a new controller whether it is still wanted
    gpus: tuple[str, ...] = ()  # filled in by the engine: the devices it gave


class IngressSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One ingress to start. Its number says which listening socket is its own."""

    id: str
    token: str
    number: int
    folder: str
    control_path: str
    instance: str
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
