"""What is kept of an instance in the cluster's key-value store?

One record says where it is, one is its state, and each actor has two: what it was started from, and how far it has come, by
which a new controller adopts it. The store is Ray's, in the head node's control service: every process of the cluster reads
it, and it ends with the head, unless Ray keeps it in Redis.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

import msgspec
from ray.experimental import internal_kv

from headgate.engines.base import IngressSpec, InstanceSettings, ReplicaSpec
from headgate.errors import InstanceStartError

_NAMESPACE: Final = b"headgate"

T = TypeVar("T")


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance is. Written when it starts, and by each of its controllers; deleted when it ends."""

    settings: InstanceSettings
    secret: bytes
    controller: str = ""  # its address; empty until it listens for the first time
    serving: bool = False  # HTTP has answered

    def __repr__(self) -> str:  # the secret is in no log
        return f"InstanceRecord(settings={self.settings!r}, controller={self.controller!r}, serving={self.serving!r})"


class ActorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How far an actor has come."""

    state: str
    pid: int | None = None
    address: str = ""
    node: str = ""
    gpus: tuple[str, ...] = ()


def _folder(name: str) -> str:
    """Of all keys of an instance: no name, whatever is in it, lies within another's."""
    return quote(name, safe="")


def instance_key(name: str) -> str:
    """Of the instance of that name."""
    return f"{_folder(name)}/instance"


def state_key(name: str) -> str:
    """Of what its controllers keep."""
    return f"{_folder(name)}/state"


def spec_key(name: str, id: str) -> str:
    """Of what one of its actors is started from."""
    return f"{_folder(name)}/spec/{id}"


def actor_key(name: str, id: str) -> str:
    """Of how far one of its actors has come."""
    return f"{_folder(name)}/actor/{id}"


def burial_key(name: str) -> str:
    """There while a process removes what an instance that died has left."""
    return f"{_folder(name)}/burial"


def names() -> list[str]:
    """Of all instances of which something is kept, in their order."""
    keys = [key.decode().split("/") for key in internal_kv._internal_kv_list(b"", namespace=_NAMESPACE)]
    return sorted(unquote(folder) for folder, *rest in keys if rest == ["instance"])


def ids(name: str) -> set[str]:
    """Of all actors of an instance of which it is kept what they were started from."""
    prefix = spec_key(name, "").encode()
    return {key[len(prefix) :].decode() for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE)}


def read(key: str) -> bytes | None:
    """The value of a key; None where there is none. Blocks, as do all of these."""
    value: bytes | None = internal_kv._internal_kv_get(key.encode(), namespace=_NAMESPACE)
    return value


def read_as(key: str, of: type[T]) -> T | None:
    """The record of a key; None where there is none. Raises `InstanceStartError` for one that this version can't read."""
    value = read(key)
    try:
        return None if value is None else msgspec.msgpack.decode(value, type=of)
    except msgspec.MsgspecError as error:
        raise InstanceStartError(
            f"what the cluster keeps as {key!r} was written by another version of Headgate ({error}); "
            "end that instance with the version that started it, or start this one under another name"
        ) from error


def write(key: str, value: bytes) -> None:
    """Set a key."""
    internal_kv._internal_kv_put(key.encode(), value, overwrite=True, namespace=_NAMESPACE)


def write_as(key: str, record: InstanceRecord | ActorRecord | ReplicaSpec | IngressSpec) -> None:
    """Set a key to a record."""
    write(key, msgspec.msgpack.encode(record))


def write_if_new(key: str, record: InstanceRecord | None = None) -> bool:
    """Set a key that there isn't yet; False where there is."""
    existed: bool = internal_kv._internal_kv_put(key.encode(), msgspec.msgpack.encode(record), overwrite=False, namespace=_NAMESPACE)
    return not existed


def note(settings: InstanceSettings, changes: dict[str, Any]) -> None:
    """Change the record of an instance, unless it has ended. Only its controller does, one change after the other."""
    record = read_as(instance_key(settings.name), InstanceRecord)
    if record is not None and record.settings.id == settings.id:
        write_as(instance_key(settings.name), msgspec.structs.replace(record, **changes))


def delete(key: str) -> None:
    """Remove a key, if it is there."""
    internal_kv._internal_kv_del(key.encode(), namespace=_NAMESPACE)


def delete_all(name: str) -> None:
    """Remove everything of an instance: its own record last, by which others see that it has ended."""
    for kind in ("spec/", "actor/", "state"):
        internal_kv._internal_kv_del(f"{_folder(name)}/{kind}".encode(), del_by_prefix=True, namespace=_NAMESPACE)
    delete(instance_key(name))
