"""Does a replica fit, and which devices does it get?

The books of one machine, kept as Ray keeps them: amounts count in ten-thousandths, so that ten times 0.1 is 1; what
isn't asked for isn't counted; a whole GPU is a device that nobody shares, and shares below 1 fill one device before they
open the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from headgate.config import ReplicaOptions
from headgate.errors import InsufficientResourcesError

_UNIT: Final = 10_000
_NO_GPU: Final = " (no GPU was found, or CUDA_VISIBLE_DEVICES hides all; without num_gpus it runs on CPUs)"


class Booking(msgspec.Struct, frozen=True):
    """What one holder has, in ten-thousandths: by name of the resource, and by id of the GPU device."""

    amounts: dict[str, int]
    gpus: dict[str, int]


class Books:
    """What a machine has, and who holds how much of it.

    `totals` are amounts by name; "CPU", "GPU" and "memory" (bytes) are what `num_cpus`, `num_gpus` and `memory` ask for,
    the others are custom. `gpu_ids` name the devices, `totals["GPU"]` of them; not given, they are numbered from 0.
    """

    def __init__(self, totals: Mapping[str, float], gpu_ids: Sequence[str] | None = None) -> None:
        count = int(totals.get("GPU", 0))
        ids = [str(number) for number in range(count)] if gpu_ids is None else gpu_ids[:count]
        self._totals = {name: _units(amount) for name, amount in totals.items()}
        self._totals["GPU"] = len(ids) * _UNIT
        self._free = {name: amount for name, amount in self._totals.items() if name != "GPU"}
        self._free_gpus = dict.fromkeys(ids, _UNIT)
        self._bookings: dict[str, Booking] = {}

    def take(self, holder: str, options: ReplicaOptions) -> tuple[str, ...]:
        """Book what one replica asks for; return the ids of its GPU devices.

        Raises `InsufficientResourcesError`, naming asked and free, where it doesn't fit; then nothing is booked.
        """
        gpus = _place(self._free_gpus, _units(options.num_gpus))
        reason = self.refusal(options)
        if reason is not None or gpus is None:
            raise InsufficientResourcesError(reason or "")
        self._book(holder, Booking(_amounts(options), gpus))
        return tuple(gpus)

    def adopt(self, holder: str, options: ReplicaOptions, gpus: Iterable[str]) -> None:
        """Book what a replica holds that runs already, with its devices; also where it doesn't fit any more."""
        share = min(_units(options.num_gpus), _UNIT)
        self._book(holder, Booking(_amounts(options), {gpu: share for gpu in gpus if gpu in self._free_gpus}))

    def give_back(self, holder: str) -> None:
        """A holder has ended. One that holds nothing is ignored."""
        booking = self._bookings.pop(holder, None)
        if booking is not None:
            _add(self._free, booking.amounts, 1)
            _add(self._free_gpus, booking.gpus, 1)

    def refusal(self, options: ReplicaOptions, count: int = 1, without: Iterable[str] = ()) -> str | None:
        """None where `count` such replicas fit into what is free and what the holders `without` would give back; else why not."""
        free, free_gpus = dict(self._free), dict(self._free_gpus)
        for holder in set(without) & self._bookings.keys():
            _add(free, self._bookings[holder].amounts, 1)
            _add(free_gpus, self._bookings[holder].gpus, 1)
        amounts, gpu = _amounts(options), _units(options.num_gpus)
        fits = all(amount * count <= free.get(name, 0) for name, amount in amounts.items())
        left = dict(free_gpus)
        for _ in range(count if gpu else 0):
            placed = _place(left, gpu)
            if placed is None:
                fits = False
                break
            _add(left, placed, -1)
        if fits:
            return None
        asked = {**amounts, "GPU": gpu} if gpu else amounts
        parts = [f"{_number(amount)} {name}" for name, amount in asked.items()]
        found = [self._found(name, free, free_gpus) for name in asked]
        hint = _NO_GPU if gpu and not self._totals["GPU"] else ""
        return f"asked for {' and '.join(parts)}{f' for each of {count} replicas' if count > 1 else ''}; free {', '.join(found)}{hint}"

    def totals(self) -> dict[str, float]:
        """What there is, by name."""
        return {name: amount / _UNIT for name, amount in self._totals.items()}

    def free(self) -> dict[str, float]:
        """What is not booked, by name; below 0 where more was adopted than there is."""
        free = {**self._free, "GPU": sum(self._free_gpus.values())}
        return {name: free[name] / _UNIT for name in self._totals}

    def _book(self, holder: str, booking: Booking) -> None:
        self.give_back(holder)
        _add(self._free, booking.amounts, -1)
        _add(self._free_gpus, booking.gpus, -1)
        self._bookings[holder] = booking

    def _found(self, name: str, free: Mapping[str, int], free_gpus: Mapping[str, int]) -> str:
        if name != "GPU":
            return f"{_number(free.get(name, 0))} of {_number(self._totals.get(name, 0))} {name}"
        text = f"{_number(sum(free_gpus.values()))} of {_number(self._totals['GPU'])} GPU"
        shares = [amount for amount in free_gpus.values() if 0 < amount < _UNIT]
        return f"{text} (in shares of {' and '.join(map(_number, shares))})" if shares else text


def _amounts(options: ReplicaOptions) -> dict[str, int]:
    """All that is asked for except GPUs."""
    asked = {"CPU": options.num_cpus, "memory": options.memory, **options.resources}
    return {name: _units(amount) for name, amount in asked.items() if amount}


def _units(amount: float) -> int:
    """Ten-thousandths, the least of them for what is above 0 but less."""
    return max(1, round(amount * _UNIT)) if amount > 0 else 0


def _number(units: int) -> str:
    return f"{units / _UNIT:.15g}"


def _place(free_gpus: Mapping[str, int], units: int) -> dict[str, int] | None:
    """Devices for one replica: free ones where it takes them whole, else the fullest that has the share left. None: no room."""
    if units == 0:
        return {}
    if units >= _UNIT:
        whole = [device for device, amount in free_gpus.items() if amount == _UNIT]
        return dict.fromkeys(whole[: units // _UNIT], _UNIT) if len(whole) * _UNIT >= units else None
    shared = [(amount, device) for device, amount in free_gpus.items() if amount >= units]
    return {min(shared, key=lambda entry: entry[0])[1]: units} if shared else None


def _add(balance: dict[str, int], amounts: Mapping[str, int], sign: int) -> None:
    for name, amount in amounts.items():
        balance[name] = balance.get(name, 0) + sign * amount
