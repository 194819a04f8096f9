"""How user code is described in the driver, what is refused there, and how it is opened in a replica."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from headgate.core.declared import MAX_CODE_BYTES
from headgate.core.specs import Code, Definition, MethodInfo, Parameter
from headgate.errors import InvalidTypeError, InvalidValueError
from headgate.replica.definition import accept_batch, construct, describe, find, http_warnings, load, misfit


def function(request, scale=2): ...


async def coroutine(request): ...


def generator(request):
    yield 1


async def async_generator(request):
    yield 1


@accept_batch
def batch(requests):
    return requests


class Model:
    def __init__(self, *names: str, **options: Any) -> None:
        self.names, self.options = names, options

    def __call__(self, request=None):
        return self.names, self.options

    def predict(self, x, /, *, k=1):
        return x

    async def fetch(self, url): ...

    @accept_batch
    def embed(self, texts):
        return texts

    @staticmethod
    def fixed(a):
        return a

    @classmethod
    def shared(cls, a):
        return cls, a

    @accept_batch
    @classmethod
    def shared_batch(cls, items):
        return items

    def check_health(self): ...

    def _private(self): ...

    @property
    def state(self): ...

    class Nested: ...

    constant = 3


class OnlyMethods:
    def predict(self, x):
        return x


class Nothing:
    constant = 3


def one_method(target: Any) -> MethodInfo:
    methods = describe(target).methods
    assert list(methods) == [""]
    return methods[""]


@pytest.mark.parametrize(
    ("target", "is_async", "is_generator", "is_batch"),
    [
        (function, False, False, False),
        (coroutine, True, False, False),
        (generator, False, True, False),
        (async_generator, True, True, False),
        (batch, False, False, True),
        (functools.partial(coroutine), True, False, False),
        (functools.partial(async_generator), True, True, False),
        (functools.partial(batch), False, False, True),
        (functools.partial(functools.partial(batch)), False, False, True),
        (functools.partial(Model("a"), None), False, False, False),
        (Model("a").fetch, True, False, False),
        (Model("a").embed, False, False, True),
        (lambda request: request, False, False, False),
        (json.dumps, False, False, False),
        (len, False, False, False),
    ],
)
def test_what_a_callable_is(target: Any, is_async: bool, is_generator: bool, is_batch: bool) -> None:
    info = one_method(target)
    assert (info.name, info.is_async, info.is_generator, info.is_batch) == ("", is_async, is_generator, is_batch)


def test_parameters_are_those_that_callers_give() -> None:
    x = Parameter("x", "POSITIONAL_ONLY", False)
    k = Parameter("k", "KEYWORD_ONLY", True)
    assert describe(Model).methods["predict"].parameters == (x, k)
    assert one_method(Model("a").predict).parameters == (x, k)
    assert one_method(function).parameters == (
        Parameter("request", "POSITIONAL_OR_KEYWORD", False),
        Parameter("scale", "POSITIONAL_OR_KEYWORD", True),
    )
    assert one_method(functools.partial(function, None)).parameters == (Parameter("scale", "POSITIONAL_OR_KEYWORD", True),)
    assert describe(Model).methods["fixed"].parameters == describe(Model).methods["shared"].parameters
    assert [p.name for p in describe(Model).methods["fixed"].parameters] == ["a"]


def test_a_callable_that_hides_its_signature_takes_anything() -> None:
    assert [p.kind for p in one_method(dict.fromkeys).parameters] != []
    assert [p.kind for p in one_method(max).parameters] == ["VAR_POSITIONAL", "VAR_KEYWORD"]


def test_a_class_has_its_public_methods() -> None:
    methods = describe(Model).methods
    assert set(methods) == {"", "predict", "fetch", "embed", "fixed", "shared", "shared_batch", "check_health"}
    assert {name for name, info in methods.items() if info.is_batch} == {"embed", "shared_batch"}
    assert {name for name, info in methods.items() if info.is_async} == {"fetch"}
    assert describe(Model).any_async
    assert set(describe(OnlyMethods).methods) == {"predict"}


def test_inherited_methods_count_and_overridden_ones_do_not() -> None:
    class Child(Model):
        def embed(self, text): ...

    methods = describe(Child).methods
    assert not methods["embed"].is_batch
    assert methods["shared_batch"].is_batch


def test_a_callable_instance_has_the_methods_of_its_class() -> None:
    definition = describe(Model("a"))
    assert definition.name == "Model"
    assert definition.methods == describe(Model).methods
    assert construct(load(definition))[""]() == (("a",), {})


def test_a_partial_of_a_class_is_the_class_with_its_arguments() -> None:
    definition = describe(functools.partial(Model, "a", k=1), ("b",), {"j": 2})
    assert definition.methods == describe(Model).methods
    assert construct(load(definition))[""]() == (("a", "b"), {"k": 1, "j": 2})


# What is refused.


def batch_generator():
    @accept_batch
    def stream(requests):
        yield requests

    return stream


def uses(value: Any) -> Any:
    return lambda request: value


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "error", "said"),
    [
        (3, (), {}, InvalidTypeError, "got int: 3"),
        (None, (), {}, InvalidTypeError, "got NoneType: None"),
        (object(), (), {}, InvalidTypeError, "got object"),
        (function, (1,), {}, InvalidValueError, "function is not a class"),
        (function, (), {"a": 1}, InvalidValueError, "function is not a class"),
        (function, (), {"num_replicas": 2}, InvalidValueError, "num_replicas belongs in config"),
        (function, (), {"num_gpus": 1}, InvalidValueError, "num_gpus belongs in ray_actor_options"),
        (OnlyMethods, (), {"num_replicas": 2}, InvalidValueError, "of OnlyMethods takes no 'num_replicas'; num_replicas belongs in config"),
        (Model(), (1,), {}, InvalidValueError, "Model is not a class"),
        (Nothing, (), {}, InvalidTypeError, "Nothing has neither __call__ nor public methods"),
        (batch_generator(), (), {}, InvalidTypeError, "stream is a generator function"),
        (Model, (threading.Lock(),), {}, InvalidTypeError, "argument 0 of the constructor of Model: an object of type _thread.lock"),
        (
            Model,
            (),
            {"a": [threading.Lock()]},
            InvalidTypeError,
            r"argument 'a' of the constructor of Model: \[0\] \(of type _thread.lock\)",
        ),
        (Model(threading.Lock()), (), {}, InvalidTypeError, "an object of type Model can't be sent to a replica"),  # type: ignore[arg-type]  # user code
        (
            uses(threading.Lock()),
            (),
            {},
            InvalidTypeError,
            "the variable 'value' that uses.<locals>.<lambda> uses: an object of type _thread.lock",
        ),
    ],
)
def test_what_cannot_be_a_backend_is_refused_by_name(target: Any, args: Any, kwargs: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        describe(target, args, kwargs)


def test_a_constructor_may_have_arguments_that_are_named_like_options() -> None:
    class Pool:
        def __init__(self, num_cpus: int) -> None: ...
        def __call__(self) -> None: ...

    assert describe(Pool, (), {"num_cpus": 2}).name.endswith("Pool")
    assert describe(Model, (), {"num_cpus": 2}).name == "Model"


def test_a_generator_method_that_takes_batches_is_refused_by_name() -> None:
    class Streams:
        @accept_batch
        async def stream(self, requests):
            yield requests

    with pytest.raises(InvalidTypeError, match=r"Streams\.stream is a generator function"):
        describe(Streams)


@pytest.mark.parametrize("target", [Model, 3, len])
def test_only_functions_and_methods_can_be_marked(target: Any) -> None:
    with pytest.raises(InvalidTypeError, match="accept_batch"):
        accept_batch(target)


def test_handlers_that_http_cannot_call_are_warned_about() -> None:
    class Mixed:
        def __call__(self, request): ...
        def add(self, a, b): ...
        def sub(self, a, b): ...

    def add(a, b): ...

    assert len(http_warnings(describe(add))) == 1
    assert "add() missing 1 required positional argument: 'b'" in http_warnings(describe(add))[0]
    assert http_warnings(describe(Mixed)) == []
    assert ["Mixed.add()" in warning for warning in http_warnings(describe(Mixed), ("__call__", "add"))] == [True]
    assert http_warnings(describe(OnlyMethods)) == []


# In the replica.


def test_methods_are_looked_up_on_the_class_and_not_on_the_instance() -> None:
    class Shadowed:
        def __init__(self) -> None:
            self.predict = lambda x: "the instance's"
            self.__dict__["__call__"] = None

        def __call__(self, x):
            return "called"

        def predict(self, x):  # type: ignore[no-redef]  # the point of it
            return "the class's"

    methods = construct(load(describe(Shadowed)))
    assert methods["predict"](1) == "the class's"
    assert methods[""](1) == "called"


def test_methods_of_every_kind_are_bound() -> None:
    methods = construct(load(describe(Model, ("a",), {"k": 1})))
    assert methods[""]() == (("a",), {"k": 1})
    assert methods["predict"](5) == 5
    assert methods["fixed"](6) == 6
    cls, value = methods["shared"](7)
    assert (cls.__name__, value) == ("Model", 7)
    assert "check_health" in methods


def test_what_a_constructor_raises_is_raised() -> None:
    class Broken:
        def __init__(self) -> None:
            raise LookupError("no weights")

        def __call__(self): ...

    with pytest.raises(LookupError, match="no weights"):
        construct(load(describe(Broken)))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module of the user's, imported in this process from a folder of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "user_code_of_a_test.py"
    path.write_text("class Model:\n    def __call__(self, request):\n        return 'old'\n")
    yield importlib.import_module("user_code_of_a_test")
    sys.modules.pop("user_code_of_a_test", None)


OPEN = """
import logging, sys
import msgspec
from headgate.core.specs import Definition
from headgate.replica.definition import construct, load

