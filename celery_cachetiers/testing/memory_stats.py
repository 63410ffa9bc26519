"""The sums of all processes' counters in memory, with answers that get lost when a test says so."""

from __future__ import annotations

import threading
from collections import defaultdict

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.stats_port import HotKey, Merge, Numbers, Sums, rank


class MemoryStats:
    """A `celery_cachetiers.stats_port.StatsStore`; its hot keys never cool, as no time goes by.

    Attributes:
        away: Nothing arrives.
        deaf: Everything arrives, and no answer comes back.
        asked: How often something was added, or tried to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.away = self.deaf = False
        self.asked = 0
        self.flush()

    def flush(self) -> None:
        """Loses everything."""
        self._last: dict[str, int] = {}
        self._tasks: dict[str, dict[str, int | float]] = {}
        self._process: dict[str, int | float] = {}
        self._invalidated: dict[str, int | float] = {}
        self._hot: dict[HotKey, float] = {}
        self._outdated: dict[str, int | float] = {}
        self._unusable: dict[str, int | float] = {}
        self._seen: set[str] = set()
        self._halvings = 0

    def add(self, merge: Merge) -> bool:
        with self._lock:
            self.asked += 1
            if self.away:
                raise TierUnavailable("away")
            new = self._last.get(merge.source) != merge.number
            if new:
                self._last[merge.source] = merge.number
                for task, numbers in merge.tasks.items():
                    _add(self._tasks.setdefault(task, {}), numbers)
                _add(self._process, merge.process)
                _add(self._invalidated, merge.invalidated)
                for hot, calls in merge.hot.items():
                    self._hot[hot] = self._hot.get(hot, 0.0) + calls
                _add(self._outdated, merge.outdated)
                _add(self._unusable, merge.unusable)
                self._tell_apart(merge)
            if self.deaf:
                raise TierUnavailable("the answer is lost")
            return new

    def _tell_apart(self, merge: Merge) -> None:
        self._halvings = max(self._halvings, merge.halvings)
        for task, numbers in merge.tasks.items():
            known = {key: count for (of, key), count in merge.missed.items() if of == task}
            known = {key: count for key, count in known.items() if rank(key) >= self._halvings}
            new = known.keys() - self._seen
            self._seen |= known.keys()
            misses = int(numbers.get("misses", 0))
            if known and misses:
                first = int(misses * len(new) / sum(known.values()) + 0.5)
                told = {"first_misses": first, "repeated_misses": misses - first}
                _add(self._tasks[task], {name: count for name, count in told.items() if count})

    def read(self, task: str | None = None) -> Sums:
        with self._lock:
            if self.away:
                raise TierUnavailable("away")
            tasks = {name: dict(numbers) for name, numbers in self._tasks.items() if task in (None, name)}
            names = dict(self._invalidated), dict(self._outdated), dict(self._unusable)
            return Sums(tasks, dict(self._process), *names)

    def hot(self, count: int) -> dict[HotKey, float]:
        with self._lock:
            if self.away:
                raise TierUnavailable("away")
            return dict(sorted(self._hot.items(), key=lambda row: -row[1])[:count])

    def reset_after_fork(self) -> None:
        """What is stored is shared."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """There are no connections."""

    def __repr__(self) -> str:
        return f"<MemoryStats: {len(self._tasks)} tasks>"


def _add(sums: dict[str, int | float], numbers: Numbers) -> None:
    counts: dict[str, int | float] = defaultdict(int, sums)
    for name, number in numbers.items():
        counts[name] += number
    sums.update(counts)
