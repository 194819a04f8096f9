"""Which nodes does the cluster have, what is free on them, which are to have an ingress, and where is the next replica to be?

What this instance's own replicas take is known here as soon as they start and end. What others take is what Ray says is gone
beyond that, at the last two looks: Ray itself may lag a moment behind. Ray decides who is placed where; what waits for it is
told here.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import ray

from headgate.config import ReplicaOptions
from headgate.core.resources import Books
from headgate.engines.base import InstanceSettings
from headgate.engines.ray import autoscaler, placement
from headgate.errors import InsufficientResourcesError

HEAD: Final = "node:__internal_head__"
"""A resource that only the head node has."""
EVERY_NODE: Final = "every_node"
HEAD_ONLY: Final = "head_only"
_OTHERS: Final = "others"
_NOT_SHOWN: Final = ("node:", "object_store_memory", "accelerator_type:")
"""What Ray lists among the resources of a node, though nobody would call it one."""
_REACHED_WITHIN_S: Final = 1.0
_MEBIBYTE: Final = 1 << 20  # below it, memory is not taken by anybody: actors that need none ask for a byte
_AUTOSCALER_S: Final = 5.0
"""How often it is asked whether there is an autoscaler, whose report is long on a large cluster."""
_PLACED_WITHIN_S: Final = 5.0
"""Where there is room Ray has placed a replica, and its process runs, within this time; an installation takes longer."""

Amounts = dict[str, float]


class _Node:
    """One node that is alive."""

    def __init__(self, id: str, host: str, port: int, *, is_head: bool) -> None:
        self.id = id
        self.host = host
        self.port = port
        """Of Ray's own program there, the raylet."""
        self.is_head = is_head
        self.total: Amounts = {}
        self.labels: Mapping[str, str] = {}
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


class Seen(NamedTuple):
    """What Ray says of its nodes, of what is free on each of them, and where replicas are (empty: nowhere so far)."""

    nodes: list[Mapping[str, Any]]
    free: Mapping[str, Amounts]
    placed: Mapping[str, str]
    at: float  # time.monotonic()


class _Holder:
    """A replica of this instance, and where it is, once that is known."""

    def __init__(self, options: ReplicaOptions, backend: str, now: float) -> None:
        self.options = options
        self.backend = backend
        self.taken = placement.taken(options)
        self.since = now
        self.node = ""
        self.gpus: tuple[str, ...] = ()
        self.presumed = ""
        """Until that is known: the node that has room for it, where it is likely to come up any moment."""


