"""What was counted between two readings of the sums, though they may have begun anew in between.

Sums begin anew when Redis is flushed, when it comes back with old data, or when nobody has merged for a week: then they
are below what they were, and what is there was counted since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from celery_cachetiers.metrics.totals import Totals, totals_of
from celery_cachetiers.server_info import COUNTED, ServerInfo, Traffic, traffic
from celery_cachetiers.stats_port import Numbers, Sums

_TAKEN_BACK: Final = frozenset({"coalesced"})
"""Counters from which something may be subtracted."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading.

    Attributes:
        at: Epoch seconds.
        sums: Of all processes.
        servers: What each node has told of itself.
        untold: Why none has, if so.
    """

    at: float
    sums: Sums
    servers: tuple[ServerInfo, ...] = ()
    untold: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two moments.

    Attributes:
        counted: By the cache.
        complete: False if the sums began anew meanwhile.
        traffic: Of the servers; ``None`` if it is not known.
        compared: False if there was no earlier moment: then all was counted so far.
        evicted: Keys that the servers have evicted meanwhile; since they started, without an earlier moment;
            ``None`` if that is not known.
    """

    counted: Totals
    complete: bool = True
    traffic: Traffic | None = None
    compared: bool = True
    evicted: int | None = None


@dataclass(slots=True)
class _Differences:
    """Subtracts, and notes whether anything began anew."""

    complete: bool = field(default=True)

    def between(self, before: Numbers, now: Numbers) -> Numbers:
        if any(now.get(name, 0) < value for name, value in before.items() if name not in _TAKEN_BACK):
            self.complete, before = False, {}
        changes = {name: max(value - before.get(name, 0), 0) for name, value in now.items()}
        return {name: change for name, change in changes.items() if change}

    def by_task(self, before: Mapping[str, Numbers], now: Mapping[str, Numbers]) -> dict[str, Numbers]:
        self.complete = self.complete and before.keys() <= now.keys()
        changes = {task: self.between(before.get(task, {}), numbers) for task, numbers in now.items()}
        return {task: numbers for task, numbers in changes.items() if numbers}


def interval(before: Moment, now: Moment) -> Interval:
    """What happened from one reading to the next.

    >>> before, now = Sums({"a": {"misses": 5}}, {}, {}), Sums({"a": {"misses": 7}}, {}, {})
    >>> interval(Moment(0.0, before), Moment(60.0, now)).counted.total.misses
    2
    >>> interval(Moment(0.0, now), Moment(60.0, before)).complete
    False
    """
    was, here, differences = before.sums, now.sums, _Differences()
    counted = Sums(
        differences.by_task(was.tasks, here.tasks),
        differences.between(was.process, here.process),
        differences.between(was.invalidated, here.invalidated),
        differences.between(was.outdated, here.outdated),
        differences.between(was.unusable, here.unusable),
    )
    seen = traffic_of_all(before.servers, now.servers)
    evicted = None if seen is None else seen.evicted_keys
    return Interval(totals_of(counted), differences.complete, seen, evicted=evicted)


def so_far(now: Moment) -> Interval:
    """What is known without an earlier reading: all that is in the sums, and what the servers have evicted so far."""
    evicted = sum(each.evicted_keys for each in now.servers) if now.servers else None
    return Interval(totals_of(now.sums), compared=False, evicted=evicted)


def traffic_of_all(before: Sequence[ServerInfo], now: Sequence[ServerInfo]) -> Traffic | None:
    """What all nodes together have counted; ``None`` if that cannot be told from these readings.

    A node is known by its ``run_id``; a new one, or one that has started anew, has counted since its start.
    """
    if not (before and now):
        return None
    known = {each.run_id: each for each in before}
    parts = [traffic(known.get(each.run_id, ServerInfo()), each) for each in now]
    counted = {name: sum(getattr(part, name) for part in parts) for name in COUNTED}
    complete = all(part.complete for part in parts) and known.keys() <= {each.run_id for each in now}
    return Traffic(**counted, complete=complete)
