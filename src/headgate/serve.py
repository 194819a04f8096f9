"""What can a user do with Headgate? Every verb, as a method of `Instance` and as a function of this module.

    from headgate import serve

    serve.init()
    serve.create_backend("hello:v1", lambda request: "hello")
    serve.create_endpoint("hello", "/hello", backend="hello:v1")

The functions act on the instance of this process's latest `init` that is not shut down, and raise `NotRunningError` where
there is none. Verbs can be called from any thread; inside a running event loop they block it: use `asyncio.to_thread` there.
In a replica they act on the instance that the replica belongs to.

Every verb that talks to the instance can raise `NotRunningError` (a `RuntimeError`): the instance was shut down, or its
controller could not be reached for 15 seconds. A verb that is interrupted, as by Ctrl-C, may take effect all the same, if it has reached a
controller; but one that waits for room on a cluster, and a `deploy` whose replicas start, leave nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, Self, TypeVar

from headgate import DEFAULT_NAME, arguments
from headgate.config import DEFAULT_MAX_BODY_BYTES, BackendConfig, parse_config, parse_options, suggest, unknown
from headgate.errors import AddressInUseError, ConfigError, HeadgateError, InReplicaError, InvalidTypeError, NotFoundError, NotRunningError
from headgate.router import way as ways

if TYPE_CHECKING:
    from headgate.core.declared import Declared
    from headgate.core.messages import Verb
    from headgate.core.plan import Plan
    from headgate.core.reports import BackendInfo, Description, EndpointInfo, Measurement
    from headgate.declaring import Source
    from headgate.engines.base import Starter
    from headgate.replica import metrics
    from headgate.replica.definition import accept_batch
    from headgate.replica.request import Request
    from headgate.replica.response import Response
    from headgate.router.connection import Connection
    from headgate.router.context import context
    from headgate.router.handle import Handle, Reply, get
    from headgate.router.way import Way

__all__ = [
    "BackendConfig",
    "Handle",
    "Instance",
    "Reply",
    "Request",
    "Response",
    "accept_batch",
    "connect",
    "context",
    "create_backend",
    "create_endpoint",
    "delete_backend",
    "delete_endpoint",
    "deploy",
    "get",
    "get_backend_config",
    "get_declared",
    "get_handle",
    "init",
    "list_backends",
    "list_endpoints",
    "list_instances",
    "metrics",
    "plan",
    "set_traffic",
    "shadow_traffic",
    "shutdown",
    "stat",
    "status",
    "update_backend",
    "update_backend_config",
]

_ATTEMPTS: Final = 3

P = ParamSpec("P")
R = TypeVar("R")
Marked = TypeVar("Marked", bound=Callable[..., Any])

_instances: list[Instance] = []  # of this process, by age
_own: Instance | None = None  # that this process is a replica of
_hosted: Host | None = None  # this process runs a program for `headgate run`
_SHUTDOWN_S: Final = 30.0
"""After everything was drained, the processes of an instance end in milliseconds; this is for a machine that swaps."""


class Instance:
    """One running Headgate, as this process sees it: `with serve.init() as instance: …`.

    Leaving the `with` block, and the normal exit of the interpreter, shut the instance down where this process started it
    and it is not `detached`; else they only disconnect.
    """

    def __init__(
        self, connection: Connection, starter: Starter | None, *, owned: bool, started: bool = False, name: str | None = None
    ) -> None:
        self._connection = connection
        self._name = connection.name if name is None else name
        self._starter = starter
        self._owned = owned
        self._started = started
        self._closed = False
        self._http_urls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def http_url(self) -> str:
        """Where HTTP clients reach it, such as `http://127.0.0.1:8000`."""
        return self.http_urls[0]

    @property
    def http_urls(self) -> tuple[str, ...]:
        """Every URL under which HTTP clients reach it."""
        if not self._http_urls:
            self._http_urls = self._connection.welcome().http_urls
        return self._http_urls

    @property
    def started(self) -> bool:
        """Whether the `init` that returned this has started it, and did not find it running."""
        return self._started

    @property
    def ended(self) -> str:
        """Empty while it runs; afterwards how it ended, as far as this process knows: "was shut down", or "died"."""
        way = self._connection.way
        if not self._over() and (self._starter is None or not self._starter.has_ended(way)):
            return ""
        if self._closed:
            return "was shut down"
        died = way.was_killed() if self._connection.over else way.is_there()
        return "died" if died else "was shut down"

    def shutdown(self) -> None:
        """Refuse new work, finish what was admitted, and stop everything, for everybody who is connected.

        Returns when no process, socket or temporary file of the instance remains. A `state_dir` stays, and the next `init`
        on it restores what there was. Raises `InReplicaError` in a replica. Warns (`RuntimeWarning`) where it isn't known that nothing
        remains: something does after 30 s, or an instance on another machine is out of reach.
        """
        unknown = self._shut_down()
        if unknown:
            _warn([unknown], RuntimeWarning)

    def _shut_down(self) -> str:
        """As `shutdown`; returns what isn't known in place of a warning, and nothing where all has ended."""
        from headgate.core.messages import Shutdown

        connection = self._connection
        if connection.replica:
            raise InReplicaError(f"shutdown() is refused in a replica (backend {connection.backend!r}); {_BELONGS}")
        self._check_running()
        try:
            connection.verb(Shutdown())
        except NotRunningError:
            pass  # another process was faster, or the answer got lost on the way out
        assert self._starter is not None  # only instances in replicas have none
        has_ended = self._starter.wait_ended(connection.way, _SHUTDOWN_S)
        connection.close()
        _let_sigterm_be()
        if has_ended:
            return ""
        seen = "it is out of reach, or something still listens there" if connection.way.is_afar else "something of it still runs"
        return f"instance {self._name!r} was told to shut down, and whether it has ended isn't known: after {_SHUTDOWN_S:g} s {seen}"

    def create_backend(
        self,
        tag: str,
        func_or_class: Callable[..., Any],
        /,
        *init_args: Any,
        config: Mapping[str, Any] | BackendConfig | None = None,
        ray_actor_options: Mapping[str, Any] | None = None,
        **init_kwargs: Any,
    ) -> None:
        """Start a backend: `num_replicas` processes that run this code. Returns when all of them are ready.

        Args:
            tag: its name.
            func_or_class: a function, class, callable instance, bound method or `functools.partial`. A class is
                constructed in each replica, with `init_args` and `init_kwargs`.
            config: keys of `BackendConfig` to set, or a whole one.
            ray_actor_options: what each replica takes: keys of `ReplicaOptions`, such as `{"num_gpus": 1}`.

        Warns (`UserWarning`) where the code has required parameters that no HTTP request can give.

        Raises, and then nothing of the backend exists: `AlreadyExistsError` or `InvalidValueError` (`ValueError`) for a tag
        that is taken or no name, and for arguments to a function; `InvalidTypeError` (`TypeError`) for what isn't callable;
        `ConfigError` (`ValueError`), for a wrong type `ConfigTypeError` (also a `TypeError`); `InsufficientResourcesError`
        at once where the replicas don't fit, on a cluster where they still don't after `startup_timeout`, unless they never
        could; `ReplicaStartError` with the remote traceback where a constructor raises or takes longer than `startup_timeout`.
        """
        from headgate.core.messages import CreateBackend
        from headgate.replica import definition

        self._check_running(changing="create_backend")
        arguments.text("a backend tag", tag)
        checked, options = parse_config(config), self._connection.way.check(parse_options(ray_actor_options))
        described = definition.describe(func_or_class, init_args, init_kwargs)
        _warn(definition.http_warnings(described, checked.http_methods))
        self._verb(CreateBackend(tag, self._connection.way.portable(described), checked, options))

    def update_backend(
        self, tag: str, func_or_class: Callable[..., Any], /, *init_args: Any, allow_gap: bool = False, **init_kwargs: Any
    ) -> None:
        """Replace a backend's code; its config and `ray_actor_options` stay. Requests go on being answered meanwhile.

        New replicas are started beside the old, which are drained afterwards. Where they don't fit beside them they
        replace them one at a time; a backend with one replica then has none for a while.

        Args:
            tag: the backend.
            func_or_class: the new code, as for `create_backend`.
            allow_gap: accept that while; requests queue up meanwhile.

        Raises, and then the old code serves on: `NotFoundError` (`LookupError`); `ReplicaStartError`;
        `InsufficientResourcesError`, which names `allow_gap=True` where that would help; and what `create_backend` raises for
        its arguments.
        """
        from headgate.core.messages import UpdateBackend
        from headgate.replica import definition

        self._check_running(changing="update_backend")
        arguments.text("a backend tag", tag)
        arguments.flag("allow_gap", allow_gap)
        described = definition.describe(func_or_class, init_args, init_kwargs)
        _warn(definition.http_warnings(described))
        self._verb(UpdateBackend(tag, self._connection.way.portable(described), allow_gap))

    def delete_backend(self, tag: str) -> None:
        """Drain and stop a backend's replicas; the tag can be used again at once.

        Raises `NotFoundError` (`LookupError`), or `InUseError` (`ValueError`) that names the endpoints which still send
        requests or copies to it.
        """
        from headgate.core.messages import DeleteBackend

        self._check_running(changing="delete_backend")
        arguments.text("a backend tag", tag)
        self._verb(DeleteBackend(tag))

    def update_backend_config(self, tag: str, config: Mapping[str, Any] | BackendConfig) -> None:
        """Change how a backend runs, without a restart of its replicas; scaling down drains those that go.

        Args:
            tag: the backend.
            config: a dict changes the keys in it, a `BackendConfig` replaces all of them. `startup_timeout` counts from the
                next start of a replica.

        Raises, and then nothing has changed: `ConfigError` (`ValueError`), for a wrong type `ConfigTypeError` (also a
        `TypeError`); `NotFoundError` (`LookupError`); `InsufficientResourcesError` and `ReplicaStartError` as for
        `create_backend`, where replicas are added.
        """
        from headgate.core.messages import UpdateBackendConfig

        self._check_running(changing="update_backend_config")
        arguments.text("a backend tag", tag)
        if config is None:
            raise InvalidTypeError("config must be a dict or a BackendConfig, got None")
        parsed = parse_config(config)
        if isinstance(config, BackendConfig):
            self._verb(UpdateBackendConfig(tag, None, parsed))
        else:
            self._verb(UpdateBackendConfig(tag, {key: getattr(parsed, key) for key in config}, None))

    def get_backend_config(self, tag: str) -> BackendConfig:
        """A backend's whole config. Raises `NotFoundError` (`LookupError`)."""
        arguments.text("a backend tag", tag)
        backends = self.list_backends()
        if tag not in backends:
            raise unknown("backend", tag, backends, "list_backends")
        return backends[tag].config

    def list_backends(self) -> dict[str, BackendInfo]:
        """All backends by tag: what was asked for, what runs, and why not."""
        return self.status().backends

    def list_endpoints(self) -> dict[str, EndpointInfo]:
        """All endpoints by name: route, HTTP methods, weights and shadows."""
        return self.status().endpoints

    def status(self) -> Description:
        """The whole instance at one moment: backends, endpoints, processes, resources, and whether it is ready."""
        import msgspec

        from headgate.core.messages import Describe
        from headgate.core.reports import Description

        return msgspec.msgpack.decode(self._verb(Describe()), type=Description)

    def stat(self) -> Measurement:
        """What all processes have counted, added up, also those that have ended: what `/-/metrics` shows, as a record."""
        import msgspec

        from headgate.core.messages import Measure
        from headgate.core.reports import Measurement

        return msgspec.msgpack.decode(self._verb(Measure()), type=Measurement)

    def create_endpoint(
        self, name: str, route: str | None = None, methods: Collection[str] = ("GET",), *, backend: str | None = None
    ) -> None:
        """Register an endpoint. The same arguments again are no error.

        Args:
            name: its name, which handles use.
            route: the path under which HTTP clients reach it, such as "/digits"; one that ends in `/` takes all below. None: handles only.
            methods: the HTTP methods that it answers, such as `("GET", "POST")`.
            backend: the tag that gets all its traffic; None: it answers 503 until `set_traffic`.

        Raises `AlreadyExistsError` (`ValueError`) for a name or route that is taken; `InvalidValueError` for a route
        without a leading `/` or under `/-/`, and for an unknown method; `InvalidTypeError` (`TypeError`); `NotFoundError` (`LookupError`)
        for an unknown backend.
        """
        from headgate.core.messages import CreateEndpoint

        self._check_running(changing="create_endpoint")
        arguments.text("an endpoint name", name)
        arguments.text_or_none("a route", route)
        checked = arguments.methods(methods)
        arguments.text_or_none("a backend tag", backend)
        self._verb(CreateEndpoint(name, route, checked, backend))

    def delete_endpoint(self, name: str) -> None:
        """Remove an endpoint: 404 from then on. Returns when the requests that were admitted are answered.

        Raises `NotFoundError` (`LookupError`).
        """
        from headgate.core.messages import DeleteEndpoint

        self._check_running(changing="delete_endpoint")
        arguments.text("an endpoint name", name)
        self._verb(DeleteEndpoint(name))

    def set_traffic(self, name: str, weights: Mapping[str, float]) -> None:
        """Replace an endpoint's weights; its shadows stay.

        When this returns the weights are in force in every ingress, and in every handle whose process answers within 2
        seconds; the others are named in a `RuntimeWarning`, and follow when they run again.

        Args:
            name: the endpoint.
            weights: backend tags with weights of at least 0 that sum up to 1.

        Raises, and then the old weights stay: `InvalidTypeError` (`TypeError`), `InvalidValueError` (`ValueError`) saying
        the sum, `NotFoundError` (`LookupError`).
        """
        from headgate.core import traffic
        from headgate.core.messages import SetTraffic

        self._check_running(changing="set_traffic")
        arguments.text("an endpoint name", name)
        checked = traffic.check_weights(weights)
        for tag in checked:
            arguments.text("a backend tag", tag)
        self._verb(SetTraffic(name, checked))

    def shadow_traffic(self, name: str, tag: str, proportion: float) -> None:
        """Send copies of a share of an endpoint's requests to a backend; their answers are dropped and never waited for.

        Args:
            name: the endpoint.
            tag: the backend that gets the copies.
            proportion: from 0 to 1; 0 ends it.

        Raises `InvalidTypeError` (`TypeError`), `InvalidValueError` (`ValueError`), `NotFoundError` (`LookupError`).
        """
        from headgate.core import traffic
        from headgate.core.messages import ShadowTraffic

        self._check_running(changing="shadow_traffic")
        arguments.text("an endpoint name", name)
        arguments.text("a backend tag", tag)
        self._verb(ShadowTraffic(name, tag, traffic.check_proportion(proportion)))

    def plan(self, declared: str | os.PathLike[str] | Mapping[str, Any] | Declared, update: Collection[str] = ()) -> Plan:
        """What `deploy` would do; `print` it. Nothing changes.

        Args:
            declared: a file in YAML, TOML or JSON, or what it would hold; see `docs/reference/declared-state.md`. Its code is imported
                in a process of its own, from the folder of the file first: what this process has imported before doesn't count.
            update: backends whose code is to be replaced though it looks the same, such as where a module that it imports was changed.

        Raises `DeclaredStateError` (`ValueError`), with a line for each mistake, also where the instance's HTTP settings differ; `OSError`
        where the file can't be read; `InvalidTypeError`, `InvalidValueError`.
        """
        from headgate import declaring

        self._check_running()
        return self._plan(declaring.load(declared), update)

    def deploy(self, declared: str | os.PathLike[str] | Mapping[str, Any] | Declared | Plan, update: Collection[str] = ()) -> Plan:
        """Have the instance run what is declared, and nothing else: backends, endpoints and traffic change at once, or not at all.

        New replicas start beside what runs; when all are ready and well, what is declared counts, and what is no longer wanted is
        drained. No accepted request is lost. Interrupted by Ctrl-C before that, it leaves everything as it was.

        Args:
            declared: as for `plan`; or a plan, which is done exactly, or not at all.
            update: as for `plan`.

        Returns the plan, done. Raises, and then nothing has changed: what `plan` raises; `ReplicaStartError` with the remote traceback;
        `InsufficientResourcesError` where new replicas don't fit beside what runs; `ChangedMeanwhileError` where others have changed what
        is asked for since it was planned.
        """
        from headgate.core.plan import Plan

        self._check_running(changing="deploy")
        if isinstance(declared, Plan) and update:
            raise InvalidTypeError("a plan says itself whose code is replaced; give update to plan()")
        planned = declared if isinstance(declared, Plan) else self.plan(declared, update)
        if planned.steps:
            self._verb(planned.verb)
        return planned

    def _plan(self, source: Source, update: Collection[str] = ()) -> Plan:
        import msgspec

        from headgate.core.messages import CompareInit
        from headgate.core.plan import plan
        from headgate.replica import definition

        declared, running = source.declared, self.status()
        for tag in arguments.tags("update", update):
            if tag not in declared.backends:
                hint = suggest(tag, declared.backends) or f"; it has {', '.join(map(repr, declared.backends)) or 'none'}"
                raise NotFoundError(f"update: what is declared has no backend {tag!r}{hint}")
        http = source.http()
        if http:
            with source.at("http", who="http"):
                self._connection.verb(CompareInit(http))
        backends, code = {}, {}
        for tag, backend in declared.backends.items():
            with source.at("backends", tag, "ray_actor_options", who=f"backend {tag!r}"):
                options = self._connection.way.check(backend.ray_actor_options)
            backends[tag] = msgspec.structs.replace(backend, ray_actor_options=options)  # as those that run have them
            if backend.by_value:
                old = running.backends.get(tag)
                with source.at("backends", tag, "import_path", who=f"backend {tag!r}"):
                    code[tag] = arguments.code_by_value(backend.import_path, None if old is None else old.code, updated=tag in update)
        definitions = {tag: self._connection.way.portable(found) for tag, found in source.definitions().items()}
        code |= {tag: found.code for tag, found in definitions.items()}
        planned = plan(msgspec.structs.replace(declared, backends=backends), definitions, running, update=update, code=code)
        for given in planned.verb.backends:
            if given.definition is not None:
                _warn(definition.http_warnings(given.definition, given.config.http_methods))
        return planned

    def get_declared(self) -> Declared:
        """What would have to be declared for `deploy` to change nothing; `headgate config` prints it.

        Code that can't be imported, or is constructed with what no file can hold, is named "by-value:…": only this instance has it.
        """
        from headgate import declaring

        return declaring.of_running(self.status(), _USUAL)

    def get_handle(self, name: str, missing_ok: bool = False) -> Handle:
        """A handle that calls an endpoint from Python.

        Args:
            name: the endpoint.
            missing_ok: give a handle also where there is no such endpoint yet; its calls fail until there is.

        Raises `NotFoundError` (`LookupError`), and `FromAfarError` (`RuntimeError`) where the instance is on another machine.
        """
        from headgate.router.handle import Handle

        self._check_running()
        if self._connection.way.is_afar:
            from headgate.router import afar

            afar.refuse("calls by handle", "an endpoint is called over HTTP, by its route")
        arguments.text("an endpoint name", name)
        table = self._connection.wait_for_routes()
        if name not in table.endpoints and not missing_ok:
            raise unknown("endpoint", name, table.endpoints, "list_endpoints")
        return Handle(self.name, name)

    @staticmethod
    def get(reply_or_replies: Any, timeout_s: float | None = None) -> Any:
        """`serve.get`: wait for one reply or for many, of whichever instance they are."""
        from headgate.router import handle

        return handle.get(reply_or_replies, timeout_s)

    @staticmethod
    def accept_batch(function: Marked) -> Marked:
        """`serve.accept_batch`: mark a function, or a method of a class, as taking lists."""
        from headgate.replica import definition

        return definition.accept_batch(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._leave()

    def __repr__(self) -> str:
        state = "over" if self._over() else ", ".join(self._http_urls)
        return f"<Headgate instance {self.name!r}: {state}>"

    def _over(self) -> bool:
        return self._closed or bool(self._connection.over) or not self._connection.way.is_there()

    def _leave(self) -> None:
        """Shut down what this process started, disconnect from the rest."""
        if self._connection.replica or self._closed:
            return
        if self._owned and not self._over():
            try:
                self.shutdown()
            except KeyboardInterrupt:
                abandon(self)
                raise
        self._closed = True
        from headgate.router import connections

        connections.release(self._connection)
        if self._starter is not None:
            self._starter.leave(self._connection.way)
        _let_sigterm_be()

    def _check_running(self, changing: str = "") -> None:
        connection = self._connection
        if connection.forked:
            raise NotRunningError(connection.over)
        if self._over():
            why = "was shut down, or this process has disconnected from it"
            raise NotRunningError(f"instance {self.name!r} {why}; call serve.init() again")
        if changing and connection.constructing:
            when = f"while the definition of backend {connection.backend!r} is imported or constructed in a replica"
            raise InReplicaError(f"{changing}() is refused {when}; {_BELONGS}")

    def _verb(self, verb: Verb) -> bytes:
        self._check_running()
        return self._connection.verb(verb)


_BELONGS: Final = 'set-up belongs under `if __name__ == "__main__":`, where replicas that import the file don\'t run it'


def _hide_first_parameter(wrapper: Callable[..., Any], wrapped: Callable[..., Any]) -> None:
    """Let `help` show the signature that callers see."""
    signature = inspect.signature(wrapped)
    wrapper.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]  # what inspect looks for


