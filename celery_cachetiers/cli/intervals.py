"""Two readings of everything that is counted, and what has happened between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.client import was_answered
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal_port import Backlog
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.metrics.totals import Totals, added, since
from celery_cachetiers.server_info import ServerInfo, traffic
from celery_cachetiers.sinks import registered
from celery_cachetiers.stats_port import HALF, HotKey
from celery_cachetiers.tiers.redis_server import RedisServerInfo
from celery_cachetiers.tiers.redis_stats import HOTTEST

KEYS: Final = 20
"""Hot keys of an interval that are told."""
ONE: Final = 0.5
"""Calls that are taken for one at least, as their worth is known to some percent only."""

_Name = TypeVar("_Name", str, HotKey)
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment.

    Attributes:
        at: Monotonic seconds.
        hot: Calls of the hottest keys, of which each counts half after `HALF`.
        server: ``None`` if it has refused to tell.
        writes: What waits, by sink; ``None`` where the journal cannot be reached.
    """

    at: float
    totals: Totals
    hot: Mapping[HotKey, float]
    server: ServerInfo | None
    writes: Mapping[str, Backlog | None]


@dataclass(frozen=True, slots=True)
class Interval:
    """What has happened between two readings.

    Attributes:
        seconds: Between them.
        tasks: What was counted, by task; those that did nothing are left out.
        keys: Calls by task and key, of those that were asked for most.
        invalidated: Invalidations by pattern of the tag.
        commands: Those that the server has processed, whoever sent them; ``None`` where that is not known.
        last: The later reading.
    """

    seconds: float
    tasks: Mapping[str, Tally]
    keys: Mapping[HotKey, float]
    invalidated: Mapping[str, int]
    commands: int | None
    last: Reading

    @property
    def total(self) -> Tally:
        """All tasks together."""
        return added(self.tasks.values())

    def per_second(self, count: float) -> float:
        """A count of the interval as a rate."""
        return count / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        total, server = self.total, self.last.server
        return {
            "seconds": self.seconds,
            "per_second": self._rates(total),
            "ratio": total.hit_ratio,
            "tasks": {name: {"ratio": row.hit_ratio, **self._rates(row)} for name, row in self.tasks.items()},
            "keys": [
                {"task": task, "key": key, "per_second": self.per_second(calls)}
                for (task, key), calls in self.keys.items()
            ],
            "invalidated": dict(self.invalidated),
            "writes": {
                name: None if each is None else {"pending": each.pending, "buried": each.buried}
                for name, each in self.last.writes.items()
            },
            "commands_per_second": None if self.commands is None else self.per_second(self.commands),
            "server": None if server is None else server.as_dict(),
        }

    def _rates(self, tally: Tally) -> dict[str, float]:
        names = [each.name for each in fields(Tally)]
        return {name: self.per_second(getattr(tally, name)) for name in ("hits", "seconds_saved", *names)}


def read(tiers: CacheTiers, server: RedisServerInfo, at: float) -> Reading:
    """Everything now. Raises `TierUnavailable`. Costs: some round trips."""
    totals, hot = tiers.counting.totals(), tiers.counting.hot(HOTTEST)
    return Reading(at, totals, hot, _told(server), {name: _backlog(tiers, name) for name in sorted(registered())})


def between(before: Reading, after: Reading) -> Interval:
    """What has happened; a counter that has gone down meanwhile, as Redis was flushed, counts as 0."""
    tasks = {name: since(row, before.totals.tasks.get(name, Tally())) for name, row in after.totals.tasks.items()}
    seen = before.totals.invalidated
    invalidated = {name: count - seen.get(name, 0) for name, count in after.totals.invalidated.items()}
    seconds = after.at - before.at
    return Interval(
        seconds,
        {name: row for name, row in tasks.items() if row != Tally()},
        _most(_called(before.hot, after.hot, seconds), KEYS),
        _most({name: count for name, count in invalidated.items() if count > 0}),
        _commands(before.server, after.server),
        after,
    )


def _called(before: Mapping[HotKey, float], after: Mapping[HotKey, float], seconds: float) -> dict[HotKey, float]:
    """About how often each key was called meanwhile: what was called before is worth less by now."""
    worth = 2 ** (-seconds / HALF)
    calls = {key: now - before.get(key, 0.0) * worth for key, now in after.items()}
    return {key: count for key, count in calls.items() if count >= ONE}


def _most(counts: Mapping[_Name, _Number], at_most: int | None = None) -> dict[_Name, _Number]:
    return dict(sorted(counts.items(), key=lambda row: -row[1])[:at_most])


def _commands(before: ServerInfo | None, after: ServerInfo | None) -> int | None:
    if before is None or after is None or not traffic(before, after).complete:
        return None
    return max(after.total_commands_processed - before.total_commands_processed, 0)


def _told(server: RedisServerInfo) -> ServerInfo | None:
    try:
        return server.read()
    except TierUnavailable as error:
        if not was_answered(error):
            raise
        return None


def _backlog(tiers: CacheTiers, sink: str) -> Backlog | None:
    try:
        return tiers.writes.backlog(sink)
    except TierUnavailable:
        return None
