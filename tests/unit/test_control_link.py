"""Does a control link keep its promises over lost connections and restarts of the controller?"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from headgate.core import messages
from headgate.core.messages import (
    Applied,
    CreateEndpoint,
    Describe,
    Hello,
    Message,
    Ping,
    RoutingTable,
    VerbCall,
    VerbDone,
    VerbLeft,
    Welcome,
)
from headgate.errors import InvalidValueError, NotRunningError
from headgate.router.control import ControlLink
from headgate.router.way import Way
from tests.support import until


class Controller:
    """A controller of a few lines: welcomes everybody, records what arrives, and answers as told."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/control.sock"
        self.received: list[Message] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.id = "first"
        self.answer: Callable[[VerbCall], VerbDone | None] = lambda call: VerbDone(call.id)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()
        await self._server.wait_closed()
        Path(self.path).unlink(missing_ok=True)

    def send(self, data: bytes) -> None:
        self.writers[-1].write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        decoder = messages.MessageDecoder()
        while data := await reader.read(65536):
            for message in decoder.received(data):
                self.received.append(message)
                if isinstance(message, Hello):
                    writer.write(messages.encode(Welcome("test", ("http://127.0.0.1:1",), self.id)))
                elif isinstance(message, VerbCall) and (done := self.answer(message)) is not None:
                    writer.write(messages.encode(done))
        writer.close()

    def verbs(self) -> list[VerbCall]:
        return [message for message in self.received if isinstance(message, VerbCall)]


Scene = Callable[[Controller, ControlLink, list[Message]], Awaitable[None]]


