"""Which nodes does the cluster have, what is free on them, which are to have an ingress, and where is the next replica to be?

What this instance's own replicas take is known here as soon as they start and end. What others take is what Ray says is gone
beyond that, at the last two looks: Ray itself may lag a moment behind.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

import msgspec
import ray

from headgate.config import ReplicaOptions
from headgate.core.resources import Books
from headgate.engines.base import InstanceSettings
from headgate.errors import InsufficientResourcesError

HEAD: Final = "node:__internal_head__"
"""A resource that only the head node has."""
EVERY_NODE: Final = "every_node"
HEAD_ONLY: Final = "head_only"
_OTHERS: Final = "others"
_NOT_ASKED_FOR: Final = ("node:", "object_store_memory", "accelerator_type:")
"""What Ray lists among the resources of a node, and no replica asks for."""
_REACHED_WITHIN_S: Final = 1.0
_MEBIBYTE: Final = 1 << 20  # below it, memory is not taken by anybody: actors that need none ask for a byte

Amounts = dict[str, float]


class _Node:
    """One node that is alive."""

    def __init__(self, id: str, host: str, port: int, total: Amounts, *, is_head: bool) -> None:
        self.id = id
        self.host = host
        self.port = port
        """Of Ray's own program there, the raylet."""
        self.total = total
        self.is_head = is_head
        self.others: Amounts = {}
        """What others than this instance took, by both of the last two looks, and …"""
        self.latest: Amounts = {}
        """… by the last one."""

    def see(self, taken: Amounts) -> None:
        """So much of it is taken by others, now."""
        latest = {name: max(0.0, taken.get(name, 0.0)) for name in self.total}
        latest["memory"] = latest.get("memory", 0.0) // _MEBIBYTE * _MEBIBYTE
        self.others = {name: min(amount, self.latest.get(name, 0.0)) for name, amount in latest.items()}
        self.latest = latest


class _Holder(msgspec.Struct):
    """A replica of this instance; where it is to be; and where it is, once that is known."""

    options: ReplicaOptions
    backend: str
    planned: str = ""
    node: str = ""
    gpus: tuple[str, ...] = ()


