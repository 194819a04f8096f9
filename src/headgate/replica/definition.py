"""How does user code get from the driver into a replica, and what has to be known about it on the way?

`describe` looks at a function, class or other callable in the driver, and packs it; `load` and `construct` open it in the
replica. What is importable goes by its import path, all else (`__main__`, notebooks, function bodies) by value.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import logging
import os
import pickle
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from headgate.config import belongs, suggest
from headgate.core.binding import Binder
from headgate.core.declared import MAX_CODE_BYTES, is_plain
from headgate.core.specs import Code, Definition, MethodInfo, Parameter
from headgate.errors import InvalidTypeError, InvalidValueError, NotFoundError, in_one_line
from headgate.router import byvalue
from headgate.router.admin import TOKEN_VARIABLE
from headgate.router.payload import culprit

_log = logging.getLogger("headgate.replica")

_BATCH_MARK = "__headgate_accept_batch__"
_ANY_ARGUMENTS = (Parameter("args", "VAR_POSITIONAL", False), Parameter("kwargs", "VAR_KEYWORD", False))
"""Taken for callables that don't tell their signature, such as some that are written in C."""

Marked = TypeVar("Marked")


def accept_batch(function: Marked) -> Marked:
    """Mark a function, or a method of a class, as taking lists: one item for each request of a batch.

    It is called with one list for each parameter, and returns one answer for each request, in the same order.
    Raises `InvalidTypeError` for what can't be marked, such as a class.
    """
    if inspect.isclass(function) or not (callable(function) or isinstance(function, classmethod | staticmethod)):
        raise InvalidTypeError(f"accept_batch marks functions and methods, got {function!r}; mark the methods of the class that take lists")
    try:
        setattr(function.__func__ if isinstance(function, classmethod | staticmethod) else function, _BATCH_MARK, True)
    except AttributeError:
        raise InvalidTypeError(f"accept_batch can't mark {function!r}; wrap it in a function") from None
    return function


def find(import_path: str) -> Any:
    """Import what "module:name" names.

    Raises `NotFoundError` where there is no such module or name in it, `InvalidValueError` where the import raises.
    """
    module, _, name = import_path.partition(":")
    if module == "__main__":
        raise InvalidValueError("'__main__' is another module in each process; name the module as others import it")
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a program without a guard may end itself
        if isinstance(error, ModuleNotFoundError) and error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise NotFoundError(f"there is no module {error.name!r}{suggest(error.name, _modules_beside(error.name))}") from None
        raise InvalidValueError(f"module {module!r} can't be imported: {in_one_line(error)}{_last_line_of(error)}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            where = f"module {module!r}" if inspect.ismodule(found) else repr(found)
            raise NotFoundError(f"{where} has no {part!r}{suggest(part, dir(found))}") from None
    return found


def describe(
    func_or_class: Any, init_args: tuple[Any, ...] = (), init_kwargs: Mapping[str, Any] | None = None, *, import_path: str = ""
) -> Definition:
    """Inspect and pack what `create_backend` was given; `import_path` is where it was found, if a file named it.

    Raises `InvalidTypeError` for what isn't callable, can't be pickled, is a generator that takes batches, or a class with
    nothing to call; `InvalidValueError` for arguments to something that isn't constructed.
    """
    target, args, kwargs = func_or_class, tuple(init_args), dict(init_kwargs or {})
    if isinstance(target, functools.partial) and inspect.isclass(target.func):
        args, kwargs = (*target.args, *args), {**target.keywords, **kwargs}
        target = target.func
    if not callable(target):
        raise InvalidTypeError(f"a backend is a function, a class or another callable, got {type(target).__name__}: {target!r}")
    name = _name(target)
    if inspect.isclass(target):
        methods = _methods_of(target)
        for key in kwargs:
            hint = belongs(key)
            if hint and not _may_take(target, key):
                raise InvalidValueError(f"the constructor of {name} takes no {key!r}{hint}")
    else:
        if args or kwargs:
            hint = next(filter(None, map(belongs, kwargs)), "; bind them with functools.partial")
            raise InvalidValueError(f"{name} is not a class, so it takes no arguments of a constructor{hint}")
        methods = {"": _inspect("", target)} if _is_plain(target) else _methods_of(type(target))
    if not methods:
        raise InvalidTypeError(f"the class {name} has neither __call__ nor public methods, so there is nothing to call")
    for method in methods.values():
        if method.is_batch and method.is_generator:
            raise InvalidTypeError(
                f"{_dotted(name, method.name)} is a generator function, so it can't take batches; leave accept_batch out"
            )
    try:
        packed = byvalue.dumps((target, args, kwargs))
    except Exception as error:
        raise InvalidTypeError(
            f"{_unpicklable(target, args, kwargs, name)} can't be sent to a replica: {type(error).__name__}: {error}; "
            "create it in the constructor of a class"
        ) from error
    module = _import_path(target)
    return Definition(
        payload=packed,
        name=name,
        methods=methods,
        module=module,
        source_hash=_source_hash(module),
        code=_code(target, args, kwargs, module) or _code_as_named(import_path, list(init_args), dict(init_kwargs or {}), module) or Code(),
        sys_path=tuple(path for path in map(os.path.abspath, sys.path) if _is_text(path)),
        cwd=_working_directory(),
        environ={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE and _is_text(name) and _is_text(value)},
    )


def misfit(target: Any, args: list[Any], kwargs: Mapping[str, Any]) -> tuple[str, str] | None:
    """Which of these the constructor doesn't take, "init_args" or "init_kwargs", and why; None where they fit, or only a call can tell."""
    if isinstance(target, functools.partial):
        args, kwargs, target = [*target.args, *args], {**target.keywords, **kwargs}, target.func
    signature = _constructor(target) if inspect.isclass(target) else None
    if signature is None:
        return None
    try:
        signature.bind(target, *args, **kwargs)
    except TypeError as error:
        parameters = list(signature.parameters.values())[1:]
        names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        wrong = next((key for key in kwargs if key not in names), None)
        if wrong is None or any(each.kind is each.VAR_KEYWORD for each in parameters):
            return "init_args" if args else "init_kwargs", f"{_name(target)} can't be constructed with that: {error}"
        return "init_kwargs", f"{_name(target)} takes no argument {wrong!r}{suggest(wrong, names) or _it_takes(names)}"
    return None


def _constructor(target: Any) -> inspect.Signature | None:
    """What a class is constructed with; None where only a call can tell."""
    if type(target).__call__ is not type.__call__ or target.__new__ is not object.__new__:
        return None
    if target.__init__ is object.__init__:  # whose signature says that it takes anything
        return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)])
    try:
        # Not what a decorator says that it wraps: what is called is the decorator's function.
        return inspect.signature(target.__init__, follow_wrapped=False)
    except (ValueError, TypeError):  # of what is written in C, some have none
        return None


