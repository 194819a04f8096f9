"""The records that users write: what can be configured, with which default, and what is refused.

An option is written once, as a field here; parsing, checks and documentation come from these records.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from headgate.errors import ConfigError, ConfigTypeError, NotFoundError
from headgate.scheduling import Strategy, parse_group, parse_labels, parse_strategy

DEFAULT_MAX_BODY_BYTES: Final = 104857600
"""Longest body of an HTTP request, where an instance is not told otherwise."""


class BackendConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a backend runs. Give it, or a dict with some of its keys, as `config`."""

    num_replicas: int = 1
    """Replicas to keep running; >= 1."""
    concurrency: int | None = None
    """Calls of user code that one replica runs at once; unset: 100 for async handlers, else 1 (batch handlers: 1)."""
    max_batch_size: int = 1
    """Most requests in one call of a batch handler."""
    batch_wait_timeout: float = 0.0
    """Seconds that the oldest request of a batch may wait for company, counted from its admission."""
    max_concurrent_queries: int | None = None
    """Most requests that one router may have at one replica, running ones included; unset, it adapts."""
    max_queued_queries: int = 1000
    """Most requests waiting in one router for this backend."""
    request_timeout: float | None = 60.0
    """Seconds from a request's arrival to its answer, for streams to each next chunk; None: no limit."""
    idempotent: bool = False
    """User code may run again for the same request: after a crash, or to find the bad item of a batch."""
    http_methods: tuple[str, ...] = ()
    """Methods of a class, besides `__call__`, that HTTP clients may name."""
    startup_timeout: float = 600.0
    """Seconds that construction may take."""
    graceful_shutdown_timeout: float = 20.0
    """Seconds to drain before a replica is killed."""
    health_check_period: float = 1.0
    """Seconds between health checks."""
    health_check_timeout: float = 5.0
    """Seconds without an answer, or past `request_timeout`, after which a replica is replaced."""


class ReplicaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one replica takes and where it runs. Give it as the dict `ray_actor_options`."""

    num_cpus: float = 0.0
    """CPUs to book; not asked for is not counted."""
    num_gpus: float = 0.0
    """GPUs: whole, or below 1 for a share of one device."""
    memory: float = 0.0
    """Bytes to book; nothing enforces them."""
    resources: dict[str, float] = {}
    """Custom resources to book, by name."""
    runtime_env: dict[str, Any] = {}
    """The replica's surroundings; `env_vars` is a dict of environment variables. The other keys are for a cluster."""
    scheduling_strategy: Strategy | None = None
    """Cluster: where it is placed: "SPREAD", "DEFAULT", or one of Ray's strategies; unset: over the nodes."""
    label_selector: dict[str, str] = {}
    """Cluster: labels that its node must have, such as `{"zone": "in(a,b)"}`."""
    fallback_strategy: tuple[dict[str, dict[str, str]], ...] = ()
    """Cluster: what to try in turn where no node has these labels, such as `[{"label_selector": {...}}]`."""
    accelerator_type: str | None = None
    """Cluster: the kind of accelerator that its node must have."""
    object_store_memory: int | None = None
    """Cluster: handed to Ray, which no longer books it."""
    enable_task_events: bool = True
    """Cluster: whether Ray's dashboard and state API list its calls."""
    enable_tensor_transport: bool | None = None
    """Cluster: handed to Ray."""
    max_pending_calls: int = -1
    """Cluster: handed to Ray, whose calls carry no requests; `max_queued_queries` bounds those."""
    allow_out_of_order_execution: bool | None = None
    """Cluster: handed to Ray, whose calls carry no requests."""


REFUSED_OPTIONS = frozenset(
    ("name", "namespace", "get_if_exists", "lifetime", "max_restarts", "max_task_retries", "max_concurrency", "concurrency_groups")
)
"""Actor options that Headgate sets itself."""

HANDED_ON: Final = (
    "accelerator_type",
    "object_store_memory",
    "enable_task_events",
    "enable_tensor_transport",
    "max_pending_calls",
    "allow_out_of_order_execution",
)
"""Options that a cluster's own scheduler gets as they were given."""
_CLUSTER_OPTIONS: Final = ("scheduling_strategy", "label_selector", "fallback_strategy", *HANDED_ON)
RUNTIME_ENV_KEYS: Final = (
    "env_vars",
    "working_dir",
    "excludes",
    "py_modules",
    "py_executable",
    "pip",
    "uv",
    "conda",
    "container",
    "image_uri",
    "java_jars",
    "worker_process_setup_hook",
    "nsight",
    "rocprof_sys",
    "config",
)
"""What a `runtime_env` may have on a cluster, unless it has plugins of its own."""
_GROUP_OPTIONS: Final = ("placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks")
"""Ray's older words for a strategy; they are kept as one."""

