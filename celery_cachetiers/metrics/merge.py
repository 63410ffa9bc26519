"""From the counters of one process to the sums of all: what has changed since the last merge is added, once.

It decides what is sent and when it counts as sent. A merge that was not answered is sent again as it was, under the
same number, before anything newer: the other side knows whether it has it. Nothing here is on the path of a call.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from math import isfinite
from typing import Final, cast

from celery_cachetiers.clock import chance
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.metrics.tally import Counters, ProcessTally, Tally
from celery_cachetiers.stats_port import HotKey, Merge, Numbers, StatsStore

logger = logging.getLogger("celery_cachetiers")

MERGE_SECONDS: Final = 10.0
"""The longest time between two merges of a process, and with it what a killed one loses."""
PATIENCE: Final = 5.0
"""Seconds that the end of a process waits for a merge that is under way."""

Row = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class _Seen:
    """All counters of the process at one moment."""

    tasks: Mapping[str, Row]
    process: Row
    invalidated: Mapping[str, int]
    outdated: Mapping[str, int]
    unusable: Mapping[str, int]


_NOTHING: Final = _Seen({}, {}, {}, {}, {})


class Merger:
    """Merges the counters of its process.

    Concurrency: one lock is held through a merge, so that there is one at a time; who counts never takes it. The thread
    starts when `start` is called. After a fork the child has counted nothing, and the parent's numbers stay with it.

    Args:
        counters: Its process' own. They are to be at zero before `reset_after_fork` is called.
        store: Where the sums are; ``None`` where there is no such place.
        start: Starts a daemon thread; ``None`` if it could not.
        seconds: Between two merges at most.
        hot: Takes the keys that were asked for most since it was called last.
        before: Called ahead of each merge, for what is still to be counted; it must not raise.
    """

    def __init__(
        self, counters: Counters, store: Callable[[], StatsStore | None],
        start: Callable[[str, Callable[[], None]], threading.Thread | None], seconds: float = MERGE_SECONDS,
        hot: Callable[[], Mapping[HotKey, int]] = dict, before: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._counters, self._store, self._start, self._seconds, self._hot = counters, store, start, seconds, hot
        self._before = before
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Another source, without a thread, that has merged nothing."""
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._source, self._number = os.urandom(8).hex(), 0
        self._merged, self._pending = _NOTHING, cast("tuple[Merge, _Seen] | None", None)
        self._thread: threading.Thread | None = None
        self._over, self._due = threading.Event(), threading.Event()
        self._told = deque[Callable[[], None]]()

    def start(self) -> bool:
        """Merges from now on, again and again; false if no thread could be started."""
        with self._starting:
            if self._thread is None:
                self._thread = self._start("cachetiers-counters", partial(self._run, self._over, self._due))
            return self._thread is not None

    @property
    def started(self) -> bool:
        """Whether it merges by itself."""
        return self._thread is not None

    def stop(self) -> None:
        """Ends the thread; what is not merged stays for the next one that is started."""
        with self._starting:
            self._over.set()
            self._due.set()
            self._thread, self._over, self._due = None, threading.Event(), threading.Event()

    def hurry(self, then: Callable[[], None]) -> None:
        """Merges now, in its own thread, and calls a function there afterwards; at once where that is not started."""
        if not self.started:
            return then()
        self._told.append(then)
        self._due.set()
        return None

    def merge(self) -> bool:
        """Adds what has changed; false if that is not known to have arrived.

        Costs: nothing where nothing has changed, else 1 round trip; 2 after one that was not answered.
        """
        self._before()
        if not self._lock.acquire(timeout=PATIENCE):
            return False
        try:
            unanswered = self._pending is not None
            return self._send() and (self._send() if unanswered else True)
        finally:
            self._lock.release()

    def _send(self) -> bool:
        store = self._store()
        if store is None:
            return False
        if self._pending is None:
            self._pending = self._changes()
        if self._pending is None:
            return True
        merge, seen = self._pending
        try:
            store.add(merge)
        except TierUnavailable:
            return False
        self._merged, self._pending = seen, None
        return True

    def _changes(self) -> tuple[Merge, _Seen] | None:
        """What was counted since the last merge, and what it is counted from next time."""
        before = self._merged
        missed, halvings = self._counters.take_missed()  # first: what is in it is counted below
        tasks = {task: _row(tally) for task, tally in self._counters.snapshot().items()}
        names = self._counters.invalidated(), self._counters.outdated(), self._counters.unusable()
        now = _Seen(tasks, _row(self._counters.process), *names)
        changed = {task: _less(row, before.tasks.get(task, {})) for task, row in now.tasks.items()}
        process, invalidated = _less(now.process, before.process), _fewer(now.invalidated, before.invalidated)
        outdated, unusable = _fewer(now.outdated, before.outdated), _fewer(now.unusable, before.unusable)
        changed = {task: row for task, row in changed.items() if row}
        if not (changed or process or invalidated):
            return None
        self._number += 1
        merge = Merge(
            self._source, self._number, changed, process, invalidated, outdated, missed, halvings, self._hot(), unusable
        )  # fmt: skip
        return merge, now

    def _run(self, over: threading.Event, due: threading.Event) -> None:
        while True:
            due.wait(self._seconds * chance.uniform(0.8, 1.0))  # many processes start at once
            due.clear()
            if over.is_set():
                return
            waiting = [self._told.popleft() for _ in range(len(self._told))]  # who comes later, waits for the next one
            try:
                self.merge()
                for then in waiting:
                    then()
            except Exception:
                logger.exception("celery-cachetiers: merging the counters failed")

    def __repr__(self) -> str:
        state = "unanswered" if self._pending is not None else f"{self._number} so far"
        return f"<Merger {self._source}: {state}>"


def _row(tally: Tally | ProcessTally) -> Row:
    return {each.name: getattr(tally, each.name) for each in fields(tally)}


def _less(now: Mapping[str, int | float], before: Numbers) -> Row:
    """What has been added; counters that have not changed are left out."""
    changes = {name: value - before.get(name, 0) for name, value in now.items()}
    return {name: change for name, change in changes.items() if change and isfinite(change)}


def _fewer(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """The same for counts by name."""
    return {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}
