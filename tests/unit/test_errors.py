"""Do errors arrive at the other side of a process boundary as what they were?"""

from __future__ import annotations

import pickle
from typing import Self

import msgspec
import pytest

from headgate import errors
from headgate.errors import HeadgateError, UserCodeError, describe, describe_user_error, rebuild


class TwoArgumentsError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.first, self.second = first, second

    def __reduce__(self) -> tuple[type[TwoArgumentsError], tuple[int, int]]:
        return TwoArgumentsError, (self.first, self.second)


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class TellsItsOwnTextError(LookupError):
    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(f"no {what} in {where}")
        self.where = where


class TellsItsOwnPlaceError(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("utf-8", data, 0, 1, "bad")


class TellsItsOwnFileError(OSError):
    def __init__(self, file: str, *, why: str) -> None:
        super().__init__(5, why, file)
        self.why = why


class StubbornError(Exception):
    def __new__(cls, *words: str) -> Self:
        if cls is not StubbornError:
            raise TypeError("no subclasses of this are made")
        return super().__new__(cls)


RAISED: list[tuple[Exception, dict[str, object]]] = [
    (ValueError("x"), {"args": ("x",)}),
    (KeyError("k"), {"args": ("k",)}),
    (FileNotFoundError(2, "missing", "model.bin"), {"errno": 2, "strerror": "missing", "filename": "model.bin"}),
    (UnicodeDecodeError("utf-8", b"ab", 0, 1, "bad"), {"start": 0, "end": 1, "object": b"ab"}),
    (ImportError("no", name="torch"), {"name": "torch"}),
    (TwoArgumentsError(1, 2), {"first": 1, "second": 2, "args": ("1 and 2",)}),
    (SlottedError(7), {"code": 7}),
    (TellsItsOwnTextError("model", where="store"), {"where": "store", "args": ("no model in store",)}),
    (TellsItsOwnPlaceError(b"ab"), {"start": 0, "end": 1, "object": b"ab"}),
    (TellsItsOwnFileError("model.bin", why="broken"), {"why": "broken", "filename": "model.bin", "errno": 5, "args": (5, "broken")}),
    (errors.NotFoundError("no backend"), {"status": 500}),
]


@pytest.mark.parametrize(("raised", "attributes"), RAISED, ids=lambda value: type(value).__name__)
def test_what_user_code_raised_is_also_of_its_own_class(raised: Exception, attributes: dict[str, object]) -> None:
    error = rebuild(describe_user_error(raised))
    assert isinstance(error, UserCodeError)
    assert isinstance(error, type(raised))
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert str(raised) in error.message
    assert type(error.cause) is type(raised)
    assert str(error.cause) == str(raised)


def test_a_group_arrives_as_one_with_its_exceptions() -> None:
    error = rebuild(describe_user_error(ExceptionGroup("two", [ValueError("x"), KeyError("y")])))
    assert isinstance(error, UserCodeError)
    assert isinstance(error, ExceptionGroup)
    assert [type(each) for each in error.exceptions] == [ValueError, KeyError]


@pytest.mark.parametrize("raised", [StubbornError("x"), StopIteration(3), StopAsyncIteration(), KeyboardInterrupt()], ids=repr)
def test_what_cannot_be_combined_arrives_as_a_plain_error_with_its_text(raised: BaseException) -> None:
    error = rebuild(describe_user_error(raised))
    assert type(error) is UserCodeError
    assert error.message.startswith(type(raised).__name__)


def test_a_class_of_its_own_survives_being_passed_on() -> None:
    first = rebuild(describe_user_error(TwoArgumentsError(1, 2)))
    again = pickle.loads(pickle.dumps(first))
    assert isinstance(again, TwoArgumentsError)
    assert isinstance(again, UserCodeError)
    assert (again.first, again.message) == (1, first.message)
    passed_on = rebuild(describe_user_error(first))
    assert isinstance(passed_on, TwoArgumentsError)


def every_class(root: type[HeadgateError]) -> list[type[HeadgateError]]:
    return [root, *(found for sub in root.__subclasses__() if sub.__module__ == "headgate.errors" for found in every_class(sub))]


@pytest.mark.parametrize("cls", [cls for cls in every_class(HeadgateError) if "[" not in cls.__name__])
def test_every_error_of_ours_crosses_and_keeps_class_message_and_status(cls: type[HeadgateError]) -> None:
    there = rebuild(describe(cls("something happened", retry_after_s=2.5)))
    assert type(there) is cls
    assert there.message == "something happened"
    assert there.status == cls.status
    if cls is not UserCodeError:
        assert there.retry_after_s == 2.5
    assert str(there).startswith("something happened")
    assert type(pickle.loads(pickle.dumps(there))) is cls


def test_an_internal_failure_keeps_its_traceback_for_the_log() -> None:
    try:
        raise KeyError("missing")
    except KeyError as error:
        info = describe(error)
    assert info.status == 500
    assert "KeyError" in info.message
    assert "KeyError: 'missing'" in info.traceback


class SaysNothingError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("half a pair: \ud83d"), r"half a pair: \ud83d"), (SaysNothingError(), "its __str__ raised")]
)
def test_an_exception_whose_text_cannot_be_sent_or_made_is_described_all_the_same(error: Exception, said: str) -> None:
    for info in (describe_user_error(error), describe(error)):
        assert said in msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=errors.ErrorInfo).message
