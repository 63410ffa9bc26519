"""What one process did for one task, in numbers; `Counters` fills them from the engine's events."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from celery_cachetiers.events import Event


@dataclass(slots=True)
class Tally:
    """Counts since the process began (or forked).

    Attributes:
        l1_hits, l2_hits: Calls answered from a tier, stale ones included in ``l2_hits``.
        journal_hits: Calls answered with a value that waits for its sink.
        stale_hits: Those answered past their ``ttl``.
        coalesced: Calls answered by another call's compute.
        held: Requests that a worker's main process held meanwhile, without a slot.
        misses: Calls that found no entry to answer with.
        computes, compute_seconds: Bodies that ran for the cache.
        stores, refused: Values that were stored; that were not, as their stamp or lease was outdated.
        failed_open: Calls that went on without L2.
        unusable: Entries that could not be read or written.
        uncacheable: Calls without a key or without tags, which ran uncached.
    """

    l1_hits: int = 0
    l2_hits: int = 0
    journal_hits: int = 0
    stale_hits: int = 0
    coalesced: int = 0
    held: int = 0
    misses: int = 0
    computes: int = 0
    compute_seconds: float = 0.0
    stores: int = 0
    refused: int = 0
    failed_open: int = 0
    unusable: int = 0
    uncacheable: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """Hits by hits and misses; ``None`` without requests. Coalesced calls are in neither.

        A call counts where it ends: a miss at ``delay()`` is the worker's, so a process that only sends has no misses.
        """
        hits = self.l1_hits + self.l2_hits + self.journal_hits
        return hits / (hits + self.misses) if hits + self.misses else None


class Counters:
    """The tallies of this process, by task name; subscribe it to the engine's events.

    Concurrency: one lock for all but ``l1_hits``, which L1 counts under its own.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """All at zero; tallies that were handed out start over too."""
        self._lock = threading.Lock()
        for tally in getattr(self, "_tallies", {}).values():
            tally.__init__()
        self._tallies: dict[str, Tally] = getattr(self, "_tallies", {})

    def of(self, task: str) -> Tally:
        """The tally of one task: the same object every time."""
        tally = self._tallies.get(task)
        if tally is None:
            with self._lock:
                tally = self._tallies.setdefault(task, Tally())
        return tally

    def __call__(self, event: Event, task: str, details: dict[str, object]) -> None:
        if not task:
            return
        tally = self.of(task)
        with self._lock:
            self._count(tally, event, details)

    @staticmethod
    def _count(tally: Tally, event: Event, details: dict[str, object]) -> None:
        match event:
            case Event.HIT:
                tally.l2_hits += details.get("tier") == "l2"
                tally.l1_hits += details.get("tier") == "l1"
                tally.journal_hits += details.get("tier") == "journal"
                tally.stale_hits += bool(details.get("stale"))
            case Event.MISS:
                tally.misses += 1
            case Event.COALESCED:
                tally.coalesced += 1
            case Event.HELD:
                tally.held += 1
            case Event.COMPUTED:
                tally.computes += 1
                tally.compute_seconds += float(str(details["seconds"]))
            case Event.STORED:
                tally.stores += 1
            case Event.REFUSED:
                tally.refused += 1
            case Event.FAILED_OPEN:
                tally.failed_open += 1
            case Event.UNUSABLE:
                tally.unusable += 1
            case Event.UNCACHEABLE:
                tally.uncacheable += 1
            case _:
                pass
