"""How do records follow each other on a connection between processes of an instance?

Each is four bytes of length, big-endian, and msgpack. Links between routers and replicas have frames of their own: `wire.py`.
"""

from __future__ import annotations

import struct
from typing import Final, Generic, TypeVar

import msgspec

from headgate.errors import WireError

MAX_RECORD_BYTES: Final = 0xFFFFFFFF
_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()

Record = TypeVar("Record")


def encode(record: object) -> bytes:
    """A record as bytes, with its length in front."""
    data = _encoder.encode(record)
    return _LENGTH.pack(len(data)) + data


class RecordDecoder(Generic[Record]):
    """Turns received bytes into records, however they were cut. Garbage raises `WireError`."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Record], max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._decoder = decoder
        self._max = max_record_bytes
        self._buffer = bytearray()

    def received(self, data: bytes) -> list[Record]:
        """Add `data`; return the records that are now complete."""
        self._buffer += data
        records: list[Record] = []
        offset = 0
        while len(self._buffer) - offset >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, offset)
            if size > self._max:
                raise WireError(f"a control message of {size} bytes is over the limit of {self._max}; close this connection")
            stop = offset + _LENGTH.size + size
            if len(self._buffer) < stop:
                break
            try:
                records.append(self._decoder.decode(memoryview(self._buffer)[offset + _LENGTH.size : stop]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise WireError(f"not a control message: {error}; close this connection") from error
            offset = stop
        del self._buffer[:offset]
        return records
