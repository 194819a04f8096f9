"""What does an engine do alike with its members, when a connection with one of them is lost?"""

from __future__ import annotations

import asyncio

import pytest

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.messages import PROTOCOL, Hello, Message, Ping, Pong
from headgate.core.specs import Definition, IngressSpec, ReplicaSpec
from headgate.engines.members import Member, Members
from headgate.errors import InsufficientResourcesError


class Engine(Members[Member]):
    """Has one ingress, and starts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._members["i"] = Member(IngressSpec(id="i", token="token", place=""), self._loop)

    def _remember(self, member: Member) -> None:
        pass


class Peer:
    """One connection: what was sent over it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)


def test_a_ping_that_was_lost_with_a_connection_goes_over_the_next_one():
    async def scene() -> None:
        engine, first, second = Engine(), Peer(), Peer()
        hello = Hello(PROTOCOL, "ingress", "i", 1, token="token")
        assert engine.connected(hello, first)
        answer = asyncio.ensure_future(engine.ping("i"))
        await asyncio.sleep(0)
        assert engine.connected(hello, second)
        assert first.sent == second.sent == [Ping(1)]
        engine.received("i", Pong(1))
        assert await answer == Pong(1)

    asyncio.run(scene())


class FullEngine(Members[Member]):
    """Has room for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.ended: list[str] = []

    async def _has_place(self, member: Member, limit_s: float) -> None:
        member.failure = InsufficientResourcesError("no room")

    async def _end(self, member: Member) -> None:
        self.ended.append(member.id)

    async def start(self, spec: ReplicaSpec) -> None:
        await self._constructed(Member(spec, self._loop))


def test_who_has_waited_for_room_in_vain_is_not_waited_for_once_more():
    async def scene() -> None:
        engine = FullEngine()
        spec = ReplicaSpec(
            id="r",
            token="token",
            backend="b",
            definition=Definition(b"", "f"),
            config=BackendConfig(startup_timeout=600),
            options=ReplicaOptions(),
            instance="x",
        )
        with pytest.raises(InsufficientResourcesError):
            await asyncio.wait_for(engine.start(spec), 10)
        assert engine.ended == ["r"]

    asyncio.run(scene())
