"""Each call counts once, where it ends; what it waited, saved and cost stands beside that. And who merges, and when."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.attempt import Terms
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import NotCached
from celery_cachetiers.events import Event
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.metrics.totals import Totals, added, as_dict, totals_of
from celery_cachetiers.stats_port import Sums
from celery_cachetiers.testing import Gate, InMemoryProcess
from tests.unit.bodies import Body, Thread, clocked, eventually, flown, never, sleepers


@pytest.fixture
def here() -> InMemoryProcess:
    return InMemoryProcess()


@pytest.fixture
def there(here: InMemoryProcess) -> InMemoryProcess:
    return InMemoryProcess(beside=here)


def taking(process: InMemoryProcess, seconds: float) -> Any:
    """A body that takes so long."""

    def compute() -> str:
        process.clock.advance(seconds)
        return "value"

    return compute


# -- seconds saved ----------------------------------------------------------------------------------------------------


def test_a_hit_in_any_tier_saves_what_its_entry_took_to_compute(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.get(here.call("a"), taking(here, 2.0))
    here.get(here.call("a"), never)
    here.get(here.call("a"), never)
    there.get(there.call("a"), never)
    there.get(there.call("a"), never)

    assert (here.tally.l1_seconds_saved, here.tally.other_seconds_saved) == (4.0, 0.0)
    assert (there.tally.l1_seconds_saved, there.tally.other_seconds_saved) == (2.0, 2.0)
    assert there.tally.seconds_saved == 4.0


def test_a_stale_hit_saves_too(here: InMemoryProcess) -> None:
    call = here.call("a", ttl=10.0, grace=100.0, l1=False)
    here.get(call, taking(here, 2.0))
    here.clock.advance(20.0)
    here.cache.look(call)

    assert (here.tally.l2_hits, here.tally.stale_hits, here.tally.other_seconds_saved) == (1, 1, 2.0)


def test_a_value_that_was_put_saves_nothing_that_anybody_knows(here: InMemoryProcess) -> None:
    here.cache.put(here.call("a"), "put")
    here.get(here.call("a"), never)

    assert (here.tally.hits, here.tally.seconds_saved) == (1, 0.0)


def test_followers_in_one_process_wait_and_save_what_the_leader_took(here: InMemoryProcess) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body(gate=gate)))
    gate.wait_reached()
    followers = [Thread(lambda: here.get(here.call("a"), never)) for _ in range(3)]
    eventually(lambda: flown(here) == 3)
    here.clock.advance(5.0)
    gate.open()
    for thread in (leader, *followers):
        thread.result()

    tally = here.tally
    assert (tally.misses, tally.coalesced, tally.seconds_saved) == (1, 3, 15.0)
    assert (tally.waits, tally.wait_seconds) == (3, 15.0)


# -- each call once ---------------------------------------------------------------------------------------------------


def test_a_refresh_message_is_no_call_of_its_own(here: InMemoryProcess) -> None:
    call = here.call("a", ttl=10.0, grace=100.0)
    here.get(call, Body())
    here.clock.advance(20.0)
    here.cache.look(call)
    here.cache.fetch(call, Body("new"), Terms(looked=True, counts=False))
    here.cache.fetch(call, never, Terms(looked=True, counts=False))

    assert (here.tally.hits, here.tally.misses, here.tally.computes) == (1, 1, 2)


def test_a_validated_hit_in_l1_counts_once_and_under_the_lock_of_l1(here: InMemoryProcess) -> None:
    call = here.call("a", consistency="strict")
    here.get(call, taking(here, 2.0))
    here.get(call, never)

    assert here.count(Event.HIT) == 0
    assert (here.tally.hits, here.tally.l1_hits, here.tally.l1_seconds_saved) == (1, 1, 2.0)


def test_no_event_of_another_tier_writes_what_l1_counts(here: InMemoryProcess) -> None:
    """The two have different locks: to add even nothing there would undo an addition of L1's in between."""

    class Guarded(Tally):
        def __setattr__(self, name: str, value: object) -> None:
            assert not name.startswith("l1_"), name
            super().__setattr__(name, value)

    tally = Tally.__new__(Guarded)
    for name in Tally.__slots__:  # type: ignore[attr-defined]  # of the dataclass
        object.__setattr__(tally, name, 0)
    here.counters._tallies["task"] = tally
    for event, details in [
        (Event.HIT, {"tier": "l1", "stale": False, "saved": 1.0}), (Event.HIT, {"tier": "l2", "stale": True}),
        (Event.COALESCED, {"saved": 1.0}), (Event.MISS, {}), (Event.STORED, {"size": 1}),
    ]:  # fmt: skip
        here.counters(event, "task", details)

    assert (tally.l2_hits, tally.coalesced, tally.misses) == (1, 1, 1)


def test_what_is_peeked_at_in_l1_counts_when_it_is_used(here: InMemoryProcess) -> None:
    call = here.call("a")
    here.get(call, Body())
    found = here.cache.peek(call)
    assert found is not None
    value, count = found
    assert (value, here.tally.l1_hits) == ("value", 0)
    count()

    assert here.tally.l1_hits == 1
    assert here.cache.peek(here.call("b")) is None


def test_a_miss_that_an_invalidation_has_made_counts_as_outdated_by_its_tag(here: InMemoryProcess) -> None:
    one, other = here.call("a", tags=["group:1"]), here.call("b", tags=["group:1"])
    here.get(one, Body())
    here.cache.invalidate(["group:1"])
    here.get(one, Body())
    here.get(other, Body())

    assert (here.tally.misses, here.tally.outdated) == (3, 1)
    assert here.counters.outdated() == {"group:*": 1}
    assert here.counters.take_missed() == ({("task", one.digest): 2, ("task", other.digest): 1}, 0)


def test_entries_that_cannot_be_used_are_counted_by_reason_whoever_meets_them(here: InMemoryProcess) -> None:
    for task, reason in (("a", "forged"), ("b", "forged"), ("b", "oversize"), ("", "malformed")):
        here.counters(Event.UNUSABLE, task, {"reason": reason})

    assert here.counters.unusable() == {"forged": 2, "oversize": 1, "malformed": 1}
    assert (here.counters.of("a").unusable, here.counters.of("b").unusable) == (1, 2)
    assert here.counters.process.unusable == 1
    here.counters.reset_after_fork()
    assert here.counters.unusable() == {}


# -- evictions --------------------------------------------------------------------------------------------------------


def test_an_eviction_counts_for_the_task_whose_entry_went() -> None:
    here = InMemoryProcess(maxsize=2)
    here.get(here.call("1", task="a"), Body())
    here.get(here.call("2", task="b"), Body())
    here.get(here.call("3", task="b"), Body())
    here.get(here.call("4", task="b"), Body())

    assert (here.counters.of("a").l1_evictions, here.counters.of("b").l1_evictions) == (1, 1)
    assert here.l1.evictions == 2


def test_an_entry_that_is_replaced_is_not_evicted() -> None:
    here = InMemoryProcess(max_bytes=2200)
    for digest, size in (("a", 500), ("b", 500), ("a", 900)):  # the last has room in place of the two others
        tally = here.counters.of(digest)
        assert here.l1.put(digest, "x" * size, ("tag",), 10.0, here.l1.mark(), tally=tally)

    assert (here.counters.of("a").l1_evictions, here.counters.of("b").l1_evictions) == (0, 1)


# -- waits ------------------------------------------------------------------------------------------------------------


def test_a_call_that_waits_for_another_process_tells_how_long(here: InMemoryProcess) -> None:
    there, gate = clocked(beside=here), Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body(gate=gate)))
    gate.wait_reached()
    follower = Thread(lambda: there.get(there.call("a"), never))
    eventually(lambda: sleepers(there) == 1)
    here.clock.advance(3.0)
    gate.open()

    assert (leader.result(), follower.result()) == ("value", "value")
    assert (there.tally.waits, there.tally.wait_seconds, there.tally.coalesced) == (1, 3.0, 1)
    assert there.tally.seconds_saved == 3.0
    assert here.tally.waits == 0


# -- an app -----------------------------------------------------------------------------------------------------------


NOBODY = "redis://127.0.0.1:1/0"
"""Where nobody listens."""


def app_of(**conf: Any) -> tuple[CacheTiers, Any]:
    app = Celery("counting", set_as_current=False)
    app.conf.update(conf)

    @app.task(base=CachedTask, shared=False, name="double", tags=["number:{number}"])
    def double(number: int) -> int:
        return 2 * number

    return CacheTiers(app), app.tasks["double"]


def used(**conf: Any) -> tuple[CacheTiers, Any]:
    """An app whose settings were read."""
    tiers, task = app_of(**conf)
    assert tiers.settings.enabled
    return tiers, task


def test_without_redis_the_stats_are_this_process_own() -> None:
    tiers, double = app_of()
    double(1)
    double(1)
    tiers.invalidate_tag("number:1")
    stats = tiers.stats()

    assert stats["tasks"]["double"]["hits"] == stats["total"]["l1_hits"] == 1
    assert (stats["ratio"], stats["invalidated"], stats["process"]["invalidated"]) == (0.5, {"number:*": 1}, 1)
    assert stats["here"] == {"l1_entries": 1, "l1_bytes": tiers.cache.parts.l1.bytes}  # type: ignore[attr-defined]
    assert tiers.stats("another")["tasks"] == {}
    assert not tiers.counting.merger.started


