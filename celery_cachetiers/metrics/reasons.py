"""Why calls miss, told from the counters of an interval: pure functions of numbers.

Misses are parted, each into one heap: keys that had not missed for a day; entries that an invalidation has
ended; entries that were removed one by one; calls that ran without Redis; computes that left nothing stored; entries
that Redis has evicted; and the rest, whose time was over. A heap is told of when it is a tenth of the misses.

Where Redis evicts and has lost the last reading, it may have lost what it knew of keys, too: then no heap is told of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from celery_cachetiers.amounts import counted, span
from celery_cachetiers.metrics.interval import Interval
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.stats_port import OTHERS
from celery_cachetiers.tag_names import task_of

NOTABLE: Final = 0.1
"""The share of the misses from which a reason is told; of the calls, where these cannot or need not be cached."""
NAMED: Final = 3
"""Tasks and tags that are named, the most affected first."""
COMPUTES: Final = 10
"""Computes of a task from which their mean is believed."""

BY_KEY: Final = "@key:*"
"""The pattern of invalidations by key."""
KNOWN: Final = 10
"""Misses of known keys from which the others are taken to be of such keys in the same parts."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason.

    Attributes:
        name: ``"distinct_keys"``, ``"invalidated"``, ``"evicted"``, ``"ttl"``, ``"not_stored"``, ``"unreachable"``,
            ``"no_reading"``, ``"uncacheable"`` or ``"cheap"``.
        calls: Calls that it stands for.
        of: Of so many: the misses of the interval, or its calls.
        tasks: Whose calls these are, the most affected first, at most `NAMED`.
        numbers: What else it is told from.
        text: A sentence with a remedy.
    """

    name: str
    calls: int
    of: int
    tasks: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


@dataclass(slots=True)
class _Heaps:
    """The misses of one task, parted."""

    distinct_keys: int = 0
    invalidated: int = 0
    unreachable: int = 0
    not_stored: int = 0
    evicted: int = 0
    ttl: int = 0


def reasons(seen: Interval, round_trip: float | None = None) -> tuple[Reason, ...]:
    """Why the calls of an interval missed, and which of them need no cache, the weightiest first.

    Args:
        round_trip: Seconds that a look in Redis takes; ``None`` if that is not known.
    """
    found = [*_of_misses(seen), *uncacheable(seen), *_cheap(seen, round_trip)]
    return tuple(sorted(found, key=lambda reason: reason.calls / reason.of, reverse=True))


# -- misses -----------------------------------------------------------------------------------------------------------


def _of_misses(seen: Interval) -> Iterator[Reason]:
    misses = seen.counted.total.misses
    if seen.evicted and not seen.compared:
        yield from _no_reading(seen, misses)
        return
    heaps = {task: _parted(tally) for task, tally in seen.counted.tasks.items()}
    _part_by_key(heaps, _removed_by_key(seen))
    _part_evicted(heaps, seen.evicted or 0)
    for name, tell in _TELL.items():
        calls = {task: getattr(heap, name) for task, heap in heaps.items()}
        told = _notable(name, calls, misses)
        if told is not None:
            yield tell(told, seen)


def _parted(tally: Tally) -> _Heaps:
    """One heap after the other takes of what is left of the misses whose keys are known, or taken as those that are."""
    first, repeated = _first_and_repeated(tally)
    heaps = _Heaps(distinct_keys=first)
    left = max(repeated, min(tally.outdated, tally.misses - first))
    heaps.invalidated = min(tally.outdated + tally.invalidations, left)
    left -= heaps.invalidated
    heaps.unreachable = min(tally.failed_open, left)
    left -= heaps.unreachable
    heaps.not_stored = min(max(tally.misses - tally.stores, 0), left)
    heaps.ttl = left - heaps.not_stored
    return heaps


def _first_and_repeated(tally: Tally) -> tuple[int, int]:
    """Of all misses, as they are among those whose keys are known; of few keys no more than that."""
    known = tally.first_misses + tally.repeated_misses
    if known < KNOWN:
        return min(tally.first_misses, tally.misses), min(tally.repeated_misses, tally.misses)
    first = round(tally.misses * tally.first_misses / known)
    return first, tally.misses - first


def _removed_by_key(seen: Interval) -> int:
    """Invalidations of a key alone (`CacheTiers.invalidate_key`): all of keys without those that a task has counted."""
    by_pattern = seen.counted.invalidated
    counted = seen.counted.total.invalidations - sum(count for name, count in by_pattern.items() if task_of(name))
    return max(by_pattern.get(BY_KEY, 0) - max(counted, 0), 0)


def _part_by_key(heaps: Mapping[str, _Heaps], keys: int) -> None:
    """Of entries that are gone, so many at most were removed by key; of which task, nobody knows: all tasks' alike."""
    gone = sum(heap.ttl for heap in heaps.values())
    share = min(keys / gone, 1.0) if gone else 0.0
    for heap in heaps.values():
        removed = round(heap.ttl * share)
        heap.invalidated += removed
        heap.ttl -= removed


def _part_evicted(heaps: Mapping[str, _Heaps], evicted: int) -> None:
    """Of entries that are gone the server has evicted so many at most; whose, nobody knows: all tasks' alike."""
    gone = sum(heap.ttl for heap in heaps.values())
    share = min(evicted / gone, 1.0) if gone else 0.0
    for heap in heaps.values():
        heap.evicted = round(heap.ttl * share)
        heap.ttl -= heap.evicted


def _notable(name: str, calls: Mapping[str, int], of: int) -> Reason | None:
    together = sum(calls.values())
    if not together or together < NOTABLE * of:
        return None
    most = sorted((task for task, count in calls.items() if count), key=lambda task: (-calls[task], task))
    return Reason(name, together, of, tuple(most[:NAMED]))


