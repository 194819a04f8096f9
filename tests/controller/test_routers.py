"""What is each router told, and when? The controller's side with connections that note what they are sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from headgate.controller.routers import Routers
from headgate.controller.server import Connection
from headgate.controller.tasks import Changes
from headgate.core import messages, tables
from headgate.core.labels import Labels
from headgate.core.messages import (
    Applied,
    BackendEntry,
    Count,
    EndpointEntry,
    Hello,
    Idle,
    Message,
    ReplicaEntry,
    RoutingChanges,
    RoutingTable,
    SendTable,
)
from headgate.core.reports import RETRIED, Counters, EventCount
from headgate.core.subsets import FEWEST_ROUTERS
from headgate.engines.base import IngressSpec
from tests.controller.rig import Process, Rig, play
from tests.support import until


class Peer:
    """A router, as its connection shows it. It follows what it is sent when it is told to."""

    def __init__(self, id: str, role: str = "ingress", place: str = "") -> None:
        self.hello = Hello(messages.PROTOCOL, role, id, 1, routes=True, place=place or id if role == "ingress" else "")
        self.arrived: list[Message] = []
        self.table: RoutingTable | None = None
        self.slow = False
        self._unsent: Callable[[], bytes] | None = None

    def send(self, message: Message) -> None:
        self.arrived.append(message)

    def send_latest(self, make: Callable[[], bytes]) -> None:
        if self.slow:
            self._unsent = make
            return
        for message in messages.MessageDecoder().received(make()):
            assert isinstance(message, RoutingTable | RoutingChanges)
            self.arrived.append(message)
            self.table = tables.follow(self.table, message)
            assert self.table is not None

    def reads_again(self) -> None:
        self.slow = False
        assert self._unsent is not None
        self.send_latest(self._unsent)

    def replicas(self, tag: str) -> set[str]:
        assert self.table is not None
        return {replica.id for replica in self.table.backends[tag].replicas}


class Scene:
    """Routers, what there is to route, and those who follow."""

    def __init__(self) -> None:
        self.table = RoutingTable(0)
        self.built = 0
        self.routers = Routers(Changes(), Labels(), build=self._build, in_replica=lambda hello: hello.id.startswith("in"))
        self.routers.begin(1)
        self.peers: list[Peer] = []

    def _build(self) -> RoutingTable:
        self.built += 1
        return self.table

    def peer(self, id: str, role: str = "ingress", place: str = "") -> Peer:
        peer = Peer(id, role, place)
        self.peers.append(peer)
        if role == "ingress":
            self.routers.ingresses[id] = peer.hello.place
        self.routers.add(cast(Connection, peer))
        return peer

    def say(self, peer: Peer, message: Message) -> None:
        assert self.routers.received(cast(Connection, peer), message)

    def follow(self, *peers: Peer) -> None:
        for peer in peers or self.peers:
            assert peer.table is not None
            self.say(peer, Applied(peer.table.version))
            self.say(peer, Idle(peer.table.version))

    def change(self, **parts: Any) -> int:
        """Something has changed; returns the version to wait for."""
        self.table = msgspec.structs.replace(self.table, **parts)
        return self.routers.changed()

    def endpoint(self, name: str) -> int:
        return self.change(endpoints=self.table.endpoints | {name: EndpointEntry(name, None, ("GET",))})

    def backend(self, tag: str, replicas: list[str]) -> int:
        entries = tuple(ReplicaEntry(id, f"/{id}", "t") for id in sorted(replicas))
        entry = BackendEntry(tag, 1, 1, False, 0.0, None, 10, None, False, (), ("",), entries, 0)
        return self.change(backends=self.table.backends | {tag: entry})


def run(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        made = Scene()
        try:
            await asyncio.wait_for(scene(made), 30)
        finally:
            made.routers.close()

    asyncio.run(main())


async def pushed(scene: Scene, version: int) -> None:
    await until(lambda: scene.routers.version >= version, "it is pushed")


def test_who_connects_before_there_is_anything_to_route_has_no_table_built():
    async def play_it(scene: Scene) -> None:
        early = scene.peer("i1")
        for _ in range(5):
            await asyncio.sleep(0)
        assert scene.built == 0
        version = scene.endpoint("e")
        waits = asyncio.ensure_future(scene.routers.in_force(version))
        await pushed(scene, version)
        assert early.table is not None
        assert not waits.done()
        scene.follow()
        await waits

    run(play_it)


def test_the_first_change_is_pushed_at_once_and_all_of_one_turn_make_one_push():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        versions = {scene.endpoint(f"e{n}") for n in range(100)}
        assert len(versions) == 1
        assert not ingress.arrived
        await asyncio.sleep(0)  # a turn, in which the push was due
        assert len(ingress.arrived) == scene.built == 1
        assert ingress.table is not None
        assert len(ingress.table.endpoints) == 100

    run(play_it)


def test_a_burst_of_changes_makes_few_pushes_and_the_last_is_never_missed():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        for n in range(500):
            version = scene.endpoint(f"e{n}")
            await asyncio.sleep(0)
        await pushed(scene, version)
        assert ingress.table is not None
        assert len(ingress.table.endpoints) == 500
        assert scene.built < 250

    run(play_it)


def test_a_router_gets_the_whole_first_and_then_what_has_changed():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        await pushed(scene, scene.backend("b", ["r1", "r2"]))
        await pushed(scene, scene.backend("b", ["r2", "r3"]))
        whole, change = ingress.arrived
        assert isinstance(whole, RoutingTable)
        assert isinstance(change, RoutingChanges)
        assert [replica.id for replica in change.backends["b"].added] == ["r3"]
        assert change.backends["b"].removed == ("r1",)
        assert ingress.table is not None
        assert ingress.table.backends == scene.table.backends
        late = scene.peer("late", role="client")
        assert isinstance(late.arrived[0], RoutingTable)
        assert late.table == ingress.table

    run(play_it)


def test_what_says_nothing_new_is_not_sent_and_nobody_waits_for_it():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        await pushed(scene, scene.endpoint("e"))
        scene.follow()
        version = scene.routers.changed()
        assert version > scene.routers.version
        assert await scene.routers.in_force(version) == ()
        assert len(ingress.arrived) == 1
        again = scene.endpoint("f")
        assert again > version
        await pushed(scene, again)
        assert len(ingress.arrived) == 2

    run(play_it)


def test_a_version_is_in_force_when_it_was_pushed_and_every_ingress_follows():
    async def play_it(scene: Scene) -> None:
        one, two = scene.peer("i1"), scene.peer("i2")
        version = scene.endpoint("e")
        waits = asyncio.ensure_future(scene.routers.in_force(version))
        await pushed(scene, version)
        scene.follow(one)
        await asyncio.sleep(0)
        assert not waits.done()
        scene.follow(two)
        assert await waits == ()

    run(play_it)


def test_who_waits_for_an_older_version_is_told_though_newer_ones_follow():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        first = scene.endpoint("e")
        waits = asyncio.ensure_future(scene.routers.in_force(first))
        await pushed(scene, first)
        assert ingress.table is not None
        of_first = ingress.table.version
        await pushed(scene, scene.endpoint("f"))
        scene.say(ingress, Applied(of_first))
        await waits

    run(play_it)


def test_who_does_not_read_is_told_all_at_once_when_it_reads_again():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        await pushed(scene, scene.endpoint("e"))
        ingress.slow = True
        for n in range(5):
            await pushed(scene, scene.endpoint(f"e{n}"))
        assert len(ingress.arrived) == 1
        ingress.reads_again()
        assert len(ingress.arrived) == 2
        assert ingress.table is not None
        assert ingress.table.endpoints == scene.table.endpoints

    run(play_it)


def test_who_has_lost_track_is_sent_the_whole():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        await pushed(scene, scene.endpoint("e"))
        await pushed(scene, scene.endpoint("f"))
        scene.say(ingress, SendTable())
        await pushed(scene, scene.endpoint("g"))
        assert [type(message) for message in ingress.arrived] == [RoutingTable, RoutingChanges, RoutingTable, RoutingChanges]
        assert ingress.table is not None
        assert ingress.table.endpoints == scene.table.endpoints

    run(play_it)


def test_those_in_replicas_are_not_told_that_the_instance_closes():
    async def play_it(scene: Scene) -> None:
        inside, outside = scene.peer("in a replica", role="client"), scene.peer("outside", role="client")
        await pushed(scene, scene.endpoint("e"))
        await pushed(scene, scene.change(closing=True))
        assert outside.table is not None
        assert outside.table.closing
        assert inside.table is not None
        assert not inside.table.closing
        await pushed(scene, scene.endpoint("f"))
        assert "f" in inside.table.endpoints
        assert not inside.table.closing

    run(play_it)


def test_of_very_many_replicas_each_ingress_is_shown_its_share_and_hears_only_of_that():
    async def play_it(scene: Scene) -> None:
        ingresses = [scene.peer(f"i{n:02}") for n in range(40)]
        client = scene.peer("client", role="client")
        names = [f"r{n:03}" for n in range(400)]
        await pushed(scene, scene.backend("b", names))
        scene.follow()
        for name in names:
            assert sum(name in ingress.replicas("b") for ingress in ingresses) >= FEWEST_ROUTERS
        assert all(FEWEST_ROUTERS <= len(ingress.replicas("b")) < 400 for ingress in ingresses)
        assert client.replicas("b") == set(names)
        concerned = [ingress for ingress in ingresses if names[7] in ingress.replicas("b")]
        version = scene.backend("b", names[:7] + names[8:])
        waits = asyncio.ensure_future(scene.routers.in_force(version))
        await pushed(scene, version)
        assert [ingress for ingress in ingresses if len(ingress.arrived) == 2] == concerned
        scene.follow(client, *concerned[1:])
        await asyncio.sleep(0)
        assert not waits.done()
        scene.follow(concerned[0])
        assert await waits == ()  # also those who were told nothing
        assert await scene.routers.idle(version, backend="b", timeout_s=5.0)

    run(play_it)


def test_an_ingress_that_joins_or_leaves_has_the_others_share_anew():
    async def play_it(scene: Scene) -> None:
        names = [f"r{n:03}" for n in range(400)]
        ingresses = [scene.peer(f"i{n:02}") for n in range(30)]
        await pushed(scene, scene.backend("b", names))
        newcomer = scene.peer("new")
        await until(lambda: newcomer.table is not None, "it has its table")
        assert FEWEST_ROUTERS <= len(newcomer.replicas("b")) < 400
        everyone = [*ingresses, newcomer]
        assert all(sum(name in peer.replicas("b") for peer in everyone) == FEWEST_ROUTERS for name in names)
        scene.follow()
        del scene.routers.ingresses["new"]
        scene.routers.lost(cast(Connection, newcomer))
        version = scene.routers.changed()
        await pushed(scene, version)
        assert all(sum(name in peer.replicas("b") for peer in ingresses) == FEWEST_ROUTERS for name in names)
        scene.follow(*ingresses)
        assert await scene.routers.in_force(version) == ()

    run(play_it)


def test_the_successor_of_an_ingress_has_its_share_and_no_other_is_told_anything():
    async def play_it(scene: Scene) -> None:
        ingresses = [scene.peer(f"i{n:02}", place=f"node{n:02}") for n in range(30)]
        await pushed(scene, scene.backend("b", [f"r{n:03}" for n in range(400)]))
        scene.follow()
        dead = ingresses.pop()
        del scene.routers.ingresses[dead.hello.id]
        scene.routers.lost(cast(Connection, dead))
        successor = scene.peer("another", place=dead.hello.place)
        await pushed(scene, scene.routers.changed())
        assert successor.replicas("b") == dead.replicas("b")
        assert all(len(ingress.arrived) == 1 for ingress in ingresses)

    run(play_it)


def test_nothing_is_kept_of_what_an_ingress_was_sent_over_a_connection_that_has_ended():
    async def play_it(scene: Scene) -> None:
        ingresses = [scene.peer(f"i{n:02}") for n in range(30)]
        await pushed(scene, scene.backend("b", [f"r{n:03}" for n in range(400)]))
        before = len(scene.routers._encoded)
        for _ in range(5):
            for ingress in ingresses:
                scene.routers.lost(cast(Connection, ingress))
            ingresses = [scene.peer(ingress.hello.id) for ingress in ingresses]
        assert all(FEWEST_ROUTERS <= len(ingress.replicas("b")) < 400 for ingress in ingresses)
        assert len(scene.routers._encoded) <= before

    run(play_it)


def test_routers_are_asked_for_their_counters_whatever_else_is_waited_for():
    async def play_it(scene: Scene) -> None:
        ingress = scene.peer("i1")
        await pushed(scene, scene.endpoint("e"))
        asked = asyncio.ensure_future(scene.routers.counting.ask())
        await until(lambda: isinstance(ingress.arrived[-1], Count), "it is asked")
        scene.say(
            ingress, messages.Counted(cast(Count, ingress.arrived[-1]).number, Counters(events=(EventCount(RETRIED, "e", "b", "", 3),)))
        )
        assert [counters.retried for counters in (await asked).values()] == [3]
        assert scene.routers.counting.totals()[""].retried == 3

    run(play_it)


def test_where_ingresses_leave_for_good_those_that_stay_take_over_their_share():
    async def scene(rig: Rig) -> None:
        def ingresses() -> list[Process]:
            return [process for id, process in rig._ingresses.items() if id in rig.engine.running()]

        rig.engine.set_places(*map(str, range(40)))
        await until(lambda: len(ingresses()) == 40, "all are there")
        await rig.create("v1", num_replicas=200)
        rig.engine.set_places(*map(str, range(18)))
        await until(lambda: len(ingresses()) == 18, "those are left that are to stay")

        def all_shared() -> bool:
            seen = Counter(id for process in ingresses() for id in process.replicas("v1"))
            return all(seen[id] >= FEWEST_ROUTERS for id in rig.replicas("v1"))

        await until(all_shared, "each replica has as many ingresses as before")

    play(scene, resources={"CPU": 400.0})


def test_many_ingresses_share_many_replicas_of_a_running_instance():
    async def scene(rig: Rig) -> None:
        rig.engine.set_places(*map(str, range(20)))
        await until(lambda: sum(isinstance(found.spec, IngressSpec) for found in rig.engine.running().values()) == 20, "all are there")
        await rig.create("v1", num_replicas=100)
        await rig.endpoint("e", "v1")
        ingresses = [process for id, process in rig._ingresses.items() if id in rig.engine.running()]
        assert all(FEWEST_ROUTERS <= len(process.replicas("v1")) < 100 for process in ingresses)
        assert {id for process in ingresses for id in process.replicas("v1")} == set(rig.replicas("v1"))
        (dead, *_) = rig.replicas("v1")
        rig.engine.end(dead)
        await until(lambda: not any(dead in process.replicas("v1") for process in ingresses), "nobody links to what is dead")
        await until(
            lambda: (
                {id for process in ingresses for id in process.replicas("v1")} == set(rig.replicas("v1")) and len(rig.replicas("v1")) == 100
            ),
            "another has taken its place",
        )

    play(scene, resources={"CPU": 200.0})