class Cluster:
    """The nodes, and what replicas of one instance take of them."""

    def __init__(self, settings: InstanceSettings) -> None:
        self._settings = settings
        self._nodes: dict[str, _Node] = {}  # the head first, then by id
        self._holders: dict[str, _Holder] = {}

    def look(self) -> None:
        """Ask Ray. Blocks."""
        free = ray._private.state.available_resources_per_node()
        nodes: list[_Node] = []
        taken: dict[str, Amounts] = {}
        for found in ray.nodes():
            if found["Alive"]:
                id, total = found["NodeID"], _asked_for(found["Resources"])
                host, port, is_head = found["NodeManagerAddress"], found["NodeManagerPort"], HEAD in found["Resources"]
                node = self._nodes.get(id) or _Node(id, host, port, total, is_head=is_head)
                node.total = total
                taken[id] = dict(total)
                _add(taken[id], _asked_for(free.get(id, {})), -1)
                nodes.append(node)
        self._take_out_own(taken)
        for node in nodes:
            node.see(taken[node.id])
        nodes.sort(key=lambda node: (not node.is_head, node.id))
        self._nodes = {node.id: node for node in nodes}

    def places(self) -> list[str]:
        """The ids of the nodes that are to have an ingress, the head's first."""
        wanted = self._settings.num_ingresses
        ids = list(self._nodes)
        if wanted == EVERY_NODE:
            return ids
        return ids[: 1 if wanted == HEAD_ONLY else int(wanted)]

    def host(self, node: str) -> str:
        """The address of a node; empty for one that is gone."""
        found = self._nodes.get(node)
        return "" if found is None else found.host

    def next_node(self, id: str, but: Collection[str] = ()) -> str:
        """Where a replica that has been counted should be, but on none of those: of the nodes where it fits, the one with the fewest
        replicas of its backend, and then of all backends. From then on it counts as being there. Empty where it fits on none.
        """
        holder = self._holders[id]
        books = zip(self._nodes, self._books(frozenset([id])), strict=True)
        fitting = [node for node, book in books if node not in but and book.refusal(holder.options) is None]
        others = [other for other in self._holders.values() if other is not holder]
        of_all = Counter(other.node or other.planned for other in others)
        of_backend = Counter(other.node or other.planned for other in others if other.backend == holder.backend)
        holder.planned = min(fitting, key=lambda node: (of_backend[node], of_all[node]), default="")
        return holder.planned

    def answers(self, node: str) -> bool:
        """Whether Ray's program on that node takes a connection now: Ray itself learns of a lost node only after a while. Blocks."""
        found = self._nodes.get(node)
        if found is None:
            return False
        try:
            socket.create_connection((found.host, found.port), _REACHED_WITHIN_S).close()
        except OSError:
            return False
        return True

    # What this instance takes.

    def take(self, id: str, options: ReplicaOptions, backend: str) -> None:
        """A replica starts: count what it takes."""
        self._holders[id] = _Holder(options, backend)

    def placed(self, id: str, node: str, gpus: tuple[str, ...]) -> None:
        """It is on this node, and has these devices."""
        holder = self._holders.get(id)
        if holder is not None:
            holder.node, holder.gpus = node, gpus

    def give_back(self, id: str) -> None:
        """It has ended."""
        self._holders.pop(id, None)

    def refusal(self, options: ReplicaOptions, count: int, without: Iterable[str] = ()) -> str | None:
        """None where so many more such replicas fit, also into what those `without` would give back; else what is asked and free."""
        books = self._books(frozenset(without))
        for number in range(count):
            if not _take_anywhere(books, f"? {number}", options):
                break
        else:
            return None
        each = f" for each of {count} replicas" if count > 1 else ""
        asked = _amounts(options)
        text = " and ".join(f"{amount:g} {name}" for name, amount in asked.items())
        if not any(Books(node.total).refusal(options) is None for node in self._nodes.values()):
            most = ", ".join(f"{max((node.total.get(name, 0.0) for node in self._nodes.values()), default=0.0):g} {name}" for name in asked)
            return f"asked for {text}{each}; no node of the cluster has that much: at most {most}"
        total, free = self.totals(), self.free()
        found = ", ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name in asked)
        return f"asked for {text}{each}; free {found}, over {len(self._nodes)} nodes"

    def totals(self) -> Amounts:
        """What all nodes have together."""
        return _sum(node.total for node in self._nodes.values())

    def free(self) -> Amounts:
        """What is free on all nodes together."""
        free = self.totals()
        for node in self._nodes.values():
            _add(free, node.others, -1)
        for holder in self._holders.values():
            _add(free, _amounts(holder.options), -1)
        return free

    def _books(self, without: frozenset[str]) -> list[Books]:
        """Those of all nodes. Replicas of which it isn't known yet where they are, are put where they fit."""
        books = {node.id: Books(node.total) for node in self._nodes.values()}
        for node in self._nodes.values():
            gpus = node.others.get("GPU", 0.0)
            devices = [str(number) for number in range(int(node.total.get("GPU", 0)))]
            resources = {name: amount for name, amount in node.others.items() if name not in ("CPU", "GPU", "memory")}
            taken = ReplicaOptions(
                num_cpus=node.others.get("CPU", 0.0), num_gpus=gpus, memory=node.others.get("memory", 0.0), resources=resources
            )
            books[node.id].adopt(_OTHERS, taken, devices[::-1][: math.ceil(gpus)])
        unplaced = []
        for id, holder in self._holders.items():
            if id in without:
                continue
            if holder.node in books:
                books[holder.node].adopt(id, holder.options, holder.gpus)
            else:
                unplaced.append((id, holder))
        for id, holder in unplaced:
            planned = [books[holder.planned]] if holder.planned in books else []
            _take_anywhere([*planned, *books.values()], id, holder.options)
        return list(books.values())

    def _take_out_own(self, taken: dict[str, Amounts]) -> None:
        """Of what is taken on each node, leave what others have. One whose node isn't known yet may not have taken anything so far."""
        for holder in list(self._holders.values()):
            asked = _amounts(holder.options)
            if not holder.node:
                nodes = [taken[holder.planned], *taken.values()] if holder.planned in taken else list(taken.values())
                found = [node for node in nodes if all(node.get(name, 0.0) >= amount - 1e-6 for name, amount in asked.items())]
                _add(found[0] if found else {}, asked, -1)
            elif holder.node in taken:
                _add(taken[holder.node], asked, -1)


def _take_anywhere(books: Iterable[Books], id: str, options: ReplicaOptions) -> bool:
    for book in books:
        try:
            book.take(id, options)
        except InsufficientResourcesError:
            continue
        return True
    return False


def _amounts(options: ReplicaOptions) -> Amounts:
    asked = {"CPU": options.num_cpus, "GPU": options.num_gpus, "memory": options.memory, **options.resources}
    return {name: amount for name, amount in asked.items() if amount}


def _asked_for(resources: Amounts) -> Amounts:
    return {name: amount for name, amount in resources.items() if not name.startswith(_NOT_ASKED_FOR)} | {"GPU": resources.get("GPU", 0.0)}


def _add(balance: Amounts, change: Amounts, sign: int) -> None:
    for name, amount in change.items():
        balance[name] = balance.get(name, 0.0) + sign * amount


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        _add(total, part, 1)
    return total
