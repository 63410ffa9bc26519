"""What is exported to monitoring: the names, once for all outlets, and the samples that totals give.

Monitoring reads a counter that goes back as one that has begun anew, and counts all of it again. Two things would make
one go back: a call that follows another and is told that it must compute after all, and a task that leaves the group of
`OTHER`. `Steady` keeps both from being seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.metrics.totals import Totals, added, since

OTHER: Final = "other"
"""In place of the task, or the pattern, for all that are not told apart."""
TASKS: Final = 500
"""Tasks that are told apart, unless said otherwise."""
PATTERNS: Final = 100
"""Patterns of invalidated tags that are."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: Without the ``_total`` that a counter's name ends in.
        kind: ``"counter"`` or ``"gauge"``.
        meaning: In a few words.
        labels: Names of its labels.
        source: ``"all"``, ``"process"`` or ``"both"``: where it is found.
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    source: str = "both"

    @property
    def full_name(self) -> str:
        """As queries have it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric; ``labels`` are in the order of the metric's."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


def _counter(name: str, meaning: str, *labels: str, source: str = "both") -> Metric:
    return Metric(f"cachetiers_{name}", "counter", meaning, labels, source)


def _gauge(name: str, meaning: str, *labels: str, source: str = "both") -> Metric:
    return Metric(f"cachetiers_{name}", "gauge", meaning, labels, source)


HITS: Final = _counter("hits", "calls that were answered from a tier (l1, l2) or the journal", "task", "tier")
_OF_TIER: Final = {"l1": "l1_hits", "l2": "l2_hits", "journal": "journal_hits"}

OF_TASK: Final = {
    "misses": _counter("misses", "calls that found nothing to be answered with", "task"),
    "outdated": _counter("outdated_misses", "misses whose entry an invalidation had ended", "task"),
    "first_misses": _counter("first_misses", "misses of keys that had not missed for a day, as far as told", "task"),
    "repeated_misses": _counter("repeated_misses", "misses of keys that had, as far as told", "task"),
    "coalesced": _counter("coalesced", "calls that were answered by another call's compute", "task"),
    "stale_hits": _counter("stale_hits", "hits past their ttl", "task"),
    "publish_hits": _counter("publish_hits", "hits that delay() answered, with no message", "task"),
    "held": _counter("held", "requests that a worker held without a slot", "task"),
    "waits": _counter("waits", "waits for another call's compute", "task"),
    "wait_seconds": _counter("wait_seconds", "seconds of those waits", "task"),
    "computes": _counter("computes", "bodies that ran for the cache", "task"),
    "compute_seconds": _counter("compute_seconds", "seconds of those bodies", "task"),
    "seconds_saved": _counter(
        "saved_seconds", "seconds that hits and coalesced calls did without (an estimate)", "task"
    ),
    "stores": _counter("stores", "entries that were stored", "task"),
    "stored_bytes": _counter("stored_bytes", "bytes of those entries", "task"),
    "refused": _counter("refused", "values that were not stored: outdated, or no room", "task"),
    "invalidations": _counter("task_invalidations", "invalidations of single entries, or of all of a task", "task"),
    "failed_open": _counter("failed_open", "steps that went on without Redis", "task"),
    "unusable": _counter("unusable", "entries that could not be read or written", "task"),
    "uncacheable": _counter("uncacheable", "calls without a key or tags", "task"),
    "lease_lost": _counter("leases_lost", "leases that were gone while the body ran", "task"),
    "taken_over": _counter("leases_taken_over", "leaders that outlasted wait_limit", "task"),
    "l1_evictions": _counter("l1_evictions", "entries that memory had no room for", "task"),
}
"""By attribute of `Tally`."""

OF_PROCESS: Final = {
    "breaker_opened": _counter("breaker_opened", "outages of Redis, as processes met them"),
    "gaps": _counter("backplane_gaps", "times that a backplane was connected or lost"),
    "failed_open": OF_TASK["failed_open"],
    "unusable": OF_TASK["unusable"],
}
"""By attribute of `celery_cachetiers.metrics.tally.ProcessTally`; what a task has as well has an empty one here."""
INVALIDATED: Final = _counter(
    "invalidated", "tags and keys that were invalidated, by the tag up to its colon", "pattern"
)
UNUSABLE: Final = _counter("unusable_by_reason", "the same as unusable, by what was wrong with the entry", "reason")

UP: Final = _gauge("up", "1 if Redis has answered", source="all")
L1_ENTRIES: Final = _gauge("l1_entries", "entries in this process' memory", source="process")
L1_BYTES: Final = _gauge("l1_bytes", "bytes of those entries", source="process")
L1_TRUSTED: Final = _gauge("l1_trusted", "1 while this process hears of invalidations", source="process")
BREAKER: Final = _gauge("breaker_open", "1 while this process leaves Redis alone", source="process")
HERE: Final = (L1_ENTRIES, L1_BYTES, L1_TRUSTED, BREAKER)

JOURNAL_UP: Final = _gauge("journal_up", "1 if the journal's Redis has answered", source="all")
PENDING: Final = _gauge("pending_writes", "writes that wait for their sink", "sink", source="all")
PENDING_AGE: Final = _gauge("oldest_pending_write_seconds", "age of the oldest of them", "sink", source="all")
DEAD: Final = _gauge("dead_letters", "writes that were given up", "sink", source="all")

OF_SERVER: Final = {
    "used_memory": _gauge("server_memory_used_bytes", "memory of L2's server", source="all"),
    "maxmemory": _gauge("server_memory_limit_bytes", "its limit; 0 without one", source="all"),
    "connected_clients": _gauge("server_clients", "its connections", source="all"),
    "uptime_in_seconds": _gauge("server_uptime_seconds", "seconds since its start", source="all"),
    "keyspace_hits": _counter("server_keyspace_hits", "keys that anybody looked up there and found", source="all"),
    "keyspace_misses": _counter("server_keyspace_misses", "keys that anybody looked up there in vain", source="all"),
    "evicted_keys": _counter("server_evicted_keys", "keys that it had no room for", source="all"),
    "expired_keys": _counter("server_expired_keys", "keys whose time was over", source="all"),
}
"""By attribute of `celery_cachetiers.server_info.ServerInfo`; everybody's on that server."""

