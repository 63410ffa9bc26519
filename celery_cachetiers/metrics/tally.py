"""What one process did for one task, in numbers; `Counters` fills them from the engine's events.

Each call counts once, where it ends: as a hit, as coalesced, or as a miss. All other numbers stand beside these.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from celery_cachetiers.events import Event
from celery_cachetiers.stats_port import OTHERS, HotKey, rank
from celery_cachetiers.tag_names import task_of

PATTERNS: Final = 1000
"""Patterns of invalidated tags that are told apart, in a process and in Redis; all others are `OTHERS`."""
MISSED: Final = 500
"""Keys that a process remembers to have missed since its last merge; of more, half and half again are left out."""


@dataclass(slots=True)
class Tally:
    """Counts since the process began (or forked).

    Attributes:
        l1_hits, l2_hits: Calls answered from a tier, stale ones included in ``l2_hits``.
        journal_hits: Calls answered with a value that waits for its sink.
        stale_hits: Those of the hits that were past their ``ttl``.
        publish_hits: Those of the hits that ``delay()`` or ``apply_async()`` answered, with no message.
        coalesced: Calls answered by another call's compute.
        misses: Calls that found no entry to answer with.
        outdated: Those of the misses that found an entry which an invalidation has ended, and computed.
        first_misses, repeated_misses: Those of a key that had not missed for a day, and the others; told apart where
            the sums are, as far as it can be.
        held: Requests that a worker's main process held meanwhile, without a slot.
        waits, wait_seconds: Waits for another call's compute, held ones included; one call may wait more than once.
        computes, compute_seconds: Bodies that ran for the cache, and returned.
        l1_seconds_saved: What the entries of the hits in L1 took to compute.
        other_seconds_saved: The same for all other hits, and for coalesced calls.
        stores, stored_bytes: Values that were stored, and the size of their entries.
        refused: Values that were not, as their stamp or lease was outdated.
        invalidations: Invalidations of single entries of the task, and of all of them at once.
        failed_open: Calls that went on without L2.
        unusable: Entries that could not be read or written.
        uncacheable: Calls without a key or without tags, which ran uncached.
        lease_lost: Leases that were gone while their bodies ran.
        taken_over: Leaders that outlasted ``wait_limit`` and were replaced.
        l1_evictions: Entries that L1 has dropped for want of room.
    """

    l1_hits: int = 0
    l2_hits: int = 0
    journal_hits: int = 0
    stale_hits: int = 0
    publish_hits: int = 0
    coalesced: int = 0
    misses: int = 0
    outdated: int = 0
    first_misses: int = 0
    repeated_misses: int = 0
    held: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    computes: int = 0
    compute_seconds: float = 0.0
    l1_seconds_saved: float = 0.0
    other_seconds_saved: float = 0.0
    stores: int = 0
    stored_bytes: int = 0
    refused: int = 0
    invalidations: int = 0
    failed_open: int = 0
    unusable: int = 0
    uncacheable: int = 0
    lease_lost: int = 0
    taken_over: int = 0
    l1_evictions: int = 0

    @property
    def hits(self) -> int:
        """Calls that a tier or the journal has answered."""
        return self.l1_hits + self.l2_hits + self.journal_hits

    @property
    def hit_ratio(self) -> float | None:
        """Hits by hits and misses; ``None`` without requests. Coalesced calls are in neither.

        A call counts where it ends: a miss at ``delay()`` is the worker's, so a process that only sends has no misses.
        """
        hits = self.hits
        return hits / (hits + self.misses) if hits + self.misses else None

    @property
    def seconds_saved(self) -> float:
        """Seconds of computing that hits and coalesced calls did without, as far as their entries tell."""
        return self.l1_seconds_saved + self.other_seconds_saved


@dataclass(slots=True)
class ProcessTally:
    """What belongs to no task: counts since the process began (or forked).

    Attributes:
        breaker_opened: Outages of Redis, as this process met them.
        gaps: Times that the backplane was connected (anew) or lost, which empties L1.
        invalidated: Tags and keys that were invalidated from here.
        failed_open: Steps of flushes that went on without the journal.
        unusable: Bytes in Redis that were no entry.
    """

    breaker_opened: int = 0
    gaps: int = 0
    invalidated: int = 0
    failed_open: int = 0
    unusable: int = 0


class Counters:
    """The tallies of this process, by task name; subscribe it to the engine's events.

    Concurrency: one lock for all but ``l1_hits``, ``l1_seconds_saved`` and ``l1_evictions``, which L1 alone writes,
    under its own: no field has two locks. Reading takes none.

    Attributes:
        process: What belongs to no task.
        first: Called after each event until it says that it need not be, by returning true.
        notes_keys: False where nobody takes the keys that have missed.
    """

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self.process = ProcessTally()
        self.first: Callable[[], bool] = lambda: True
        self.notes_keys = True
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """All at zero; tallies that were handed out start over too."""
        self._lock = threading.Lock()
        for tally in (*self._tallies.values(), self.process):
            tally.__init__()  # type: ignore[misc]  # in place, as others hold it
        self._patterns: dict[str, int] = {}
        self._outdated: dict[str, int] = {}
        self._unusable: dict[str, int] = {}
        self._missed: dict[HotKey, int] = {}
        self._halvings = 0
        self._wants_first = True

    def start_anew(self) -> None:
        """Calls `first` again after the next event; the counts stay."""
        self._wants_first = True

    def of(self, task: str) -> Tally:
        """The tally of one task: the same object every time."""
        tally = self._tallies.get(task)
        if tally is None:
            with self._lock:
                tally = self._tallies.setdefault(task, Tally())
        return tally

    def snapshot(self) -> dict[str, Tally]:
        """Copies of all tallies, by task."""
        with self._lock:
            tallies = list(self._tallies.items())
        return {task: replace(tally) for task, tally in tallies}

    def invalidated(self) -> dict[str, int]:
        """Invalidations since the process began, by pattern of the tag; see `pattern_of`."""
        with self._lock:
            return dict(self._patterns)

    def outdated(self) -> dict[str, int]:
        """Misses since the process began that an invalidation has made, by pattern of the tag."""
        with self._lock:
            return dict(self._outdated)

    def unusable(self) -> dict[str, int]:
        """Entries since the process began that could not be read or written, by `UnusableEntry.reason`."""
        with self._lock:
            return dict(self._unusable)

    def take_missed(self) -> tuple[dict[HotKey, int], int]:
        """Misses since the last call by task and key, of `MISSED` keys at most, and how often half were left out."""
        with self._lock:
            taken = self._missed, self._halvings
            self._missed, self._halvings = {}, 0
            return taken

    def __call__(self, event: Event, task: str, details: dict[str, Any]) -> None:
        count = _COUNTS.get(event) if task else None
        if count is not None:
            tally = self._tallies.get(task) or self.of(task)
            with self._lock:
                count(tally, details)
                if event is Event.MISS:
                    self._note_miss(task, details)
        elif event in _OF_THE_PROCESS:
            self._count_for_all(event, task, details)
        if self._wants_first:
            self._wants_first = not self.first()

    def _note_miss(self, task: str, details: dict[str, Any]) -> None:
        """Under the lock."""
        key = details.get("key")
        if key and self.notes_keys and rank(key) >= self._halvings:
            self._missed[task, key] = self._missed.get((task, key), 0) + 1
            while len(self._missed) > MISSED:
                self._halvings += 1
                self._missed = {each: n for each, n in self._missed.items() if rank(each[1]) >= self._halvings}
        if details.get("outdated"):
            _count_pattern(self._outdated, details["outdated"])

    def _count_for_all(self, event: Event, task: str, details: dict[str, Any]) -> None:
        if event is Event.INVALIDATED:
            return self._count_invalidated(task, details["names"])
        if event is Event.UNUSABLE:
            return self._count_unusable(task, details.get("reason", ""))
        name = _OF_THE_PROCESS[event]
        with self._lock:
            setattr(self.process, name, getattr(self.process, name) + 1)
        return None

    def _count_unusable(self, task: str, reason: str) -> None:
        owner: Tally | ProcessTally = self.of(task) if task else self.process
        with self._lock:
            owner.unusable += 1
            if reason:
                self._unusable[reason] = self._unusable.get(reason, 0) + 1

    def _count_invalidated(self, task: str, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                self.process.invalidated += 1
                _count_pattern(self._patterns, name)
        for owner in filter(None, (task or task_of(name) for name in names)):
            tally = self.of(owner)
            with self._lock:
                tally.invalidations += 1


def pattern_of(name: str) -> str:
    """What invalidations are told apart by: a stored name up to its first colon.

    >>> [pattern_of(name) for name in ("user:1", "top10", "@key:00ff", "@task:profile", "@all")]
    ['user:*', 'top10', '@key:*', '@task:profile', '@all']
    """
    if task_of(name) is not None:
        return name
    head, colon, _ = name.partition(":")
    return f"{head}:*" if colon else name


def _count_pattern(patterns: dict[str, int], name: str) -> None:
    pattern = pattern_of(name)
    if pattern not in patterns and len(patterns) >= PATTERNS:
        pattern = OTHERS
    patterns[pattern] = patterns.get(pattern, 0) + 1


def _miss(tally: Tally, details: dict[str, Any]) -> None:
    tally.misses += 1
    if details.get("outdated"):
        tally.outdated += 1


def _hit(tally: Tally, details: dict[str, Any]) -> None:
    """L1 has counted its own."""
    tier = details["tier"]
    if tier == "l2":
        tally.l2_hits += 1
        if "saved" in details:
            tally.other_seconds_saved += details["saved"]
        if details.get("stale"):
            tally.stale_hits += 1
    elif tier == "journal":
        tally.journal_hits += 1


def _coalesced(tally: Tally, details: dict[str, Any]) -> None:
    tally.coalesced += 1
    tally.other_seconds_saved += details.get("saved", 0.0)


def _computed(tally: Tally, details: dict[str, Any]) -> None:
    tally.computes += 1
    tally.compute_seconds += details["seconds"]


def _waited(tally: Tally, details: dict[str, Any]) -> None:
    tally.waits += 1
    tally.wait_seconds += details["seconds"]


def _stored(tally: Tally, details: dict[str, Any]) -> None:
    tally.stores += 1
    tally.stored_bytes += details.get("size", 0)


def _one(name: str, by: int = 1) -> Callable[[Tally, dict[str, Any]], None]:
    def count(tally: Tally, details: dict[str, Any]) -> None:
        setattr(tally, name, getattr(tally, name) + by)

    return count


_COUNTS: Final[dict[Event, Callable[[Tally, dict[str, Any]], None]]] = {
    Event.HIT: _hit,
    Event.MISS: _miss,
    Event.COALESCED: _coalesced,
    Event.NOT_COALESCED: _one("coalesced", -1),
    Event.UNPUBLISHED: _one("publish_hits"),
    Event.HELD: _one("held"),
    Event.WAITED: _waited,
    Event.COMPUTED: _computed,
    Event.STORED: _stored,
    Event.REFUSED: _one("refused"),
    Event.FAILED_OPEN: _one("failed_open"),
    Event.UNCACHEABLE: _one("uncacheable"),
    Event.LEASE_LOST: _one("lease_lost"),
    Event.TAKEN_OVER: _one("taken_over"),
}
_OF_THE_PROCESS: Final = {
    Event.BREAKER_OPENED: "breaker_opened",
    Event.GAP: "gaps",
    Event.INVALIDATED: "invalidated",
    Event.FAILED_OPEN: "failed_open",
    Event.UNUSABLE: "unusable",
}
