"""What does the process of one ingress do? It serves HTTP on a given listening socket until it is told to drain.

The controller sends the routing table and gets counters and signs of life; without it, traffic flows on.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket

import msgspec

from headgate import usage
from headgate.core import tables
from headgate.core.messages import (
    PROTOCOL,
    Count,
    Counted,
    Describe,
    Drain,
    Hello,
    Measure,
    Message,
    Ping,
    Pong,
    RoutingChanges,
    RoutingTable,
    SendTable,
    Unwanted,
)
from headgate.core.reports import Counters, Description, Measurement
from headgate.core.specs import IngressSpec
from headgate.errors import rebuild
from headgate.heap import keep_freed
from headgate.ingress.access import CLOSE_WITHIN_S, AccessLog
from headgate.ingress.exchange import Exchange
from headgate.ingress.http1 import Connection
from headgate.ingress.service import Limits, Service
from headgate.logs.begin import adopt, speaker
from headgate.router.certificate import Certificate
from headgate.router.control import ControlLink
from headgate.router.remote import join
from headgate.router.router import Router
from headgate.router.way import Way
from headgate.traces import begin as tracing

_log = logging.getLogger("headgate.ingress")

_BACKLOG = 2048
_GRACE_S = 10.0
"""For answers under way, where SIGINT doesn't say how long."""
_LAST_WORDS_S = 0.5
"""Of its grace, for what it says last: whoever has told it to end kills it after that."""
_FIRST_TABLE_S = 1.0
"""A new ingress accepts when it has its first table, or after this: with no controller it must still answer."""
_TLS_HANDSHAKE_S = 10.0


def run(spec: IngressSpec, way: Way, listener: socket.socket) -> None:
    """Serve until `Drain` or SIGINT. `listener` listens already, and is closed at the end."""
    import uvloop

    keep_freed()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # exchanges make no cycles: look less often
    uvloop.run(_Ingress(spec, way, listener).serve())


class _Ingress:
    def __init__(self, spec: IngressSpec, way: Way, listener: socket.socket) -> None:
        self._spec = spec
        self._way = way
        self._listener = listener
        self._address = join(*listener.getsockname()[:2])

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        spec = self._spec
        self._drain: asyncio.Future[float] = loop.create_future()
        self._first_table = asyncio.Event()
        loop.add_signal_handler(signal.SIGINT, self._end_within, _GRACE_S)
        self._link = ControlLink(self._way, self._hello, self._received, on_gone=self._gone)
        router, exchange = _traced(spec.id) if self._way.traces else (Router, None)
        self._router = router(spec.id, self._way, self._link.send)
        certificate = None if spec.ssl_certfile is None else Certificate(spec.ssl_certfile, spec.ssl_keyfile, protocols=("http/1.1",))
        context = None if certificate is None else certificate.context
        self._service = Service(
            self._router,
            self._measure,
            self._describe,
            server=self._address,
            scheme="http" if context is None else "https",
            limits=Limits(connections=_raise_file_limit() * 9 // 10),
            access=AccessLog(speaker()) if spec.access_log else None,
            exchange=exchange,
        )
        self._service.start()
        self._link.start()
        try:
            await asyncio.wait_for(self._first_table.wait(), _FIRST_TABLE_S)
        except TimeoutError:
            _log.warning("no routing table after %g s: answering 503 until there is one", _FIRST_TABLE_S)
        server = await loop.create_server(
            lambda: Connection(self._service),
            sock=self._listener,
            backlog=_BACKLOG,
            ssl=context,
            ssl_handshake_timeout=None if context is None else _TLS_HANDSHAKE_S,
        )
        renewing = None if certificate is None else loop.create_task(certificate.keep_renewed())
        grace_s = await self._drain
        if renewing is not None:
            renewing.cancel()
        answers_s = max(0.0, grace_s - self._closes_within_s())
        ends_at = loop.time() + answers_s
        server.close()
        await self._service.drain(answers_s)
        await self._router.close(max(0.0, ends_at - loop.time()))
        self._link.send(Counted(0, self._counters()))
        await asyncio.sleep(0)  # so that it leaves
        await asyncio.gather(self._close_access(), self._end_tracing())
        await self._link.close()

    def _closes_within_s(self) -> float:
        """How long it may take from the last answer to its end."""
        access_s = 0.0 if self._service.access is None else CLOSE_WITHIN_S
        return _LAST_WORDS_S + max(access_s, tracing.END_WITHIN_S if self._way.traces else 0.0)

    async def _close_access(self) -> None:
        if self._service.access is not None:
            await self._service.access.close()

    async def _end_tracing(self) -> None:
        if self._way.traces:
            await asyncio.to_thread(tracing.end)

    def _hello(self) -> Hello:
        spec, node = self._spec, self._way.node
        hello = Hello(PROTOCOL, "ingress", spec.id, os.getpid(), spec.token, routes=True, address=self._address)
        return msgspec.structs.replace(hello, place=spec.place, node=node)

    def _received(self, message: Message) -> None:
        if isinstance(message, RoutingTable | RoutingChanges):
            table = tables.follow(self._service.table, message)
            if table is None:
                self._link.send(SendTable())
                return
            self._service.apply(table)
            self._router.apply(table)
            self._first_table.set()
        elif isinstance(message, Ping):
            self._link.send(Pong(message.number))
        elif isinstance(message, Count):
            self._link.send(Counted(message.number, self._counters()))
        elif isinstance(message, Drain):
            self._end_within(message.grace_s)
        elif isinstance(message, Unwanted):
            self._gone(True)

    def _gone(self, ended: bool) -> None:
        """The instance has ended, or has given this ingress up while it was out of reach, and nobody else may be there to kill it."""
        if ended:
            self._end_within(_GRACE_S)

    def _end_within(self, grace_s: float) -> None:
        if not self._drain.done():
            self._drain.set_result(grace_s)

    def _counters(self) -> Counters:
        return msgspec.structs.replace(self._service.with_refusals(self._router.counters()), usage=usage.own())

    async def _measure(self) -> Measurement:
        return msgspec.msgpack.decode(await self._ask(Measure()), type=Measurement)

    async def _describe(self) -> Description:
        return msgspec.msgpack.decode(await self._ask(Describe()), type=Description)

    async def _ask(self, question: Measure | Describe) -> bytes:
        done = await self._link.call(question)
        if done.error is not None:
            raise rebuild(done.error)
        return done.result


def _traced(id: str) -> tuple[type[Router], type[Exchange]]:
    """Begin to trace, and what to use for that."""
    from headgate.ingress.traced import TracedExchange
    from headgate.router.traced import TracedRouter

    adopt("opentelemetry")
    TracedExchange.draw = tracing.begin("ingress", id).draw
    return TracedRouter, TracedExchange


def _raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard
