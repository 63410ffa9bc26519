"""What every place of sums promises: what was counted is added once, whoever counted it, however often it is sent."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Barrier, Thread

from celery_cachetiers.stats_port import Merge, Numbers, StatsStore, rank


@dataclass
class StatsUnderTest:
    """What a subclass' ``stats`` fixture returns: two processes' ways to one place that is empty.

    Attributes:
        ours, theirs: A store in each of the two processes.
        flush: Loses everything that was added.
        source: Names a process that no other test uses.
    """

    ours: StatsStore
    theirs: StatsStore
    flush: Callable[[], None]
    source: str = field(default_factory=lambda: os.urandom(6).hex())

    def tasks(self) -> dict[str, dict[str, int | float]]:
        """The sums of all tasks, as the other process reads them."""
        return {name: dict(numbers) for name, numbers in self.theirs.read().tasks.items()}


class StatsConformance:
    """Subclass it with a fixture ``stats`` that returns a `StatsUnderTest`."""

    def test_nothing_was_counted_at_first(self, stats: StatsUnderTest) -> None:
        sums = stats.ours.read()

        assert (sums.tasks, sums.process, sums.invalidated) == ({}, {}, {})
        assert stats.ours.read("a").tasks == {}

    def test_counts_and_seconds_of_several_processes_are_added_up(self, stats: StatsUnderTest) -> None:
        assert stats.ours.add(Merge(stats.source, 1, {"a": {"misses": 2, "compute_seconds": 0.5}})) is True
        assert stats.theirs.add(Merge("other", 1, {"a": {"misses": 3, "compute_seconds": 0.25}})) is True

        assert stats.tasks() == {"a": {"misses": 5, "compute_seconds": 0.75}}

    def test_a_merge_that_is_sent_again_is_not_added_again_and_the_next_one_is(self, stats: StatsUnderTest) -> None:
        merge = Merge(stats.source, 1, {"a": {"misses": 2}}, {"gaps": 1}, {"user:*": 3})
        assert [stats.ours.add(merge), stats.ours.add(merge)] == [True, False]
        assert stats.ours.add(Merge(stats.source, 2, {"a": {"misses": 1}})) is True

        sums = stats.theirs.read()
        assert (sums.tasks, sums.process, sums.invalidated) == ({"a": {"misses": 3}}, {"gaps": 1}, {"user:*": 3})

    def test_misses_of_a_key_that_has_missed_before_are_told_apart(self, stats: StatsUnderTest) -> None:
        one, two, three = (os.urandom(16).hex() for _ in range(3))
        merge = Merge(stats.source, 1, {"a": {"misses": 3}}, missed={("a", one): 2, ("a", two): 1})
        assert [stats.ours.add(merge), stats.ours.add(merge)] == [True, False]
        changes: dict[str, Numbers] = {"a": {"misses": 1}, "b": {"misses": 1}}
        stats.theirs.add(Merge("other", 1, changes, missed={("b", three): 1, ("a", two): 1}))

        assert stats.tasks() == {
            "a": {"misses": 4, "first_misses": 2, "repeated_misses": 2},
            "b": {"misses": 1, "first_misses": 1},
        }

    def test_of_keys_of_which_a_merge_leaves_some_out_the_others_stand_for_all(self, stats: StatsUnderTest) -> None:
        keys = [os.urandom(16).hex() for _ in range(1000)]

        def miss(number: int, some: list[str], halvings: int) -> dict[str, int | float]:
            missed = {("a", key): 1 for key in some if rank(key) >= halvings}
            stats.ours.add(Merge(stats.source, number, {"a": {"misses": len(some)}}, missed=missed, halvings=halvings))
            return {name: stats.tasks()["a"].get(name, 0) for name in ("first_misses", "repeated_misses")}

        assert miss(1, keys, 2) == {"first_misses": 1000, "repeated_misses": 0}
        assert miss(2, keys[:400], 0) == {"first_misses": 1000, "repeated_misses": 400}
        assert miss(3, [os.urandom(16).hex() for _ in range(400)], 0)["first_misses"] == 1400

    def test_misses_that_invalidations_have_made_are_added_up_by_tag(self, stats: StatsUnderTest) -> None:
        stats.ours.add(Merge(stats.source, 1, outdated={"user:*": 2}))
        stats.theirs.add(Merge("other", 1, outdated={"user:*": 1, "top10": 1}))

        assert stats.ours.read().outdated == {"user:*": 3, "top10": 1}
        assert stats.ours.read("a").outdated == {"user:*": 3, "top10": 1}

    def test_entries_that_could_not_be_used_are_added_up_by_reason(self, stats: StatsUnderTest) -> None:
        stats.ours.add(Merge(stats.source, 1, unusable={"forged": 2}))
        stats.theirs.add(Merge("other", 1, unusable={"forged": 1, "oversize": 1}))

        assert stats.ours.read().unusable == {"forged": 3, "oversize": 1}
        assert stats.ours.read("a").unusable == {"forged": 3, "oversize": 1}

    def test_two_processes_may_use_the_same_number(self, stats: StatsUnderTest) -> None:
        stats.ours.add(Merge(stats.source, 7, {"a": {"misses": 1}}))
        stats.theirs.add(Merge("other", 7, {"a": {"misses": 1}}))

        assert stats.tasks() == {"a": {"misses": 2}}

    def test_what_was_taken_back_is_subtracted(self, stats: StatsUnderTest) -> None:
        stats.ours.add(Merge(stats.source, 1, {"a": {"coalesced": 3}}))
        stats.ours.add(Merge(stats.source, 2, {"a": {"coalesced": -1}}))

        assert stats.tasks() == {"a": {"coalesced": 2}}

    def test_one_task_is_read_alone_whatever_its_name(self, stats: StatsUnderTest) -> None:
        names = ["a", "@tasks", "@process", "größe", "a:b"]
        stats.ours.add(Merge(stats.source, 1, {name: {"misses": at} for at, name in enumerate(names, 1)}))

        assert {name: dict(stats.theirs.read(name).tasks[name]) for name in names} == stats.tasks()
        assert stats.tasks()["@tasks"] == {"misses": 2}

    def test_more_tasks_than_one_round_trip_reads_are_all_there(self, stats: StatsUnderTest) -> None:
        stats.ours.add(Merge(stats.source, 1, {f"task{number}": {"misses": number} for number in range(1, 1201)}))

        found = stats.tasks()
        assert len(found) == 1200
        assert found["task1200"] == {"misses": 1200}

    def test_sums_start_over_when_they_are_lost(self, stats: StatsUnderTest) -> None:
        stats.ours.add(Merge(stats.source, 1, {"a": {"misses": 5}}))
        stats.flush()
        stats.ours.add(Merge(stats.source, 2, {"a": {"misses": 1}}))

        assert stats.tasks() == {"a": {"misses": 1}}

    def test_hot_keys_of_several_processes_are_added_up_and_the_hottest_come_first(self, stats: StatsUnderTest) -> None:
        merge = Merge(stats.source, 1, hot={("a", "1" * 32): 5, ("b:c", "2" * 32): 4, ("", "3" * 32): 1})
        stats.ours.add(merge)
        stats.ours.add(merge)
        stats.theirs.add(Merge("other", 1, {"a": {"misses": 1}}, hot={("b:c", "2" * 32): 4}))

        hot = stats.theirs.hot(2)
        assert list(hot) == [("b:c", "2" * 32), ("a", "1" * 32)]
        assert round(hot["b:c", "2" * 32] / hot["a", "1" * 32], 2) == 1.6
        assert len(stats.ours.hot(10)) == 3
        assert stats.tasks() == {"a": {"misses": 1}}

    def test_no_key_is_hot_at_first(self, stats: StatsUnderTest) -> None:
        assert stats.ours.hot(10) == {}

    def test_merges_at_the_same_time_lose_nothing(self, stats: StatsUnderTest) -> None:
        barrier = Barrier(4)

        def merge(source: str) -> None:
            barrier.wait(10)
            for number in range(20):
                stats.ours.add(Merge(source, number, {"a": {"misses": 1, "wait_seconds": 0.5}}))

        threads = [Thread(target=merge, args=(f"source{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert stats.tasks() == {"a": {"misses": 80, "wait_seconds": 40.0}}
