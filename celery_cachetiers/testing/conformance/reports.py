"""What every place of reports promises: each interval is reported once, and the history is in order."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

from celery_cachetiers.report_port import ReportStore


@dataclass
class ReportsUnderTest:
    """What a subclass' ``reports`` fixture returns: two processes' ways to one place that is empty.

    Attributes:
        ours, theirs: A store in each of the two processes.
        now: Epoch seconds.
    """

    ours: ReportStore
    theirs: ReportStore
    now: float = field(default_factory=time.time)

    def next(self, report: str, seconds: float = 0.0, store: ReportStore | None = None) -> bool:
        """Adds a report after the last one, some seconds from now."""
        store = store or self.ours
        last = store.last()
        return store.add(last.name if last is not None else "", f"moment of {report}", report, self.now + seconds)


class ReportsConformance:
    """Subclass it with a fixture ``reports`` that returns a `ReportsUnderTest`."""

    def test_there_is_nothing_at_first(self, reports: ReportsUnderTest) -> None:
        assert reports.ours.last() is None
        assert reports.ours.history(0.0, 10) == []

    def test_what_one_process_has_reported_is_what_the_next_one_starts_from(self, reports: ReportsUnderTest) -> None:
        assert reports.next("first") is True
        first = reports.theirs.last()
        assert reports.next("größe", 1.0, reports.theirs) is True
        second = reports.ours.last()

        assert first is not None
        assert second is not None
        assert (first.moment, second.moment) == ("moment of first", "moment of größe")
        assert first.name != second.name
        assert reports.ours.history(0.0, 10) == ["first", "größe"]

    def test_an_interval_is_not_reported_twice(self, reports: ReportsUnderTest) -> None:
        assert reports.ours.add("", "one", "one", reports.now) is True
        assert reports.theirs.add("", "two", "two", reports.now) is False
        last = reports.ours.last()
        assert last is not None
        assert reports.ours.add(last.name, "three", "three", reports.now + 1) is True
        assert reports.theirs.add(last.name, "four", "four", reports.now + 1) is False

        assert reports.ours.history(0.0, 10) == ["one", "three"]

    def test_of_many_reports_at_the_same_moment_one_is_kept(self, reports: ReportsUnderTest) -> None:
        barrier = Barrier(8)

        def add(number: int) -> bool:
            barrier.wait(10)
            store = reports.ours if number % 2 else reports.theirs
            return store.add("", str(number), str(number), reports.now)

        with ThreadPoolExecutor(8) as pool:
            kept = [number for number, done in enumerate(pool.map(add, range(8))) if done]

        assert [str(number) for number in kept] == reports.ours.history(0.0, 10)
        assert len(kept) == 1

    def test_the_history_is_read_from_an_instant_on(self, reports: ReportsUnderTest) -> None:
        for number in range(5):
            reports.next(str(number), float(number))

        assert reports.theirs.history(reports.now + 3.0, 10) == ["3", "4"]
        assert reports.theirs.history(0.0, 2) == ["3", "4"]
        assert reports.theirs.history(reports.now + 5.0, 10) == []

    def test_a_report_whose_time_is_not_after_the_last_one_is_kept_too(self, reports: ReportsUnderTest) -> None:
        assert [reports.next("one"), reports.next("two"), reports.next("three", -10.0)] == [True, True, True]

        assert sorted(reports.ours.history(0.0, 10)) == ["one", "three", "two"]
