"""Who is woken in a replica when something has changed?"""

from __future__ import annotations

import asyncio
import threading

import pytest

from headgate.replica.inbox import Inbox
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