logging.basicConfig()
print(construct(load(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Definition)))[""](1))
"""


def run_elsewhere(definition: Definition, folder: str = "/") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", OPEN], input=msgspec.msgpack.encode(definition), capture_output=True, cwd=folder, check=False
    )


def test_importable_code_goes_by_its_path_and_the_hash_of_its_file(module: Any) -> None:
    definition = describe(module.Model)
    assert definition.module == "user_code_of_a_test"
    assert definition.source_hash == hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    assert b"'old'" not in definition.payload
    assert describe(module.Model()).module == "user_code_of_a_test"
    run = run_elsewhere(definition)
    assert (run.stdout, run.stderr) == (b"old\n", b"")


def test_a_replica_that_meets_other_source_says_so_and_runs_it(module: Any) -> None:
    definition = describe(module.Model)
    path = Path(module.__file__)
    path.write_text(path.read_text().replace("old", "new!"))
    run = run_elsewhere(definition)
    assert run.stdout == b"new!\n"
    assert b"the source of module user_code_of_a_test has changed since the backend was created" in run.stderr


def test_the_same_source_is_not_mentioned(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(describe(module.Model))
    assert caplog.records == []


def test_a_method_that_is_gone_from_the_source_is_named(module: Any) -> None:
    definition = describe(module.Model)
    Path(module.__file__).write_text("class Model:\n    pass\n")
    run = run_elsewhere(definition)
    assert b"AttributeError: Model existed when the backend was created, and doesn't here" in run.stderr


MAIN = """
import sys
import msgspec
from headgate.replica.definition import describe

