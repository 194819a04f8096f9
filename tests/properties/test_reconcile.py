"""Does what runs become what is asked for, with no more and no less, and does every rolling update end?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.reconcile import Actual, Commit, Refuse, Start, StopOld, Wanted, next_step, reconcile
from headgate.core.replica_life import DRAINING, READY, STARTING, STOPPING

TAGS = ["v1", "v2", "v3"]
COPIES = st.lists(
    st.tuples(st.sampled_from(TAGS), st.integers(1, 2), st.sampled_from([STARTING, READY, DRAINING, STOPPING])), max_size=12
).map(lambda found: [Actual(f"r{number}", *given, number) for number, given in enumerate(found)])
WANTED = st.dictionaries(st.sampled_from(TAGS), st.builds(Wanted, st.integers(1, 2), st.integers(0, 4)))


@given(WANTED, COPIES, st.sets(st.sampled_from(TAGS)))
def test_after_the_actions_exactly_what_is_wanted_is_live(wanted: dict[str, Wanted], copies: list[Actual], paused: set[str]):
    actions = reconcile(wanted, copies, paused)
    left = [copy for copy in copies if copy.state in (STARTING, READY) and copy.id not in actions.drain]
    for tag in TAGS:
        generations = {copy.generation for copy in left if copy.backend == tag}
        count = sum(copy.backend == tag for copy in left)
        if tag not in wanted:
            assert count == 0
            assert tag not in actions.start
            continue
        assert generations <= {wanted[tag].generation}
        assert count <= wanted[tag].count
        assert count + (0 if tag in paused else actions.start.get(tag, 0)) == (count if tag in paused else wanted[tag].count)
        assert tag not in actions.start or tag not in paused
    known = {copy.id: copy for copy in copies}
    assert len(set(actions.drain)) == len(actions.drain)
    assert all(known[id].state in (STARTING, READY) for id in actions.drain)  # what goes already is left alone


@given(WANTED, COPIES)
def test_nothing_is_both_started_and_drained_and_all_is_done_at_once(wanted: dict[str, Wanted], copies: list[Actual]):
    actions = reconcile(wanted, copies)
    left = [copy for copy in copies if copy.id not in actions.drain]
    fresh = [
        Actual(f"new-{tag}-{n}", tag, wanted[tag].generation, STARTING, 100 + n)
        for tag, count in actions.start.items()
        for n in range(count)
    ]
    again = reconcile(wanted, left + fresh)
    assert (again.start, again.drain) == ({}, ())


@given(st.integers(1, 6), st.integers(0, 6))
def test_of_a_surplus_those_that_still_start_go_first_then_the_youngest(ready: int, starting: int):
    copies = [Actual(f"s{n}", "v1", 1, STARTING, n) for n in range(starting)]
    copies += [Actual(f"r{n}", "v1", 1, READY, 100 + n) for n in range(ready)]
    for count in range(ready + starting):
        kept = {copy.id for copy in copies} - set(reconcile({"v1": Wanted(1, count)}, copies).drain)
        assert kept >= {f"r{n}" for n in range(min(count, ready))}
        assert len(kept) == count


@given(wanted=st.integers(1, 6), size=st.integers(1, 3), spare=st.integers(0, 20), allow_gap=st.booleans(), dead=st.integers(0, 5))
def test_a_rolling_update_ends_and_has_a_gap_only_where_that_is_allowed(wanted: int, size: int, spare: int, allow_gap: bool, dead: int):
    old, new, free = max(wanted - dead, 0), 0, spare
    free += (wanted - old) * size  # what the dead ones had is free

    def fits(count: int, without_one: bool) -> str | None:
        return None if count * size <= free + (size if without_one else 0) else "too little"

    serving = old
    for _ in range(4 * wanted + 4):
        step = next_step(wanted=wanted, old=old, new=new, fits=fits, waits=False, allow_gap=allow_gap)
        if isinstance(step, Commit):
            assert new == wanted
            return
        if isinstance(step, Refuse):
            assert spare < size  # with room for one more it never has to refuse
            assert old + new <= 1
            assert not allow_gap or old == 0
            return
        if isinstance(step, StopOld):
            assert fits(1, False) is not None  # there was no other way
            old, free = old - 1, free + size
            assert old + new > 0 or allow_gap
        else:
            assert isinstance(step, Start)
            assert fits(step.count, False) is None
            new, free = new + step.count, free - step.count * size
            if not step.beside:  # it serves, so as many old ones go
                goes = max(old - (wanted - new), 0)
                old, free = old - goes, free + goes * size
            assert old + new >= min(serving, wanted) - 1
    raise AssertionError("the update does not end")
