"""Who is woken in a replica when something has changed, and is what is taken back younger than what runs?"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any, cast

import pytest

from headgate.replica.inbox import Inbox
from headgate.replica.member import Member
from headgate.router.reading import CAN_SHARE, Reading
from tests.support import wait_until


@pytest.mark.skipif(not CAN_SHARE, reason="the user thread never reads here")
def test_the_thread_that_reads_is_woken_also_after_others_have_waited_beside_it() -> None:
    loop = asyncio.new_event_loop()
    reading, inbox = Reading(loop), Inbox(1, 0.0)
    shape = inbox.shape
    main = threading.Thread(target=inbox.wait, args=(shape, reading))
    other = threading.Thread(target=inbox.wait, args=(shape, None))
    try:
        main.start()
        wait_until(lambda: reading.waiting)
        other.start()
        wait_until(lambda: inbox._sleeping == 1)
    finally:
        inbox.change_shape()
    main.join(10)
    other.join(10)
    assert not main.is_alive()
    assert not other.is_alive()
    reading.close()
    loop.close()


def test_what_is_taken_back_is_younger_than_what_a_user_thread_takes_meanwhile() -> None:
    ran: list[Any] = []

    class Contested(deque[Member]):
        """After each that is taken back, a user thread is free, and takes one."""

        def pop(self) -> Member:  # type: ignore[override]  # a deque's takes no place either
            member = super().pop()
            ran.append(super().popleft())
            return member

        def popleft(self) -> Member:
            member = super().popleft()
            ran.append(super().popleft())
            return member

    inbox = Inbox(1, 0.0)
    inbox._plain = Contested(cast(list[Member], [1, 2, 3, 4, 5, 6]))
    assert (inbox.withdraw_surplus(), ran) == ([4, 5, 6], [1, 2, 3])
