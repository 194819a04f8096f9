"""The records that users write: what can be configured, with which default, and what is refused.

An option is written once, as a field here; parsing, checks and documentation come from these records.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from headgate.errors import ConfigError, ConfigTypeError, NotFoundError

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
    """Cap on a router's window at one replica; unset, it adapts."""
    max_queued_queries: int = 1000
    """Most requests waiting in one router for this backend."""
    request_timeout: float | None = 60.0
    """Seconds from a request's arrival to its answer, for streams to each next chunk; None: no limit."""
    idempotent: bool = False
    """User code may run again for the same request."""
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
    """The replica's surroundings; `env_vars` is a dict of environment variables."""


REFUSED_OPTIONS = frozenset(
    ("name", "namespace", "get_if_exists", "lifetime", "max_restarts", "max_task_retries", "max_concurrency", "concurrency_groups")
)
"""Actor options that Headgate sets itself."""

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
        _refuse_unknown(given, BackendConfig.__struct_fields__, "config")
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
    _refuse_unknown(given, ReplicaOptions.__struct_fields__, "ray_actor_options")
    for name in ("num_cpus", "num_gpus", "memory"):
        if name in given and given[name] is not None:
            _check_number(name, given[name], above_zero=False, where="ray_actor_options")
    gpus = given.get("num_gpus") or 0
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"ray_actor_options: num_gpus must be whole, or below 1 to share a device; got {gpus!r}")
    resources = given.get("resources") or {}
    if not isinstance(resources, Mapping):
        raise ConfigTypeError(f"ray_actor_options: resources must be a dict of name to amount, got {resources!r}")
    for name, amount in resources.items():
        if not isinstance(name, str) or not name:
            raise ConfigTypeError(f"ray_actor_options: a resource is named by a string, got {name!r}")
        if name in ("CPU", "GPU", "memory"):
            raise ConfigError(f"ray_actor_options: ask for {name!r} by num_cpus, num_gpus or memory, not in resources")
        _check_number(f"resources[{name!r}]", amount, above_zero=False, where="ray_actor_options")
    runtime_env = given.get("runtime_env") or {}
    if not isinstance(runtime_env, Mapping):
        raise ConfigTypeError(f"ray_actor_options: runtime_env must be a dict, got {runtime_env!r}")
    _refuse_unknown(runtime_env, ("env_vars",), "runtime_env")
    env_vars = runtime_env.get("env_vars") or {}
    if not isinstance(env_vars, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in env_vars.items()):
        raise ConfigTypeError(f"runtime_env: env_vars must map strings to strings, got {env_vars!r}")
    return ReplicaOptions(
        num_cpus=float(given.get("num_cpus") or 0),
        num_gpus=float(gpus),
        memory=float(given.get("memory") or 0),
        resources={name: float(amount) for name, amount in resources.items()},
        runtime_env={"env_vars": dict(env_vars)} if env_vars else {},
    )


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str], verb: str) -> NotFoundError:
    """The error for a tag or endpoint that does not exist; `verb` lists the `known` ones."""
    return NotFoundError(f"there is no {what} {name!r}{suggest(name, known) or f'; {verb}() shows those that are'}")


def _refuse_unknown(given: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if not isinstance(name, str):
            raise ConfigTypeError(f"{where}: keys are strings, got {name!r}")
        if name not in known:
            hint = suggest(name, known) or f"; known keys are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {name!r}{hint}")


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