_POSITIVE_INTEGERS = ("num_replicas", "concurrency", "max_batch_size", "max_concurrent_queries", "max_queued_queries")
_POSITIVE_SECONDS = ("request_timeout", "startup_timeout", "health_check_period", "health_check_timeout")
_SECONDS = ("batch_wait_timeout", "graceful_shutdown_timeout")


def parse_config(given: object, base: BackendConfig | None = None) -> BackendConfig:
    """Check `given` and return the whole config: a dict changes keys of `base`, a `BackendConfig` replaces it.

    Raises `ConfigError` (a `ValueError`) or `ConfigTypeError` (also a `TypeError`) that names the key.
    """
    if isinstance(given, BackendConfig):
        values = {name: getattr(given, name) for name in given.__struct_fields__}
    elif given is None:
        return base or BackendConfig()
    elif isinstance(given, Mapping):
        refuse_unknown(given, BackendConfig.__struct_fields__, "config")
        old = base or BackendConfig()
        values = {name: given.get(name, getattr(old, name)) for name in old.__struct_fields__}
    else:
        raise ConfigTypeError(f"config must be a dict or a BackendConfig, got {type(given).__name__}: {given!r}")
    for name in _POSITIVE_INTEGERS:
        _check_integer(name, values[name], optional=name in ("concurrency", "max_concurrent_queries"))
    for name in _POSITIVE_SECONDS:
        _check_number(name, values[name], above_zero=True, optional=name == "request_timeout")
    for name in _SECONDS:
        _check_number(name, values[name], above_zero=False)
    if not isinstance(values["idempotent"], bool):
        raise _wrong_type("idempotent", "True or False", values["idempotent"])
    values["http_methods"] = _method_names(values["http_methods"])
    cap, batch = values["max_concurrent_queries"], values["max_batch_size"]
    if cap is not None and cap < batch:
        raise ConfigError(
            f"config: max_concurrent_queries={cap} is below max_batch_size={batch}, so no batch could fill; raise it or unset it"
        )
    return BackendConfig(**values)


def parse_options(given: object) -> ReplicaOptions:
    """Check a `ray_actor_options` dict. Raises `ConfigError` or `ConfigTypeError` that names the key."""
    if given is None:
        return ReplicaOptions()
    if isinstance(given, ReplicaOptions):
        given = {name: getattr(given, name) for name in given.__struct_fields__}
    if not isinstance(given, Mapping):
        raise ConfigTypeError(f"ray_actor_options must be a dict, got {type(given).__name__}: {given!r}")
    for name in given:
        if name in REFUSED_OPTIONS:
            raise ConfigError(f"ray_actor_options: {name!r} is set by Headgate itself; leave it out")
    refuse_unknown(given, (*ReplicaOptions.__struct_fields__, *_GROUP_OPTIONS), "ray_actor_options")
    given = {name: value for name, value in given.items() if value is not None or name == "placement_group"}
    for name in ("num_cpus", "num_gpus", "memory"):
        if name in given:
            _check_number(name, given[name], above_zero=False, where="ray_actor_options")
    gpus = given.get("num_gpus", 0)
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"ray_actor_options: num_gpus must be whole, or below 1 to share a device; got {gpus!r}")
    return ReplicaOptions(
        num_cpus=float(given.get("num_cpus", 0)),
        num_gpus=float(gpus),
        memory=float(given.get("memory", 0)),
        resources=_parse_resources(given.get("resources", {})),
        runtime_env=_parse_runtime_env(given.get("runtime_env", {})),
        scheduling_strategy=_parse_placement(given),
        label_selector=parse_labels("label_selector", given.get("label_selector", {})),
        fallback_strategy=_parse_fallbacks(given.get("fallback_strategy", ())),
        accelerator_type=_of_type(given, "accelerator_type", str, "a string"),
        object_store_memory=_of_type(given, "object_store_memory", int, "a whole number"),
        enable_task_events=_of_type(given, "enable_task_events", bool, "True or False", True),
        enable_tensor_transport=_of_type(given, "enable_tensor_transport", bool, "True or False"),
        max_pending_calls=_of_type(given, "max_pending_calls", int, "a whole number", -1),
        allow_out_of_order_execution=_of_type(given, "allow_out_of_order_execution", bool, "True or False"),
    )


def refuse_for_one_machine(options: ReplicaOptions) -> ReplicaOptions:
    """The options, if one machine can follow them. Raises `ConfigError` that names what only a cluster understands."""
    default = ReplicaOptions()
    for name in _CLUSTER_OPTIONS:
        if getattr(options, name) != getattr(default, name):
            raise _for_clusters(f"ray_actor_options: {name!r}")
    for name in options.runtime_env:
        if name != "env_vars":
            refuse_unknown({name: None}, RUNTIME_ENV_KEYS, "runtime_env")
            raise _for_clusters(f"ray_actor_options: runtime_env: {name!r}")
    return options


def _for_clusters(what: str) -> ConfigError:
    return ConfigError(
        f"{what} means something on a cluster only, and this instance runs on one machine; leave it out, or init(engine='ray')"
    )


