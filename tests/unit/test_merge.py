"""From one process' counters to the sums of all: nothing twice, nothing lost, nothing sent while nothing happens."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from celery_cachetiers.events import Event
from celery_cachetiers.metrics.merge import Merger
from celery_cachetiers.metrics.tally import MISSED, Counters
from celery_cachetiers.testing import InMemoryProcess, MemoryStats
from celery_cachetiers.threads import started
from tests.unit.bodies import Body


class Process:
    """Counters, their merger, and the sums of all processes."""

    def __init__(self, stats: MemoryStats | None = None, seconds: float = 3600.0) -> None:
        self.stats, self.counters = stats or MemoryStats(), Counters()
        self.merger = Merger(self.counters, lambda: self.stats, started, seconds)

    def miss(self, times: int = 1) -> None:
        for _ in range(times):
            self.counters(Event.MISS, "task", {})

    def fork(self) -> None:
        self.counters.reset_after_fork()
        self.merger.reset_after_fork()

    @property
    def misses(self) -> float:
        return self.stats.read().tasks.get("task", {}).get("misses", 0)


@pytest.fixture
def here() -> Process:
    return Process()


def test_what_was_counted_since_the_last_merge_is_added(here: Process) -> None:
    here.miss(2)
    assert here.merger.merge() is True
    here.miss(3)
    assert here.merger.merge() is True

    assert here.misses == 5


def test_nothing_is_sent_while_nothing_happens(here: Process) -> None:
    assert here.merger.merge() is True
    here.miss()
    here.merger.merge()
    assert here.merger.merge() is True

    assert here.stats.asked == 1


def test_a_merge_whose_answer_was_lost_is_not_added_twice(here: Process) -> None:
    here.miss(2)
    here.stats.deaf = True
    assert here.merger.merge() is False
    here.miss(3)
    assert here.merger.merge() is False
    here.stats.deaf = False
    assert here.merger.merge() is True

    assert here.misses == 5
    assert here.stats.asked == 4  # the same one three times, and then what was counted meanwhile


def test_what_was_counted_while_redis_was_away_is_kept_and_each_try_asks_once(here: Process) -> None:
    here.stats.away = True
    for _ in range(3):
        here.miss()
        assert here.merger.merge() is False
    assert here.stats.asked == 3
    here.stats.away = False
    here.merger.merge()

    assert here.misses == 3


def test_sums_that_were_flushed_start_over_and_what_was_not_merged_is_not_lost(here: Process) -> None:
    here.miss(5)
    here.merger.merge()
    here.miss(2)
    here.stats.flush()
    here.merger.merge()

    assert here.misses == 2


def test_a_child_merges_nothing_of_its_parent(here: Process) -> None:
    here.miss(2)
    here.merger.merge()
    here.miss(3)
    here.stats.deaf = True
    here.merger.merge()
    here.stats.deaf = False
    here.fork()
    assert here.merger.merge() is True
    here.miss()
    here.merger.merge()

    assert here.misses == 6


def test_a_child_is_another_source_than_its_parent(here: Process) -> None:
    here.miss()
    here.merger.merge()
    here.fork()
    here.miss()
    here.merger.merge()  # its first, as the parent's was

    assert here.misses == 2


def test_seconds_and_counts_of_l1_are_merged_as_all_others_are() -> None:
    process, stats = InMemoryProcess(), MemoryStats()
    merger = Merger(process.counters, lambda: stats, started)

    def compute() -> str:
        process.clock.advance(2.0)
        return "value"

    for _ in range(4):
        process.get(process.call("a"), compute)
    merger.merge()

    [numbers] = stats.read().tasks.values()
    assert (numbers["l1_hits"], numbers["l1_seconds_saved"], numbers["compute_seconds"]) == (3, 6.0, 2.0)


def test_where_there_is_no_place_for_sums_nothing_is_merged() -> None:
    counters = Counters()
    counters(Event.MISS, "task", {})

    assert Merger(counters, lambda: None, started).merge() is False


def test_one_merge_at_a_time_and_who_counts_does_not_wait_for_it(here: Process) -> None:
    inside, go_on = threading.Event(), threading.Event()
    add = here.stats.add

    def slow(merge: object) -> bool:
        inside.set()
        assert go_on.wait(10)
        return add(merge)  # type: ignore[arg-type]  # handed on as it came

    here.stats.add = slow  # type: ignore[method-assign]
    here.miss()
    thread = threading.Thread(target=here.merger.merge)
    thread.start()
    assert inside.wait(10)
    here.miss()  # returns
    go_on.set()
    thread.join()
    here.merger.merge()

    assert here.misses == 2


def test_the_thread_merges_again_and_again_until_it_is_stopped(here: Process) -> None:
    process = Process(seconds=0.001)
    merged = threading.Semaphore(0)
    add = process.stats.add

    def noted(merge: object) -> bool:
        found = add(merge)  # type: ignore[arg-type]  # handed on as it came
        merged.release()
        return found

    process.stats.add = noted  # type: ignore[method-assign]
    assert process.merger.start() is True
    for _ in range(3):
        process.miss()
        assert merged.acquire(timeout=10)
    process.merger.stop()

    assert process.misses == 3
    assert process.merger.started is False


def test_a_thread_that_is_told_to_hurry_merges_at_once(here: Process) -> None:
    merged = threading.Event()
    told: list[int] = []
    here.miss()
    here.merger.hurry(lambda: told.append(here.misses))
    assert told == [0]  # nothing is started yet
    here.merger.start()
    here.merger.hurry(lambda: (told.append(here.misses), merged.set()))  # type: ignore[func-returns-value]
    assert merged.wait(10)
    here.merger.stop()

    assert told == [0, 1]


def test_a_thread_that_is_stopped_ends_at_once_and_merges_no_more() -> None:
    threads: list[threading.Thread | None] = []

    def noted(name: str, run: Callable[[], None]) -> threading.Thread | None:
        threads.append(started(name, run))
        return threads[-1]

    stats, counters = MemoryStats(), Counters()
    merger = Merger(counters, lambda: stats, noted, 3600.0)
    merger.start()
    counters(Event.MISS, "task", {})
    merger.stop()
    [thread] = threads
    assert thread is not None
    thread.join(10)

    assert not thread.is_alive()
    assert stats.asked == 0


def test_a_thread_that_could_not_start_is_started_later() -> None:
    answers: list[Callable[[], threading.Thread | None]] = [lambda: None, threading.Thread]
    merger = Merger(Counters(), lambda: None, lambda name, run: answers.pop(0)())

    assert [merger.start(), merger.start(), merger.start()] == [False, True, True]


def test_a_merge_that_raises_ends_nothing(here: Process, caplog: pytest.LogCaptureFixture) -> None:
    process = Process(seconds=0.001)
    raised, merged = threading.Event(), threading.Event()
    add = process.stats.add

    def failing(merge: object) -> bool:
        if not raised.is_set():
            raised.set()
            raise ValueError("a defect")
        merged.set()
        return add(merge)  # type: ignore[arg-type]  # handed on as it came

    process.stats.add = failing  # type: ignore[method-assign]
    process.miss()
    process.merger.start()
    assert merged.wait(10)
    process.merger.stop()

    assert "merging the counters failed" in caplog.text


def test_a_body_that_runs_counts_nothing_twice(here: Process) -> None:
    process, stats = InMemoryProcess(), MemoryStats()
    merger = Merger(process.counters, lambda: stats, started)
    for key in "abca":
        process.get(process.call(key), Body())
        merger.merge()

    numbers = stats.read().tasks["task"]
    assert (numbers["misses"], numbers["l1_hits"]) == (3, 1)


def test_the_keys_of_misses_are_merged_with_them_once(here: Process) -> None:
    for key in ("one", "two", "one"):
        here.counters(Event.MISS, "task", {"key": key, "outdated": ""})
    here.stats.deaf = True
    assert here.merger.merge() is False
    here.stats.deaf = False
    here.merger.merge()
    here.counters(Event.MISS, "task", {"key": "two", "outdated": "user:1"})
    here.merger.merge()

    sums = here.stats.read()
    assert sums.tasks == {"task": {"misses": 4, "outdated": 1, "first_misses": 2, "repeated_misses": 2}}
    assert sums.outdated == {"user:*": 1}


def test_the_reasons_of_entries_that_cannot_be_used_are_merged_once(here: Process) -> None:
    here.counters(Event.UNUSABLE, "task", {"reason": "forged"})
    here.stats.deaf = True
    assert here.merger.merge() is False
    here.stats.deaf = False
    here.counters(Event.UNUSABLE, "", {"reason": "malformed"})
    here.merger.merge()
    here.counters(Event.UNUSABLE, "task", {"reason": "forged"})
    here.merger.merge()

    assert here.stats.read().unusable == {"forged": 2, "malformed": 1}
    assert here.stats.read().tasks["task"]["unusable"] == 2


def test_of_too_many_keys_the_same_ones_are_kept_every_time_and_stand_for_all(here: Process) -> None:
    for _ in range(2):
        for number in range(3 * MISSED):
            here.counters(Event.MISS, "task", {"key": str(number)})
        here.merger.merge()
    for number in range(MISSED):  # few enough for all to be kept: most of these the place of sums has never seen
        here.counters(Event.MISS, "task", {"key": str(number)})
    here.merger.merge()

    numbers = here.stats.read().tasks["task"]
    assert numbers == {"misses": 7 * MISSED, "first_misses": 3 * MISSED, "repeated_misses": 4 * MISSED}


def test_one_key_that_misses_often_leaves_no_other_out(here: Process) -> None:
    for key in ("one", "other"):
        for _ in range(MISSED):
            here.counters(Event.MISS, "task", {"key": key})

    assert here.counters.take_missed() == ({("task", "one"): MISSED, ("task", "other"): MISSED}, 0)


def test_so_many_keys_are_kept_for_a_merge_and_none_where_nobody_takes_them(here: Process) -> None:
    for number in range(MISSED + 5):
        here.counters(Event.MISS, "task", {"key": str(number)})
    missed, halvings = here.counters.take_missed()
    here.counters.notes_keys = False
    here.counters(Event.MISS, "task", {"key": "one more"})

    assert (0 < len(missed) <= MISSED, halvings) == (True, 1)
    assert here.counters.take_missed() == ({}, 0)
