"""What is an instance, a replica, an ingress started from? The records that travel to their processes.

User code travels as a `Definition`: only the replica opens it, so what others have to know stands beside it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headgate.config import BackendConfig, ReplicaOptions


class LogSettings(msgspec.Struct, frozen=True):
    """What an instance was told of its log."""

    format: str  # of lines on a terminal: "text" or "json"; in files they are JSON
    folder: str  # where each process has a file of its own; empty: it writes to the terminal that it has inherited
    verbose: bool = False  # tell also what is no trouble


class InstanceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance was started with; the same for its whole life."""

    name: str
    folder: str  # private (0700), short, with the sockets; ends with the instance
    state_dir: str  # where the state is kept: the folder itself, or the user's own
    state_kept: bool  # the user gave a state_dir
    http_host: str
    http_port: int  # as asked for; 0 takes a free one
    num_ingresses: int | str  # "every_node" and "head_only" are words of clusters
    max_body_bytes: int
    max_inflight_bytes: int
    resources: dict[str, float]  # overrides, as given
    detached: bool
    debug: bool
    ssl_certfile: str | None
    ssl_keyfile: str | None
    log_format: str  # of lines on the terminal: "text" or "json"
    access_log: bool  # an entry for each request
    traces: bool  # spans of requests, as OpenTelemetry has them
    log_dir: str  # where each process has a file of its own; empty: the terminal
    driver_pid: int
    leased: bool = False  # it ends when nobody who owns it is connected, since its engine doesn't see their end
    id: str = ""  # drawn at each start: tells instances of one name apart
    admin_address: str = ""  # host and port where the controller takes commands from afar, as asked for; empty: nowhere
    admin_key: bytes = b""  # of those who know the admin token, which is itself kept nowhere

    def __repr__(self) -> str:  # the key is in no log
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "admin_key"}
        return f"InstanceSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def log(self) -> LogSettings:
        """What its processes have to know of the log."""
        return LogSettings(self.log_format, self.log_dir, verbose=self.debug or self.detached)


class Parameter(msgspec.Struct, frozen=True, array_like=True):
    """One parameter of a handler; `kind` is the name of `inspect.Parameter`'s kind, such as POSITIONAL_ONLY."""

    name: str
    kind: str
    has_default: bool


class MethodInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the driver found out about one callable of a definition. `parameters` are without self."""

    name: str  # "" for a function, and for __call__
    is_async: bool = False  # coroutine function or async generator function
    is_generator: bool = False  # generator or async generator function
    is_batch: bool = False  # marked by accept_batch
    parameters: tuple[Parameter, ...] = ()


class Code(msgspec.Struct, frozen=True):
    """What a backend is made of, as a file names it: where it is imported from, and what its constructor is given.

    Empty where no file can name it: it can't be imported, or has arguments that aren't plain data.
    """

    import_path: str = ""
    """ "module:name"."""
    init_args: list[Any] = []
    """What its constructor is given by position …"""
    init_kwargs: dict[str, Any] = {}
    """… and by name."""
    source_hash: str = ""
    """SHA-256 of the file that it is imported from, and of the one that defines it where that is another."""


class Definition(msgspec.Struct, frozen=True):
    """User code on its way to a replica, with what others have to know about it without opening it."""

    payload: bytes  # cloudpickle of (func_or_class, init_args, init_kwargs)
    name: str  # for people: the qualified name
    methods: dict[str, MethodInfo] = {}  # by name; "" is the call itself
    module: str = ""  # set where the code is imported by path …
    source_hash: str = ""  # … with this SHA-256 of its file
    code: Code = Code()
    sys_path: tuple[str, ...] = ()
    cwd: str = ""
    environ: dict[str, str] = {}

    @property
    def any_async(self) -> bool:
        """Whether all methods run on one event loop."""
        return any(method.is_async for method in self.methods.values())


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One replica to start."""

    id: str
    token: str
    backend: str
    definition: Definition
    config: BackendConfig
    options: ReplicaOptions
    instance: str
    generation: int = 0  # which version of the backend's code it runs: tells a new controller whether it is still wanted
    gpus: tuple[str, ...] = ()  # filled in by the engine: the devices it gave
    traces: bool = False


class IngressSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One ingress to start. Its place is the engine's word for where that is."""

    id: str
    token: str
    place: str
    port: int = 0  # where the ingress itself listens: the one that it has to take; 0 takes that of the settings
    shares_port: bool = False  # with another one of the instance
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    access_log: bool = False
    traces: bool = False
    admin_check: bytes = b""  # tells the admin token where a client sends it; empty: there is none
