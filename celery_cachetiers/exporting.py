"""What monitoring is told of an app: by this process alone, without a command to Redis, or by Redis, for all processes.

It decides what is asked for one reading; what a sample is called is `metrics.exported`'s matter, and how it is handed
on that of the outlets, `prometheus` and `opentelemetry`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from celery import Celery

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.metrics import exported
from celery_cachetiers.metrics.exported import Sample, Steady
from celery_cachetiers.metrics.totals import totals_here
from celery_cachetiers.sinks import registered
from celery_cachetiers.tiers.redis_server import RedisServerInfo

SOURCES: Final = ("all", "process")


class Readings:
    """Readings of one app.

    Args:
        app: The app.
        source: ``"all"`` is the sums of all processes, the journal and L2's server; ``"process"`` is this process.
        max_tasks: Tasks that are told apart, the first ones seen; all others are one, named ``other``.

    Raises:
        ConfigurationError: There is no such source, or no room for a single task.
    """

    def __init__(self, app: Celery, source: str, max_tasks: int) -> None:
        if source not in SOURCES:
            raise ConfigurationError("source", source, f"one of {', '.join(map(repr, SOURCES))}")
        if isinstance(max_tasks, bool) or not isinstance(max_tasks, int) or max_tasks < 1:
            raise ConfigurationError("max_tasks", max_tasks, "a whole number of at least 1")
        self._tiers, self.source, self._max_tasks = CacheTiers(app), source, max_tasks
        self._begin()

    def _begin(self) -> None:
        """Nothing was read in this process."""
        self._pid, self._steady = os.getpid(), Steady(self._max_tasks)
        self._server: RedisServerInfo | None = None

    def read(self) -> list[Sample]:
        """All there is to tell now. A server that does not answer is told of as such; nothing is raised for it.

        Costs: none for ``"process"``; else what `Counting.totals` costs, 1 round trip, and 1 more for each sink.
        """
        if self._pid != os.getpid():  # forked since
            self._begin()
        return list(self._here() if self.source == "process" else self._everywhere())

    def _here(self) -> Iterator[Sample]:
        yield from self._steady.samples(totals_here(self._tiers.counters))
        gauges = self._tiers.counting.gauges()
        if not gauges:  # nothing was asked of the cache so far
            return
        parts = self._tiers.cache.parts
        yield Sample(exported.L1_ENTRIES, (), gauges["l1_entries"])
        yield Sample(exported.L1_BYTES, (), gauges["l1_bytes"])
        yield Sample(exported.L1_TRUSTED, (), parts.l1.trusted())
        breaker = self._tiers.counting.breaker()
        if breaker is not None:
            yield Sample(exported.BREAKER, (), breaker == "open")

    def _everywhere(self) -> Iterator[Sample]:
        try:
            totals = self._tiers.counting.totals()
        except TierUnavailable:
            yield Sample(exported.UP, (), 0)
        else:
            yield Sample(exported.UP, (), 1)
            yield from self._steady.samples(totals)
            yield from self._of_server()
        yield from self._of_journal()

    def _of_server(self) -> Iterator[Sample]:
        if self._server is None:
            self._server = self._tiers.server()
        if self._server is None:
            return
        with suppress(TierUnavailable):  # it does not tell
            told = self._server.read()
            for name, metric in exported.OF_SERVER.items():
                yield Sample(metric, (), getattr(told, name))

    def _of_journal(self) -> Iterator[Sample]:
        """One sink that cannot be asked is one server that is away: the others are not asked."""
        if not registered() or self._tiers.writes.journal is None:
            return
        now = self._tiers.clock.time()
        try:
            backlogs = {name: self._tiers.writes.backlog(name) for name in sorted(registered())}
        except TierUnavailable:
            yield Sample(exported.JOURNAL_UP, (), 0)
            return
        yield Sample(exported.JOURNAL_UP, (), 1)
        for name, backlog in backlogs.items():
            age = max(now - backlog.oldest, 0.0) if backlog.oldest is not None else 0.0
            yield Sample(exported.PENDING, (name,), backlog.pending)
            yield Sample(exported.PENDING_AGE, (name,), age)
            yield Sample(exported.DEAD, (name,), backlog.buried)

    def close(self) -> None:
        """Closes connections of its own."""
        if self._server is not None:
            self._server.close()
