"""Windows, choice of replica, and what the dispatcher says about its queue."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from headgate.core import wire
from headgate.core.dispatch import SCANNED, Dispatcher, Limits


def dispatcher_with(replicas: int, limits: Limits, unbegun_since: Callable[[int], float] = lambda id: math.inf) -> Dispatcher[object, int]:
    dispatcher: Dispatcher[object, int] = Dispatcher(limits, unbegun_since)
    for replica in range(replicas):
        dispatcher.add_replica(replica)
    return dispatcher


def sent_at(time_s: float) -> Callable[[int], float]:
    """The oldest request at each replica was sent there then."""
    return lambda id: time_s


def answer_one(dispatcher: Dispatcher[object, int], elapsed_s: float, replica: int = 0, times: int = 1) -> None:
    """Send requests one after the other to a replica that is alone, each answered after `elapsed_s`."""
    for number in range(times):
        assert dispatcher.offer(object(), float(number), 0.0) == replica
        dispatcher.answered(replica, elapsed_s, 0, float(number))


def test_a_window_starts_at_what_the_replica_runs_at_once() -> None:
    assert dispatcher_with(1, Limits(concurrency=3)).window(0) == 3


@pytest.mark.parametrize(("elapsed_s", "window"), [(0.3, 1), (0.005, 1), (0.0019, 2), (0.0005, 5), (0.0001, 21), (0.0, 201)])
def test_quick_calls_are_sent_ahead_as_far_as_two_milliseconds_of_them(elapsed_s: float, window: int) -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    answer_one(dispatcher, elapsed_s)
    assert dispatcher.window(0) == window


def test_a_slow_first_call_does_not_keep_the_window_small() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    answer_one(dispatcher, 0.2)
    answer_one(dispatcher, 0.00002, times=60)
    assert dispatcher.window(0) > 20


def test_max_concurrent_queries_caps_the_window() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=4, max_concurrent_queries=2))
    assert dispatcher.window(0) == 2
    answer_one(dispatcher, 0.00001)
    assert dispatcher.window(0) == 2


def test_no_window_is_larger_than_the_shared_page() -> None:
    assert dispatcher_with(1, Limits(concurrency=wire.PLACES + 1)).window(0) == wire.PLACES


def test_a_batch_handler_gets_the_running_batches_and_a_full_one_more() -> None:
    limits = Limits(concurrency=2, max_batch_size=8, is_batch=True)
    assert dispatcher_with(1, limits).window(0) == 24


def test_a_window_falls_when_work_is_given_back_and_grows_again_by_measurement() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    answer_one(dispatcher, 0.0001)
    for _ in range(10):
        assert dispatcher.offer(object(), 1.0, 0.0) == 0
    for _ in range(9):
        dispatcher.returned(0, 1, 1.0)
    assert dispatcher.window(0) == 1
    assert dispatcher.offer(object(), 1.0, 0.0) is None
    dispatcher.answered(0, 0.0001, 0, 1.1)
    assert dispatcher.next(1.1, 0.0) is not None
    dispatcher.answered(0, 0.0001, 0, 1.1)
    answer_one(dispatcher, 0.0001, times=60)
    assert dispatcher.window(0) > 15


def test_the_first_answer_says_how_long_calls_take_also_where_work_was_given_back_before_it() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    assert dispatcher.offer("first", 0.0, 0.0) == 0
    dispatcher.returned(0, 1, 0.0)  # it waited behind a call of another router
    dispatcher.requeue("first", 0.0, 0.0)
    assert dispatcher.next(0.0, 0.0) == ("first", 0)
    dispatcher.answered(0, 2.0, 0, 2.0)
    assert dispatcher.offer("running", 2.0, 0.0) == 0
    assert dispatcher.offer("queued", 2.0, 0.0) is None
    assert dispatcher.wait_estimate_s(2.0, sent_at(2.0)) == pytest.approx(4.0)


def test_a_batch_handler_that_gave_back_gets_no_more_until_it_answers() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1, max_batch_size=4, is_batch=True))
    answer_one(dispatcher, 0.1)
    for _ in range(8):
        assert dispatcher.offer(object(), 1.0, 0.0) == 0
    dispatcher.returned(0, 7, 1.0)
    dispatcher.returned(0, 6, 1.0)
    assert dispatcher.window(0) == 6
    assert dispatcher.offer(object(), 1.0, 0.0) is None
    dispatcher.answered(0, 0.1, 5, 1.1)
    assert dispatcher.window(0) == 8


@pytest.mark.parametrize("elapsed_s", [0.0001, 0.05, 10.0])
def test_a_replica_that_is_held_gets_nothing_until_it_is_to_be_tried_again_however_long_calls_take(elapsed_s: float) -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=100))
    assert [dispatcher.offer(object(), 0.0, 0.0) for _ in range(3)] == [0, 1, 0]
    for replica in (0, 1):
        dispatcher.answered(replica, elapsed_s, 0, 0.0)
    dispatcher.returned(0, 0, 1.0, 0.03)
    assert {dispatcher.offer(object(), 1.029, 0.0) for _ in range(50)} == {1}
    assert dispatcher.offer(object(), 1.031, 0.0) == 0


def test_of_many_replicas_those_that_are_not_held_are_found() -> None:
    dispatcher = dispatcher_with(2 * SCANNED, Limits(concurrency=100))
    for replica in range(2 * SCANNED):
        assert dispatcher.offer(object(), 0.0, replica / (2 * SCANNED)) == replica
        if replica:
            dispatcher.returned(replica, 0, 0.0, 1.0)
    assert {dispatcher.offer(object(), 0.5, number / 50) for number in range(50)} == {0}


def test_a_replica_that_was_held_is_like_any_other_when_it_answers() -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=100))
    assert [dispatcher.offer(object(), 0.0, 0.0) for _ in range(4)] == [0, 1, 0, 1]
    dispatcher.returned(0, 1, 0.0, 1.0)
    assert [dispatcher.offer(object(), 0.1, 0.0) for _ in range(2)] == [1, 1]
    dispatcher.released(0, 0, 0.1)  # what it doesn't answer says nothing
    assert dispatcher.offer(object(), 0.1, 0.0) == 1
    dispatcher.forget(1)
    assert dispatcher.offer(object(), 0.1, 0.0) == 0
    dispatcher.add_replica(2)
    assert dispatcher.offer(object(), 0.1, 0.0) == 2
    dispatcher.answered(0, 0.1, 0, 0.2)
    assert dispatcher.offer(object(), 0.2, 0.0) == 0


def test_where_all_replicas_are_held_requests_go_to_the_least_loaded_and_where_the_others_are_full_to_the_held_one() -> None:
    dispatcher = dispatcher_with(3, Limits(concurrency=2))
    assert [dispatcher.offer(object(), 0.0, 0.0) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    dispatcher.returned(0, 1, 0.0, 1.0)
    assert dispatcher.offer(object(), 0.0, 0.0) == 0
    for replica, load in ((0, 1), (0, 0), (1, 1), (2, 1)):
        dispatcher.returned(replica, load, 0.0, 1.0)
    assert [dispatcher.offer(object(), 0.0, 0.5) for _ in range(5)] == [0, 1, 2, 0, None]


def measured(replicas: int, elapsed_s: float, limits: Limits, unbegun_since: Callable[[int], float]) -> Dispatcher[object, int]:
    """All replicas have answered one request, at 0.0."""
    dispatcher = dispatcher_with(replicas, limits, unbegun_since)
    for replica in range(replicas):
        assert dispatcher.offer(object(), 0.0, replica / replicas) == replica
    for replica in range(replicas):
        dispatcher.answered(replica, elapsed_s, 0, 0.0)
    return dispatcher


@pytest.mark.parametrize("replicas", [2, 2 * SCANNED])
@pytest.mark.parametrize(
    ("elapsed_s", "limits", "patience_s"),
    [
        (0.0001, Limits(concurrency=1), 0.02),
        (0.0001, Limits(concurrency=100), 0.02),
        (0.05, Limits(concurrency=100), 0.5),
        (0.05, Limits(concurrency=1, max_batch_size=8, is_batch=True, batch_wait_timeout=0.3), 0.8),
    ],
    ids=["quick", "many at once", "slow", "batches"],
)
def test_a_replica_that_begins_nothing_for_longer_than_it_should_gets_only_what_no_other_has_room_for(
    replicas: int, elapsed_s: float, limits: Limits, patience_s: float
) -> None:
    dispatcher = measured(replicas, elapsed_s, limits, lambda id: math.inf if id else 5.0)
    while dispatcher.in_flight(0) == 0:
        assert dispatcher.offer(object(), 5.0, 0.0) is not None
    before = dispatcher.in_flight(0)
    now = 5.001 + patience_s
    while (id := dispatcher.offer(object(), now, 0.0)) is not None:
        rest = [dispatcher.in_flight(replica) < dispatcher.window(replica) for replica in range(1, replicas)]
        assert id or not any(rest)
    assert dispatcher.in_flight(0) == dispatcher.window(0) > before


def test_a_replica_is_not_silent_while_something_comes_from_it_nor_while_all_that_it_has_runs() -> None:
    unbegun = {0: 5.0}
    dispatcher = measured(2, 0.0001, Limits(concurrency=1), lambda id: unbegun.get(id, math.inf))
    assert [dispatcher.offer(object(), 5.0, 0.0) for _ in range(4)] == [0, 0, 0, 0]
    assert dispatcher.offer(object(), 5.019, 0.0) == 0
    dispatcher.answered(0, 0.0001, 4, 5.019)
    assert dispatcher.offer(object(), 5.038, 0.0) == 0
    dispatcher.released(0, 4, 5.038)
    assert dispatcher.offer(object(), 5.057, 0.0) == 0
    assert dispatcher.offer(object(), 5.059, 0.0) == 1
    unbegun.clear()
    assert 0 in [dispatcher.offer(object(), 5.06, 0.0) for _ in range(12)]  # as soon as the other is filled


def test_what_waits_behind_the_requests_of_others_is_not_taken_for_silence() -> None:
    dispatcher = measured(2, 0.0001, Limits(concurrency=1), lambda id: 5.0)
    assert [dispatcher.offer(object(), 5.0, 0.0) for _ in range(11 + 5)] == [0] * 11 + [1] * 5
    dispatcher.answered(0, 0.0001, 10 + 30, 5.0)  # those of others take 3 ms, and are believed for 30
    dispatcher.answered(1, 0.0001, 4 + 60, 5.0)
    assert dispatcher.offer(object(), 5.025, 0.0) == 0
    assert dispatcher.offer(object(), 5.031, 0.0) == 1


def test_where_all_replicas_are_silent_requests_go_to_the_least_loaded() -> None:
    dispatcher = measured(3, 0.0001, Limits(concurrency=1), lambda id: 5.0)
    assert {dispatcher.offer(object(), 5.0, 0.0) for _ in range(12 + 12 + 3)} == {0, 1, 2}
    loads = [dispatcher.in_flight(replica) for replica in range(3)]
    sent = [dispatcher.offer(object(), 6.0, 0.0) for _ in range(3 * max(loads) - sum(loads))]
    assert None not in sent
    assert [dispatcher.in_flight(replica) for replica in range(3)] == [max(loads)] * 3
    while dispatcher.offer(object(), 6.0, 0.0) is not None:
        pass
    assert [dispatcher.in_flight(replica) for replica in range(3)] == [dispatcher.window(0)] * 3


def test_whether_a_replica_is_silent_is_not_asked_for_each_request() -> None:
    asked: list[int] = []

    def unbegun_since(id: int) -> float:
        asked.append(id)
        return math.inf

    dispatcher = measured(2, 0.0001, Limits(concurrency=100), unbegun_since)
    assert dispatcher.offer("a long poll", 5.0, 0.0) == 0
    for number in range(1000):  # within 0.1 s, an hour later
        id = dispatcher.offer(object(), 3600.0 + number / 10_000, 0.0)
        assert id is not None
        if id:
            dispatcher.answered(id, 0.0001, dispatcher.in_flight(id) - 1, 3600.0 + number / 10_000)
    assert len(asked) <= 6
    assert dispatcher.in_flight(0) > 1


def test_slow_requests_spread_over_all_replicas_before_any_gets_a_second() -> None:
    dispatcher = dispatcher_with(4, Limits(concurrency=2))
    sent = [dispatcher.offer(object(), 0.0, 0.3) for _ in range(8)]
    assert sorted(map(str, sent[:4])) == ["0", "1", "2", "3"]
    assert sorted(map(str, sent[4:])) == ["0", "1", "2", "3"]


def test_what_other_routers_have_at_a_replica_counts() -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=2))
    first = dispatcher.offer(object(), 0.0, 0.0)
    assert first is not None
    dispatcher.answered(first, 0.1, 3, 0.1)
    for draw in (0.0, 0.3, 0.6, 0.9):
        other = dispatcher.offer(object(), 0.1, draw)
        assert other == 1 - first
        dispatcher.answered(other, 0.1, 0, 0.1)


def test_a_load_that_runs_at_once_is_believed_for_no_longer_than_a_single_request() -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=100))
    assert [dispatcher.offer(object(), 0.0, 0.0) for _ in range(3)] == [0, 1, 0]
    dispatcher.answered(0, 1.0, 100, 0.0)
    dispatcher.released(0, 100, 0.0)
    assert {dispatcher.offer(object(), 9.9, 0.0) for _ in range(50)} == {1}
    assert dispatcher.offer(object(), 10.1, 0.0) == 0


def test_an_old_report_of_load_is_not_believed_for_ever() -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=1))
    first = dispatcher.offer(object(), 0.0, 0.0)
    assert first is not None
    dispatcher.answered(first, 0.1, 3, 0.1)
    chosen = set()
    for draw in (0.0, 0.9):
        replica = dispatcher.offer(object(), 60.0, draw)
        assert replica is not None
        dispatcher.answered(replica, 0.1, 0, 60.0)
        chosen.add(replica)
    assert chosen == {0, 1}


def test_quick_requests_fill_one_replica_before_the_next_is_opened() -> None:
    dispatcher = dispatcher_with(4, Limits(concurrency=1))
    for replica in range(4):
        assert dispatcher.offer(object(), 0.0, replica / 4) == replica
    for replica in range(4):
        dispatcher.answered(replica, 0.0001, 0, 0.0)
    sent = [dispatcher.offer(object(), 0.0, 0.3) for _ in range(15)]
    # One millisecond of them goes to the first, the rest to the second.
    assert [sent.count(replica) for replica in dict.fromkeys(sent)] == [11, 4]


def test_quick_replicas_take_a_full_window_each_when_all_are_filled() -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=1))
    for replica in range(2):
        dispatcher.offer(object(), 0.0, replica / 2)
    for replica in range(2):
        dispatcher.answered(replica, 0.0001, 0, 0.0)
    for _ in range(42):
        assert dispatcher.offer(object(), 0.0, 0.3) is not None
    assert dispatcher.offer(object(), 0.0, 0.3) is None


def test_every_replica_gets_work_where_all_are_alike() -> None:
    dispatcher = dispatcher_with(3, Limits(concurrency=1))
    chosen = set()
    for draw in (0.1, 0.5, 0.9):
        replica = dispatcher.offer(object(), 0.0, draw)
        assert replica is not None
        dispatcher.answered(replica, 0.1, 0, 0.0)
        chosen.add(replica)
    assert chosen == {0, 1, 2}


def test_of_many_replicas_the_last_free_one_is_found() -> None:
    count = 3 * SCANNED
    dispatcher = dispatcher_with(count, Limits(concurrency=1))
    sent = {dispatcher.offer(object(), 0.0, (number * 0.37) % 1) for number in range(count)}
    assert sent == set(range(count))
    assert dispatcher.offer(object(), 0.0, 0.5) is None


def test_a_draining_replica_gets_nothing_but_its_requests_count() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=2))
    dispatcher.offer(object(), 0.0, 0.0)
    dispatcher.remove_replica(0)
    assert dispatcher.offer(object(), 0.0, 0.0) is None
    assert dispatcher.in_flight(0) == 1
    dispatcher.answered(0, 0.1, 0, 0.1)
    assert dispatcher.next(0.1, 0.0) is None
    assert dispatcher.in_flight(0) == 0


def test_what_comes_back_goes_first_in_order_of_age() -> None:
    dispatcher = dispatcher_with(0, Limits(concurrency=9))
    dispatcher.offer("new", 5.0, 0.0)
    dispatcher.requeue("younger", 3.0, 5.0)
    dispatcher.requeue("older", 2.0, 5.0)
    dispatcher.add_replica(0)
    out = [dispatcher.next(5.0, 0.0) for _ in range(4)]
    assert out == [("older", 0), ("younger", 0), ("new", 0), None]


def test_an_item_that_is_withdrawn_and_comes_back_leaves_once() -> None:
    dispatcher = dispatcher_with(0, Limits(concurrency=9))
    dispatcher.requeue("a", 1.0, 5.0)
    assert dispatcher.withdraw("a")
    dispatcher.requeue("a", 1.0, 5.0)
    assert dispatcher.queued == 1
    assert dispatcher.drain() == ["a"]
    dispatcher.add_replica(0)
    assert dispatcher.next(5.0, 0.0) is None


def test_shadows_are_refused_at_half_the_queue_and_all_at_its_bound() -> None:
    dispatcher = dispatcher_with(0, Limits(concurrency=1, max_queued_queries=4))
    states = []
    for _ in range(4):
        states.append((dispatcher.half_full, dispatcher.full))
        dispatcher.offer(object(), 0.0, 0.0)
    states.append((dispatcher.half_full, dispatcher.full))
    assert states == [(False, False), (False, False), (True, False), (True, False), (True, True)]


def test_without_any_measurement_the_wait_is_unknown() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    dispatcher.offer(object(), 0.0, 0.0)
    dispatcher.offer(object(), 0.0, 0.0)
    assert dispatcher.wait_estimate_s(1.0, sent_at(0.0)) is None


def test_the_wait_is_first_estimated_from_what_replicas_can_do() -> None:
    dispatcher = dispatcher_with(2, Limits(concurrency=1))
    for replica in range(2):
        dispatcher.offer(object(), 0.0, replica / 2)
    for replica in range(2):
        dispatcher.answered(replica, 0.1, 0, 0.1)
    for _ in range(2 + 9):
        dispatcher.offer(object(), 0.1, 0.0)
    assert dispatcher.wait_estimate_s(0.1, sent_at(0.1)) == pytest.approx(10 / 20)


def test_the_wait_follows_the_rate_at_which_the_queue_moves() -> None:
    """Other routers take half of this replica, so that it answers every 0.2 s although a call takes 0.1 s."""
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    now = 1000.0
    for _ in range(60):
        dispatcher.offer(object(), now, 0.0)
    for _ in range(20):
        now += 0.2
        dispatcher.answered(0, 0.1, 1, now)
        dispatcher.next(now, 0.0)
    assert dispatcher.queued == 39
    assert dispatcher.wait_estimate_s(now, sent_at(now)) == pytest.approx(0.1 + 39 * 0.2)


def test_the_rate_stands_for_a_millisecond_unless_replicas_or_limits_change() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    dispatcher.offer(object(), 0.0, 0.0)
    dispatcher.answered(0, 0.1, 0, 0.1)
    for _ in range(3):  # one runs, two wait
        dispatcher.offer(object(), 0.1, 0.0)
    assert dispatcher.wait_estimate_s(0.1, sent_at(0.1)) == pytest.approx(0.1 + 2 * 0.1)
    dispatcher.answered(0, 0.9, 0, 0.1)
    assert dispatcher.wait_estimate_s(0.1005, sent_at(0.1)) == pytest.approx(0.3, abs=0.0006)
    later = dispatcher.wait_estimate_s(0.102, sent_at(0.102))
    assert later is not None
    assert later == pytest.approx(0.1 + 2 * 0.2)  # the mean of all, but the first may be as quick as the quickest
    dispatcher.set_limits(Limits(concurrency=2))
    assert dispatcher.wait_estimate_s(0.102, sent_at(0.102)) == pytest.approx(0.1 + 2 * 0.1)


def test_where_nothing_waits_the_wait_is_what_is_left_of_the_call_that_runs() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    answer_one(dispatcher, 2.0)
    dispatcher.offer(object(), 10.0, 0.0)
    for now, left_s in ((10.0, 2.0), (11.5, 0.5), (13.0, 0.0)):
        assert dispatcher.wait_estimate_s(now, sent_at(10.0)) == pytest.approx(left_s)


def test_a_call_that_runs_may_be_as_quick_as_the_quickest_of_late() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    for elapsed_s in (0.01, 4.0, 4.0):
        answer_one(dispatcher, elapsed_s)
    dispatcher.offer(object(), 10.0, 0.0)
    assert dispatcher.wait_estimate_s(10.0, sent_at(10.0)) == pytest.approx(0.01)
    dispatcher.answered(0, 4.0, 0, 14.0)
    for start in (20.0, 100.0):  # two looks, with enough answers before each, and what was quick once is forgotten
        for number in range(8):
            dispatcher.offer(object(), start + 4.0 * number, 0.0)
            dispatcher.answered(0, 4.0, 0, start + 4.0 * (number + 1))
        dispatcher.offer(object(), start + 40.0, 0.0)
        left_s = dispatcher.wait_estimate_s(start + 40.0, sent_at(start + 40.0))
        dispatcher.answered(0, 4.0, 0, start + 44.0)
    assert left_s == pytest.approx(4.0)


def test_nobody_is_refused_by_a_call_of_which_only_is_known_that_it_gave_work_back() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    dispatcher.offer(object(), 0.0, 0.0)
    dispatcher.set_limits(Limits(concurrency=2))
    dispatcher.offer("late", 0.0, 0.0)
    dispatcher.set_limits(Limits(concurrency=1))
    dispatcher.returned(0, 1, 0.01)
    assert dispatcher.wait_estimate_s(0.01, sent_at(0.0)) == 0.0


def test_an_hour_of_old_traffic_does_not_count_in_the_rate() -> None:
    dispatcher = dispatcher_with(1, Limits(concurrency=1))
    dispatcher.offer(object(), 0.0, 0.0)
    now = 0.0
    for pace_s in (0.01, 1.0):
        for _ in range(30):
            now += pace_s
            dispatcher.offer(object(), now, 0.0)
            dispatcher.offer(object(), now, 0.0)
            dispatcher.answered(0, 0.01, 0, now)
            dispatcher.next(now, 0.0)
            estimate_s = dispatcher.wait_estimate_s(now, sent_at(now))
    assert estimate_s == pytest.approx((dispatcher.queued + 1) * 1.0, rel=0.15)


def test_replicas_that_are_near_come_first_while_they_have_a_slot_free() -> None:
    dispatcher: Dispatcher[object, str] = Dispatcher(Limits(concurrency=2))
    for replica in ("far", "near", "far too"):
        dispatcher.add_replica(replica, near=replica == "near")
    chosen = [dispatcher.offer(object(), 0.0, draw) for draw in (0.0, 0.4, 0.9, 0.0, 0.9, 0.4)]
    assert chosen[:2] == ["near", "near"]
    assert sorted(replica or "" for replica in chosen[2:]) == ["far", "far", "far too", "far too"]
    dispatcher.answered("near", 0.1, 1, 0.1)
    assert dispatcher.offer(object(), 0.1, 0.0) == "near"


def test_quick_calls_fill_what_is_near_again_once_it_has_room() -> None:
    dispatcher: Dispatcher[object, str] = Dispatcher(Limits(concurrency=1))
    for replica in ("far", "near"):
        dispatcher.add_replica(replica, near=replica == "near")
    for replica in ("near", "far"):
        assert dispatcher.offer(object(), 0.0, 0.0) == replica
    for replica in ("near", "far"):
        dispatcher.answered(replica, 0.0001, 0, 0.0)
    sent = [dispatcher.offer(object(), 0.0, 0.0) for _ in range(12)]
    assert sent == ["near"] * 11 + ["far"]
    dispatcher.answered("near", 0.0001, 10, 0.0)
    assert dispatcher.offer(object(), 0.0, 0.0) == "near"
