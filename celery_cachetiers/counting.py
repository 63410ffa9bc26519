"""The counters of one process of an app: who merges them into Redis, when, and how the sums are read.

A thread merges from the first counted thing on; what it has not merged yet is merged when the process ends: at the
interpreter's exit, which children of a prefork pool never see, so by the worker's own signals too.
"""

from __future__ import annotations

import atexit
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.signals import worker_process_shutdown, worker_shutdown

from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.metrics.hot import HotKeys
from celery_cachetiers.metrics.merge import Merger
from celery_cachetiers.metrics.totals import Totals, totals_here, totals_of
from celery_cachetiers.stats_port import HotKey, StatsStore, Sums
from celery_cachetiers.threads import started
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.memory import MemoryTier
from celery_cachetiers.tiers.redis_stats import RedisStats

if TYPE_CHECKING:
    from celery_cachetiers.app import CacheTiers


class Counting:
    """What stands between an extension's counters and the sums of all processes.

    Concurrency: the store is made at the first merge, under a lock, on connections of its own: a merge that fails opens
    no task's breaker.
    """

    def __init__(self, tiers: CacheTiers) -> None:
        self._tiers = tiers
        self._lock = threading.Lock()
        self._store: StatsStore | None = None
        self.hot_keys = HotKeys()
        self.merger = Merger(tiers.counters, self._connected_if_used, started, hot=self._take_hot, before=self._settle)
        tiers.events.subscribe(self.hot_keys, *HotKeys.EVENTS)
        tiers.counters.first = self._begin

    def totals(self, task: str | None = None) -> Totals:
        """The sums of all processes, this one's latest included; where there is no Redis, this process' own.

        Raises:
            TierUnavailable: Redis was not reached.

        Costs: 2 round trips, and 1 more for each 500 tasks.
        """
        store = self._connected()
        if store is None:
            return totals_here(self._tiers.counters, task)
        self.merger.merge()
        return totals_of(store.read(task))

    def hot(self, count: int = 20) -> dict[HotKey, float]:
        """The keys that all processes ask for most, the hottest first, as far as it was merged.

        Returns:
            Task and key to calls, of which each counts half after a minute; empty where there is no Redis.

        Raises:
            TierUnavailable: Redis was not reached.

        Costs: 1 round trip.
        """
        store = self._connected()
        return {} if store is None else store.hot(count)

    def sums(self) -> Sums:
        """The same as plain numbers; none where there is no Redis. Costs and errors as `totals`."""
        store = self._connected()
        if store is None:
            return Sums({}, {}, {})
        self.merger.merge()
        return store.read()

    def gauges(self) -> dict[str, int]:
        """What this process' L1 holds now; empty before the first call."""
        l1 = self.l1
        return {} if l1 is None else {"l1_entries": len(l1), "l1_bytes": l1.bytes}

    def breaker(self) -> str | None:
        """``open`` while this process leaves Redis alone, ``closed`` else; ``None`` where it has none, or not yet."""
        cache = self._tiers._cache
        if cache is None or cache.parts.store is None:
            return None
        return "closed" if cache.parts.store.reachable() else "open"

    def here(self) -> dict[str, Any]:
        """What is true of this process now: gauges and breaker; empty before the first call."""
        breaker = self.breaker()
        return self.gauges() | ({} if breaker is None else {"breaker": breaker})

    @property
    def l1(self) -> MemoryTier | None:
        """This process' L1; ``None`` before the first call."""
        cache = self._tiers._cache
        return cache.parts.l1 if cache is not None and isinstance(cache.parts.l1, MemoryTier) else None

    def _take_hot(self) -> dict[HotKey, int]:
        l1 = self.l1
        return self.hot_keys.take(() if l1 is None else l1.take_warm())

    def _settle(self) -> None:
        """What was stored without a wait is counted when that is known."""
        if self._tiers._cache is not None:
            self._tiers._cache.settle()

    def end(self) -> None:
        """Merges what is left, if anything has been."""
        if self.merger.started:
            self.merger.merge()

    def _begin(self) -> bool:
        """Starts to merge, where there is a place for it; false to be asked again."""
        if not self._used:
            return False
        with suppress(ConfigurationError):
            if self._tiers.where() is not None:
                return self.merger.start()
            self._tiers.counters.notes_keys = False
        return True

    @property
    def _used(self) -> bool:
        """Whether the settings are in use: what ends with a reset must not be the first to read them anew."""
        return self._tiers._settings is not None

    def _connected_if_used(self) -> StatsStore | None:
        return self._connected() if self._used else None

    def _connected(self) -> StatsStore | None:
        if self._store is None:
            with self._lock:
                if self._store is None:
                    client = self._tiers.client()
                    if client is None:
                        return None
                    self._store = RedisStats(client, Layout(self._tiers.settings.namespace))
        return self._store

    def reset(self) -> None:
        """Closes connections; what is counted stays, and is merged when something more is."""
        self.merger.stop()
        self._tiers.counters.notes_keys = True
        self._tiers.counters.start_anew()
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def reset_after_fork(self) -> None:
        """After the counters: nothing was merged, and no connection is ours."""
        self._lock = threading.Lock()
        self.hot_keys.reset_after_fork()
        self.merger.reset_after_fork()
        if self._store is not None:
            self._store.reset_after_fork()

    def __repr__(self) -> str:
        return f"<Counting: {self.merger!r}>"


def listen() -> None:
    """Merges at the end of the process from now on; once is enough for all apps."""
    global _listening  # noqa: PLW0603 - atexit calls as often as it was told to
    worker_process_shutdown.connect(_end, dispatch_uid="celery_cachetiers.counting")
    worker_shutdown.connect(_end, dispatch_uid="celery_cachetiers.counting")
    if not _listening:
        _listening = True
        atexit.register(_end)


_listening = False


def _end(**_: Any) -> None:
    from celery_cachetiers.installed import EVERYWHERE

    for tiers in list(EVERYWHERE):
        tiers.counting.end()
