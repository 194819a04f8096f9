"""What may a file say that declares what should run, and what would it say of what runs?

`parse` checks plain data, such as YAML gives, by the same functions that the verbs use; it finds all mistakes, each with its
place. `to_data` is the way back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from headgate.config import BackendConfig, ReplicaOptions, parse_config, parse_options, refuse_unknown, suggest
from headgate.core import traffic
from headgate.core.desired import check_methods, check_name, check_route
from headgate.core.reports import Description
from headgate.core.specs import Code, Definition
from headgate.errors import ConfigError, ConfigTypeError, HeadgateError
from headgate.formats import Place
from headgate.scheduling import InPlacementGroup, NodeAffinity, NodeLabels

BY_VALUE: Final = "by-value:"
"""What the import path of code begins with that no file can name. Only the instance that runs it has it."""
MAX_CODE_BYTES: Final = 65_536
"""Arguments of a constructor that take more are no matter of a file."""


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the instance serves HTTP: arguments of `serve.init`. They count when it starts; for one that runs they are compared."""

    http_host: str | UnsetType = UNSET
    """The address to listen on; unset: 127.0.0.1."""
    http_port: int | UnsetType = UNSET
    """The port; 0 takes a free one, and matches any that an instance has; unset: 8000."""
    num_ingresses: int | str | UnsetType = UNSET
    """Processes that share the port; on a cluster also "every_node" or "head_only"; unset: 1."""
    max_body_bytes: int | UnsetType = UNSET
    """A request with a longer body is refused with 413; unset: 100 MiB."""
    max_inflight_bytes: int | UnsetType = UNSET
    """Bytes of requests held at once, of all ingresses together; unset: a quarter of memory."""
    debug: bool | UnsetType = UNSET
    """Clients see tracebacks of user code; unset: they don't."""
    ssl_certfile: str | UnsetType = UNSET
    """Certificate chain, for HTTPS."""
    ssl_keyfile: str | UnsetType = UNSET
    """Its private key, where it isn't in the same file."""


class DeclaredBackend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backend: code, and how it runs."""

    import_path: str
    """Where the code is imported from: "module:name", a function, a class or another callable."""
    init_args: list[Any] = []
    """Arguments of the constructor, by position."""
    init_kwargs: dict[str, Any] = {}
    """Arguments of the constructor, by name."""
    config: BackendConfig = BackendConfig()
    """How it runs; what is left out has its default."""
    ray_actor_options: ReplicaOptions = ReplicaOptions()
    """What each replica takes, and where it runs."""

    @property
    def by_value(self) -> bool:
        """Whether only the instance that runs it has the code."""
        return self.import_path.startswith(BY_VALUE)


class DeclaredEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint: where requests arrive, and who gets them."""

    route: str | None = None
    """The path under which HTTP clients reach it; one that ends in "/" takes all below it; unset: Python callers only."""
    methods: tuple[str, ...] = ("GET",)
    """The HTTP methods that it answers."""
    traffic: dict[str, float] = {}
    """Weights of backends, which sum up to 1; without any it answers 503."""
    shadows: dict[str, float] = {}
    """Backends that get copies of requests, each with its share, above 0 and up to 1."""


class Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that should run on an instance. What isn't in it is deleted by its deployment."""

    http: HttpSettings = HttpSettings()
    """How the instance serves HTTP."""
    backends: dict[str, DeclaredBackend] = {}
    """Backends by tag."""
    endpoints: dict[str, DeclaredEndpoint] = {}
    """Endpoints by name."""


class Problem(msgspec.Struct, frozen=True):
    """A mistake, and where it is."""

    place: Place
    text: str


def code_of(definition: Definition) -> Code:
    """How a file names this code."""
    if definition.code.import_path:
        return definition.code
    return Code(f"{BY_VALUE}{definition.name}@{hashlib.sha256(definition.payload).hexdigest()[:16]}")


def same_data(one: object, other: object) -> bool:
    """Whether they are equal and of the same types: 1 is neither 1.0 nor True."""
    return msgspec.msgpack.encode(one, order="deterministic") == msgspec.msgpack.encode(other, order="deterministic")


