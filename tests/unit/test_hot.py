"""Which keys are asked for most: nothing hot is forgotten, nothing grows, and a call in any tier counts once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_cachetiers.events import Event
from celery_cachetiers.metrics.hot import CAPACITY, Frequent, HotKeys
from celery_cachetiers.metrics.merge import Merger
from celery_cachetiers.stats_port import HotKey
from celery_cachetiers.testing import InMemoryProcess, MemoryStats
from celery_cachetiers.threads import started
from celery_cachetiers.tiers.memory import WARM
from tests.unit.bodies import Body, never


def key(number: int) -> HotKey:
    return "task", f"{number:032x}"


# -- the summary ------------------------------------------------------------------------------------------------------

additions = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=300)


@given(additions, st.integers(1, 8))
def test_no_item_with_more_than_its_share_is_ever_forgotten(added: list[tuple[int, int]], capacity: int) -> None:
    frequent, truth = Frequent(capacity), Counter[HotKey]()
    for number, count in added:
        frequent.add(key(number), count)
        truth[key(number)] += count
    share, top = sum(truth.values()) / (capacity + 1), frequent.top()

    assert {item for item, count in truth.items() if count > share} <= top.keys()
    assert all(truth[item] - share <= count <= truth[item] for item, count in top.items())
    assert len(top) <= capacity
    assert len(frequent) <= 2 * capacity


def test_while_there_is_room_all_counts_are_exact_and_the_most_frequent_comes_first() -> None:
    frequent = Frequent(10)
    for number in (1, 2, 2, 3, 2, 3):
        frequent.add(key(number))

    assert list(frequent.top().items()) == [(key(2), 3), (key(3), 2), (key(1), 1)]


def test_a_scan_over_many_keys_does_not_drive_out_the_hot_one() -> None:
    hot = HotKeys()
    for number in range(20_000):
        hot(Event.MISS, "task", {"key": f"{number + 1:032x}"})
        if number % 50 == 0:
            hot(Event.HIT, "task", {"key": key(0)[1], "tier": "l2"})

    assert next(iter(hot.take())) == key(0)


# -- what counts ------------------------------------------------------------------------------------------------------


def watched(process: InMemoryProcess) -> HotKeys:
    hot = HotKeys()
    process.cache.events.subscribe(hot, *HotKeys.EVENTS)
    return hot


@pytest.mark.parametrize("consistency", ["eventual", "strict"])
def test_a_call_counts_once_whatever_tier_answers_it(consistency: str) -> None:
    here = InMemoryProcess()
    there = InMemoryProcess(beside=here)
    hot, call = watched(there), there.call("a", consistency=consistency)
    here.get(here.call("a", consistency=consistency), Body())
    for _ in range(4):
        there.get(call, never)  # L2, then three times L1
    there.get(there.call("b"), Body())

    assert hot.take(there.l1.take_warm()) == {("task", call.digest): 4, ("task", there.call("b").digest): 1}
    assert hot.take(there.l1.take_warm()) == {}


def test_what_is_peeked_at_in_l1_counts_when_it_is_used() -> None:
    here = InMemoryProcess()
    here.get(here.call("a"), Body())
    found = here.cache.peek(here.call("a"))
    assert found is not None
    assert here.l1.take_warm() == []
    found[1]()

    assert [hits for _, hits in here.l1.take_warm()] == [1]


def test_hits_of_an_entry_that_has_gone_since_count_too() -> None:
    here = InMemoryProcess()
    call = here.call("a")
    here.get(call, Body())
    here.get(call, never)
    here.cache.invalidate_key(call.digest)
    here.get(call, Body())
    here.get(call, never)
    here.get(call, never)

    assert HotKeys().take(here.l1.take_warm()) == {("task", call.digest): 3}


def test_the_hits_since_the_last_reading_are_told_and_no_others() -> None:
    here = InMemoryProcess()
    call = here.call("a")
    here.get(call, Body())
    here.get(call, never)
    assert [hits for _, hits in here.l1.take_warm()] == [1]
    here.get(call, never)
    here.get(call, never)

    assert [(heat.digest, hits) for heat, hits in here.l1.take_warm()] == [(call.digest, 2)]


def test_what_l1_keeps_of_hits_is_bounded_while_nobody_asks() -> None:
    here = InMemoryProcess(maxsize=10 * WARM, max_bytes=1024**3)
    for number in range(WARM + 100):
        here.get(here.call(str(number)), Body())
        here.get(here.call(str(number)), never)

    assert len(here.l1.take_warm()) == WARM
    assert here.tally.l1_hits == WARM + 100


def test_a_child_begins_without_its_parents_keys() -> None:
    here = InMemoryProcess()
    hot, call = watched(here), here.call("a")
    here.get(call, Body())
    here.get(call, never)
    here.l1.reset_after_fork()
    hot.reset_after_fork()

    assert hot.take(here.l1.take_warm()) == {}


# -- and where it goes ------------------------------------------------------------------------------------------------


def test_hot_keys_travel_with_the_counters_and_are_not_added_twice() -> None:
    here, stats = InMemoryProcess(), MemoryStats()
    hot, call = watched(here), here.call("a")
    merger = Merger(here.counters, lambda: stats, started, hot=lambda: hot.take(here.l1.take_warm()))
    here.get(call, Body())
    stats.deaf = True
    assert merger.merge() is False
    stats.deaf = False
    here.get(call, never)
    assert merger.merge() is True

    assert stats.hot(10) == {("task", call.digest): 2}


def test_no_more_keys_are_sent_than_are_told_apart() -> None:
    hot = HotKeys()
    for number in range(2 * CAPACITY - 1):
        hot(Event.MISS, "task", {"key": key(number)[1]})

    assert len(hot.take()) == CAPACITY
