"""What does every engine know of the replicas and ingresses that it runs, and how does it talk to them?

An engine derives from `Members` and says how one is started and killed. Here is what all of them do alike: who may connect as
a member, its messages and pings, how it becomes ready, fails or drains, and what is told when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Generic, TypeVar

import msgspec

from headgate.core import replica_life as life
from headgate.core.messages import Drain, Hello, Message, Ping, Pong, ReplicaFailed, ReplicaReady
from headgate.engines.base import INGRESS, REPLICA, Ended, IngressSpec, Peer, ReplicaSpec, Running
from headgate.errors import HeadgateError, InvalidValueError, NotFoundError, NotRunningError, ReplicaStartError, rebuild

_LAST_WORDS_TURNS: Final = 16
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}")


class Member:
    """One replica or ingress, from its start to its end."""

    def __init__(self, spec: ReplicaSpec | IngressSpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.id = spec.id
        self.role = REPLICA if isinstance(spec, ReplicaSpec) else INGRESS
        self.gpus = spec.gpus if isinstance(spec, ReplicaSpec) else ()
        self.pid: int | None = None
        self.node = ""
        self.address = ""
        self.state = life.STARTING
        self.asked_for = False
        self.peer: Peer | None = None
        self.unsent: list[Message] = []  # until it first connects
        self.failure: HeadgateError | None = None
        self.started: asyncio.Future[None] = loop.create_future()  # done when ready, or ended
        self.ended: asyncio.Future[str] = loop.create_future()  # the reason
        self.pings: dict[int, asyncio.Future[Pong]] = {}

    def running(self) -> Running:
        """What the owner is told of it."""
        return Running(
            id=self.id,
            role=self.role,
            pid=self.pid,
            state=self.state,
            address=self.address,
            gpus=self.gpus,
            node=self.node,
            spec=self.spec,
        )

    def adopt(self, state: str, address: str) -> None:
        """An engine before this one had started it, and it had come so far."""
        self.state, self.address = state, address
        if state != life.STARTING:
            self.started.set_result(None)


M = TypeVar("M", bound=Member)


class Members(Generic[M]):
    """All that an engine runs, by id; half of a `headgate.engines.base.Engine`, whose `open` sets `_loop`."""

    on_end: Callable[[Ended], None]
    on_message: Callable[[str, Message], None]
    on_leave: Callable[[], float]
    on_places: Callable[[], None]

    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self._members: dict[str, M] = {}
        self._numbers = 0
        self._closing = False

    # What an engine says.

    async def _end(self, member: M) -> None:
        """Kill it and wait for its end, which nothing interrupts, since it comes at once."""
        raise NotImplementedError

    def _remember(self, member: M) -> Awaitable[object] | None:
        """Keep its state and address for the next owner's engine; returns what to wait for until that is sure."""
        raise NotImplementedError

    async def _has_place(self, member: M, limit_s: float) -> None:
        """Wait until there is room for it, where an engine does; after `limit_s` its `failure` says that there was none."""

    def _met(self, member: M, hello: Hello) -> None:
        """It has connected, and proved who it is."""

    def _gave_up(self, member: M) -> None:
        """It has ended: free what it held."""
        raise NotImplementedError

    # The seam.

    async def wait_ready(self, id: str) -> Running:
        """Wait for a replica that `open` returned as starting; same errors as `start_replica`.

        Its `startup_timeout` counts anew from here. Raises `NotFoundError` for an unknown id.
        """
        member = self._members.get(id)
        if member is None:
            raise NotFoundError(f"replica {id!r} doesn't run")
        return await self._constructed(member)

    def connected(self, hello: Hello, peer: Peer) -> bool:
        """A replica or ingress has opened its control connection, or opened it again. False refuses it: unknown id, or wrong token."""
        member = self._members.get(hello.id)
        if member is None or member.role != hello.role or not hmac.compare_digest(member.spec.token.encode(), hello.token.encode()):
            return False
        member.peer = peer
        member.pid = hello.pid  # whoever started it may not have said so yet
        self._met(member, hello)
        for message in member.unsent:
            peer.send(message)
        member.unsent.clear()
        for number in member.pings:  # they, or their answers, were lost with the connection before this one
            peer.send(Ping(number))
        if hello.address:
            self._is_ready(member, hello.address)
        return True

    def received(self, id: str, message: Message) -> None:
        """A message from a replica or ingress. What isn't the engine's own goes on to `on_message`; unknown ids are dropped."""
        member = self._members.get(id)
        if member is None:
            return
        if isinstance(message, ReplicaReady):
            self._is_ready(member, message.address)
        elif isinstance(message, ReplicaFailed):
            self._has_failed(member, message)
        elif isinstance(message, Pong):
            waiting = member.pings.pop(message.number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        else:
            self.on_message(id, message)

    def send(self, id: str, message: Message) -> None:
        """Send to a replica or ingress, such as `Configure`; kept until it first connects, dropped where it has ended."""
        member = self._members.get(id)
        if member is None:
            return
        if member.peer is None:
            member.unsent.append(message)
        else:
            member.peer.send(message)

    def waiting(self) -> dict[str, str]:
        """The starting replicas that wait for room, and what each asks for and what is free."""
        return {}

    async def ping(self, id: str) -> Pong:
        """Ask a sign of life. Never returns for one that is stuck: the caller sets the limit.

        Raises `NotFoundError` where it has ended, or ends before it answers.
        """
        member = self._members.get(id)
        if member is None:
            raise NotFoundError(f"{id!r} doesn't run")
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Pong] = self._loop.create_future()
        member.pings[number] = answer
        self.send(id, Ping(number))
        try:
            return await answer
        finally:
            member.pings.pop(number, None)

    async def stop(self, id: str, grace_s: float) -> None:
        """Drain, then end it; kill it after `grace_s`. Returns when it has ended. Unknown ids are ended already.

        One that is still starting has nothing to drain: it is killed at once, and `start_replica` raises `ReplicaStartError`.
        After a cancellation it may still be draining.
        """
        member = self._members.get(id)
        if member is None:
            return
        member.asked_for = True
        if member.state != life.STARTING:
            member.state = life.DRAINING
            remembered = self._remember(member)
            if remembered is not None:  # first: what drains must not be taken for ready by the next owner
                await remembered
            self.send(id, Drain(grace_s))
            await asyncio.wait([member.ended], timeout=grace_s)
        await self._end(member)

    async def kill(self, id: str) -> None:
        """End it now, with all that it has started. Returns when it has ended. Unknown ids are ended already."""
        member = self._members.get(id)
        if member is not None:
            member.asked_for = True
            await self._end(member)

    # Ending.

    def _begins_to_close(self) -> bool:
        """From now on nothing starts, and every end was asked for. False where that was so already."""
        if self._closing:
            return False
        self._closing = True
        for member in self._members.values():
            member.asked_for = True
        return True

    # Starting.

    def _check_new(self, id: str) -> None:
        if not _ID.fullmatch(id):
            raise InvalidValueError(f"{id!r} can't be an id: use at most 36 letters, digits, '.', '_' and '-'")
        if id in self._members:
            raise InvalidValueError(f"{id!r} runs already; each start has an id of its own")
        if self._closing:
            raise NotRunningError("the engine is closed")

    async def _constructed(self, member: M) -> Running:
        if not isinstance(member.spec, ReplicaSpec):
            raise InvalidValueError(f"{member.id!r} is an ingress; only a replica is constructed")
        limit_s = member.spec.config.startup_timeout
        async with self._ended_if_cancelled(member):
            await self._has_place(member, limit_s)
            if member.failure is None:
                await asyncio.wait([member.started], timeout=limit_s)
            late = not member.started.done() and member.failure is None
            if late or member.failure is not None:
                await self._end(member)
        if member.failure is not None:
            raise member.failure
        backend = member.spec.backend
        if late:
            raise ReplicaStartError(
                f"a replica of backend {backend!r} was not ready after startup_timeout={limit_s:g} s and was killed; raise startup_timeout "
                "in the backend's config if its import, its constructor and the first check_health() need longer"
            )
        if member.ended.done():
            raise ReplicaStartError(f"a replica of backend {backend!r} ended while it was constructed ({member.ended.result()})")
        return member.running()

    async def _serves(self, member: M) -> Running:
        """An ingress has said hello. Raises `ReplicaStartError` where it ends before that, or the failure that was found."""
        async with self._ended_if_cancelled(member):
            await asyncio.wait([member.started])
        if member.failure is not None:
            raise member.failure
        if member.ended.done():
            raise ReplicaStartError(f"ingress {member.id} ended while it started ({member.ended.result()}); its output says why")
        return member.running()

    @contextlib.asynccontextmanager
    async def _ended_if_cancelled(self, member: M) -> AsyncIterator[None]:
        """Nothing is left of a start that nobody waits for any more."""
        try:
            yield
        except asyncio.CancelledError:
            member.asked_for = True
            await self._end(member)
            raise

    def _is_ready(self, member: M, address: str) -> None:
        if member.state != life.STARTING:
            return
        member.state, member.address = life.READY, address
        self._remember(member)
        if not member.started.done():
            member.started.set_result(None)

    def _has_failed(self, member: M, message: ReplicaFailed) -> None:
        found = rebuild(msgspec.structs.replace(message.error, pickled=b""))  # user data is never opened here
        if isinstance(found, ReplicaStartError):
            member.failure = found
        else:
            member.failure = ReplicaStartError(found.message, remote_traceback=message.error.traceback)
        if not member.started.done():
            member.started.set_result(None)

    # Ending.

    def _hear_of_end(self, id: str, reason: str, turns: int = _LAST_WORDS_TURNS) -> None:
        """Note an end, a few turns of the loop later.

        What it said last, such as why its constructor failed, was in the control socket before it ended, and is read by then.
        """
        if id in self._members and turns:
            self._loop.call_soon(self._hear_of_end, id, reason, turns - 1)
        else:
            self._has_ended(id, reason)

    def _has_ended(self, id: str, reason: str) -> None:
        member = self._members.pop(id, None)
        if member is None:
            return
        self._gave_up(member)
        member.ended.set_result(reason)
        if not member.started.done():
            member.started.set_result(None)
        for waiting in member.pings.values():
            if not waiting.done():
                waiting.set_exception(NotFoundError(f"{id!r} has ended ({reason})"))
        self.on_end(Ended(id=id, role=member.role, pid=member.pid, reason=reason, asked_for=member.asked_for))