def _told(reason: Reason, text: str, numbers: Mapping[str, float] | None = None) -> Reason:
    return replace(reason, numbers=numbers or {}, text=text)


def _no_reading(seen: Interval, misses: int) -> Iterator[Reason]:
    """In place of all heaps."""
    told = _notable("no_reading", {task: tally.misses for task, tally in seen.counted.tasks.items()}, misses)
    if told is not None:
        text = (
            f"{_misses(told)}: why, cannot be told. There is no earlier reading to compare with, and Redis has evicted "
            f"{seen.evicted} keys since it started, which that reading may have been one of. If this is said again, "
            "all of its memory is turned over between two reports: give it more, a Redis of its own, or fewer and "
            "smaller entries"
        )
        yield _told(told, text, {"evicted_keys": seen.evicted or 0})


def _distinct_keys(reason: Reason, seen: Interval) -> Reason:
    forgotten = f", or Redis has forgotten them, as it evicted {seen.evicted} keys meanwhile" if seen.evicted else ""
    text = (
        f"About {_misses(reason)} were of keys that had not missed for a day, as far as a sample of the keys tells"
        f"{forgotten}. A cache that has just begun fills like this; else the arguments are too many: leave those out "
        "of the key that do not matter (ignore=, key=)"
    )
    return _told(reason, text)


def _invalidated(reason: Reason, seen: Interval) -> Reason:
    patterns = list(seen.counted.outdated.items())[:NAMED]
    by = ", ".join(f"{_said(pattern)} ({count})" for pattern, count in patterns)
    text = (
        f"{_misses(reason)} were of entries that had been invalidated{', by ' + by if by else ''}. Invalidate less, "
        "or by narrower tags, and only what has changed"
    )
    return _told(reason, text, dict(patterns))


def _said(pattern: str) -> str:
    """A pattern as its user would say it.

    >>> [_said(each) for each in ("user:*", "@all", "@task:proj.profile", "@others")]
    ['user:*', 'clear()', "clear(task='proj.profile')", 'other tags']
    """
    task = task_of(pattern)
    if task is not None:
        return f"clear(task={task!r})"
    return {"@all": "clear()", OTHERS: "other tags"}.get(pattern, pattern)


def _evicted(reason: Reason, seen: Interval) -> Reason:
    evicted = seen.evicted or 0
    text = (
        f"{_misses(reason)} were of entries that had gone while Redis evicted {counted(evicted, 'key')}: it is full. "
        "Give it more memory, a Redis of its own, or fewer and smaller entries"
    )
    return _told(reason, text, {"evicted_keys": evicted})


def _ttl(reason: Reason, seen: Interval) -> Reason:
    unknown = " (or Redis has evicted them: that is not known here)" if seen.evicted is None else ""
    text = (
        f"{_misses(reason)} were of keys asked for before, whose entries' time was over{unknown}. A longer ttl keeps "
        "them, grace answers with them while one call computes, refresh_ahead computes before their time is over"
    )
    return _told(reason, text)


def _not_stored(reason: Reason, seen: Interval) -> Reason:
    total = seen.counted.total
    text = (
        f"{_misses(reason)} have left nothing stored: bodies that failed, cache_if, values that cannot be stored or "
        "were refused, or lookups that compute nothing (task.cache.get, cache_mode='only')"
    )
    names = ("computes", "stores", "refused", "unusable")
    return _told(reason, text, {name: getattr(total, name) for name in names})


def _unreachable(reason: Reason, seen: Interval) -> Reason:
    failed = seen.counted.total.failed_open
    text = (
        f"{_misses(reason)} went without Redis, which did not answer, or not in time: {counted(failed, 'step')} failed"
    )
    return _told(reason, text, {"failed_open": failed})


def _misses(reason: Reason) -> str:
    return f"{reason.calls} of {reason.of} misses ({', '.join(reason.tasks)})"


_TELL: Final[dict[str, Callable[[Reason, Interval], Reason]]] = {
    "distinct_keys": _distinct_keys,
    "invalidated": _invalidated,
    "evicted": _evicted,
    "ttl": _ttl,
    "not_stored": _not_stored,
    "unreachable": _unreachable,
}


# -- calls ------------------------------------------------------------------------------------------------------------


def uncacheable(seen: Interval) -> Iterator[Reason]:
    """That calls have no key, if notably many have none."""
    total = seen.counted.total
    calls = {task: tally.uncacheable for task, tally in seen.counted.tasks.items()}
    told = _notable("uncacheable", calls, total.hits + total.misses + total.uncacheable)
    if told is not None:
        text = (
            f"{told.calls} of {told.of} calls ({', '.join(told.tasks)}) have no key or no tags and run uncached; they "
            "are in no ratio. The worker's log names the argument: pass plain values, or give key="
        )
        yield _told(told, text)


def _cheap(seen: Interval, round_trip: float | None) -> Iterator[Reason]:
    total, tasks = seen.counted.total, seen.counted.tasks
    if round_trip is None:
        return
    means = {name: each.compute_seconds / each.computes for name, each in tasks.items() if each.computes >= COMPUTES}
    calls = {name: tasks[name].hits + tasks[name].misses for name, mean in means.items() if mean < round_trip}
    told = _notable("cheap", calls, total.hits + total.misses)
    if told is not None:
        mean = max(means[name] for name in calls)
        text = (
            f"{told.calls} of {told.of} calls ({', '.join(told.tasks)}) compute in {span(mean)} or less on average, "
            f"and a look in Redis takes {span(round_trip)}: without the cache they are faster"
        )
        yield _told(told, text, {"compute_seconds": mean, "round_trip_seconds": round_trip})
