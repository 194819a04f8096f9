"""Is the life of a replica the table that it claims to be, and does only a crash loop slow down?"""

from __future__ import annotations

import itertools

import pytest

from headgate.core.replica_life import (
    CONSTRUCTED,
    DRAIN,
    DRAINING,
    END,
    ENDED,
    KILL,
    LIFE,
    READY,
    STARTING,
    STOPPING,
    BackOff,
    ImpossibleEventError,
    after,
    died_early,
)

STATES = (STARTING, READY, DRAINING, STOPPING, ENDED)
EVENTS = (CONSTRUCTED, DRAIN, KILL, END)


def test_a_life_from_start_to_end():
    state = STARTING
    lived = [state]
    for event in (CONSTRUCTED, DRAIN, KILL, END):
        state = after(state, event)
        lived.append(state)
    assert lived == [STARTING, READY, DRAINING, STOPPING, ENDED]


def test_every_state_can_end_and_nothing_follows_the_end():
    for state in STATES[:-1]:
        assert after(state, END) == ENDED
    for event in EVENTS:
        with pytest.raises(ImpossibleEventError, match=event):
            after(ENDED, event)


def test_nobody_becomes_ready_twice_or_after_it_was_asked_to_go():
    for state in (READY, DRAINING, ENDED):
        with pytest.raises(ImpossibleEventError):
            after(state, CONSTRUCTED)
    assert after(STOPPING, CONSTRUCTED) == STOPPING


def test_what_is_still_starting_has_nothing_to_drain():
    assert after(STARTING, DRAIN) == STOPPING


def test_no_way_leads_back():
    order = {state: number for number, state in enumerate(STATES)}
    for state, event in itertools.product(STATES, EVENTS):
        if event in LIFE[state]:
            assert order[LIFE[state][event]] >= order[state]


def test_a_ready_replica_that_dies_is_replaced_at_once_and_then_slower_and_slower():
    back_off, now, delays = BackOff(), 100.0, []
    for _ in range(12):
        back_off = back_off.died(READY, now, now - 0.5)
        delays.append(back_off.until - now)
        now = back_off.until + 1.0
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert 0 < delays[1] < 1
    assert delays[-1] == delays[-2] == 30


def test_a_failed_construction_is_never_tried_again_at_once():
    back_off = BackOff().died(STARTING, 100.0, 99.0)
    assert not back_off.may_start(100.0)
    assert back_off.may_start(back_off.until)


def test_copies_that_die_together_count_once():
    ready = failed = BackOff()
    for number in range(8):
        ready = ready.died(READY, 100.0 + number * 0.01, 50.0)
        failed = failed.died(STARTING, 100.0 + number * 0.01, 50.0)
    assert (ready.failures, failed.failures) == (1, 1)
    assert ready.may_start(100.0)


def test_who_takes_the_place_of_a_dead_one_and_dies_at_once_is_not_taken_for_its_copy():
    first = BackOff().died(READY, 100.0, 50.0)
    assert first.may_start(100.0)
    assert not first.died(READY, 100.05, 100.03).may_start(100.2)


@pytest.mark.parametrize(
    ("state", "answered", "ready_for_s", "early"),
    [(STARTING, 0, 0.0, True), (READY, 0, 1.0, True), (READY, 1, 1.0, False), (READY, 0, 1000.0, False)],
)
def test_only_deaths_in_construction_or_before_the_first_answer_count(state: str, answered: int, ready_for_s: float, early: bool):
    assert died_early(state, answered, ready_for_s) is early