def _may_take(target: Any, key: str) -> bool:
    """Whether a class may be constructed with something of that name."""
    signature = _constructor(target)
    return signature is None or any(each.kind is each.VAR_KEYWORD or each.name == key for each in signature.parameters.values())


def _it_takes(names: list[str]) -> str:
    return f"; it takes {', '.join(names) or 'none'}"


def http_warnings(definition: Definition, http_methods: tuple[str, ...] = ()) -> list[str]:
    """What will fail over HTTP, for a warning: handlers with required parameters that no HTTP request can give."""
    problems: list[str] = []
    for name in ("", *(name for name in http_methods if name not in ("", "__call__"))):
        method = definition.methods.get(name)
        if method is not None:
            error = Binder(_dotted(definition.name, name), method.parameters).http.error
            if error:
                problems.append(f"{error}; requests over HTTP will be answered with 500, calls by handle are not affected")
    return problems


class Loaded(NamedTuple):
    """An opened definition: what to construct, or to call as it is."""

    definition: Definition
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def load(definition: Definition) -> Loaded:
    """Open a definition in a replica, which imports user code. Raises whatever that raises.

    Code that was imported from another file than the driver described is used, with a warning in the log.
    """
    sys.path[:] = [*definition.sys_path, *(entry for entry in sys.path if entry not in definition.sys_path)]
    importlib.invalidate_caches()
    target, args, kwargs = pickle.loads(definition.payload)
    if definition.source_hash:
        found = _source_hash(definition.module)
        if found != definition.source_hash:
            _log.warning(
                "%s: the source of module %s has changed since the backend was created (SHA-256 %.12s, now %.12s); "
                "this replica runs what is there now, others may run the old; use update_backend to replace all",
                definition.name,
                definition.module,
                definition.source_hash,
                found or "unreadable",
            )
    return Loaded(definition, target, args, kwargs)


def construct(loaded: Loaded) -> dict[str, Callable[..., Any]]:
    """Call the constructor, if there is one; return what can be called, by the names of `Definition.methods`.

    Methods are looked up on the class, never on the instance, so that nothing stored on it can take their place.
    Raises whatever the constructor raises.
    """
    target, methods = loaded.target, loaded.definition.methods
    if inspect.isclass(target):
        target = target(*loaded.args, **loaded.kwargs)
    elif _is_plain(target):
        return {"": target}
    owner = type(target)
    callables: dict[str, Callable[..., Any]] = {}
    for name in methods:
        found = _look_up(owner, name or "__call__")
        if found is None:
            raise AttributeError(f"{_dotted(loaded.definition.name, name)} existed when the backend was created, and doesn't here")
        callables[name] = found.__get__(target, owner) if hasattr(found, "__get__") else found
    return callables


# Inspection.


def _is_plain(target: Any) -> bool:
    """Whether it is called as it is, rather than by the methods of its class."""
    return inspect.isroutine(target) or isinstance(target, functools.partial)


def _methods_of(cls: type) -> dict[str, MethodInfo]:
    methods: dict[str, MethodInfo] = {}
    for name in ("__call__", *sorted({name for base in cls.__mro__ for name in vars(base)})):
        if name.startswith("_") and name != "__call__":
            continue
        found = _look_up(cls, name)
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if inspect.isroutine(function):
            called = "" if name == "__call__" else name
            methods[called] = _inspect(called, function, bound=not isinstance(found, staticmethod))
    return methods