def _noting_what_was_given(function: Callable[Concatenate[Mapping[str, Any], P], R]) -> Callable[P, R]:
    """Give a function, as its first argument, the keyword arguments that its caller wrote: defaults don't count."""

    @functools.wraps(function)
    def noting(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(kwargs, *args, **kwargs)

    _hide_first_parameter(noting, function)
    return noting


@_noting_what_was_given
def init(
    given: Mapping[str, Any],
    name: str | None = None,
    *,
    engine: str = "local",
    address: str | None = None,
    http_host: str = "127.0.0.1",
    http_port: int = 8000,
    num_ingresses: int | str = 1,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    max_inflight_bytes: int | None = None,
    resources: Mapping[str, float] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    detached: bool = False,
    debug: bool = False,
    ssl_certfile: str | os.PathLike[str] | None = None,
    ssl_keyfile: str | os.PathLike[str] | None = None,
    access_log: bool = False,
    log_format: str = "text",
    log_dir: str | os.PathLike[str] | None = None,
    admin_address: str | None = None,
    admin_token: str | None = None,
    traces: bool = False,
) -> Instance:
    """Start the instance of that name, or connect to the one that runs; returns once HTTP answers.

    Connecting, only the arguments that were written in the call are compared with those of the running instance.
    In the main thread of a program that has no handler of its own for it, a SIGTERM raises `SystemExit` from then on, until
    this process has shut down the instance that it started.

    Args:
        name: None is "default". Instances of other names run side by side.
        engine: where replicas run: "local", processes of this machine, or "ray", actors of a cluster, which needs the extra `ray`.
        address: of the cluster: "auto" is the one that `RAY_ADDRESS` names, or else the one that this machine belongs to; None the one
            that this process is connected with, or else the same as "auto", or else one of this process's own.
        http_host: the address to listen on; a `UserWarning` says what it means where that isn't this machine's own (loopback).
        http_port: 0 takes a free one, and matches any when connecting.
        num_ingresses: processes that share the HTTP port; on a cluster "every_node", "head_only", or on how many nodes one runs.
        max_body_bytes: a request with a longer body is refused with 413.
        max_inflight_bytes: bytes of requests held at once, of all ingresses together; None: a quarter of memory.
        resources: what the engine has, where that differs from what it finds, such as `{"CPU": 8, "GPU": 2, "tpu": 1}`.
        state_dir: keeps backends, endpoints and traffic in this folder; the next `init` on it restores them, whether the
            instance was shut down or crashed. None: nothing outlives the instance.
        detached: the instance outlives this process; on one machine its output goes to files, see `log_dir`. `shutdown()` from any
            process of the same user ends it.
        debug: clients see tracebacks of user code.
        ssl_certfile: certificate chain, for HTTPS.
        ssl_keyfile: its private key, where it isn't in the same file.
        access_log: an entry of the log for each HTTP request.
        log_format: how lines of the log look on the terminal: "text" or "json", a line of JSON each, as in files.
        log_dir: the folder, of this instance alone, in which each process has a file of its own, put aside when it has 10 MiB; not on a
            cluster, where Ray keeps the log. None: the terminal; where `detached`, the folder `logs` in `state_dir` or in the instance's
            own folder.
        admin_address: where verbs are taken over TCP, such as "0.0.0.0:8100", from whoever knows the `admin_token`; beyond this machine
            over TLS, with the certificate for HTTPS.
        admin_token: 16 to 1,024 characters; who gives it may also change traffic and replicas on the dashboard, for which it needs no
            `admin_address`. None: with one, what the environment variable `HEADGATE_ADMIN_TOKEN` says.
        traces: spans of requests by OpenTelemetry, as its variables `OTEL_*` say; needs the extra `otel`.

    Raises `InvalidTypeError` (`TypeError`), `InvalidValueError` (`ValueError`), `ConfigError` (`ValueError`) naming each
    argument in which the running instance differs; `AdminTokenError` (`PermissionError`); `ClusterUnreachableError`
    (`ConnectionError`); and, with nothing left running, `AddressInUseError`, `StateDirInUseError`, `LogDirInUseError` (`OSError`),
    `StateDirUnsafeError` (`PermissionError`), `InstanceStartError` (`RuntimeError`).

    In a replica the instance is there already, and is returned.
    """
    own = _of_replica()
    if own is not None:
        return own
    if name is None and _hosted is not None:
        name, engine, address = _hosted.name, given.get("engine", _hosted.engine), given.get("address", _hosted.address)
    settings = arguments.settings(
        DEFAULT_NAME if name is None else name,
        engine=engine,
        address=address,
        http_host=http_host,
        http_port=http_port,
        num_ingresses=num_ingresses,
        max_body_bytes=max_body_bytes,
        max_inflight_bytes=max_inflight_bytes,
        resources=resources,
        state_dir=state_dir,
        detached=detached,
        debug=debug,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        access_log=access_log,
        log_format=log_format,
        log_dir=log_dir,
        admin_address=admin_address,
        admin_token=admin_token,
        traces=traces,
    )
    starter = _starter(engine, address)
    wanted = {
        key: None if value is None else getattr(settings, key)  # as checked, such as paths that are absolute
        for key, value in given.items()
        if key in settings.__struct_fields__ and key != "name"
    }
    if admin_token is not None:
        wanted["admin_key"] = settings.admin_key
    for attempt in range(_ATTEMPTS):
        started, way = False, starter.find(settings.name)
        if way is None:
            _warn(arguments.exposure(settings))
            with _noting_the_host(settings.name):
                way = starter.start(settings)
            started = way is not None
            way = way or starter.find(settings.name)
        try:
            if way is None:
                raise NotRunningError(f"instance {settings.name!r} has just ended")
            with _noting_the_host(settings.name):
                instance = _connect(settings.name, starter, way, wanted, started=started, owned=started and not settings.detached)
        except NotRunningError:
            if started or attempt == _ATTEMPTS - 1:
                raise
            continue  # it ended between the two: start it anew
        return _keep(instance)
    raise AssertionError("the last attempt returns or raises")


def abandon(instance: Instance) -> None:
    """What a second Ctrl-C does: an instance that this process has started ends with it, at once, whatever it was doing.

    Nothing is finished, nor waited for, also not by the exit of the interpreter.
    """
    instance._closed = True
    if instance._starter is not None and instance._owned:
        instance._starter.abandon(instance._connection.way)


class Host(NamedTuple):
    """The instance that `headgate run` has started for a program: what `init` without a name means there."""

    name: str
    engine: str
    address: str | None


def host(by: Host | None) -> None:
    """Have `init` without a name mean this instance, in this process; None ends that."""
    global _hosted
    _hosted = by


@contextlib.contextmanager
def _noting_the_host(name: str) -> Iterator[None]:
    """Who is run by a command has not started what an `init` comes upon, and is told who did."""
    try:
        yield
    except (AddressInUseError, ConfigError) as error:
        if _hosted is not None and name == _hosted.name:
            error.add_note("This program's instance was started by the command that runs it: say it by options there, such as --http-port")
        elif _hosted is not None:
            error.add_note(
                f"{name!r} is another instance than {_hosted.name!r}, which the command that runs this program has started: "
                f"leave the name out here, or give that command --name {name}"
            )
        raise


def _keep(instance: Instance) -> Instance:
    """It is this process's latest from now on, until the exit at most."""
    if not _instances:
        atexit.register(_at_exit)
    _instances.append(instance)
    return instance


_USUAL: Final = {name: parameter.default for name, parameter in inspect.signature(init).parameters.items()}
"""What `init` takes where nothing is said."""


def connect(
    name: str | None = None,
    *,
    engine: str = "local",
    address: str | None = None,
    admin_token: str | None = None,
    admin_cafile: str | os.PathLike[str] | None = None,
) -> Instance:
    """Connect to the instance of that name that runs; never starts one. Leaving a `with` block disconnects.

    Args:
        name: None is "default"; with an address of an instance, whichever is there.
        engine: "local" or "ray", as for `init`.
        address: of the cluster, as for `init`, but never one of this process's own; or `"tcp://host:port"`, the `admin_address` of an
            instance on another machine, whatever its engine.
        admin_token: that instance's; None: what the environment variable `HEADGATE_ADMIN_TOKEN` says.
        admin_cafile: PEM file with the authorities that may have signed its certificate; None: those that this machine trusts.

    Raises `NotRunningError` (`RuntimeError`), which names the nearest that run; `InvalidTypeError`, `InvalidValueError`, `ConfigError`, and
    `ClusterUnreachableError` as `init`; from another machine `AdminTokenError` (`PermissionError`) and `AdminUnreachableError`
    (`ConnectionError`). In a replica the instance is there already, and is returned.
    """
    own = _of_replica()
    if own is not None:
        return own
    if address is not None and arguments.is_afar(address):
        return _connect_from_afar(name, engine, address, admin_token, admin_cafile)
    for what, value in (("admin_token", admin_token), ("admin_cafile", admin_cafile)):
        if value is not None:
            raise ConfigError(f"{what} is for an instance at an address such as tcp://host:8100; leave it out, or give the address")
    wanted, starter = arguments.instance_name(DEFAULT_NAME if name is None else name), _finder(engine, address)
    way = starter.find(wanted)
    if way is None:
        running = starter.running()
        listed = f"; there {'is' if len(running) == 1 else 'are'} {', '.join(map(repr, running))}" if running else ", nor any other"
        raise NotRunningError(f"no instance {wanted!r} is running{suggest(wanted, running) if len(running) > 1 else ''}{listed}")
    return _keep(_connect(wanted, starter, way))


def _connect_from_afar(name: str | None, engine: str, address: str, token: str | None, cafile: str | os.PathLike[str] | None) -> Instance:
    from headgate.router import connections
    from headgate.router.afar import AfarStarter

    way, starter = arguments.way_from_afar(engine, address, token, cafile), AfarStarter()
    connection = connections.open_to(way.url, way, new=False)
    try:
        connection.meet(way)
        welcome = connection.welcome()
        if name not in (None, welcome.name):
            raise NotRunningError(f"no instance {name!r} is running at {way.url}; there is {welcome.name!r}")
        instance = Instance(connection, starter, owned=False, name=welcome.name)
        instance._http_urls = welcome.http_urls
    except BaseException:
        connections.release(connection)
        raise
    return _keep(instance)


def list_instances(*, engine: str = "local", address: str | None = None) -> list[str]:
    """The names of the instances that run: this user's on this machine, or those of a cluster; arguments and errors as for `connect`."""
    return _finder(engine, address).running()


def _finder(engine: str, address: str | None) -> Starter:
    """The starter, for those who start nothing: no cluster either."""
    arguments.check_engine(engine, address)
    if engine == "ray" and address is None and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        address = "auto"
    return _starter(engine, address)


def _starter(engine: str, address: str | None) -> Starter:
    if engine == "ray":
        from headgate.engines.ray.launch import RayStarter, connect

        connect(address)
        return RayStarter()
    from headgate.engines.local.launch import LocalStarter

    return LocalStarter()


def _connect(
    name: str, starter: Starter, way: Way, wanted: Mapping[str, Any] | None = None, *, started: bool = False, owned: bool = False
) -> Instance:
    """Connect with an instance that this process has `started` just now, or that has to be as `wanted`, and may end with it: `owned`."""
    from headgate.core.messages import CompareInit, Shutdown
    from headgate.engines.local import sigterm
    from headgate.router import connections

    connection = connections.open_to(name, way, new=started, owner=owned)
    connection.on_end = functools.partial(starter.wait_ended, way, _SHUTDOWN_S)  # so that no zombie of it stays
    try:
        if owned:
            sigterm.exit_once()
        if wanted and not started:
            connection.verb(CompareInit(dict(wanted)))
        instance = Instance(connection, starter, owned=owned, started=started)
        instance._http_urls = connection.welcome().http_urls
        if starter.has_ended(way):
            raise NotRunningError(f"instance {name!r} has just died")  # its controller is about to
        return instance
    except BaseException:
        try:
            if started:  # interrupted, as by Ctrl-C
                with contextlib.suppress(NotRunningError):
                    connection.verb(Shutdown())
                starter.wait_ended(way, _SHUTDOWN_S)
        finally:
            connections.release(connection)
            _let_sigterm_be()
        raise


def _let_sigterm_be() -> None:
    """SIGTERM is the program's affair again where this process no longer has an instance of its own."""
    from headgate.engines.local import sigterm

    if not any(instance._owned and not instance._over() for instance in _instances):
        sigterm.let_be()


def _warn(texts: list[str], kind: type[Warning] = UserWarning) -> None:
    from headgate.router.connection import frames_to_the_caller

    for text in texts:
        warnings.warn(text, kind, stacklevel=frames_to_the_caller())


# The functions act on the latest instance.


def _latest() -> Instance:
    for instance in reversed(_instances):
        if not instance._over():
            return instance
    own = _of_replica()
    if own is not None:
        return own
    for instance in [*_instances, *([_own] if _own is not None else [])]:
        if instance._connection.forked:
            raise NotRunningError(instance._connection.over)
    raise NotRunningError("no instance is running in this process; call serve.init() first")


def _on_latest(method: Callable[Concatenate[Instance, P], R]) -> Callable[P, R]:
    """A function of the same name, arguments and documentation as a method of `Instance`."""

    @functools.wraps(method)
    def verb(*args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, R] = getattr(_latest(), method.__name__)
        return bound(*args, **kwargs)

    verb.__qualname__ = method.__name__
    _hide_first_parameter(verb, method)
    return verb


create_backend = _on_latest(Instance.create_backend)
update_backend = _on_latest(Instance.update_backend)
delete_backend = _on_latest(Instance.delete_backend)
update_backend_config = _on_latest(Instance.update_backend_config)
get_backend_config = _on_latest(Instance.get_backend_config)
list_backends = _on_latest(Instance.list_backends)
list_endpoints = _on_latest(Instance.list_endpoints)
status = _on_latest(Instance.status)
stat = _on_latest(Instance.stat)
create_endpoint = _on_latest(Instance.create_endpoint)
delete_endpoint = _on_latest(Instance.delete_endpoint)
set_traffic = _on_latest(Instance.set_traffic)
shadow_traffic = _on_latest(Instance.shadow_traffic)
plan = _on_latest(Instance.plan)
deploy = _on_latest(Instance.deploy)
get_declared = _on_latest(Instance.get_declared)
get_handle = _on_latest(Instance.get_handle)
shutdown = _on_latest(Instance.shutdown)


def _of_replica() -> Instance | None:
    """The instance that this process is a replica of."""
    global _own
    from headgate.router import connections

    adopted = connections.adopted()
    if adopted is None:
        return None
    if _own is None or _own._connection is not adopted:
        _own = Instance(adopted, None, owned=False)
    return _own


def _find(name: str) -> Way | None:
    from headgate.engines.local.launch import LocalStarter

    way = LocalStarter().find(name)
    if way is None and "ray" in sys.modules:  # a process that isn't connected with a cluster finds nothing there
        from headgate.engines.ray.launch import RayStarter

        way = RayStarter().find(name)
    return way


ways.find = _find


def _at_exit() -> None:
    """Shut down what this process started, the latest first, and disconnect from the rest."""
    from headgate.engines.local import sigterm

    sigterm.exits()
    with contextlib.suppress(KeyboardInterrupt):  # nobody is left to catch it, and what this process started ends with it
        for instance in reversed(_instances):
            if not sigterm.was_told():
                _say_if_never_asked(instance)
            instance._leave()


def _say_if_never_asked(instance: Instance) -> None:
    """A program that sets up what should be served and then simply ends was most likely meant to serve on."""
    program = sys.argv[0] if sys.argv else ""
    is_file = program.endswith(".py") and getattr(sys.modules.get("__main__"), "__spec__", None) is None  # not `python -m`
    on_purpose = not is_file or sys.flags.interactive or hasattr(sys, "last_value")  # a session, or something was raised
    if on_purpose or not instance._owned or instance._over():
        return
    with contextlib.suppress(HeadgateError, OSError, ValueError):  # also where nobody listens any more
        if any(endpoint.route for endpoint in instance.list_endpoints().values()) and not instance.stat().counters.requests:
            print(  # noqa: T201  # nobody else is left to say it
                f"headgate: the program has ended before anybody asked {instance.name!r} anything, so that is shut down; "
                f"`headgate run {program}` serves until Ctrl-C",
                file=sys.stderr,
                flush=True,
            )


# What is imported when it is first used, so that `import headgate.serve` costs little.

_LAZY: Final = {
    "accept_batch": "headgate.replica.definition",
    "context": "headgate.router.context",
    "get": "headgate.router.handle",
    "Handle": "headgate.router.handle",
    "metrics": "headgate.replica.metrics",
    "Reply": "headgate.router.handle",
    "Request": "headgate.replica.request",
    "Response": "headgate.replica.response",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        # With a `name` and no `obj`, Python adds no hint of its own to this one.
        raise AttributeError(f"module 'headgate.serve' has no attribute {name!r}{suggest(name, __all__)}", name=name)
    module = importlib.import_module(_LAZY[name])
    value = module if name == "metrics" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
