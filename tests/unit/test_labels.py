"""Which endpoints and backends are told of, when very many come and go?"""

from __future__ import annotations

from headgate.core import counters
from headgate.core.labels import Labels, Names
from headgate.core.reports import Counters, EventCount, RequestCount


def of(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def test_of_those_that_have_gone_the_latest_are_remembered():
    names = Names(2)
    assert not names.are(of("a", "b", "c", "d"))
    assert names.are(of("d"))  # three have gone at once: the first by name is forgotten
    assert [name for name in "abcd" if name in names] == ["b", "c", "d"]
    assert names.are(of())
    assert [name for name in "abcd" if name in names] == ["c", "d"]
    assert not names.are(of("b"))
    assert "b" in names
    assert "" in names


def test_what_comes_back_is_there_and_is_forgotten_only_as_one_that_has_gone_just_now():
    names = Names(2)
    names.are(of("a", "b"))
    names.are(of("b"))
    names.are(of("a", "c"))
    names.are(of("c"))  # first b has gone, then a
    assert names.are(of())
    assert [name for name in "abc" if name in names] == ["a", "c"]


def test_who_has_never_been_seen_there_may_have_been_all_the_same():
    names = Names(3)
    assert not names.are(of("a"), of("a", "tried"))
    assert "tried" in names
    assert "never" not in names


def test_only_what_is_remembered_is_told_whatever_kind_of_count_it_is():
    labels = Labels(0)
    labels.follow(of("e"), of("b"))
    told = Counters(
        requests=(RequestCount("e", "b", 200, 1, 0.1), RequestCount("", "", 404, 2, 0.0), RequestCount("e", "", 503, 3, 0.0)),
        events=(EventCount("shed", "e", "b", "no replica", 1),),
        shadows=(RequestCount("e", "b", 200, 4, 0.1),),
    )
    gone = Counters(
        requests=(RequestCount("gone", "b", 200, 1, 0.1), RequestCount("e", "gone", 200, 1, 0.1)),
        events=(EventCount("shed", "gone", "", "no traffic", 1),),
        shadows=(RequestCount("e", "gone", 200, 4, 0.1),),
    )
    assert counters.only(counters.add_up([told, gone]), labels) == counters.add_up([told])