def _look_up(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


def _inspect(name: str, function: Any, *, bound: bool = False) -> MethodInfo:
    while isinstance(function, functools.partial) and not _is_plain(function.func):
        function = functools.partial(type(function.func).__call__, function.func, *function.args, **function.keywords)
    code = function
    while isinstance(code, functools.partial):
        code = code.func
    asynchronous_generator = inspect.isasyncgenfunction(function)
    return MethodInfo(
        name=name,
        is_async=asynchronous_generator or inspect.iscoroutinefunction(function),
        is_generator=asynchronous_generator or inspect.isgeneratorfunction(function),
        is_batch=any(getattr(each, _BATCH_MARK, False) for each in (function, code)),
        parameters=_parameters(function, bound=bound),
    )


def _parameters(function: Any, *, bound: bool) -> tuple[Parameter, ...]:
    try:
        found = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return _ANY_ARGUMENTS
    if bound and found and found[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        del found[0]
    return tuple(Parameter(each.name, each.kind.name, each.default is not inspect.Parameter.empty) for each in found)


def _name(target: Any) -> str:
    while isinstance(target, functools.partial):
        target = target.func
    named = target if hasattr(target, "__qualname__") else type(target)
    return str(named.__qualname__).replace("<locals>.", "")


def _dotted(name: str, method: str) -> str:
    return f"{name}.{method}" if method else name


# Packing.


def _import_path(target: Any) -> str:
    """The module that a replica will import the target from; empty where it goes by value."""
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.ismethod(target):
        target = target.__self__
    return byvalue.import_path(target if hasattr(target, "__qualname__") else type(target))


def _code(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str) -> Code | None:
    """How a file names it by its own name, if that leads to it."""
    found: Any = sys.modules.get(module)
    name = getattr(target, "__qualname__", "")
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (module and name) or not (found is target or (inspect.ismethod(found) and found == target)):
        return None
    return _if_plain(Code(f"{module}:{name}", list(args), kwargs, _source_hash(module)))


def _code_as_named(import_path: str, args: list[Any], kwargs: dict[str, Any], module: str) -> Code | None:
    """How a file has named it: an instance or a partial, which have no name of their own."""
    if not import_path:
        return None
    own = import_path.partition(":")[0]
    hashes = [_source_hash(own), *([_source_hash(module)] if module != own else [])]
    return _if_plain(
        Code(import_path, args, kwargs, hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest())
    )


def _if_plain(code: Code) -> Code | None:
    if is_plain(code.init_args) and is_plain(code.init_kwargs) and len(msgspec.msgpack.encode(code)) <= MAX_CODE_BYTES:
        return code
    return None


def _modules_beside(module: str) -> list[str]:
    """The names of modules that could have been meant."""
    parent, _, _ = module.rpartition(".")
    paths = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    prefix = f"{parent}." if parent else ""
    return [prefix + found.name for found in pkgutil.iter_modules(paths)]


def _last_line_of(error: BaseException) -> str:
    """Where in the user's files it was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # it says so itself
    frames = error.__traceback__
    last = ""
    while frames is not None:
        code = frames.tb_frame.f_code
        if not code.co_filename.startswith("<frozen") and code.co_filename not in (importlib.__file__, __file__):
            last = f" ({code.co_filename}, line {frames.tb_lineno})"
        frames = frames.tb_next
    return last


def _source_hash(module: str) -> str:
    path = getattr(sys.modules.get(module), "__file__", None)
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _working_directory() -> str:
    try:
        path = os.getcwd()
    except OSError:  # it was deleted
        return ""
    return path if _is_text(path) else ""


def _is_text(text: str) -> bool:
    """Whether UTF-8 can carry it. The system's paths and variables are bytes; those that are no text stay behind."""
    return not any(0xD800 <= ord(char) < 0xE000 for char in text)


def _unpicklable(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> str:
    for index, value in enumerate(args):
        if not _pickles(value):
            return f"argument {index} of the constructor of {name}: {culprit(value)}"
    for key, value in kwargs.items():
        if not _pickles(value):
            return f"argument {key!r} of the constructor of {name}: {culprit(value)}"
    for user, variable, value in _variables(target):
        if not _pickles(value):
            return f"the variable {variable!r} that {user} uses: {culprit(value)}"
    return name if inspect.isclass(target) or _is_plain(target) else f"an object of type {name}"


def _variables(target: Any) -> Iterator[tuple[str, str, Any]]:
    functions = [function for function in vars(target).values() if inspect.isfunction(function)] if inspect.isclass(target) else [target]
    for function in functions:
        if inspect.isfunction(function):
            used = inspect.getclosurevars(function)
            for variable, value in {**used.globals, **used.nonlocals}.items():
                yield function.__qualname__, variable, value


def _pickles(value: Any) -> bool:
    try:
        byvalue.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it raises, this is the part to name
        return False
    return True