class Item(msgspec.Struct, tag=True):
    name: str
    parts: list["Item"] = []

def shout(item):
    return Item(item.name.upper(), [item])

class Model:
    def __init__(self, item): self.item = item
    def __call__(self, request): return msgspec.json.encode(shout(self.item)).decode()

sys.stdout.buffer.write(msgspec.msgpack.encode(describe(Model, (Item("a"),))))
"""


def test_code_of_main_goes_by_value_with_all_that_it_uses(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    driver = subprocess.run([sys.executable, str(script)], capture_output=True, check=False)
    assert driver.stderr == b""
    script.unlink()
    definition = msgspec.msgpack.decode(driver.stdout, type=Definition)
    assert (definition.module, definition.source_hash) == ("", "")
    assert definition.sys_path[0] == str(tmp_path)
    run = run_elsewhere(definition)
    assert run.stdout == b'{"type":"Item","name":"A","parts":[{"type":"Item","name":"a","parts":[]}]}\n', run.stderr


def test_a_replica_searches_where_the_driver_does_and_first(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = describe(module.Model)
    monkeypatch.setattr(sys, "path", ["/own/first", *sys.path[1:]])
    load(definition)
    assert tuple(sys.path[: len(definition.sys_path)]) == definition.sys_path
    assert sys.path[-1] == "/own/first"


def test_surroundings_of_the_driver_travel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADGATE_TEST_VARIABLE", "here")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    definition = describe(function)
    assert definition.cwd == os.fspath(tmp_path)
    assert definition.environ["HEADGATE_TEST_VARIABLE"] == "here"
    assert definition.sys_path[0] == os.fspath(tmp_path)


# How a file names it.

HERE = __name__


class Outer:
    class Inner:
        def __init__(self, size: int = 1) -> None: ...
        def __call__(self) -> None: ...

    @classmethod
    def made(cls, request: Any = None) -> None: ...


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


@wrapped
def decorated(request: Any) -> None: ...


an_object = Outer.Inner()
a_partial = functools.partial(function, scale=3)
with_arguments = functools.partial(Model, "a", k=1)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "path", "init_args", "init_kwargs"),
    [
        (function, (), {}, f"{HERE}:function", [], {}),
        (Model, ("a",), {"k": [1, None]}, f"{HERE}:Model", ["a"], {"k": [1, None]}),
        (with_arguments, ("b",), {"k": 2}, f"{HERE}:Model", ["a", "b"], {"k": 2}),
        (Outer.Inner, (), {"size": 2}, f"{HERE}:Outer.Inner", [], {"size": 2}),
        (Outer.made, (), {}, f"{HERE}:Outer.made", [], {}),
        (decorated, (), {}, f"{HERE}:decorated", [], {}),
        (json.dumps, (), {}, "json:dumps", [], {}),
    ],
)
def test_importable_code_with_plain_arguments_is_named_by_its_own_path(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: str, init_args: list[Any], init_kwargs: dict[str, Any]
) -> None:
    code = describe(target, args, kwargs).code
    assert (code.import_path, code.init_args, code.init_kwargs) == (path, init_args, init_kwargs)
    assert code.source_hash
    again = describe(find(path), tuple(init_args), init_kwargs, import_path=path).code
    assert again == code


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (lambda request: None, (), {}),
        (an_object, (), {}),
        (a_partial, (), {}),
        (Model, ((1, 2),), {}),
        (Model, (b"x",), {}),
        (Model, (float("nan"),), {}),
        (Model, (2**64,), {}),
        (Model, (), {"k": {1: 2}}),
        (Model, (Path("x"),), {}),
        (Model, ("x" * MAX_CODE_BYTES,), {}),
    ],
)
def test_what_no_file_can_hold_has_no_name(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert describe(target, args, kwargs).code == Code()


@pytest.mark.parametrize("name", ["an_object", "a_partial"])
def test_what_has_no_name_of_its_own_has_the_one_that_a_file_gave_it(name: str) -> None:
    path = f"{HERE}:{name}"
    code = describe(find(path), import_path=path).code
    assert code.import_path == path
    assert code.source_hash == describe(function).code.source_hash


class Constructed:
    def __init__(self, weights: str, *, threads: int = 1) -> None: ...

    def __call__(self, request: Any = None) -> None: ...


class TakesAll(Constructed):
    def __init__(self, first: str, **rest: Any) -> None: ...


class TakesNothing(Constructed):
    def __init__(self) -> None: ...


class MadeElsewhere(Constructed):
    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        raise NotImplementedError


class Wrapped(Constructed):
    @functools.wraps(Constructed.__init__)  # type: ignore[misc]  # mypy doesn't know it for constructors
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "key", "said"),
    [
        (Constructed, [], {"weigths": "x"}, "init_kwargs", "Constructed takes no argument 'weigths'; did you mean 'weights'?"),
        (Constructed, ["x"], {"zzz": 1}, "init_kwargs", "Constructed takes no argument 'zzz'; it takes weights, threads"),
        (TakesNothing, [], {"x": 1}, "init_kwargs", "TakesNothing takes no argument 'x'; it takes none"),
        (Constructed, ["x", 4], {}, "init_args", "Constructed can't be constructed with that: too many positional arguments"),
        (Constructed, [], {}, "init_kwargs", "Constructed can't be constructed with that: missing a required argument: 'weights'"),
        (TakesAll, [], {"other": 1}, "init_kwargs", "TakesAll can't be constructed with that: missing a required argument: 'first'"),
        (functools.partial(Constructed, "x"), ["y"], {}, "init_args", "too many positional arguments"),
    ],
)
def test_arguments_that_a_constructor_does_not_take_are_told_before_it_is_called(
    target: Any, args: list[Any], kwargs: dict[str, Any], key: str, said: str
) -> None:
    found = misfit(target, args, kwargs)
    assert found is not None
    assert found[0] == key
    assert said in found[1]


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (Constructed, ["x"], {"threads": 4}),
        (TakesAll, ["x"], {"other": 1}),
        (TakesNothing, [], {}),
        (MadeElsewhere, [], {"only": "a call can tell"}),
        (Wrapped, [], {"only": "a call can tell"}),
        (functools.partial(Constructed, weights="x"), [], {}),
        (len, [], {}),
        (dict, [1, 2, 3], {}),
    ],
)
def test_arguments_that_a_constructor_may_take_are_left_to_it(target: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    assert misfit(target, args, kwargs) is None


def with_replicas(function: Any) -> Any:
    @functools.wraps(function)
    def takes_one_more(self: Any, *, num_replicas: int = 1) -> None:
        function(self)

    return takes_one_more


class Decorated:
    @with_replicas
    def __init__(self) -> None: ...

    def __call__(self) -> None: ...


def test_what_a_decorated_constructor_takes_is_what_its_decorator_takes() -> None:
    assert describe(Decorated, init_kwargs={"num_replicas": 2}).name == "Decorated"