def is_plain(value: object) -> bool:
    """Whether a file can hold it, and its reader gets the same: None, true and false, numbers, text, lists and dicts of them."""
    match value:
        case None | bool():
            return True
        case int():
            return type(value) is int and -(2**63) <= value < 2**64
        case float():
            return type(value) is float and abs(value) < float("inf")
        case str():
            return type(value) is str and not any(0xD800 <= ord(char) < 0xE000 for char in value)
        case list():
            return type(value) is list and all(map(is_plain, value))
        case dict():
            return type(value) is dict and all(type(key) is str and is_plain(key) and is_plain(item) for key, item in value.items())
        case _:
            return False


# From data.


def parse(data: object) -> tuple[Declared, list[Problem]]:
    """What `data` declares, as far as it is right, and all that is wrong with it."""
    reader = _Reader()
    declared = reader.declared(data)
    return declared, reader.problems


class _Reader:
    """Collects what is right and what is wrong."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @contextlib.contextmanager
    def _at(self, *place: str | int) -> Iterator[None]:
        try:
            yield
        except HeadgateError as error:
            self.problems.append(Problem(place, error.message))

    def _wrong(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))

    def declared(self, data: object) -> Declared:
        if data is None:  # as where the command failed that was to print it, and nothing must be deleted for that
            self._wrong((), "the file is empty; to have nothing run, say so by empty backends and endpoints")
            return Declared()
        given = self._section((), data, Declared, "the file")
        http = self._http(given.get("http"))
        backends = {tag: self._backend(tag, value) for tag, value in self._named("backends", given, "backend tag").items()}
        endpoints = {
            name: self._endpoint(name, value, backends) for name, value in self._named("endpoints", given, "endpoint name").items()
        }
        routes: dict[str, str] = {}
        for name, endpoint in endpoints.items():
            if endpoint.route is not None:
                other = routes.setdefault(endpoint.route, name)
                if other != name:
                    self._wrong(
                        ("endpoints", name, "route"), f"endpoint {name!r}: route {endpoint.route!r} is that of endpoint {other!r}, too"
                    )
        return Declared(http=http, backends=backends, endpoints=endpoints)

    def _http(self, data: object) -> HttpSettings:
        if data is None:
            return HttpSettings()
        given = self._section(("http",), data, HttpSettings, "http")
        fine: dict[str, Any] = {}
        for key, value in given.items():
            with self._at("http", key):
                fine[key] = self._converted(value, HttpSettings, key, "http")
        return HttpSettings(**fine)

    def _backend(self, tag: str, data: object) -> DeclaredBackend:
        place, who = ("backends", tag), f"backend {tag!r}"
        given = self._section(place, data, DeclaredBackend, who)
        path = given.get("import_path", "")
        if "import_path" not in given:
            if isinstance(data, Mapping):
                self._wrong(place, f"{who}: import_path is missing; it says where the code is, such as 'module:name'")
        else:
            with self._at(*place, "import_path"):
                check_import_path(path, who)
        args, kwargs = given.get("init_args"), given.get("init_kwargs")
        with self._at(*place, "init_args"):
            args = _of_kind(args, list, [], f"{who}: init_args must be a list")
            self._check_plain((*place, "init_args"), args, who)
        with self._at(*place, "init_kwargs"):
            kwargs = _of_kind(kwargs, dict, {}, f"{who}: init_kwargs must be a mapping of names to values")
            self._check_plain((*place, "init_kwargs"), kwargs, who)
        if isinstance(path, str) and path.startswith(BY_VALUE) and (args or kwargs):
            self._wrong((*place, "import_path"), f"{who}: code by value has its arguments in it; leave out init_args and init_kwargs")
        return DeclaredBackend(
            import_path=path if isinstance(path, str) else "",
            init_args=args if isinstance(args, list) else [],
            init_kwargs=kwargs if isinstance(kwargs, dict) else {},
            config=self._config((*place, "config"), given.get("config"), who),
            ray_actor_options=self._options((*place, "ray_actor_options"), given.get("ray_actor_options"), who),
        )

    def _config(self, place: Place, data: object, who: str) -> BackendConfig:
        before = len(self.problems)
        if isinstance(data, Mapping):  # each key by itself, so that each mistake has its place
            for key, value in data.items():
                with self._at(*place, key), _said_of(who):
                    parse_config({key: value})
        if len(self.problems) == before:
            with self._at(*place), _said_of(who):
                return parse_config(data)
        return BackendConfig()

    def _options(self, place: Place, data: object, who: str) -> ReplicaOptions:
        before = len(self.problems)
        given: Any = dict(data) if isinstance(data, Mapping) else data
        if isinstance(given, dict):
            strategy = given.get("scheduling_strategy")
            if isinstance(strategy, Mapping):
                with self._at(*place, "scheduling_strategy"), _said_of(who):
                    given["scheduling_strategy"] = _strategy(strategy)
            for key, value in given.items():
                if key != "scheduling_strategy" or len(self.problems) == before:
                    with self._at(*place, key), _said_of(who):
                        parse_options({key: value})
        if len(self.problems) == before:
            with self._at(*place), _said_of(who):
                return parse_options(given)
        return ReplicaOptions()

    def _endpoint(self, name: str, data: object, backends: Mapping[str, object]) -> DeclaredEndpoint:
        place, who = ("endpoints", name), f"endpoint {name!r}"
        given = self._section(place, data, DeclaredEndpoint, who)
        route, methods = given.get("route"), DeclaredEndpoint().methods
        with self._at(*place, "route"), _said_of(who):
            if route is not None:
                check_route(_of_kind(route, str, "", f"route must be text, such as /{name}"))
        with self._at(*place, "methods"), _said_of(who):
            if given.get("methods") is not None:
                listed = _of_kind(given["methods"], list, [], "methods must be a list of HTTP methods, such as [GET, POST]")
                methods = check_methods([_of_kind(method, str, "", "an HTTP method must be text") for method in listed])
        weights: dict[str, float] = {}
        if given.get("traffic"):  # an endpoint may be without any
            with self._at(*place, "traffic"), _said_of(who):
                weights = traffic.check_weights(given["traffic"])
        shadows: dict[str, float] = {}
        with self._at(*place, "shadows"), _said_of(who):
            for tag, share in _of_kind(given.get("shadows"), dict, {}, "shadows must be a mapping of backend tags to shares").items():
                with self._at(*place, "shadows", tag), _said_of(who):
                    shadows[tag] = traffic.check_proportion(share)
                    if not shadows[tag]:
                        raise ConfigError(f"shadow traffic: the share of {tag!r} is 0; leave it out")
        for key, tags in (("traffic", weights), ("shadows", shadows)):
            for tag in tags:
                if tag not in backends:
                    hint = suggest(tag, backends) or (
                        f"; it declares {', '.join(map(repr, backends))}" if backends else "; it declares none"
                    )
                    self._wrong((*place, key, tag), f"{who}: {key}: the file declares no backend {tag!r}{hint}")
        return DeclaredEndpoint(route=route if isinstance(route, str) else None, methods=methods, traffic=weights, shadows=shadows)

    # Parts.

    def _section(self, place: Place, data: object, record: type[msgspec.Struct], who: str) -> dict[str, Any]:
        """The known keys of a mapping."""
        if not isinstance(data, Mapping):
            self._wrong(place, f"{who} must be a mapping with {_listed(record.__struct_fields__)}, got {_shown(data)}")
            return {}
        for key in data:
            with self._at(*place, key):
                refuse_unknown({key: None}, record.__struct_fields__, who)
        return {key: value for key, value in data.items() if key in record.__struct_fields__}

    def _named(self, section: str, given: Mapping[str, Any], what: str) -> dict[str, object]:
        """What is under `backends` or `endpoints`, by checked names."""
        found: dict[str, object] = {}
        with self._at(section):
            for name, value in _of_kind(given.get(section), dict, {}, f"{section} must be a mapping").items():
                with self._at(section, name):
                    check_name(what, _of_kind(name, str, "", f"a {what} must be text; put it in quotes"))
                    found[name] = value
        return found

    def _check_plain(self, place: Place, value: object, who: str) -> None:
        """Find what no constructor can be given through a file."""
        if isinstance(value, dict):
            for key, item in value.items():
                if type(key) is not str or not is_plain(key):
                    self._wrong((*place, key), f"{who}: {place[-1]}: a key must be text, got {_shown(key)}; put it in quotes")
                else:
                    self._check_plain((*place, key), item, who)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self._check_plain((*place, index), item, who)
        elif not is_plain(value):
            wanted = "text, a finite number of at most 64 bits, true, false, null, a list or a mapping"
            self._wrong(place, f"{who}: an argument must be {wanted}, got {_shown(value)}")

    def _converted(self, value: object, record: type[msgspec.Struct], key: str, who: str) -> object:
        field = next(field for field in msgspec.structs.fields(record) if field.name == key)
        try:
            return msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            raise ConfigTypeError(f"{who}: {key} must be {_kinds(field.type)}, got {_shown(value)}") from None


def check_import_path(path: object, who: str) -> None:
    """Refuse what isn't "module:name". Raises `ConfigError`."""
    if not isinstance(path, str):
        raise ConfigTypeError(f"{who}: import_path must be text such as 'module:name', got {_shown(path)}")
    if path.startswith(BY_VALUE):
        return
    module, colon, name = path.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return
    head, _, tail = path.rpartition(".")
    hint = f"; did you mean '{head}:{tail}'?" if not colon and head and tail.isidentifier() else ""
    if path.endswith(".py") or "/" in path:
        hint = "; it names a module, not a file"
    raise ConfigError(f"{who}: import_path must be 'module:name', such as 'models.text:Classifier', got {path!r}{hint}")


