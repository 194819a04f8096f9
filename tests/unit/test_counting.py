"""Is what processes have counted kept when they end, and counted once when they come back?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from headgate.controller.counting import _COMES_BACK_WITHIN_S, _KEPT_ENDED, _MOST_ENDED, Counting
from headgate.controller.server import Connection
from headgate.core.messages import PROTOCOL, Count, Hello, Message
from tests.support import until


class Peer:
    """A process that counts, as the controller sees it."""

    slow = False

    def __init__(self, id: str) -> None:
        self.hello = Hello(PROTOCOL, "replica", id, 1)
        self.asked: list[int] = []

    def send(self, message: Message) -> None:
        self.asked.append(cast(Count, message).number)


def connection(id: str) -> Any:
    return cast(Connection, Peer(id))


class Clock:
    """The time, as a test says it."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def counting(known: Iterable[str] = "ab", is_told: Callable[[str], bool] = lambda key: True) -> tuple[Counting[int], Clock]:
    """Counters are numbers here, and the key of each is the first letter of its id."""
    clock = Clock()
    return Counting(lambda id: id[0] if id[0] in known else None, sum, lambda counters: counters, is_told, clock), clock


def come_and_go(found: Counting[int], id: str, count: int = 1) -> None:
    """It connects, says what it has counted, and leaves."""
    peer = connection(id)
    found.came(peer)
    found.said(peer, 1, count)
    found.left(peer)


def test_who_has_ended_counts_on_and_who_comes_back_counts_once():
    found, _ = counting()
    first, second = connection("a1"), connection("a2")
    for peer, count in ((first, 3), (second, 4)):
        found.came(peer)
        found.said(peer, 1, count)
    found.left(first)
    assert found.totals() == {"a": 7}
    assert found.living() == {"a2": ("a", 4)}
    again = connection("a1")
    found.came(again)
    found.said(again, 2, 5)
    assert found.totals() == {"a": 9}


def test_of_many_that_have_ended_long_ago_only_the_sum_is_kept():
    found, clock = counting()
    for number in range(_KEPT_ENDED + 50):
        come_and_go(found, f"{'ab'[number % 2]}{number}")
    assert len(found.kept().said) == _KEPT_ENDED + 50
    clock.now += _COMES_BACK_WITHIN_S + 1
    come_and_go(found, "a last")
    assert found.totals() == {"a": _KEPT_ENDED // 2 + 26, "b": _KEPT_ENDED // 2 + 25}
    assert len(found.kept().said) == _KEPT_ENDED


def test_of_very_many_that_have_ended_lately_too_only_so_many_are_kept():
    found, _ = counting()
    for number in range(_MOST_ENDED + 50):
        come_and_go(found, f"a{number}")
    assert found.totals() == {"a": _MOST_ENDED + 50}
    assert len(found.kept().said) == _MOST_ENDED


def test_however_many_leave_and_come_back_each_counts_once():
    found, clock = counting()
    ids = [f"{'ab'[number % 2]}{number}" for number in range(300)]
    connections = [connection(id) for id in ids]
    for peer in connections:
        found.came(peer)
        found.said(peer, 1, 1)
    for peer in connections:  # as where the network between two nodes fails …
        found.left(peer)
    clock.now += _COMES_BACK_WITHIN_S - 1
    for id in ids:  # … and heals
        again = connection(id)
        found.came(again)
        found.said(again, 2, 2)
    assert found.totals() == {"a": 300, "b": 300}


def test_however_many_come_back_to_the_next_controller_each_counts_once():
    (before, _), (after, clock) = counting(), counting()
    ids = [f"a{number}" for number in range(300)]
    for id in ids:
        peer = connection(id)
        before.came(peer)
        before.said(peer, 1, 1)
    after.begin_with(before.kept())
    clock.now += _COMES_BACK_WITHIN_S - 1
    come_and_go(after, "a one that is new")
    for id in ids:
        again = connection(id)
        after.came(again)
        after.said(again, 1, 2)
    assert after.totals() == {"a": 601}


def test_who_says_its_last_words_unasked_has_them_counted_and_strangers_are_not():
    found, _ = counting()
    peer, stranger = connection("a1"), connection("z1")
    for who in (peer, stranger):
        found.came(who)
        found.said(who, 0, 3)
        found.left(who)
    assert found.totals() == {"a": 3}


def test_the_next_controller_counts_on_from_what_was_kept():
    (before, _), (after, _) = counting(), counting()
    gone, living = connection("a1"), connection("a2")
    for peer in (gone, living):
        before.came(peer)
        before.said(peer, 7, 10)
    before.left(gone)
    after.begin_with(before.kept())
    assert after.totals() == {"a": 20}
    again = connection("a2")
    after.came(again)
    after.said(again, 1, 12)
    assert after.totals() == {"a": 22}


def test_an_answer_to_an_earlier_question_is_no_answer_and_who_is_lost_is_not_waited_for():
    async def scene() -> None:
        found, _ = counting()
        peer, lost = connection("a1"), connection("a2")
        found.came(peer)
        found.came(lost)
        asked = asyncio.ensure_future(found.ask())
        await until(lambda: peer.asked and lost.asked, "both are asked")
        found.said(peer, peer.asked[0] - 1, 1)
        found.left(lost)
        await asyncio.sleep(0)
        assert not asked.done()
        found.said(peer, peer.asked[0], 2)
        assert await asked == {"a1": 2}

    asyncio.run(scene())


def test_what_there_was_of_a_key_that_is_told_no_more_is_dropped():
    told = set("ab")
    found, clock = counting(is_told=told.__contains__)
    for number in range(2 * _KEPT_ENDED):
        come_and_go(found, f"{'ab'[number % 2]}{number}")
    clock.now += _COMES_BACK_WITHIN_S + 1
    come_and_go(found, "b later")
    told.remove("a")
    assert found.totals() == {"b": _KEPT_ENDED + 1}
    assert {key for key, _ in found.kept().said.values()} | set(found.kept().forgotten) == {"b"}
    for number in range(_KEPT_ENDED):
        come_and_go(found, f"b again {number}")
    clock.now += _COMES_BACK_WITHIN_S + 1
    for number in range(_KEPT_ENDED):
        come_and_go(found, f"b at last {number}")
    told.add("a")
    assert found.totals() == {"b": 3 * _KEPT_ENDED + 1}  # nothing of the other is left