def test_a_read_of_the_cache_counts_as_a_hit_or_a_miss() -> None:
    tiers, double = app_of()
    assert double.cache.get(1) is MISSING
    double(1)
    assert double.cache.get(1) == 2
    with pytest.raises(NotCached):
        double.apply((2,), cache_mode="only").get()

    assert (double.cache.info().hits, double.cache.info().misses) == (1, 3)
    tiers.reset()


def test_a_hit_at_delay_counts_as_one_without_a_message() -> None:
    _, double = app_of()
    double(1)
    assert double.delay(1).get() == 2

    assert (double.cache.info().publish_hits, double.cache.info().l1_hits) == (1, 1)


def test_the_thread_starts_with_the_first_counted_thing_and_not_before() -> None:
    tiers, _ = app_of(cachetiers_url=NOBODY)
    assert tiers.settings.url == NOBODY
    assert not tiers.counting.merger.started
    tiers.events.emit(Event.MISS, "double", key="k")

    assert tiers.counting.merger.started
    assert tiers.counting.merger._thread is not None
    assert tiers.counting.merger._thread.daemon
    tiers.reset()


def test_a_reset_ends_the_thread_and_loses_no_count() -> None:
    tiers, _ = used(cachetiers_url=NOBODY)
    tiers.events.emit(Event.MISS, "double", key="k")
    thread = tiers.counting.merger._thread
    assert thread is not None
    tiers.reset()
    thread.join(10)

    assert not thread.is_alive()
    tiers.events.emit(Event.GAP)  # as by a backplane that is being closed
    assert (tiers.counting.merger.started, tiers._settings) == (False, None)
    assert tiers.settings.url == NOBODY
    tiers.events.emit(Event.MISS, "double", key="k")
    assert tiers.counting.merger.started
    assert tiers.counters.of("double").misses == 2
    tiers.reset()


def test_a_redis_that_is_away_touches_no_breaker_of_the_tasks() -> None:
    tiers, _ = used(cachetiers_url=NOBODY)
    tiers.events.emit(Event.MISS, "double", key="k")

    assert tiers.counting.merger.merge() is False
    assert tiers.counters.process.breaker_opened == 0
    tiers.reset()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_begins_at_zero_without_a_thread() -> None:
    tiers, _ = used(cachetiers_url=NOBODY)
    tiers.events.emit(Event.MISS, "double", key="k")
    source = tiers.counting.merger._source
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        merger = tiers.counting.merger
        clean = tiers.counters.of("double") == Tally() and not merger.started and merger._source != source
        os.write(writer, b"1" if clean else b"0")
        os._exit(0)
    os.waitpid(pid, 0)

    assert os.read(reader, 1) == b"1"
    os.close(reader)
    os.close(writer)
    tiers.reset()


# -- sums -------------------------------------------------------------------------------------------------------------


def test_sums_are_tallies_and_what_a_later_version_counts_is_left_out() -> None:
    totals = totals_of(Sums({"a": {"misses": 1, "new": 5}}, {"gaps": 2, "new": 5}, {"user:*": 1, "list:*": 3}))

    assert totals.tasks == {"a": Tally(misses=1)}
    assert totals.process.gaps == 2
    assert list(totals.invalidated.items()) == [("list:*", 3), ("user:*", 1)]


def test_the_total_is_the_sum_of_all_tasks() -> None:
    one, two = Tally(l1_hits=1, misses=1, wait_seconds=0.5), Tally(l1_hits=2, coalesced=3, wait_seconds=0.25)

    assert added([one, two]) == Tally(l1_hits=3, misses=1, coalesced=3, wait_seconds=0.75)
    assert added([]).hit_ratio is None


def test_a_row_has_every_counter_and_what_follows_from_it() -> None:
    row = as_dict(Tally(l2_hits=3, misses=1, l1_seconds_saved=1.0, other_seconds_saved=2.0))

    assert (row["hits"], row["hit_ratio"], row["seconds_saved"], row["l2_hits"]) == (3, 0.75, 3.0, 3)
    assert set(Tally.__slots__) < set(row)  # type: ignore[attr-defined]  # of the dataclass


def test_counting_from_many_threads_loses_nothing() -> None:
    process, barrier = InMemoryProcess(), threading.Barrier(8)
    process.get(process.call("a"), Body())

    def count() -> None:
        barrier.wait(10)
        for _ in range(500):
            process.get(process.call("a"), never)
            process.counters(Event.HIT, "task", {"tier": "l2", "stale": False})

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (process.tally.l1_hits, process.tally.l2_hits) == (4000, 4000)


def test_totals_of_nothing_are_none() -> None:
    assert isinstance(totals_of(Sums({}, {}, {})), Totals)
    assert totals_of(Sums({}, {}, {})).as_dict()["ratio"] is None
