"""What should run, and what does a verb make of it?

`apply` takes the state and a verb, and returns the new state or raises the error that the user gets: all or nothing.
`routing_table` says what routers have to know, from the state and the replicas that run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from headgate.config import BackendConfig, ReplicaOptions, parse_config, suggest, unknown
from headgate.core import traffic
from headgate.core.messages import (
    BackendEntry,
    CreateBackend,
    CreateEndpoint,
    DeleteBackend,
    DeleteEndpoint,
    Deploy,
    EndpointEntry,
    ReplicaEntry,
    RoutingTable,
    SetTraffic,
    ShadowTraffic,
    StateVerb,
    UpdateBackend,
    UpdateBackendConfig,
)
from headgate.core.specs import Definition
from headgate.errors import AlreadyExistsError, ChangedMeanwhileError, ConfigError, InUseError, InvalidValueError

T = TypeVar("T")

HTTP_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
RESERVED_PREFIX: Final = "/-/"
ASYNC_CONCURRENCY: Final = 100


class Backend(msgspec.Struct, frozen=True):
    """One backend as it is asked for. `generation` is a number of its own for each version of code under each tag."""

    tag: str
    generation: int
    definition: Definition
    config: BackendConfig
    options: ReplicaOptions

    @property
    def concurrency(self) -> int:
        """Calls of user code that one replica runs at once."""
        return concurrency_of(self.definition, self.config)


class Endpoint(msgspec.Struct, frozen=True):
    """One endpoint as it is asked for. `backend` is what it was created with, so that the same again is a no-op."""

    name: str
    route: str | None
    methods: tuple[str, ...]
    backend: str | None
    weights: dict[str, float] = {}
    shadows: dict[str, float] = {}


class State(msgspec.Struct, frozen=True):
    """Everything that is asked for. Never changed in place."""

    backends: dict[str, Backend] = {}
    endpoints: dict[str, Endpoint] = {}
    next_generation: int = 1


def concurrency_of(definition: Definition, config: BackendConfig) -> int:
    """Calls of user code that one replica runs at once: as configured, else 100 for async handlers, 1 for others and for batches."""
    if config.concurrency is not None:
        return config.concurrency
    takes_batches = any(method.is_batch for method in definition.methods.values())
    return ASYNC_CONCURRENCY if definition.any_async and not takes_batches else 1


def apply(state: State, verb: StateVerb) -> State:
    """The state after the verb. Raises the error of the contract, and then nothing has changed."""
    match verb:
        case CreateBackend():
            return _create_backend(state, verb)
        case UpdateBackend():
            return _update_backend(state, verb)
        case DeleteBackend():
            return _delete_backend(state, verb)
        case UpdateBackendConfig():
            return _update_backend_config(state, verb)
        case CreateEndpoint():
            return _create_endpoint(state, verb)
        case DeleteEndpoint():
            endpoint = _endpoint(state, verb.name)
            rest = {name: other for name, other in state.endpoints.items() if name != endpoint.name}
            return msgspec.structs.replace(state, endpoints=rest)
        case SetTraffic():
            return _set_traffic(state, verb)
        case ShadowTraffic():
            return _shadow_traffic(state, verb)
        case Deploy():
            return _deploy(state, verb)


def with_backend(state: State, backend: Backend) -> State:
    """The state with this backend in the place of the one under its tag."""
    return msgspec.structs.replace(state, backends=state.backends | {backend.tag: backend})


def state_id(state: State) -> str:
    """Another text where something else is asked for; it is also the same for another controller."""
    known = _Known({tag: (backend.generation, backend.config, backend.options) for tag, backend in state.backends.items()}, state.endpoints)
    as_kept = msgspec.msgpack.decode(msgspec.msgpack.encode(known), type=_Known)  # where 60 seconds are 60.0
    return hashlib.blake2b(msgspec.msgpack.encode(as_kept, order="deterministic"), digest_size=12).hexdigest()


class _Known(msgspec.Struct):
    """What tells one state from another."""

    backends: dict[str, tuple[int, BackendConfig, ReplicaOptions]]
    endpoints: dict[str, Endpoint]


def check_unchanged(state: State, based_on: str) -> None:
    """Raise `ChangedMeanwhileError` unless it is the state that a deployment was planned for."""
    if state_id(state) != based_on:
        raise ChangedMeanwhileError(
            "the instance was changed by others since this deployment was planned; plan it anew, and nothing is lost"
        )


def missing(state: State, backend: Backend) -> int:
    """How many replicas have to start before this backend can take the place of the one under its tag."""
    old = state.backends.get(backend.tag)
    wanted = backend.config.num_replicas
    return wanted if old is None or old.generation != backend.generation else max(wanted - old.config.num_replicas, 0)


def users_of(state: State, tag: str) -> list[str]:
    """The endpoints that send requests or copies to a backend."""
    return [name for name, endpoint in state.endpoints.items() if endpoint.weights.get(tag, 0) > 0 or tag in endpoint.shadows]


def _create_backend(state: State, verb: CreateBackend) -> State:
    check_name("backend tag", verb.tag)
    if verb.tag in state.backends:
        raise AlreadyExistsError(
            f"backend {verb.tag!r} exists already; replace its code with update_backend, or choose another tag "
            "(list_backends() shows those in use)"
        )
    check_fit(verb.tag, verb.definition, verb.config)
    backend = Backend(verb.tag, state.next_generation, verb.definition, verb.config, verb.options)
    return msgspec.structs.replace(with_backend(state, backend), next_generation=state.next_generation + 1)


def _update_backend(state: State, verb: UpdateBackend) -> State:
    old = _backend(state, verb.tag)
    check_fit(verb.tag, verb.definition, old.config)
    new = msgspec.structs.replace(old, generation=state.next_generation, definition=verb.definition)
    return msgspec.structs.replace(with_backend(state, new), next_generation=state.next_generation + 1)


def _delete_backend(state: State, verb: DeleteBackend) -> State:
    _backend(state, verb.tag)
    users = users_of(state, verb.tag)
    if users:
        named = ", ".join(repr(name) for name in users)
        raise InUseError(
            f"backend {verb.tag!r} is used by endpoint {named}; give it weight 0 by set_traffic (shadows: shadow_traffic(…, 0)) first"
        )
    # What an endpoint says of it with weight 0 would be a name that leads nowhere.
    endpoints = {
        name: msgspec.structs.replace(endpoint, weights={tag: weight for tag, weight in endpoint.weights.items() if tag != verb.tag})
        for name, endpoint in state.endpoints.items()
    }
    backends = {tag: backend for tag, backend in state.backends.items() if tag != verb.tag}
    return msgspec.structs.replace(state, backends=backends, endpoints=endpoints)


def _update_backend_config(state: State, verb: UpdateBackendConfig) -> State:
    old = _backend(state, verb.tag)
    if verb.based_on is not None:
        _check_same(f"the config of backend {verb.tag!r}", verb.based_on, {key: getattr(old.config, key, None) for key in verb.based_on})
    config = parse_config(verb.config if verb.config is not None else verb.changes, old.config)
    check_fit(verb.tag, old.definition, config)
    return with_backend(state, msgspec.structs.replace(old, config=config))


def _create_endpoint(state: State, verb: CreateEndpoint) -> State:
    check_name("endpoint name", verb.name)
    if verb.route is not None:
        check_route(verb.route)
    methods = check_methods(verb.methods)
    if verb.backend is not None:
        _backend(state, verb.backend)
    old = state.endpoints.get(verb.name)
    if old is not None:
        # The order of methods means nothing, and a set's differs from process to process.
        if (old.route, set(old.methods), old.backend) == (verb.route, set(methods), verb.backend):
            return state
        raise AlreadyExistsError(
            f"endpoint {verb.name!r} exists already, with route {old.route!r} and methods {', '.join(old.methods)}; "
            "delete it with delete_endpoint first, or choose another name"
        )
    if verb.route is not None:
        _check_route_is_free(state, verb.route)
    weights = {} if verb.backend is None else {verb.backend: 1.0}
    return _with_endpoint(state, Endpoint(verb.name, verb.route, methods, verb.backend, weights))


def _set_traffic(state: State, verb: SetTraffic) -> State:
    endpoint = _endpoint(state, verb.endpoint)
    if verb.based_on is not None:
        _check_same(f"the traffic of endpoint {verb.endpoint!r}", verb.based_on, endpoint.weights)
    weights = traffic.check_weights(verb.weights)
    for tag in weights:
        _backend(state, tag)
    return _with_endpoint(state, msgspec.structs.replace(endpoint, weights=weights))


def _shadow_traffic(state: State, verb: ShadowTraffic) -> State:
    endpoint = _endpoint(state, verb.endpoint)
    proportion = traffic.check_proportion(verb.proportion)
    _backend(state, verb.backend)
    shadows = {tag: share for tag, share in endpoint.shadows.items() if tag != verb.backend}
    if proportion > 0:
        shadows[verb.backend] = proportion
    return _with_endpoint(state, msgspec.structs.replace(endpoint, shadows=shadows))


def _deploy(state: State, verb: Deploy) -> State:
    check_unchanged(state, verb.based_on)
    backends: dict[str, Backend] = {}
    next_generation = state.next_generation
    for given in verb.backends:
        check_name("backend tag", given.tag)
        old = state.backends.get(given.tag)
        if given.definition is None:
            old = _backend(state, given.tag)
        definition = given.definition or old.definition  # type: ignore[union-attr]  # one of them is there
        check_fit(given.tag, definition, given.config)
        if old is not None and given.definition is None and given.options == old.options:
            backends[given.tag] = old if given.config == old.config else msgspec.structs.replace(old, config=given.config)
        else:
            backends[given.tag] = Backend(given.tag, next_generation, definition, given.config, given.options)
            next_generation += 1
    new = State(backends, {}, next_generation)
    for entry in verb.endpoints:
        new = _with_endpoint(new, _deployed_endpoint(new, entry, state.endpoints.get(entry.name)))
    return State(_by_age(state.backends, new.backends), _by_age(state.endpoints, new.endpoints), next_generation)


def _by_age(old: Mapping[str, T], new: Mapping[str, T]) -> dict[str, T]:
    """The new ones in the order in which the store keeps them: those that were there stay first."""
    return {name: new[name] for name in dict.fromkeys([*old, *new]) if name in new}


def _deployed_endpoint(state: State, entry: EndpointEntry, old: Endpoint | None) -> Endpoint:
    """An endpoint of the new state, which has the backends, and the endpoints before this one; the `old` one where nothing changes."""
    check_name("endpoint name", entry.name)
    if entry.route is not None:
        check_route(entry.route)
        _check_route_is_free(state, entry.route)
    methods = check_methods(entry.methods)
    weights = traffic.check_weights(entry.weights) if entry.weights else {}
    shadows = {tag: traffic.check_proportion(share) for tag, share in entry.shadows.items()}
    for tag in (*weights, *shadows):
        _backend(state, tag)
    if old is None:
        created_with = next(iter(weights)) if len(weights) == 1 else None
        return Endpoint(entry.name, entry.route, methods, created_with, weights, shadows)
    if (old.route, set(old.methods), old.weights, old.shadows) == (entry.route, set(methods), weights, shadows):
        return old
    return Endpoint(entry.name, entry.route, methods, old.backend, weights, shadows)


def _check_same(what: str, based_on: Mapping[str, object], now: Mapping[str, object]) -> None:
    if based_on != now:
        said = ", ".join(f"{key} {value}" for key, value in now.items()) or "nothing"
        raise ChangedMeanwhileError(f"{what} was changed by others meanwhile: it is {said} now; look at that, and change it anew")


def _check_route_is_free(state: State, route: str) -> None:
    for other in state.endpoints.values():
        if other.route == route:
            raise AlreadyExistsError(
                f"route {route!r} is taken by endpoint {other.name!r}; choose another route, or delete that endpoint first"
            )


def _with_endpoint(state: State, endpoint: Endpoint) -> State:
    return msgspec.structs.replace(state, endpoints=state.endpoints | {endpoint.name: endpoint})


def _backend(state: State, tag: str) -> Backend:
    found = state.backends.get(tag)
    if found is None:
        raise unknown("backend", tag, state.backends, "list_backends")
    return found


def _endpoint(state: State, name: str) -> Endpoint:
    found = state.endpoints.get(name)
    if found is None:
        raise unknown("endpoint", name, state.endpoints, "list_endpoints")
    return found


def check_name(what: str, name: str) -> None:
    """Refuse what can't be a backend's tag or an endpoint's name; `what` says which."""
    if not name:
        raise InvalidValueError(f"the {what} must not be empty")
    _check_text(what, name)