@contextlib.contextmanager
def _said_of(who: str) -> Iterator[None]:
    """What is said is said of this backend or endpoint."""
    try:
        yield
    except HeadgateError as error:
        raise ConfigError(f"{who}: {error.message}") from None


def _of_kind(value: Any, kind: type, default: Any, expected: str) -> Any:
    if value is None and default != "":
        return default
    if not isinstance(value, kind):
        raise ConfigTypeError(f"{expected}, got {_shown(value)}")
    return value


def _strategy(given: Mapping[str, Any]) -> object:
    kinds = NodeAffinity | NodeLabels | InPlacementGroup
    try:
        return msgspec.convert(given, kinds)
    except msgspec.ValidationError as error:
        raise ConfigError(f"ray_actor_options: scheduling_strategy: {error}; type is one of node, labels and placement_group") from None


_WORDS: Final = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}


def _kinds(annotation: Any) -> str:
    kinds = getattr(annotation, "__args__", (annotation,))
    return " or ".join(_WORDS[kind] for kind in kinds if kind in _WORDS)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{type(value).__name__}: {text if len(text) <= 60 else text[:57] + '…'}"


# Into data.


def of_running(running: Description) -> Declared:
    """What declares all that is asked for of an instance, but for how it serves HTTP."""
    return Declared(
        backends={
            tag: DeclaredBackend(
                import_path=backend.code.import_path,
                init_args=backend.code.init_args,
                init_kwargs=backend.code.init_kwargs,
                config=backend.config,
                ray_actor_options=backend.options,
            )
            for tag, backend in running.backends.items()
        },
        endpoints={
            name: DeclaredEndpoint(route=endpoint.route, methods=endpoint.methods, traffic=endpoint.traffic, shadows=endpoint.shadows)
            for name, endpoint in running.endpoints.items()
        },
    )


def to_data(declared: Declared) -> dict[str, Any]:
    """The same as plain data, without what has its default; `parse` makes the same of it."""
    found: dict[str, Any] = {}
    http = msgspec.to_builtins(declared.http)
    if http:
        found["http"] = http
    found["backends"] = {tag: _backend_data(backend) for tag, backend in declared.backends.items()}
    found["endpoints"] = {name: _without_defaults(endpoint, DeclaredEndpoint()) for name, endpoint in declared.endpoints.items()}
    return found


def _backend_data(backend: DeclaredBackend) -> dict[str, Any]:
    parts = {
        "import_path": backend.import_path,
        "init_args": backend.init_args,
        "init_kwargs": backend.init_kwargs,
        "config": _without_defaults(backend.config, BackendConfig()),
        "ray_actor_options": _without_defaults(backend.ray_actor_options, ReplicaOptions()),
    }
    return {key: value for key, value in parts.items() if value or key == "import_path"}


def _without_defaults(record: msgspec.Struct, default: msgspec.Struct) -> dict[str, Any]:
    return {
        name: msgspec.msgpack.decode(msgspec.msgpack.encode(value))  # where tuples are lists
        for name in record.__struct_fields__
        if (value := getattr(record, name)) != getattr(default, name)
    }
