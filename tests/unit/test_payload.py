"""Python values on their way between processes: what is copied, what goes by value, and what is said of the rest."""

from __future__ import annotations

import fnmatch
import io
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from headgate.errors import EncodeError, WireError
from headgate.router import payload


def through(value: Any, *, received_in_place: bool = False) -> Any:
    data = payload.dump(value)
    return payload.load(bytearray(data) if received_in_place else data)


def test_small_values_are_a_pickle_and_four_bytes() -> None:
    import pickle

    value = ((1, "x"), {"k": None})
    assert payload.dump(value) == bytes(4) + pickle.dumps(value, 5)
    assert through(value) == value


@pytest.mark.parametrize("received_in_place", [False, True])
def test_arrays_arrive_equal_and_can_be_written_to(received_in_place: bool) -> None:
    arrays = [np.arange(1000, dtype="f8"), np.ones((30, 40), "u1", order="F"), np.arange(4), np.zeros((0, 3)), np.arange(2000)[::2]]
    for sent, got in zip(arrays, through(arrays, received_in_place=received_in_place), strict=True):
        np.testing.assert_array_equal(got, sent)
        assert got.dtype == sent.dtype
        got[...] = 1


def test_a_large_array_received_in_place_is_a_view_of_the_bytes_received() -> None:
    data = bytearray(payload.dump(np.arange(100_000)))
    got = payload.load(data)
    before = bytes(data)
    got[:] = 7
    assert bytes(data) != before


def test_a_large_array_is_aligned() -> None:
    arrays = through([np.ones(1001, "u1"), np.ones(1000, "f8"), b"x" * 3, np.ones(2000, "c16")], received_in_place=True)
    assert all(each.ctypes.data % 8 == 0 for each in arrays if isinstance(each, np.ndarray))


def test_what_was_dumped_does_not_change_with_the_array() -> None:
    array = np.zeros(10_000)
    data = payload.dump(array)
    array[:] = 1
    assert payload.load(data).sum() == 0


def test_functions_without_a_name_go_by_value() -> None:
    factor = 3
    assert through(lambda x: x * factor)(2) == 6


def test_code_that_goes_by_value_keeps_the_name_of_its_file() -> None:
    def outer() -> Any:
        return lambda: None

    arrived = through(outer)
    assert arrived is not outer
    assert [arrived.__code__.co_filename, arrived().__code__.co_filename] == [__file__] * 2


def test_what_cannot_be_pickled_is_named_with_its_place() -> None:
    with pytest.raises(EncodeError, match=r"\[1\]\['deep'\]\[0\] \(of type _thread.lock\) can't be sent"):
        payload.dump(((1,), {"deep": [threading.Lock()]}))
    with pytest.raises(EncodeError, match=r"kwargs\['deep'\]\[0\] \(of type _thread.lock\) can't be sent"):
        payload.dump(((1,), {"deep": [threading.Lock()]}), ("args", "kwargs"))
    endless: list[object] = []
    endless += [endless, threading.Lock()]
    with pytest.raises(EncodeError, match=r"\[0\]\[0\].* can't be sent"):
        payload.dump(endless)
    with pytest.raises(EncodeError, match=r"an object of type _io.TextIOWrapper can't be sent"):
        payload.dump(io.TextIOWrapper(io.BytesIO()))


def test_what_raises_while_it_is_pickled_is_an_encode_error_too() -> None:
    with pytest.raises(EncodeError, match="Stubborn can't be sent to another process: ZeroDivisionError"):
        payload.dump(Stubborn())


class Stubborn:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize("kept", [0, 1, 8, 15, 16, 40, 3000, -1])
def test_a_payload_that_was_cut_is_refused(kept: int) -> None:
    data = payload.dump([np.arange(1000), np.arange(500)])
    with pytest.raises(WireError):
        payload.load(data[:kept])


