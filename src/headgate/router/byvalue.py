"""How does code that no other process can import get there?

Through cloudpickle: classes and functions of `__main__`, notebooks and function bodies travel as their definitions.
`msgspec.Struct` classes need a reducer of their own, since their fields live in slots that cloudpickle doesn't know of; so do
functions and properties that cache, which cloudpickle takes for importable or for locks. Code keeps the name of its file, which
cloudpickle 3.1.3 leaves out: without it a traceback from elsewhere has no lines of source.
A class that comes back to a process that has it already is that class again.
"""

from __future__ import annotations

import functools
import inspect
import io
import pickle
import sys
import threading
import types
import typing
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

from headgate.router.references import Lending

StructMeta = type(msgspec.Struct)

_class_by_id: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
_id_by_class: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
_finished: weakref.WeakSet[type] = weakref.WeakSet()
_lock = threading.Lock()

_CONFIG = (
    "frozen",
    "eq",
    "order",
    "array_like",
    "gc",
    "repr_omit_defaults",
    "omit_defaults",
    "forbid_unknown_fields",
    "weakref",
    "dict",
    "cache_hash",
    "tag",
    "tag_field",
)
_NO_FILE = "<dynamic-code>"
"""What cloudpickle writes instead of the name of a file."""
_MADE_BY_THE_CLASS = frozenset(
    ("__dict__", "__weakref__", "__slots__", "__annotations__", "__module__", "__qualname__", "__orig_bases__", "__parameters__")
)


def dumps(value: object, buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None, lending: Lending | None = None) -> bytes:
    """Pickle `value`, with what can't be imported elsewhere by value, and references as `lending` says. Raises whatever its parts raise."""
    sink = io.BytesIO()
    pickler = _pickler_class()(sink, protocol=5, buffer_callback=buffer_callback)
    pickler.lending = lending
    pickler.dump(value)
    return sink.getvalue()


@functools.cache
def _pickler_class() -> Callable[..., Any]:
    import cloudpickle

    class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        lending: Lending | None = None

        def reducer_override(self, obj: Any) -> Any:
            if self.lending is not None and type(obj) is self.lending.reference:
                return self.lending.reduce(obj)
            if isinstance(obj, functools._lru_cache_wrapper) and not import_path(obj):
                return _reduce_cached_function(obj)
            if type(obj) is functools.cached_property:
                return _make_cached_property, (obj.func, obj.attrname)
            if type(obj) is types.CodeType:
                make, args = self.dispatch_table[types.CodeType](obj)
                return make, tuple(obj.co_filename if type(arg) is str and arg == _NO_FILE else arg for arg in args)
            reduced = super().reducer_override(obj)
            if not isinstance(obj, type) or reduced is NotImplemented or len(reduced) < 6:
                return reduced
            if isinstance(obj, StructMeta):
                reduced = _reduce_struct_class(obj)
            make, args, state, _, _, set_state = reduced
            _finished.add(obj)
            return make, args, (set_state, state), None, None, _finish_class

    return ByValuePickler


def import_path(named: Any) -> str:
    """The module that another process can import this function, class or other named object from; empty where it goes by value."""
    import cloudpickle

    module = getattr(named, "__module__", None)
    if not isinstance(module, str) or module == "__main__" or module not in sys.modules:
        return ""
    by_value = cloudpickle.list_registry_pickle_by_value()
    if any(module == each or module.startswith(f"{each}.") for each in by_value):
        return ""
    found: Any = sys.modules[module]
    for part in named.__qualname__.split("."):
        found = getattr(found, part, None)
    return module if found is named else ""


def _reduce_cached_function(cached: functools._lru_cache_wrapper[Any]) -> tuple[Any, ...]:
    # The cache stays here. What `lru_cache` sets by itself is left out of the attributes.
    own = {name: value for name, value in vars(cached).items() if name not in ("__wrapped__", "cache_parameters")}
    return _make_cached_function, (cached.__wrapped__, cached.cache_parameters()), own or None