class Cluster:
    """The nodes, and what replicas of one instance take of them."""

    def __init__(self, settings: InstanceSettings) -> None:
        self._settings = settings
        self._nodes: dict[str, _Node] = {}  # the head first, then by age, so that ingresses stay where they are
        self._holders: dict[str, _Holder] = {}
        self._grows = False  # by an autoscaler
        self._asks_again_at = 0.0

    def ask(self, unplaced: Mapping[str, str]) -> Seen:
        """Ask Ray, also where those of `unplaced` (the actors' ids, by replica) are by now. Blocks."""
        free = ray._private.state.available_resources_per_node()
        now = time.monotonic()
        if now >= self._asks_again_at:
            self._grows = autoscaler.is_configured()
            self._asks_again_at = now + _AUTOSCALER_S
        return Seen(ray.nodes(), free, {id: _node_of(actor) for id, actor in unplaced.items()}, now)

    def take_note(self, seen: Seen) -> None:
        """This is what Ray has said."""
        for id, where in seen.placed.items():
            if where:
                self.placed(id, where, ())
        nodes: list[_Node] = []
        taken: dict[str, Amounts] = {}
        for one in seen.nodes:
            if one["Alive"]:
                id, total = one["NodeID"], {"GPU": 0.0, **one["Resources"]}
                node = self._nodes.get(id) or _Node(id, one["NodeManagerAddress"], one["NodeManagerPort"], is_head=HEAD in total)
                node.total, node.labels = total, one.get("Labels") or {}
                taken[id] = dict(total)
                _add(taken[id], seen.free.get(id, {}), -1)
                nodes.append(node)
        self._doubt(seen.at)
        self._take_out_own(taken)
        for node in nodes:
            node.see(taken[node.id])
        known = {id: place for place, id in enumerate(self._nodes)}
        nodes.sort(key=lambda node: (not node.is_head, known.get(node.id, len(known)), node.id))
        self._nodes = {node.id: node for node in nodes}
        self._presume()

    def places(self) -> list[str]:
        """The ids of the nodes that are to have an ingress, the head's first."""
        wanted = self._settings.num_ingresses
        ids = list(self._nodes)
        if wanted == EVERY_NODE:
            return ids
        return ids[: 1 if wanted == HEAD_ONLY else int(wanted)]

    def has_ingresses(self, nodes: Collection[str]) -> None:
        """An engine before this one has started some there, where they are to stay."""
        self._nodes = dict(sorted(self._nodes.items(), key=lambda entry: (not entry[1].is_head, entry[0] not in nodes)))

    def host(self, node: str) -> str:
        """The address of a node; empty for one that is gone."""
        found = self._nodes.get(node)
        return "" if found is None else found.host

    def next_node(self, id: str, but: Collection[str] = ()) -> str:
        """Where a replica that has been counted should be, but on none of those: of the nodes where it fits, the one with the fewest
        replicas of its backend, and then of all backends. From then on it counts as being there. Empty where it fits on none.
        """
        holder = self._holders[id]
        books = {node: book for node, book in self._books(frozenset([id])).items() if node not in but}
        holder.presumed = self._take_anywhere(books, id, holder.options, holder.backend)
        return holder.presumed

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
        """A replica starts: count what it takes, if there is room for it."""
        self._holders[id] = _Holder(options, backend, time.monotonic())
        self._presume()

    def placed(self, id: str, node: str, gpus: tuple[str, ...]) -> None:
        """It is on this node, and has these devices, as far as they are known."""
        holder = self._holders.get(id)
        if holder is not None:
            holder.node, holder.gpus, holder.presumed = node, gpus or holder.gpus, ""

    def give_back(self, id: str) -> None:
        """It has ended."""
        if self._holders.pop(id, None) is not None:
            self._presume()

    def unplaced(self) -> list[str]:
        """The replicas of which it isn't known yet where they are."""
        return [id for id, holder in self._holders.items() if not holder.node]

    def waiting(self) -> dict[str, str]:
        """The replicas that no node has room for, and what each asks for and what is free."""
        return {id: self._found(holder.options) for id, holder in self._holders.items() if not (holder.node or holder.presumed)}

    def asked(self, id: str) -> str:
        """What a replica asks for and what is free."""
        return self._found(self._holders[id].options)

    def refusal(self, options: ReplicaOptions, count: int, without: Iterable[str] = ()) -> str | None:
        """None where so many more such replicas fit, also into what those `without` would give back; else what is asked and free."""
        why = self._fit(self._books(frozenset(without)), options, count)
        return None if why is None else self.never(options, count) or why

    def never(self, options: ReplicaOptions, count: int) -> str | None:
        """None where so many such replicas fit on these nodes while they are empty, or on nodes that may come.

        Else what is asked and what there is.
        """
        if self._grows and not placement.is_bound_to_a_node(options):
            return None
        wanted = placement.taken(options)
        allowed = [node for node in self._nodes.values() if placement.may_go_to(options, node.id, node.labels)]
        holds_one = any(Books(node.total).refusal(wanted) is None for node in allowed)
        if holds_one and (count == 1 or self._fit({node.id: Books(node.total) for node in allowed}, options, count) is None):
            return None
        asked = f"{placement.in_words(options)}{_each(count)}"
        if not allowed:
            return f"asked for {asked}; none of the {len(self._nodes)} nodes of the cluster is one of those"
        names = [*placement.amounts(options), *(name for name in wanted.resources if name not in options.resources)]
        if holds_one:
            there = ", ".join(f"{sum(node.total.get(name, 0.0) for node in allowed):g} {name}" for name in names)
            return f"asked for {asked}; the cluster has {there}, over {_nodes(allowed)}"
        most = ", ".join(f"{max(node.total.get(name, 0.0) for node in allowed):g} {name}" for name in names)
        return f"asked for {asked}; no node of the cluster has that much: at most {most}"

    def totals(self) -> Amounts:
        """What all nodes have together."""
        return _shown(_sum(node.total for node in self._nodes.values()))

    def free(self) -> Amounts:
        """What is free on all nodes together."""
        return _shown(self._free(self._nodes.values()))

    def _free(self, nodes: Collection[_Node]) -> Amounts:
        free = _sum(node.total for node in nodes)
        ids = {node.id for node in nodes}
        for node in nodes:
            _add(free, node.others, -1)
        for holder in self._holders.values():
            if (holder.node or holder.presumed) in ids:
                _add(free, placement.amounts(holder.taken), -1)
        return free

    def _found(self, options: ReplicaOptions, count: int = 1) -> str:
        """What is asked and free, in words."""
        allowed = [node for node in self._nodes.values() if placement.may_go_to(options, node.id, node.labels)]
        total, free = _sum(node.total for node in allowed), self._free(allowed)
        found = ", ".join(f"{max(free.get(name, 0.0), 0.0):g} of {total.get(name, 0.0):g} {name}" for name in placement.amounts(options))
        return f"asked for {placement.in_words(options)}{_each(count)}; free {found or 'nothing'}, over {_nodes(allowed)}"

    def _fit(self, books: Mapping[str, Books], options: ReplicaOptions, count: int) -> str | None:
        for number in range(count):
            if not self._take_anywhere(books, f"? {number}", options):
                return self._found(options, count)
        return None

    def _take_anywhere(self, books: Mapping[str, Books], id: str, options: ReplicaOptions, backend: str = "") -> str:
        """Book it on a node that it may go to and that has room; the node's id, or an empty string. Nodes with few of its backend first."""
        wanted = placement.taken(options)
        others = [other for one, other in self._holders.items() if one != id] if backend else []
        of_all = Counter(other.node or other.presumed for other in others)
        of_backend = Counter(other.node or other.presumed for other in others if other.backend == backend)
        for node, book in sorted(books.items(), key=lambda entry: (of_backend[entry[0]], of_all[entry[0]])):
            if placement.may_go_to(options, node, self._nodes[node].labels):
                try:
                    book.take(id, wanted)
                except InsufficientResourcesError:
                    continue
                return node
        return ""

    def _books(self, without: frozenset[str] = frozenset()) -> dict[str, Books]:
        """Those of all nodes, with all replicas that have room."""
        books = {node.id: Books(node.total) for node in self._nodes.values()}
        for node in self._nodes.values():
            gpus = node.others.get("GPU", 0.0)
            devices = [str(number) for number in range(int(node.total.get("GPU", 0)))]
            resources = {name: amount for name, amount in node.others.items() if name not in ("CPU", "GPU", "memory")}
            taken = ReplicaOptions(
                num_cpus=node.others.get("CPU", 0.0), num_gpus=gpus, memory=node.others.get("memory", 0.0), resources=resources
            )
            books[node.id].adopt(_OTHERS, taken, devices[::-1][: math.ceil(gpus)])
        on_their_way = []
        for id, holder in self._holders.items():
            if id in without:
                continue
            if holder.node in books:
                books[holder.node].adopt(id, holder.taken, holder.gpus)
            elif holder.presumed in books:
                on_their_way.append((id, holder))
        for id, holder in on_their_way:
            try:
                books[holder.presumed].take(id, holder.taken)
            except InsufficientResourcesError:
                books[holder.presumed].adopt(id, holder.taken, ())
        return books

    def _presume(self) -> None:
        """Those that wait get the room there is, by age: Ray will put them there."""
        waiting = [(id, holder) for id, holder in self._holders.items() if not (holder.node or holder.presumed)]
        if not waiting:
            return
        books = self._books()
        for id, holder in waiting:
            holder.presumed = self._take_anywhere(books, id, holder.options, holder.backend)
            if holder.presumed:
                holder.since = time.monotonic()

    def _doubt(self, now: float) -> None:
        """Of what Ray should have placed long ago, it isn't true that there is room: others have taken it."""
        for holder in self._holders.values():
            if holder.presumed and now - holder.since > _PLACED_WITHIN_S and not placement.sets_up(holder.options):
                holder.presumed = ""

    def _take_out_own(self, taken: dict[str, Amounts]) -> None:
        """Of what is taken on each node, leave what others have. One whose node isn't known yet may not have taken anything so far."""
        for holder in list(self._holders.values()):
            asked = placement.amounts(holder.taken)
            if holder.node in taken:
                _add(taken[holder.node], asked, -1)
            elif holder.presumed:
                nodes = [taken[holder.presumed], *taken.values()] if holder.presumed in taken else list(taken.values())
                found = [node for node in nodes if all(node.get(name, 0.0) >= amount - 1e-6 for name, amount in asked.items())]
                _add(found[0] if found else {}, asked, -1)


def _node_of(actor: str) -> str:
    """The node of an actor; empty where Ray hasn't placed it. Blocks."""
    table = ray._private.state.actors(actor_id=actor)
    return str(table["Address"]["NodeID"]) if table and table["State"] == "ALIVE" else ""


def _shown(resources: Amounts) -> Amounts:
    return {name: amount for name, amount in resources.items() if not name.startswith(_NOT_SHOWN)}


def _each(count: int) -> str:
    return f" for each of {count} replicas" if count > 1 else ""


def _nodes(nodes: Collection[_Node]) -> str:
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"


def _add(balance: Amounts, change: Amounts, sign: int) -> None:
    for name, amount in change.items():
        balance[name] = balance.get(name, 0.0) + sign * amount


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        _add(total, part, 1)
    return total
