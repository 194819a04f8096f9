"""How does a process stay in touch with the controller, over every restart of it?

A `ControlLink` lives on one event loop. It connects, says hello, hands on what arrives, and connects again whenever the
connection is lost. Verbs that were not answered are sent again under the same id, which the controller applies once; those that
nobody waits for any more are not, and a controller that may have begun one is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import uuid
from collections.abc import Callable
from typing import cast

from headgate.core import messages
from headgate.core.messages import Hello, Message, Verb, VerbCall, VerbDone, VerbLeft, Welcome
from headgate.errors import AdminTokenError, HeadgateError, InvalidValueError, NotRunningError, WireError
from headgate.router import tls
from headgate.router.channel import let_go
from headgate.router.way import Way

_log = logging.getLogger("headgate.router")

FIRST_DELAY_S = 0.01
LONGEST_DELAY_S = 0.2
GONE_AFTER_S = 15.0
"""A controller that can't be reached for so long is taken for gone: what waits for it fails. Connecting goes on."""
_AGAIN = "call serve.init() again"
_CLOSED = "the connection with the instance was closed"


class ControlLink:
    """One process's connection with the controller; reconnects until closed; verbs are re-sent under the same id.

    Where the controller is, the `way` says each time anew. `hello` is asked for at each connection, so that it can tell the state of
    then. `on_message` gets everything but answers to verbs and welcomes. `on_gone` is called when the controller has been out of reach
    for `GONE_AFTER_S`, and, with True, when the instance has ended for good: the way leads nowhere any more, or to another instance of
    its name. All run on the loop. Where the controller refuses this process for good, by its admin token, verbs raise that.
    """

    def __init__(
        self,
        way: Way,
        hello: Callable[[], Hello],
        on_message: Callable[[Message], None],
        *,
        on_gone: Callable[[bool], None] | None = None,
        gone_after_s: float = GONE_AFTER_S,
    ) -> None:
        self._way = way
        self._hello = hello
        self._on_message = on_message
        self._on_gone = on_gone
        self._gone_after_s = gone_after_s
        self._transport: asyncio.WriteTransport | None = None
        self._welcome: Welcome | None = None
        self._verbs: dict[str, tuple[bytes, asyncio.Future[VerbDone]]] = {}  # by id: as sent, and its answer
        self._left: set[str] = set()  # ids of those that nobody waits for any more, until it is known that nothing more comes of them
        self._waiting: set[asyncio.Future[Welcome]] = set()
        self._task: asyncio.Task[None] | None = None
        self._id = ""  # of the instance that was first met
        self._warned_of = ""
        self._refused = ""  # why for good
        self._gone = ""  # why, for now
        self._closed = False

    def start(self) -> None:
        """Begin to connect, on the running loop; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._stay_connected(), name="headgate control link")

    async def connected(self) -> Welcome:
        """Wait for a connection and return the controller's welcome.

        Raises `NotRunningError` when the instance has ended, or its controller is out of reach for `GONE_AFTER_S`.
        """
        if self._transport is not None and self._welcome is not None:
            return self._welcome
        self._refuse_if_over()
        future: asyncio.Future[Welcome] = self._loop.create_future()
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    def send(self, message: Message) -> None:
        """Send a message; dropped where there is no connection, since the next hello tells the state anew."""
        if self._transport is not None:
            self._transport.write(messages.encode(message))

    async def call(self, verb: Verb) -> VerbDone:
        """Send a verb and wait for its end, over reconnects.

        The record returned may hold the verb's error. Raises `NotRunningError` when the instance is gone; whether the
        verb was applied is then unknown. Raises `InvalidValueError`, and sends nothing, for what no controller could read. After a
        cancellation it is never sent again. Where it has begun, it goes on and its answer is dropped; but a deployment that has not
        taken effect, and what waits for room, is given up, also by a later controller.
        """
        self._refuse_if_over()
        id = uuid.uuid4().hex
        data = messages.encode(VerbCall(id, verb))  # here, where what can't be encoded is the caller's error
        _refuse_unreadable(data)
        future: asyncio.Future[VerbDone] = self._loop.create_future()
        self._verbs[id] = (data, future)
        if self._welcome is not None and self._transport is not None:  # else it goes out with the welcome
            self._transport.write(data)
        try:
            return await future
        except asyncio.CancelledError:
            self._left.add(id)
            if self._welcome is not None:
                self.send(VerbLeft(id))
            raise
        finally:
            self._verbs.pop(id, None)

    async def close(self) -> None:
        """End the connection and stop reconnecting; whatever still waits raises `NotRunningError`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._fail_waiting(NotRunningError, f"{_CLOSED}; {_AGAIN}")

    def forked(self) -> None:
        """Called in a forked child: let go of its copy of the socket, so that the controller sees the parent's end."""
        if self._transport is not None:
            let_go(self._transport.get_extra_info("socket").fileno())

    async def _stay_connected(self) -> None:
        delay_s = FIRST_DELAY_S
        lost_at = self._loop.time()
        ended = False
        while True:
            connection = _Connection(self)
            address = await self._way.controller()
            try:
                await self._connect(connection, address)
            except AdminTokenError as error:  # nor will it be let in later
                self._refused = error.message
                self._fail_waiting(AdminTokenError, error.message)
                return
            except (OSError, WireError) as error:  # nobody listens there, or it is another instance by now
                self._warn_of(error)
            else:
                try:
                    await connection.lost
                finally:
                    connection.end()
                if self._welcome is not None:
                    delay_s, lost_at, self._welcome = FIRST_DELAY_S, self._loop.time(), None
            ended = ended or connection.stranger or address is None
            if ended or self._loop.time() - lost_at > self._gone_after_s:
                because = f": {self._warned_of}" if self._warned_of else ""
                late = f"its controller could not be reached for {self._gone_after_s:g} s{because}"
                self._gone = "the instance has ended" if ended else late
                self._fail_waiting(NotRunningError, f"{self._gone}; {_AGAIN}")
                if self._on_gone is not None:
                    self._on_gone(ended)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _connect(self, connection: _Connection, address: str | None) -> None:
        if not address:
            raise ConnectionRefusedError("the instance has ended, or its controller has yet to listen")
        await self._way.reach(address, lambda: connection)

    def _made(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self.send(self._hello())

    def _lost(self) -> None:
        self._transport = None

    def _warn_of(self, error: Exception | None) -> None:
        """Tell what is set up wrongly, once: by itself it gets no better."""
        said = tls.why(error) if isinstance(error, ssl.SSLError) else str(error) if isinstance(error, WireError) else ""
        if said and said != self._warned_of:
            self._warned_of = said
            _log.warning("the controller can't be reached: %s", said)

    def _received(self, message: Message) -> None:
        if isinstance(message, VerbDone):
            self._left.discard(message.id)
            _, pending = self._verbs.get(message.id, (None, None))
            if pending is not None and not pending.done():
                pending.set_result(message)
            return
        if isinstance(message, Welcome):
            self._welcome, self._gone, self._warned_of = message, "", ""
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(message)
            for id in self._left:
                self.send(VerbLeft(id))
            for data, _ in self._verbs.values():
                if self._transport is not None:
                    self._transport.write(data)
            return
        self._on_message(message)

    def _knows(self, welcome: Welcome) -> bool:
        self._id = self._id or welcome.id
        return welcome.id == self._id

    def _refuse_if_over(self) -> None:
        if self._refused:
            raise AdminTokenError(self._refused)
        if self._closed or self._gone:
            raise NotRunningError(f"{self._gone or _CLOSED}; {_AGAIN}")

    def _fail_waiting(self, kind: type[HeadgateError], message: str) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(kind(message))
        for _, pending in self._verbs.values():
            if not pending.done():
                pending.set_exception(kind(message))


def _refuse_unreadable(data: bytes) -> None:
    """A controller would end the connection for it, and be sent it again, for ever."""
    try:
        messages.MessageDecoder().received(data)
    except WireError as error:
        why = error.message.removesuffix("; close this connection")
        raise InvalidValueError(f"this can't be sent to the controller: {why}") from None


class _Connection(asyncio.Protocol):
    """One connection of a `ControlLink`; `lost` is done when it has ended."""

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self._decoder = messages.MessageDecoder()
        self._transport: asyncio.WriteTransport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stranger = False  # another instance answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # not asserted: uvloop's has no such base
        self._link._made(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            received = self._decoder.received(data)
        except WireError:
            self.end()
            return
        for message in received:
            if self.lost.done():
                return
            if isinstance(message, Welcome) and not self._link._knows(message):
                self.stranger = True
                self.end()
                return
            self._link._received(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._link._lost()
        self._link._warn_of(error)  # with TLS, that our certificate wasn't believed
        if not self.lost.done():
            self.lost.set_result(None)

    def end(self) -> None:
        self._link._lost()
        if self._transport is not None:
            self._transport.abort()
        if not self.lost.done():
            self.lost.set_result(None)