def _make_cached_function(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _make_cached_property(function: Callable[[Any], Any], name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


def _reduce_struct_class(cls: type[msgspec.Struct]) -> tuple[Any, ...]:
    # In two steps, since methods and annotations may refer to the class itself: what a Struct must know when it is made,
    # and what is set on it afterwards.
    own_annotations = inspect.get_annotations(cls)
    required = len(cls.__struct_fields__) - len(cls.__struct_defaults__)
    fields: list[tuple[str, str, str, object]] = []
    for index, name in enumerate(cls.__struct_fields__):
        if name not in own_annotations:
            continue
        default = cls.__struct_defaults__[index - required] if index >= required else msgspec.NODEFAULT
        if default is msgspec.NODEFAULT:
            kind, default = "", None
        elif hasattr(default, "factory") and type(default).__module__.startswith("msgspec"):
            kind, default = "default_factory", default.factory
        else:
            kind = "default"
        fields.append((name, cls.__struct_encode_fields__[index], kind, default))
    order = list(own_annotations)
    fields.sort(key=lambda field: order.index(field[0]))
    config: dict[str, Any] = {name: getattr(cls.__struct_config__, name) for name in _CONFIG}
    if config["tag"] is None:
        del config["tag"], config["tag_field"]
    # Only a class as a whole can be keyword-only, and only for the fields that it adds.
    config["kw_only"] = bool(fields) and not any(name in cls.__match_args__ for name, *_ in fields)
    bases = cls.__dict__.get("__orig_bases__", cls.__bases__)
    has_post_init = "__post_init__" in cls.__dict__
    skeleton = (_identify(cls), type(cls), cls.__name__, cls.__qualname__, cls.__module__, bases, fields, config, has_post_init)
    names = {field[0] for field in fields}
    attributes = {name: value for name, value in cls.__dict__.items() if name not in names and name not in _MADE_BY_THE_CLASS}
    return _make_struct_class, skeleton, (_resolved_annotations(cls, own_annotations), attributes), None, None, _set_struct_state


def _make_struct_class(
    identity: str,
    metaclass: type,
    name: str,
    qualname: str,
    module: str,
    bases: tuple[Any, ...],
    fields: list[tuple[str, str, str, Any]],
    config: dict[str, Any],
    has_post_init: bool,
) -> type:
    known = _class_by_id.get(identity)
    if known is not None:
        return known
    namespace: dict[str, Any] = {"__module__": module, "__qualname__": qualname, "__annotations__": {field[0]: Any for field in fields}}
    for field, encode_name, kind, default in fields:
        options: dict[str, Any] = {kind: default} if kind else {}
        namespace[field] = msgspec.field(name=encode_name, **options)
    made: list[type] = []
    if has_post_init:
        # A Struct looks its hook up once, when it is made, before there is one: this finds it when it is called.
        def post_init(self: object) -> None:
            made[0].__dict__["__post_init__"](self)

        namespace["__post_init__"] = post_init
    cls = types.new_class(name, bases, {"metaclass": metaclass, **config}, lambda body: body.update(namespace))
    made.append(cls)
    with _lock:
        # Another thread may have opened the same class meanwhile; there must be one.
        cls = _class_by_id.setdefault(identity, cls)
        _id_by_class[cls] = identity
    return cls


def _set_struct_state(cls: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    annotations, attributes = state
    cls.__annotations__ = annotations
    for name, value in attributes.items():
        setattr(cls, name, value)


def _finish_class(cls: type, state: tuple[Callable[[type, Any], object], Any]) -> None:
    # A class that this process has already, such as the one whose definition once left from here, keeps what it has: the
    # functions in `state` see copies of their globals.
    if cls not in _finished:
        set_state, own_state = state
        set_state(cls, own_state)
        _finished.add(cls)


def _identify(cls: type) -> str:
    with _lock:
        identity = _id_by_class.get(cls)
        if identity is None:
            identity = uuid.uuid4().hex
            _id_by_class[cls] = identity
            _class_by_id[identity] = cls
        return identity


def _resolved_annotations(cls: type, own: dict[str, Any]) -> dict[str, Any]:
    # Elsewhere `__main__` is another module, so names in string annotations must be looked up here.
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception:  # noqa: BLE001 - evaluates user code; what can't be resolved here travels as it was written
        return dict(own)
    return {name: hints.get(name, value) for name, value in own.items()}