DRIVER = """
import dataclasses, enum, subprocess, sys, typing
import msgspec
from headgate.router import payload

counted = 0

class Plain:
    def __init__(self, value): self.value = value
    def count(self): return counted

@dataclasses.dataclass
class Data:
    value: int

class Color(enum.Enum):
    RED = 1

class Base(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="base"):
    first_name: str
    many: list["Base"] = []
    made: dict = msgspec.field(default_factory=dict)
    def shout(self): return Base(first_name=self.first_name.upper())
    @property
    def length(self): return len(self.first_name)

class Derived(Base, frozen=True, tag="derived"):
    size: int
    note: typing.ClassVar[str] = "a class's"
    def __post_init__(self):
        if self.size < 0: raise ValueError("below 0")

T = typing.TypeVar("T")
class Box(msgspec.Struct, typing.Generic[T]):
    item: T

class Node(msgspec.Struct):
    label: str
    next: "Node | None" = None

values = [Plain(3), Data(4), Color.RED, Base(first_name="ada"), Derived(first_name="b", size=2), Box[int](5), Node("a", Node("b"))]
method = Plain.__dict__["count"]
child = subprocess.run([sys.executable, "-c", sys.argv[1]], input=payload.dump(values), capture_output=True)
assert child.returncode == 0, child.stderr.decode()
back = payload.load(child.stdout)
assert [type(each) for each in back] == [type(each) for each in values], back
assert back[1:] == values[1:]
counted = 9
assert back[0].count() == 9, "the class's methods were replaced by copies"
assert Plain.__dict__["count"] is method
print("fine")
"""

REPLICA = """
import sys
import msgspec
from headgate.router import payload

values = payload.load(sys.stdin.buffer.read())
plain, data, color, base, derived, box, node = values
assert plain.value == 3 and data.value == 4 and color.name == "RED"
assert base.shout().first_name == "ADA" and base.length == 3 and derived.length == 1
assert msgspec.json.encode(base) == b'{"type":"base","firstName":"ada","many":[],"made":{}}', msgspec.json.encode(base)
decoded = msgspec.json.decode(b'{"type":"base","firstName":"x","many":[{"type":"base","firstName":"y"}]}', type=type(base))
assert type(decoded.many[0]) is type(base)
assert msgspec.json.decode(b'{"label":"x","next":{"label":"y"}}', type=type(node)).next.label == "y"
assert derived.note == "a class's" and issubclass(type(derived), type(base)) and derived.__struct_config__.tag == "derived"
for broken in (lambda: setattr(base, "first_name", "z"), lambda: type(derived)(first_name="b", size=-1), lambda: type(base)("by position")):
    try:
        broken()
    except (AttributeError, ValueError, TypeError):
        pass
    else:
        raise AssertionError("not refused")
assert type(box)("x").item == "x"
sys.stdout.buffer.write(payload.dump(values))
"""


def test_classes_of_main_work_in_another_process_and_are_themselves_again_when_they_come_home() -> None:
    run = subprocess.run([sys.executable, "-c", DRIVER, REPLICA], capture_output=True, text=True, check=False)
    assert run.stdout == "fine\n", run.stderr


CACHING_DRIVER = """
import functools, subprocess, sys
from headgate.router import payload

@functools.lru_cache(maxsize=7)
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

fibonacci.mark = "kept"

class Model:
    @functools.cached_property
    def weights(self): return [object()]
    @functools.lru_cache
    def double(self, n): return 2 * n

values = [fibonacci, lambda n: fibonacci(n), Model(), functools.lru_cache(lambda n: n + 1)]
child = subprocess.run([sys.executable, "-c", sys.argv[1]], input=payload.dump(values), capture_output=True)
assert child.returncode == 0, child.stderr.decode()
print("fine")
"""

CACHING_REPLICA = """
import sys
from headgate.router import payload

fibonacci, by_global, model, nameless = payload.load(sys.stdin.buffer.read())
assert fibonacci(30) == by_global(30) == 832040 and fibonacci.mark == "kept"
assert fibonacci.cache_info().maxsize == 7 and 0 < fibonacci.cache_info().currsize <= 7
assert model.weights is model.weights and model.double(4) == 8 and nameless(1) == 2
"""


def test_what_caches_in_main_works_in_another_process() -> None:
    run = subprocess.run([sys.executable, "-c", CACHING_DRIVER, CACHING_REPLICA], capture_output=True, text=True, check=False)
    assert run.stdout == "fine\n", run.stderr


def test_an_importable_function_that_caches_goes_by_its_import_path() -> None:
    cached = fnmatch._compile_pattern  # type: ignore[attr-defined]  # an lru_cache of the standard library
    assert payload.load(payload.dump(cached)) is cached
