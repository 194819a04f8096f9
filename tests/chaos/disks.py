"""What may be on a disk after the power went, from the calls that a process made until then?

What was synced is there. Of the rest anything may be: each sector of each write or not, each name that was made or removed or
not. That is harsher than file systems are, which keep some order; SQLite counts on no more than this.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.chaos.tracing import Call

SECTOR_BYTES: Final = 512
"""What a disk writes as a whole."""

_Image = dict[str, bytes]


class _File:
    """One file: what the disk has for good, and what was done to it since. Names lead to it."""

    def __init__(self, data: bytes = b"") -> None:
        self.synced = bytearray(data)
        self.loose: list[tuple[int, bytes] | int] = []
        """Writes (where, what), and sizes that it was cut to."""

    def now(self) -> bytearray:
        return self._with(self.loose)

    def sync(self) -> None:
        self.synced, self.loose = self.now(), []

    def after_a_cut(self, chance: random.Random, share: float) -> bytes:
        """With about this share of what was not synced."""
        kept: list[tuple[int, bytes] | int] = []
        for change in self.loose:
            if isinstance(change, int):
                if chance.random() < share:
                    kept.append(change)
                continue
            where, data = change
            while data:
                left = SECTOR_BYTES - where % SECTOR_BYTES
                if chance.random() < share:
                    kept.append((where, data[:left]))
                where, data = where + left, data[left:]
        return bytes(self._with(kept))

    def _with(self, changes: list[tuple[int, bytes] | int]) -> bytearray:
        data = bytearray(self.synced)
        for change in changes:
            if isinstance(change, int):
                del data[change:]
                continue
            where, written = change
            data.extend(bytes(max(0, where - len(data))))
            data[where : where + len(written)] = written
        return data


class Disk:
    """One folder on a disk that loses its power. It begins with what is in the folder, all of it synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._names = {entry.name: _File(entry.read_bytes()) for entry in folder.iterdir()}  # as processes see them
        self._synced_names = dict(self._names)
        self._loose_names: list[tuple[str, _File | None]] = []

    def do(self, call: Call) -> None:
        """One call more was made."""
        if call.path == self._folder:
            assert call.name in ("fsync", "fdatasync"), call
            self._synced_names, self._loose_names = dict(self._names), []
            return
        folder, name = os.path.split(call.path)
        if folder != self._folder:
            return
        match call.name:
            case "openat":
                if name not in self._names:
                    assert not call.at & os.O_TRUNC
                    self._name(name, _File())
            case "unlink":
                self._name(name, None)
            case "pwrite64":
                self._names[name].loose.append((call.at, call.data))
            case "ftruncate":
                self._names[name].loose.append(call.at)
            case "fsync" | "fdatasync":
                self._names[name].sync()
            case _:
                raise AssertionError(f"what does a disk do for {call}?")

    def now(self) -> _Image:
        """What processes see."""
        return {name: bytes(file.now()) for name, file in self._names.items()}

    def after_a_cut(self, chance: random.Random, draws: int) -> Iterator[_Image]:
        """What may be left: only what was synced, everything, and `draws` that chance makes of both."""
        for share in (0.0, 1.0, *(chance.choice((0.1, 0.5, 0.9)) for _ in range(draws))):
            names = dict(self._synced_names)
            for name, file in self._loose_names:
                if chance.random() < share:
                    _set(names, name, file)
            yield {name: file.after_a_cut(chance, share) for name, file in names.items()}

    def _name(self, name: str, file: _File | None) -> None:
        _set(self._names, name, file)
        self._loose_names.append((name, file))


def _set(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file
