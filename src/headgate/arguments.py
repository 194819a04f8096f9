"""Is what a user gives to a verb of the right type, and in range?

Each function returns the value as it is used, and raises `InvalidTypeError` (a `TypeError`) or `InvalidValueError` (a
`ValueError`) that names the argument and what was given. What a backend's `config` may be is in `config.py`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from headgate.errors import AdminTokenError, ConfigError, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from headgate.core.specs import Code, InstanceSettings
    from headgate.router.afar import AfarWay


LOG_FORMATS: Final = ("text", "json")


def settings(
    name: object,
    *,
    engine: object,
    address: object,
    http_host: object,
    http_port: object,
    num_ingresses: object,
    max_body_bytes: object,
    max_inflight_bytes: object,
    resources: object,
    state_dir: object,
    detached: object,
    debug: object,
    ssl_certfile: object,
    ssl_keyfile: object,
    access_log: object,
    log_format: object,
    log_dir: object,
    traces: object,
    admin_address: object = None,
    admin_token: object = None,
) -> InstanceSettings:
    """The settings of an instance, from the arguments of `init`. Raises `ConfigError` also for what contradicts another."""
    instance = instance_name(name)
    check_engine(engine, address)
    if engine == "ray" and resources is not None:
        raise ConfigError("resources belong to the nodes of a cluster, which say what they have when they start; leave them out")
    certificate, key = _path("ssl_certfile", ssl_certfile), _path("ssl_keyfile", ssl_keyfile)
    if key is not None and certificate is None:
        raise ConfigError("ssl_keyfile is given without ssl_certfile; HTTPS needs both, or one file that holds both as ssl_certfile")
    for what, file in (("ssl_certfile", certificate), ("ssl_keyfile", key)):
        if file is not None and not os.access(file, os.R_OK):
            raise ConfigError(f"{what}={file!r} can't be read")
    if certificate is not None:
        from headgate.router import certificate as certificates

        certificates.check(certificate, key)
    admin_at, admin_key = _admin(admin_address, admin_token, encrypted=certificate is not None)
    kept = _path("state_dir", state_dir)
    if log_format not in LOG_FORMATS:
        raise InvalidValueError(f"log_format must be {' or '.join(map(repr, LOG_FORMATS))}, got {log_format!r}")
    logs = _path("log_dir", log_dir)
    if logs is not None and engine == "ray":
        raise ConfigError("log_dir: on a cluster Ray keeps what its actors write, on each node; leave it out")
    if flag("traces", traces):
        from headgate.traces.begin import check

        check()

    from headgate.core.specs import InstanceSettings
    from headgate.engines.local import launch, machine

    folder = launch.folder_for(instance) if engine == "local" else ""  # on a cluster each node has its own
    return InstanceSettings(
        name=instance,
        leased=engine != "local" and not detached,
        folder=folder,
        state_dir=folder if kept is None else kept,
        access_log=flag("access_log", access_log),
        traces=flag("traces", traces),
        log_format=str(log_format),
        log_dir=logs or (f"{kept or folder}/logs" if detached and engine == "local" else ""),
        state_kept=kept is not None,
        http_host=text("http_host", http_host),
        http_port=_whole("http_port", http_port, 0, 65535),
        num_ingresses=_num_ingresses(num_ingresses, engine),
        max_body_bytes=_whole("max_body_bytes", max_body_bytes, 0),
        max_inflight_bytes=machine.memory_bytes() // 4
        if max_inflight_bytes is None
        else _whole("max_inflight_bytes", max_inflight_bytes, 1),
        resources=_resources(resources),
        detached=flag("detached", detached),
        debug=flag("debug", debug),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        driver_pid=os.getpid(),
        id=secrets.token_hex(8),
        admin_address=admin_at,
        admin_key=admin_key,
    )


def _admin(address: object, token: object, *, encrypted: bool) -> tuple[str, bytes]:
    """Where commands are taken from afar, and the key of those who know the token; both may be empty. No error shows the token.

    A token without an address is for the dashboard alone. One in the environment is not enough for that: it may be meant for others.
    """
    if address is None and token is None:
        return "", b""
    from headgate.router import admin, remote

    if address is None:
        return "", admin.key_of(token)
    host, port = admin.address(address)
    given = admin.from_environment() if token is None else token
    if given is None:
        raise AdminTokenError(
            f"admin_address={address!r} takes commands from who knows a token: give admin_token (--admin-token-file), or set "
            f"{admin.TOKEN_VARIABLE}"
        )
    if not (encrypted or admin.is_loopback(host)):
        raise ConfigError(
            f"admin_address={address!r}: beyond this machine commands are taken over TLS alone, where nobody can change them on their way; "
            "give ssl_certfile, or 127.0.0.1 and have an SSH tunnel lead there"
        )
    return remote.join(host, port), admin.key_of(given)


def instance_name(given: object) -> str:
    """The name of an instance."""
    name = text("an instance's name", given)
    if not name or any(ord(char) < 0x20 or ord(char) == 0x7F for char in name):
        raise InvalidValueError(f"an instance's name must not be empty or have control characters, got {given!r}")
    return name


def check_engine(engine: object, address: object) -> None:
    """An engine that there is here, and an address only where it has one. Raises `ConfigError` besides."""
    text("engine", engine)
    if address is not None:
        text("address", address)
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine={engine!r} is unknown; there are 'local' and 'ray'")
    if engine == "ray":
        import importlib.util

        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "engine='ray' needs Ray, which isn't installed: pip install '../headgate[ray]', where ../headgate is the clone"
            )
    elif is_afar(address):
        raise ConfigError(
            f"address={address!r} is that of an instance which runs already: connect() leads there; nothing can be started there"
        )
    elif address is not None:
        raise ConfigError(f"address={address!r} names a cluster, and the local engine runs on this machine; leave it out")


def is_afar(address: object) -> bool:
    """Whether this is the address of a controller, and not one of a cluster."""
    return isinstance(address, str) and address.startswith("tcp://")


def way_from_afar(engine: object, address: object, token: object, cafile: object) -> AfarWay:
    """The way to the instance at an admin address. Raises `AdminTokenError`, which doesn't show the token."""
    from headgate.router import admin
    from headgate.router.afar import AfarWay

    if engine != "local":
        raise ConfigError(f"engine={engine!r}: what is at {address!r} says itself on what it runs; leave it out")
    host, port = admin.address(text("address", address))
    given = admin.from_environment() if token is None else token
    if given is None:
        raise AdminTokenError(
            f"address={address!r} asks for the instance's admin token: give admin_token (--admin-token-file), or set {admin.TOKEN_VARIABLE}"
        )
    return AfarWay(host, port, admin.key_of(given), _path("admin_cafile", cafile))


