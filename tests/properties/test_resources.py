"""Do the books always balance?

The oracle keeps every amount as a fraction, and places GPU shares by looking at all devices.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headgate.config import ReplicaOptions
from headgate.core.resources import Books
from headgate.errors import InsufficientResourcesError

TENTHS = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7]
OPTIONS = st.builds(
    ReplicaOptions,
    num_cpus=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]),
    num_gpus=st.sampled_from([*TENTHS, 0.9, 1.0, 2.0]),
    memory=st.sampled_from([0.0, 1e9]),
    resources=st.dictionaries(st.sampled_from(["tpu", "unknown"]), st.sampled_from([0.0, 0.3, 1.0]), max_size=2),
)


def exact(amount: float) -> Fraction:
    return Fraction(str(amount))


class AgainstFractions(RuleBasedStateMachine):
    """One machine's life."""

    @initialize(gpus=st.integers(0, 3), cpus=st.integers(0, 4))
    def begin(self, gpus: int, cpus: int) -> None:
        self.ids = [f"gpu{number}" for number in range(gpus)]
        self.books = Books({"CPU": cpus, "GPU": gpus, "memory": 3e9, "tpu": 1.0}, self.ids)
        self.totals = {"CPU": Fraction(cpus), "memory": Fraction(3 * 10**9), "tpu": Fraction(1)}
        self.held: dict[str, tuple[dict[str, Fraction], dict[str, Fraction]]] = {}
        self.count = 0

    def free(self, without: list[str] | None = None) -> dict[str, Fraction]:
        free = dict(self.totals)
        for holder, (amounts, _) in self.held.items():
            for name, amount in amounts.items():
                if holder not in (without or ()):
                    free[name] -= amount
        return free

    def free_devices(self, without: list[str] | None = None) -> list[Fraction]:
        used = [gpus for holder, (_, gpus) in self.held.items() if holder not in (without or ())]
        return [1 - sum((gpus.get(device, Fraction(0)) for gpus in used), Fraction(0)) for device in self.ids]

    def asked(self, options: ReplicaOptions) -> dict[str, Fraction]:
        amounts = {"CPU": options.num_cpus, "memory": options.memory, **options.resources}
        return {name: exact(amount) for name, amount in amounts.items() if amount}

    def fits(self, options: ReplicaOptions, count: int, without: list[str]) -> bool:
        free = self.free(without)
        if any(amount * count > free.get(name, 0) for name, amount in self.asked(options).items()):
            return False
        gpu, devices = exact(options.num_gpus), self.free_devices(without)
        if gpu == 0:
            return True
        if gpu >= 1:
            return devices.count(Fraction(1)) >= gpu * count
        return sum(device // gpu for device in devices) >= count

    @rule(options=OPTIONS)
    def take(self, options: ReplicaOptions) -> None:
        self.count += 1
        holder = f"replica{self.count}"
        before = dict(zip(self.ids, self.free_devices(), strict=True))
        if not self.fits(options, 1, []):
            with pytest.raises(InsufficientResourcesError):
                self.books.take(holder, options)
            return
        gpus = self.books.take(holder, options)
        share = min(exact(options.num_gpus), Fraction(1))
        assert len(set(gpus)) == len(gpus)
        assert len(gpus) * share == exact(options.num_gpus)
        for device in gpus:
            assert before[device] >= share
            # No other device with enough room left is fuller.
            assert before[device] == min(room for room in before.values() if room >= share)
        self.held[holder] = (self.asked(options), dict.fromkeys(gpus, share))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def give_back(self, which: int) -> None:
        holder = list(self.held)[which % len(self.held)]
        del self.held[holder]
        self.books.give_back(holder)
        self.books.give_back(holder)

    @rule(options=OPTIONS, count=st.integers(1, 4), data=st.data())
    def ask_what_would_fit(self, options: ReplicaOptions, count: int, data: st.DataObject) -> None:
        without = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True)) if self.held else []
        refusal = self.books.refusal(options, count, [*without, "nobody"])
        assert (refusal is None) == self.fits(options, count, without)

    @rule()
    def start_again_with_what_runs(self) -> None:
        """As a new controller does: the same books come out of what is found running."""
        books = Books({**{name: float(amount) for name, amount in self.totals.items()}, "GPU": len(self.ids)}, self.ids)
        for holder, (amounts, gpus) in self.held.items():
            custom = {name: float(amount) for name, amount in amounts.items() if name not in ("CPU", "memory")}
            options = ReplicaOptions(
                num_cpus=float(amounts.get("CPU", 0)),
                memory=float(amounts.get("memory", 0)),
                num_gpus=float(sum(gpus.values())),
                resources=custom,
            )
            books.adopt(holder, options, tuple(gpus))
        assert books.free() == self.books.free()
        self.books = books

    @invariant()
    def nothing_is_lost_or_made(self) -> None:
        if not hasattr(self, "books"):
            return
        free = self.books.free()
        for name, amount in self.free().items():
            assert free[name] == float(amount)
        assert free["GPU"] == float(sum(self.free_devices(), Fraction(0)))
        assert all(amount >= 0 for amount in free.values())


TestAgainstFractions = AgainstFractions.TestCase
