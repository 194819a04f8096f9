"""How do Python arguments and answers become bytes, and back?

Pickle, protocol 5, with the buffers of large arrays beside it, so that they are copied once by the sender, who may change
them as soon as `dump` has returned, and not at all by the receiver. A payload is

    count        u32   buffers that stand beside the pickle
    if count is 0:     the pickle, to the end
    otherwise:
    reserved     u32
    sizes        u64   of the pickle, then of each buffer
    pickle, buffers    each padded to a multiple of 8 bytes

all little-endian. Values without parts (numbers, strings) are marshalled instead, which takes a third of the time; a count of
0xFFFFFFFF says so, and the rest is in version 2 of that format, the same in all Pythons that Headgate runs on.
"""

from __future__ import annotations

import marshal
import pickle
import struct
from typing import Any, Final

from headgate.errors import EncodeError, WireError
from headgate.router import byvalue
from headgate.router.references import Lending

_PLAIN: Final = b"\0\0\0\0"
_ATOMIC: Final = b"\xff\xff\xff\xff"
_MARSHAL_VERSION: Final = 2  # later ones look for what stands in it twice, which takes as long as all else
_COUNT = struct.Struct("<I")
_IN_BAND_BYTES = 1024
"""Buffers smaller than this go into the pickle: their bookkeeping would cost more than the copy."""
_LONGEST_NAME = 200
"""Characters in the name of a part that can't be sent, such as `[0]['model'].lock`."""
_PADDING = b"\0" * 8
_ATOMS: Final = frozenset((type(None), bool, int, float, complex, str, bytes))
"""Types without parts: no classes and no large arrays are in them, so that nothing has to be looked for."""
_SHORT_BYTES = 4096


def dump(value: object, names: tuple[str, ...] = (), lending: Lending | None = None) -> bytes:
    """Turn `value` into a payload, which doesn't change with `value` afterwards.

    Classes and functions that can't be imported elsewhere, such as those of `__main__`, go by value.
    References to objects of a store go as `lending` says, where there is one.
    Raises `EncodeError` that names what can't be pickled; `names` are what it calls the items of a tuple.
    """
    if type(value) in _ATOMS:
        return _ATOMIC + marshal.dumps(value, _MARSHAL_VERSION)  # type: ignore[arg-type]  # it is one of `_ATOMS`
    buffers: list[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if len(buffer.raw()) < _IN_BAND_BYTES:
            return True
        buffers.append(buffer)
        return False

    try:
        data = pickle.dumps(value, 5, buffer_callback=keep)
        by_value = b"__main__" in data or (lending is not None and lending.mark in data)
    except Exception:  # noqa: BLE001 - classes may fail to pickle in any way; most of them go by value
        by_value = True
    if by_value:
        # A reference to a class of `__main__` would name another module in the process that opens it.
        buffers.clear()
        try:
            data = byvalue.dumps(value, keep, lending)
        except EncodeError:
            raise
        except Exception as error:
            raise EncodeError(f"{culprit(value, names=names)} can't be sent to another process: {type(error).__name__}: {error}") from error
    if not buffers:
        return _PLAIN + data
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(data), *map(len, views)]
    parts: list[Any] = [struct.pack(f"<II{len(sizes)}Q", len(views), 0, *sizes)]
    for part in (data, *views):
        parts.append(part)
        parts.append(_PADDING[: -len(part) % 8])
    return b"".join(parts)


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any], lending: Lending | None = None) -> bytes:
    """The payload of a call's arguments. Raises `EncodeError`."""
    if not kwargs:
        for argument in args:
            if type(argument) not in _ATOMS:
                break
        else:
            return _ATOMIC + marshal.dumps((args, kwargs), _MARSHAL_VERSION)
    return dump((args, kwargs), ("args", "kwargs"), lending)


def load(data: bytes | bytearray) -> Any:
    """Open a payload. It runs code that the sender chose, so do so only inside the call.

    Arrays can be written to. Over a bytearray they are views of it: it lives as long as any of them, and belongs to them.
    Raises `WireError` where the payload is cut, and whatever the pickle raises.
    """
    kind = data[:4]
    if kind == _ATOMIC:
        try:
            return marshal.loads(data[4:] if len(data) < _SHORT_BYTES else memoryview(data)[4:])  # from a peer that may send pickles
        except (EOFError, ValueError, TypeError) as error:
            raise WireError(f"not a payload: {error}") from error
    if kind == _PLAIN:
        return pickle.loads(data[4:] if len(data) < _SHORT_BYTES else memoryview(data)[4:])  # to copy little is quicker
    if len(data) < 16:
        raise WireError(f"not a payload: {len(data)} bytes")
    if isinstance(data, bytes):
        data = bytearray(data)  # small ones arrive like this; arrays over bytes could not be written to
    (count,) = _COUNT.unpack_from(data)
    at = 8 + 8 * (count + 1)
    if at > len(data):
        raise WireError(f"not a payload: {count} buffers in {len(data)} bytes")
    view = memoryview(data)
    pieces: list[memoryview] = []
    for size in struct.unpack_from(f"<{count + 1}Q", data, 8):
        if size > len(data) - at:
            raise WireError(f"not a payload: a part of {size} bytes at {at}, of {len(data)} in all")
        pieces.append(view[at : at + size])
        at += size + -size % 8
    return pickle.loads(pieces[0], buffers=pieces[1:])


def culprit(value: object, name: str = "", names: tuple[str, ...] = ()) -> str:
    """Name the innermost part of `value` that can't be pickled, for the message of an error."""
    children: list[tuple[str, object]] = []
    if type(value) in (list, tuple):
        children = [(names[index] if names else f"{name}[{index}]", item) for index, item in enumerate(value)]  # type: ignore[var-annotated, arg-type]  # checked above
    elif type(value) is dict:
        children = [(f"{name}[{key!r}]", item) for key, item in value.items()]
    for child_name, child in children if len(name) < _LONGEST_NAME else ():  # what contains itself has no innermost part
        try:
            byvalue.dumps(child)
        except Exception:  # noqa: BLE001 - whatever it raises, this is the part to name
            return culprit(child, child_name)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{name} (of type {kind})" if name else f"an object of type {kind}"