METRICS: Final = tuple(
    dict.fromkeys(
        (HITS, *OF_TASK.values(), *OF_PROCESS.values(), INVALIDATED, UNUSABLE, UP, *HERE, JOURNAL_UP, PENDING,
         PENDING_AGE, DEAD, *OF_SERVER.values())
    )
)  # fmt: skip
"""All of them."""


class Group:
    """Names that are told apart: the first ones that were seen, for as long as this lives.

    Who is among them must not change, or what is told of the others would go back.
    """

    def __init__(self, most: int) -> None:
        self._most, self._named = most, set[str]()

    def admits(self, name: str) -> bool:
        """Whether it is one of them, now at the latest."""
        if len(self._named) < self._most:
            self._named.add(name)
        return name in self._named


class Steady:
    """Samples of totals, read again and again, whose counters go back only if those of Redis began anew.

    Args:
        tasks: Tasks that are told apart; all others are `OTHER`.
        patterns: Patterns of invalidated tags that are.

    Concurrency: one lock; readings may come from several threads.
    """

    def __init__(self, tasks: int = TASKS, patterns: int = PATTERNS) -> None:
        self._lock = threading.Lock()
        self._tasks, self._patterns = Group(tasks), Group(patterns)
        self._seen: dict[str, Tally] = {}
        self._others, self._seen_others = Tally(), dict[str, Tally]()
        self._other_patterns, self._seen_patterns = 0, dict[str, int]()

    def samples(self, totals: Totals) -> list[Sample]:
        """The counters, task after task."""
        with self._lock:
            told = list(self._of_tasks(totals.tasks))
            patterns = list(self._of_patterns(totals.invalidated))
        for name, metric in OF_PROCESS.items():
            told.append(Sample(metric, ("",) * len(metric.labels), getattr(totals.process, name)))
        told += [Sample(UNUSABLE, (reason,), count) for reason, count in totals.unusable.items()]
        return told + patterns

    def _of_tasks(self, tallies: Mapping[str, Tally]) -> Iterator[Sample]:
        for task, tally in sorted(tallies.items()):
            if self._tasks.admits(task):
                shown = self._seen[task] = _held_up(tally, self._seen.get(task))
                yield from _of_task(task, shown)
            else:
                shown = _held_up(tally, self._seen_others.get(task))
                self._others = added([self._others, _since(shown, self._seen_others.get(task))])
                self._seen_others[task] = shown
        if self._seen_others:
            yield from _of_task(OTHER, self._others)

    def _of_patterns(self, invalidated: Mapping[str, int]) -> Iterator[Sample]:
        for pattern, count in invalidated.items():
            if self._patterns.admits(pattern):
                yield Sample(INVALIDATED, (pattern,), count)
            else:
                before = self._seen_patterns.get(pattern, 0)
                self._other_patterns += count - before if count >= before else count
                self._seen_patterns[pattern] = count
        if self._seen_patterns:
            yield Sample(INVALIDATED, (OTHER,), self._other_patterns)


def _of_task(task: str, tally: Tally) -> Iterator[Sample]:
    for tier, name in _OF_TIER.items():
        yield Sample(HITS, (task, tier), getattr(tally, name))
    for name, metric in OF_TASK.items():
        yield Sample(metric, (task,), getattr(tally, name))


def _began_anew(tally: Tally, before: Tally) -> bool:
    """Whether the counters started over: of all of them only ``coalesced`` goes back otherwise."""
    names = [each.name for each in fields(Tally) if each.name != "coalesced"]
    return any(getattr(tally, name) < getattr(before, name) for name in names)


def _held_up(tally: Tally, before: Tally | None) -> Tally:
    """The tally, with ``coalesced`` no lower than it was told before."""
    if before is None or tally.coalesced >= before.coalesced or _began_anew(tally, before):
        return tally
    return replace(tally, coalesced=before.coalesced)


def _since(tally: Tally, before: Tally | None) -> Tally:
    """What was counted since; all of it if the counters started over."""
    if before is None or _began_anew(tally, before):
        return tally
    return since(tally, before)