def _parse_resources(given: object) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise ConfigTypeError(f"ray_actor_options: resources must be a dict of name to amount, got {given!r}")
    for name, amount in given.items():
        if not isinstance(name, str) or not name:
            raise ConfigTypeError(f"ray_actor_options: a resource is named by a string, got {name!r}")
        if name in ("CPU", "GPU", "memory"):
            raise ConfigError(f"ray_actor_options: ask for {name!r} by num_cpus, num_gpus or memory, not in resources")
        _check_number(f"resources[{name!r}]", amount, above_zero=False, where="ray_actor_options")
    return {name: float(amount) for name, amount in given.items()}


def _parse_runtime_env(given: object) -> dict[str, Any]:
    """Which keys there are, and what may be in them, is told by the engine that follows them."""
    if not isinstance(given, Mapping):
        raise ConfigTypeError(f"ray_actor_options: runtime_env must be a dict, got {given!r}")
    env_vars = given.get("env_vars") or {}
    if not isinstance(env_vars, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in env_vars.items()):
        raise ConfigTypeError(f"runtime_env: env_vars must map strings to strings, got {env_vars!r}")
    found: dict[str, Any] = {"env_vars": dict(env_vars)} if env_vars else {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise ConfigTypeError(f"runtime_env: keys are strings, got {name!r}")
        if name != "env_vars" and value is not None:
            found[name] = _plain(f"runtime_env: {name}", value)
    return found


def _plain(what: str, value: object) -> Any:
    """As records can carry it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(what, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(what, item) for item in value]
    raise ConfigTypeError(f"{what} must be made of strings, numbers, lists and dicts to reach the cluster's nodes, got {value!r}")


def _parse_placement(given: Mapping[str, Any]) -> Strategy | None:
    if not any(name in given for name in _GROUP_OPTIONS):
        return parse_strategy(given.get("scheduling_strategy"))
    if "scheduling_strategy" in given:
        raise ConfigError("ray_actor_options: scheduling_strategy and placement_group are two words for one thing; leave one out")
    group = given.get("placement_group", "default")
    if group == "default":
        raise ConfigError("ray_actor_options: placement_group_bundle_index and the like say something of a placement_group; give that, too")
    return parse_group(group, given.get("placement_group_bundle_index", -1), given.get("placement_group_capture_child_tasks"))


def _parse_fallbacks(given: object) -> tuple[dict[str, dict[str, str]], ...]:
    known = ("label_selector",)
    if not isinstance(given, list | tuple) or not all(isinstance(each, Mapping) for each in given):
        raise ConfigTypeError(f"ray_actor_options: fallback_strategy must be a list of dicts, got {given!r}")
    for each in given:
        refuse_unknown(each, known, "fallback_strategy")
        if not each:
            raise ConfigError("ray_actor_options: fallback_strategy: an empty dict says nothing; give a label_selector, or leave it out")
    return tuple({"label_selector": parse_labels("fallback_strategy: label_selector", each["label_selector"])} for each in given)


def _of_type(given: Mapping[str, Any], name: str, kind: type, expected: str, default: Any = None) -> Any:
    value = given.get(name, default)
    if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise _wrong_type(name, expected, value, "ray_actor_options")
    return value


def refuse_unknown(given: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    """Raise `ConfigError` for a key that isn't `known`, with the nearest that is. `where` it was given is for the message."""
    for name in given:
        if not isinstance(name, str):
            raise ConfigTypeError(f"{where}: keys are strings, got {name!r}")
        if name not in known:
            hint = suggest(name, known) or f"; known keys are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {name!r}{hint}")


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str], verb: str) -> NotFoundError:
    """The error for a tag or endpoint that does not exist; `verb` lists the `known` ones."""
    return NotFoundError(f"there is no {what} {name!r}{suggest(name, known) or f'; {verb}() shows those that are'}")


def _check_integer(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "a whole number", value)
    if value < 1:
        raise ConfigError(f"config: {name} must be at least 1, got {value}")


def _check_number(name: str, value: object, *, above_zero: bool, optional: bool = False, where: str = "config") -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number", value, where)
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise ConfigError(f"{where}: {name} must be {'above' if above_zero else 'at least'} 0 and finite, got {value!r}")


def _method_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        raise _wrong_type("http_methods", "a list of method names", value)
    for name in value:
        if not isinstance(name, str):
            raise _wrong_type("http_methods", "a list of method names", value)
        if not name.isidentifier() or (name.startswith("_") and name != "__call__"):
            raise ConfigError(f"config: http_methods: {name!r} is not the name of a public method")
    return tuple(value)


def _wrong_type(name: str, expected: str, value: object, where: str = "config") -> ConfigTypeError:
    return ConfigTypeError(f"{where}: {name} must be {expected}, got {type(value).__name__}: {value!r}")
