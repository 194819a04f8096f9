"""How are the pieces of a body kept until it is whole?

Large ones as they are, so that they aren't copied; small ones put together, since each object costs more than its bytes.
"""

from __future__ import annotations

from typing import Final

_LARGE_BYTES: Final = 16 * 1024


class BodyPieces:
    """The pieces of one body, from the second on: most bodies come in one."""

    __slots__ = ("_pieces", "_small")

    def __init__(self, first: bytes) -> None:
        self._pieces: list[bytes] = []
        self._small = bytearray()
        self.add(first)

    def add(self, piece: bytes) -> None:
        """The next piece."""
        large = len(piece) >= _LARGE_BYTES
        if not large:
            self._small += piece
        if self._small and (large or len(self._small) >= _LARGE_BYTES):
            self._pieces.append(bytes(self._small))
            self._small.clear()
        if large:
            self._pieces.append(piece)

    def whole(self) -> list[bytes]:
        """All of it, in parts."""
        if self._small:
            self._pieces.append(bytes(self._small))
        return self._pieces