def play(scene: Scene, *, start: bool = True, gone_after_s: float = 10.0) -> None:
    """Run a scene between a controller (started, unless it says otherwise) and a link that is closed at the end."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            controller = Controller(folder)
            if start:
                await controller.start()
            arrived: list[Message] = []
            hello = Hello(messages.PROTOCOL, "client", "me", 1)
            link = ControlLink(Way(folder), lambda: hello, arrived.append, gone_after_s=gone_after_s)
            link.start()
            try:
                await asyncio.wait_for(scene(controller, link, arrived), 20)
            finally:
                await link.close()
                if controller._server is not None:
                    await controller.stop()
            assert not [task for task in asyncio.all_tasks() if "headgate" in task.get_name()]

    asyncio.run(main())


def test_the_welcome_is_waited_for_and_messages_go_both_ways() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        welcome = await link.connected()
        assert welcome.name == "test"
        link.send(Applied(7))
        controller.send(messages.encode(RoutingTable(3)) + messages.encode(Ping(4)))
        await until(lambda: len(arrived) == 2 and Applied(7) in controller.received, "both directions")
        assert arrived == [RoutingTable(3), Ping(4)]

    play(scene)


def test_a_controller_that_comes_later_is_found() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        call = asyncio.create_task(link.call(Describe()))
        await asyncio.sleep(0)
        await controller.start()
        assert (await call).error is None

    play(scene, start=False)


def test_a_verb_that_was_not_answered_is_sent_again_under_its_id_and_answered_once() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        await link.connected()
        controller.answer = lambda call: None
        call = asyncio.create_task(link.call(Describe()))
        await until(lambda: len(controller.verbs()) == 1, "the verb arrives")
        await controller.stop()
        controller.answer = lambda call: VerbDone(call.id, b"\x01")
        await controller.start()
        assert (await call).result == b"\x01"
        first, second = controller.verbs()
        assert first == second
        assert (await link.call(Describe())).result == b"\x01"
        assert len(controller.verbs()) == 3

    play(scene)


def test_a_verb_that_nobody_waits_for_is_not_sent_again_and_each_controller_is_told_so_until_one_answers() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        def told() -> list[Message]:
            return [message for message in controller.received if isinstance(message, VerbLeft)]

        await link.connected()
        controller.answer = lambda call: None
        call = asyncio.create_task(link.call(Describe()))
        await until(lambda: len(controller.verbs()) == 1, "the verb arrives")
        left = VerbLeft(controller.verbs()[0].id)
        await controller.stop()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await controller.start()
        await until(lambda: told() == [left], "the controller is told")
        await controller.stop()
        await controller.start()
        await until(lambda: told() == [left] * 2, "the next one is told, too")
        controller.send(messages.encode(VerbDone(left.id)) + messages.encode(Ping(1)))
        await until(lambda: arrived == [Ping(1)], "it has the answer")
        await controller.stop()
        await controller.start()
        controller.answer = lambda call: VerbDone(call.id)
        await link.call(Describe())
        assert told() == [left] * 2
        assert [verb.id for verb in controller.verbs()].count(left.id) == 1

    play(scene)


def test_answers_find_their_own_verbs_in_any_order() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        controller.answer = lambda call: None
        calls = [asyncio.create_task(link.call(Describe())) for _ in range(5)]
        await until(lambda: len(controller.verbs()) == 5, "all arrive")
        for number, verb in reversed(list(enumerate(controller.verbs()))):
            controller.send(messages.encode(VerbDone(verb.id, bytes([number]))) * 2)
        assert [(await call).result for call in calls] == [bytes([number]) for number in range(5)]

    play(scene)


def test_what_waits_fails_at_once_when_the_folder_of_the_instance_is_gone() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        await link.connected()
        controller.answer = lambda call: None
        call = asyncio.create_task(link.call(Describe()))
        await until(lambda: len(controller.verbs()) == 1, "the verb arrives")
        await controller.stop()
        Path(controller.path).parent.rmdir()
        with pytest.raises(NotRunningError, match=r"serve\.init"):
            await call
        with pytest.raises(NotRunningError):
            await link.call(Describe())
        with pytest.raises(NotRunningError):
            await link.connected()
        Path(controller.path).parent.mkdir()

    play(scene)


def test_what_waits_fails_when_the_controller_stays_out_of_reach_and_a_later_one_is_still_found() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        with pytest.raises(NotRunningError, match="could not be reached"):
            await link.call(Describe())
        await controller.start()
        await until(lambda: len(controller.writers) == 1 and link._welcome is not None, "the link connects")
        assert (await link.call(Describe())).error is None

    play(scene, start=False, gone_after_s=0.05)


def test_another_instance_in_its_place_is_never_sent_what_was_meant_for_the_first() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        await link.connected()
        controller.answer = lambda call: None
        call = asyncio.create_task(link.call(Describe()))
        await until(lambda: len(controller.verbs()) == 1, "the verb arrives")
        await controller.stop()
        controller.id = "second"
        await controller.start()
        with pytest.raises(NotRunningError, match="has ended"):
            await call
        with pytest.raises(NotRunningError):
            await link.connected()
        assert len(controller.verbs()) == 1

    play(scene)


def test_garbage_from_the_other_side_costs_the_connection_and_no_more() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        await link.connected()
        controller.send(b"\x00\x00\x00\x03abc" + messages.encode(Ping(1)))
        await until(lambda: len(controller.writers) == 2, "it connects again")
        assert (await link.call(Describe())).error is None
        assert arrived == []

    play(scene)


@pytest.mark.parametrize(
    "verb",
    [CreateEndpoint("hello", cast(Any, ["GET"]), ("GET",), None), CreateEndpoint("hello", None, ("GET",), cast(Any, 3))],
    ids=["route", "backend"],
)
def test_what_no_controller_could_read_is_its_callers_error_and_is_never_sent(verb: CreateEndpoint) -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        await link.connected()
        with pytest.raises(InvalidValueError, match="can't be sent to the controller"):
            await link.call(verb)
        assert (await link.call(Describe())).error is None
        assert [type(call.verb) for call in controller.verbs()] == [Describe]
        assert len(controller.writers) == 1

    play(scene)


def test_closing_fails_what_waits() -> None:
    async def scene(controller: Controller, link: ControlLink, arrived: list[Message]) -> None:
        controller.answer = lambda call: None
        call = asyncio.create_task(link.call(Describe()))
        await until(lambda: len(controller.verbs()) == 1, "the verb arrives")
        await link.close()
        with pytest.raises(NotRunningError):
            await call

    play(scene)
