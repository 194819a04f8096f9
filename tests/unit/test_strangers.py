"""Are strangers few, and does none of them keep others out?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.strangers import Strangers, source_of


def test_one_source_has_its_places_and_no_more_and_others_have_theirs() -> None:
    strangers = Strangers(most=10, most_of_one=3, hold_s=1.0)
    assert [strangers.enter("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert [strangers.enter("b", 0.0) for _ in range(4)] == [True, True, True, False]


def test_all_together_have_so_many() -> None:
    strangers = Strangers(most=4, most_of_one=3)
    assert [strangers.enter(source, 0.0) for source in "aaabbb"] == [True, True, True, True, False, False]


def test_who_has_proved_something_gives_its_place_back_at_once_and_all_others_later() -> None:
    strangers = Strangers(most=10, most_of_one=1, hold_s=1.0)
    assert strangers.enter("a", 0.0)
    strangers.leave("a", 5.0, proved=True)
    assert strangers.enter("a", 5.0)
    strangers.leave("a", 6.0, proved=False)
    assert not strangers.enter("a", 6.5)
    assert strangers.enter("a", 7.0)


def test_a_network_of_ipv6_counts_as_one() -> None:
    assert source_of("2001:db8:1:2:3:4:5:6") == source_of("2001:db8:1:2::9") == source_of("2001:db8:1:2:ffff::%eth0")
    assert source_of("2001:db8:1:3::9") != source_of("2001:db8:1:2::9")
    assert source_of("::1") == source_of("::2") != source_of("1::")
    assert source_of("10.0.0.1") != source_of("10.0.0.2")
    assert source_of("::ffff:10.0.0.1") != source_of("::ffff:10.0.0.2")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 1)), max_size=60))
def test_in_any_second_no_source_is_listened_to_more_often_than_it_has_places(tries: list[tuple[str, bool, float]]) -> None:
    strangers = Strangers(most=5, most_of_one=2, hold_s=1.0)
    now, entered = 0.0, []
    for source, leaves_later, pause in tries:
        now += pause
        if strangers.enter(source, now):
            entered.append((source, now))
            strangers.leave(source, now + 0.25 * leaves_later, proved=False)
    for _, at in entered:
        within = [source for source, when in entered if at <= when < at + 1.0]
        assert len(within) <= 5
        assert all(within.count(source) <= 2 for source in "abc")
    assert strangers.enter("a", now + 2.0)
    assert len(strangers) == 1
