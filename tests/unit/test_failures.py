"""Is each way to fail told once, with its latest, and are they bounded?"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from headgate.core.failures import LONGEST_MESSAGE, LONGEST_TRACEBACK, Failures
from headgate.core.reports import Failure
from headgate.errors import ErrorInfo
from headgate.replica.failures import FailedCalls
from headgate.replica.member import Member


def failure(error: str, at: float = 0.0, **changes: Any) -> Failure:
    return msgspec.structs.replace(Failure("UserCodeError", "b", "e", error, 1, at, "r"), **changes)


def test_what_fails_in_the_same_way_is_one_with_the_latest_of_all_and_the_sum_of_all():
    failures = Failures(3)
    failures.add(failure("ValueError", 1.0, request_id="first"))
    failures.add(failure("KeyError", 2.0))
    failures.add(failure("ValueError", 3.0, request_id="second", count=4))
    assert failures.latest() == (failure("ValueError", 3.0, request_id="second", count=5), failure("KeyError", 2.0))


def test_where_there_is_no_room_the_way_that_was_met_longest_ago_is_forgotten():
    failures = Failures(2)
    for error in ("A", "B", "A", "C"):
        failures.add(failure(error))
    assert [(each.error, each.count) for each in failures.latest()] == [("C", 1), ("A", 2)]


def test_what_was_taken_is_added_elsewhere_in_the_same_order_and_is_told_once():
    some, others = Failures(5), Failures(5)
    for number, error in enumerate("ABC"):
        some.add(failure(error, float(number)))
    others.add_all(some.take())
    assert [each.error for each in others.latest()] == ["C", "B", "A"]
    assert some.take() == ()


def test_long_texts_are_cut_where_they_say_least():
    failures = Failures(1)
    failures.add(failure("A", message="m" * 2 * LONGEST_MESSAGE, traceback="t" * 2 * LONGEST_TRACEBACK + "ValueError: at the end"))
    (found,) = failures.latest()
    assert (len(found.message), len(found.traceback)) == (LONGEST_MESSAGE, LONGEST_TRACEBACK)
    assert found.message.endswith("m…")
    assert found.traceback.endswith("ValueError: at the end")


def member(number: int) -> Member:
    return Member(number, 0, 0, 0, "e", "", f"id-{number}", b"", 0, ())


def test_calls_of_several_threads_that_fail_are_all_counted():
    failed = FailedCalls("b", "r")

    def fail() -> None:
        for number in range(200):
            failed.note(member(number), ErrorInfo("UserCodeError", "ValueError: no", "Traceback"))

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = failed.take()
    assert (found.error, found.count, found.backend, found.replica, found.endpoint) == ("ValueError", 800, "b", "r", "e")
    assert failed.take() == ()