def _num_ingresses(given: object, engine: object) -> int | str:
    if isinstance(given, str):
        if engine != "ray" or given not in ("every_node", "head_only"):
            known = "a number, 'every_node' or 'head_only'" if engine == "ray" else "a number"
            raise InvalidValueError(f"num_ingresses must be {known}, got {given!r}")
        return given
    return _whole("num_ingresses", given, 1)


def exposure(settings: InstanceSettings) -> list[str]:
    """What the user should be warned of before an instance listens where others can reach it."""
    host = settings.http_host
    if host in ("127.0.0.1", "localhost", "::1"):
        return []
    import ipaddress  # not for the usual start

    try:
        if ipaddress.ip_address(host).is_loopback:
            return []
    except ValueError:  # a name, or all addresses
        pass
    warning = (
        f"http_host={host!r}: whoever can reach this machine there can call every endpoint that has a route, and read the pages under /-/ "
        "with metrics and tracebacks of failed starts; leave http_host out, and let a proxy pass on what is meant for others"
    )
    return [warning]


def _resources(resources: object) -> dict[str, float]:
    if resources is None:
        return {}
    if not isinstance(resources, Mapping):
        raise InvalidTypeError(f"resources must be a dict of name to amount, got {type(resources).__name__}: {resources!r}")
    checked: dict[str, float] = {}
    for key, amount in resources.items():
        name = text("a resource's name", key)
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise InvalidTypeError(f"resources[{key!r}] must be a number, got {type(amount).__name__}: {amount!r}")
        if not 0 <= amount < float("inf"):
            raise InvalidValueError(f"resources[{key!r}] must be at least 0 and finite, got {amount!r}")
        if key == "GPU" and amount != int(amount):
            raise InvalidValueError(f"resources['GPU'] counts devices, so it must be whole, got {amount!r}")
        checked[name] = float(amount)
    return checked


def _path(what: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise InvalidTypeError(f"{what} must be a path, got {type(value).__name__}: {value!r}")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise InvalidTypeError(f"{what} must be a path of type str, got {path!r}")
    if not path:
        raise InvalidValueError(f"{what} must not be empty; leave it out")
    return os.path.abspath(path)


def methods(given: object) -> tuple[str, ...]:
    """HTTP methods. Which there are is checked where endpoints are kept."""
    if not isinstance(given, list | tuple | set | frozenset):
        raise InvalidTypeError(f"methods must be a list of HTTP methods such as ['GET'], got {type(given).__name__}: {given!r}")
    return tuple([text("an HTTP method", method) for method in given])


def tags(what: str, given: object) -> tuple[str, ...]:
    """Backends, by their tags."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InvalidTypeError(f"{what} must be a list of backend tags, got {type(given).__name__}: {given!r}")
    return tuple([text("a backend tag", tag) for tag in given])


def code_by_value(import_path: str, running: Code | None, *, updated: bool) -> Code:
    """The code of a backend that a file names by value: what runs, or nothing can be done. Raises `ConfigError`."""
    if running is None or running.import_path != import_path:
        found = "doesn't run here" if running is None else f"runs {running.import_path!r} here"
        raise ConfigError(
            f"import_path {import_path!r} is code that only the instance has which printed it, and the backend {found}; "
            "give 'module:name', or create the backend by create_backend"
        )
    if updated:
        raise ConfigError("its code can't be replaced by a file that has it by value; give 'module:name', or use update_backend")
    return running


def text(what: str, value: object) -> str:
    """A string that UTF-8 can encode."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{what} must be a string, got {type(value).__name__}: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(f"{what} must be text that UTF-8 can encode, got {value!r}") from None
    return value


def text_or_none(what: str, value: object) -> str | None:
    """Such a string, or None."""
    return None if value is None else text(what, value)


def _whole(what: str, value: object, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{what} must be a whole number, got {type(value).__name__}: {value!r}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidValueError(f"{what} must be {limits}, got {value}")
    return value


def flag(what: str, value: object) -> bool:
    """True or False, and nothing that only counts as one of them."""
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{what} must be True or False, got {type(value).__name__}: {value!r}")
    return value