def _check_text(what: str, text: str) -> None:
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text):
        raise InvalidValueError(f"the {what} must not have control characters, got {text!r}")
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        raise InvalidValueError(f"the {what} must be text that UTF-8 can encode, got {text!r}")


def check_route(route: str) -> None:
    """Refuse what can't be a route."""
    _check_text("route", route)
    if not route.startswith("/"):
        raise InvalidValueError(f"a route begins with '/', got {route!r}")
    if route.startswith(RESERVED_PREFIX):
        raise InvalidValueError(f"routes under {RESERVED_PREFIX!r} are Headgate's own, got {route!r}; choose another")


def check_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """The HTTP methods of an endpoint, in capitals and each once."""
    checked: dict[str, None] = {}
    for method in methods:
        upper = method.upper()
        if upper not in HTTP_METHODS:
            hint = suggest(upper, HTTP_METHODS) or f"; known are {', '.join(HTTP_METHODS)}"
            raise InvalidValueError(f"{method!r} is not an HTTP method that can be served{hint}")
        checked[upper] = None
    if not checked:
        raise InvalidValueError("an endpoint needs at least one HTTP method, such as methods=('GET',)")
    return tuple(checked)


def check_fit(tag: str, definition: Definition, config: BackendConfig) -> None:
    """Refuse a config that this code can't run with."""
    if config.max_batch_size > 1 and not any(method.is_batch for method in definition.methods.values()):
        raise ConfigError(
            f"config: max_batch_size={config.max_batch_size}, but {definition.name} of backend {tag!r} does not take batches; "
            "mark it with @serve.accept_batch"
        )
    known = [name for name in definition.methods if name]
    for name in config.http_methods:
        if name != "__call__" and name not in definition.methods:
            hint = suggest(name, known) or (f"; its methods are {', '.join(known)}" if known else "; it has no methods")
            raise ConfigError(f"config: http_methods: {definition.name} of backend {tag!r} has no method {name!r}{hint}")


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a backend that has too few replicas."""

    text: str
    """What its last failure said."""
    pause_s: float
    """How long after that failure the next replica is started."""


_MOST_FAULT_CHARS = 10_000
"""Of a traceback, whose end says most: every router gets it."""
_NO_FAULT = Fault("", 0.0)


def routing_table(
    state: State,
    ready: Mapping[str, Iterable[ReplicaEntry]],
    *,
    coming: Mapping[str, int],
    faults: Mapping[str, Fault],
    leaving: Mapping[str, Backend],
    base: RoutingTable,
) -> RoutingTable:
    """What routers follow. Replicas are in the order of their ids.

    `base` has what does not depend on the state; by backend, `ready` are the replicas that take calls, and `coming` is how
    many are on their way; `faults` says what is wrong with those that have too few. Those that are `leaving` are in no state.
    """

    def entries(backends: Mapping[str, Backend]) -> dict[str, BackendEntry]:
        return {
            tag: _backend_entry(backend, _by_id(ready.get(tag, ())), coming.get(tag, 0), faults.get(tag))
            for tag, backend in backends.items()
        }

    endpoints = {
        name: EndpointEntry(name, endpoint.route, endpoint.methods, endpoint.weights, endpoint.shadows)
        for name, endpoint in state.endpoints.items()
    }
    return msgspec.structs.replace(base, endpoints=endpoints, backends=entries(state.backends), leaving=entries(leaving))


def _by_id(replicas: Iterable[ReplicaEntry]) -> tuple[ReplicaEntry, ...]:
    return tuple(sorted(replicas, key=lambda replica: replica.id))


def _backend_entry(backend: Backend, replicas: tuple[ReplicaEntry, ...], starting: int, fault: Fault | None) -> BackendEntry:
    config, methods = backend.config, backend.definition.methods
    if fault is None or len(replicas) >= config.num_replicas:
        fault = _NO_FAULT
    return BackendEntry(
        tag=backend.tag,
        concurrency=backend.concurrency,
        max_batch_size=config.max_batch_size,
        is_batch=any(method.is_batch for method in methods.values()),
        batch_wait_timeout=config.batch_wait_timeout,
        max_concurrent_queries=config.max_concurrent_queries,
        max_queued_queries=config.max_queued_queries,
        request_timeout=config.request_timeout,
        idempotent=config.idempotent,
        http_methods=config.http_methods,
        methods=tuple(methods),
        replicas=replicas,
        starting=starting,
        fault=fault.text[-_MOST_FAULT_CHARS:],
        pause_s=fault.pause_s,
    )
