"""A router and replicas joined by real sockets, all in this process: the data path without supervisor and controller."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, cast

import msgspec
import uvloop

from headgate.config import BackendConfig
from headgate.core import wire
from headgate.core.desired import concurrency_of
from headgate.core.messages import BackendEntry, EndpointEntry, Message, ReplicaEntry, RoutingTable
from headgate.core.specs import Definition, MethodInfo, Parameter
from headgate.errors import ErrorInfo
from headgate.replica.calls import Caller
from headgate.replica.links import Links
from headgate.replica.runner import Runner
from headgate.router import payload
from headgate.router.call import Call
from headgate.router.router import Router
from headgate.router.tls import Tls
from headgate.router.way import Way
from tests.support import until

REMOTE = False
"""Whether replicas are made as if they were on another node, so that links go by TCP."""

TLS: Tls | None = None
"""What encrypts them then."""

CALLER: type[Caller] = Caller
ROUTER: type[Router] = Router
"""What replicas and the router are made of."""

_ids = itertools.count(1)
_head = msgspec.msgpack.encode(wire.HttpHead("POST", b"/x?y=1", "1.1", [(b"host", b"h")], "http", "h:1", "127.0.0.1"))


def definition_of(methods: dict[str, Callable[..., Any]], batch: bool = False) -> Definition:
    """What the driver would say of these callables."""
    infos = {}
    for name, call in methods.items():
        parameters = tuple(
            Parameter(p.name, p.kind.name, p.default is not inspect.Parameter.empty) for p in inspect.signature(call).parameters.values()
        )
        is_async = inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)
        is_generator = inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)
        infos[name] = MethodInfo(name, is_async, is_generator, batch, parameters)
    return Definition(payload=b"", name="handler", methods=infos)


class Replica:
    """One replica on two threads. Its user code may be a function or a dict of methods."""

    def __init__(
        self, folder: Path, handler: Callable[..., Any] | dict[str, Callable[..., Any]], config: BackendConfig, batch: bool
    ) -> None:
        methods = handler if isinstance(handler, dict) else {"": handler}
        self.id = f"r{next(_ids)}"
        self.definition = definition_of(methods, batch)
        self.config = config
        self.io_loop = uvloop.new_event_loop()
        self.user_loop = uvloop.new_event_loop() if self.definition.any_async else None
        caller = CALLER(self.definition, methods, backend="b", replica=self.id, idempotent=config.idempotent)
        self.runner = Runner(self.definition, config, caller, self.io_loop, self.user_loop)
        host = "127.0.0.1" if REMOTE else ""
        way = Way(str(folder), node="theirs", host=host, secret=b"secret", tls=TLS)
        self.links = self.runner.links = Links(way, self.id, "token", self.runner)
        self._io = threading.Thread(target=self._run_io)
        self._user = threading.Thread(target=self._run_user)
        self._io.start()
        self.on_io(self.links.listen())
        self._user.start()

    def on_io(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the I/O thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.io_loop).result(10)

    def _run_io(self) -> None:
        self.io_loop.run_forever()
        self.io_loop.close()

    def _run_user(self) -> None:
        if self.user_loop is None:
            self.runner.run()
        else:
            loop = self.user_loop
            with asyncio.Runner(loop_factory=lambda: loop) as runner:  # ends what is left, as a replica's process does
                runner.run(self.runner.run_async())

    @property
    def entry(self) -> ReplicaEntry:
        return ReplicaEntry(self.id, self.links.address, self.links.token)

    def close(self) -> None:
        self.runner.stop()
        self._user.join(5)
        self.on_io(self.links.close())
        self.io_loop.call_soon_threadsafe(self.io_loop.stop)
        self._io.join(5)


class Asked(Call):
    """A call that keeps what became of it."""

    __slots__ = ("chunks", "done", "frame", "info", "left_at", "trace", "web")

    def __init__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, *, web: bool = False, **given: Any) -> None:
        kwargs = kwargs or {}
        self.web = web
        self.endpoint = given.get("endpoint", "e")
        self.method = given.get("method", "")
        self.request_id = given.get("request_id", f"q{next(_ids)}")
        self.shard_key = given.get("shard_key")
        self.http = _head if web else b""
        self.positional, self.keywords = len(args), tuple(sorted(kwargs))
        self.body = given.get("body", b"") if web else payload.dump((args, kwargs))
        self.body_bytes = sum(map(len, self.body)) if isinstance(self.body, list) else len(self.body)
        self.admitted_at = time.monotonic()
        self.caller_timeout_s = given.get("timeout_s")
        self.done = asyncio.get_running_loop().create_future()
        self.chunks: list[bytes] = []
        self.frame: wire.Frame | wire.Answer | None = None
        self.info: ErrorInfo | None = None
        self.left_at = 0.0
        self.trace = given.get("trace", b"")

    def answered(self, answer: wire.Answer) -> None:
        self.frame = answer
        self.done.set_result(self)

    def chunk(self, frame: wire.Frame) -> None:
        if frame.flags & wire.FIRST:
            self.frame = frame
        self.chunks.append(bytes(frame.body))

    def small_chunk(self, body: bytes) -> None:
        if self.web:
            size, _, rest = body.partition(b"\r\n")
            assert int(size, 16) == len(rest) - 2
            body = rest[:-2]
        self.chunks.append(body)

    def ended(self) -> None:
        self.done.set_result(self)

    def failed(self, error: ErrorInfo) -> None:
        self.info = error
        self.done.set_result(self)

    @property
    def value(self) -> Any:
        """What a Python caller would get."""
        assert self.info is None, self.info
        assert self.frame is not None
        return payload.load(cast("bytes | bytearray", self.frame.body))


class Rig:
    """Replicas of one backend "b" behind one endpoint "e", and a router; used inside a running loop."""

    def __init__(self, folder: Path, handler: Any, *, replicas: int = 1, batch: bool = False, **config: Any) -> None:
        self.folder = folder
        self.config = BackendConfig(**config)
        self.handler, self.batch = handler, batch
        self.replicas = [Replica(folder, handler, self.config, batch) for _ in range(replicas)]
        self.reported: list[Message] = []
        self.router = ROUTER("t", Way(str(folder), node="ours", secret=b"secret", tls=TLS), self.reported.append)
        self.version = 0
        self.apply()

    def entry(self) -> BackendEntry:
        definition, config = self.replicas[0].definition, self.config
        return BackendEntry(
            tag="b",
            concurrency=concurrency_of(definition, config),
            max_batch_size=config.max_batch_size,
            is_batch=self.batch,
            batch_wait_timeout=config.batch_wait_timeout,
            max_concurrent_queries=config.max_concurrent_queries,
            max_queued_queries=config.max_queued_queries,
            request_timeout=config.request_timeout,
            idempotent=config.idempotent,
            http_methods=config.http_methods,
            methods=tuple(definition.methods),
            replicas=tuple(replica.entry for replica in self.replicas),
            starting=0,
        )

    def apply(self, **changes: Any) -> None:
        self.version += 1
        endpoint = EndpointEntry("e", "/e", ("GET",), {"b": 1.0})
        table = RoutingTable(self.version, {"e": endpoint}, {"b": self.entry()})
        self.router.apply(msgspec.structs.replace(table, **changes))

    def ask(self, *args: Any, **given: Any) -> Asked:
        """Submit a call; `await call.done` for its end."""
        kwargs = given.pop("kwargs", None)
        call = Asked(args, kwargs, **given)
        self.router.submit(call)
        return call

    async def linked(self) -> None:
        """Wait until the router has a link to every replica."""
        dispatcher = self.router._backends["b"].dispatcher
        await until(lambda: all(dispatcher.window(replica.id) for replica in self.replicas), "every replica takes requests")

    async def close(self) -> None:
        await self.router.close(1.0)
        for replica in self.replicas:
            await asyncio.to_thread(replica.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
