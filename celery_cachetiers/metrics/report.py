"""The hit-ratio report: what the cache did in one interval, whether that is below the target, and why.

It keeps two ratios apart. The cache's own is of calls of tasks, from counters that are exact. The server's is of
lookups of keys by everybody who uses that Redis: broker, results and other programs too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from celery_cachetiers.amounts import percent, size
from celery_cachetiers.metrics.interval import Moment, interval, so_far
from celery_cachetiers.metrics.reasons import Reason, reasons, uncacheable
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.metrics.totals import added
from celery_cachetiers.server_info import ServerInfo, Traffic

LEAST: Final = 100
"""Requests that an interval must have to be called below the target: the ratio of fewer is noise."""


@dataclass(frozen=True, slots=True)
class Report:
    """One interval.

    Attributes:
        at: When it ends, epoch seconds.
        since: When it began, the end of the report before; ``None`` for the first report, and where Redis has lost
            what the last one has read: then it has all that was counted so far.
        target: The hit ratio that is wanted.
        tasks: What was counted, by task; those that did nothing are left out.
        complete: False if the counters began anew meanwhile: then it is what was counted since.
        traffic: What the server has counted in the interval, added up over its nodes; ``None`` if that is not known.
        servers: What each node tells of itself now.
        untold: Why none does, if so.
        reasons: Why it is below the target, the weightiest first; where it is not, only that calls
            have no key.
        others: What tasks did that are not among ``tasks``: a report that is read back has the busiest alone.
    """

    at: float
    since: float | None
    target: float
    tasks: Mapping[str, Tally]
    complete: bool = True
    traffic: Traffic | None = None
    servers: tuple[ServerInfo, ...] = ()
    untold: str = ""
    reasons: tuple[Reason, ...] = ()
    others: Tally = field(default_factory=Tally)

    @property
    def total(self) -> Tally:
        """All tasks together."""
        return added((*self.tasks.values(), self.others))

    @property
    def requests(self) -> int:
        """Hits and misses; coalesced calls are apart."""
        total = self.total
        return total.hits + total.misses

    @property
    def ratio(self) -> float | None:
        """The cache's own hit ratio; ``None`` without requests."""
        return self.total.hit_ratio

    @property
    def server_ratio(self) -> float | None:
        """The server's, of everybody's lookups; ``None`` if it is not known, or without any."""
        return self.traffic.hit_ratio if self.traffic is not None else None

    @property
    def below(self) -> bool:
        """Whether the ratio is below the target, and of at least `LEAST` requests."""
        ratio = self.ratio
        return ratio is not None and self.requests >= LEAST and ratio < self.target

    @property
    def seconds(self) -> float | None:
        """The length of the interval; ``None`` where ``since`` is."""
        return None if self.since is None else max(self.at - self.since, 0.0)

    def __str__(self) -> str:
        return line(self)


def report(before: Moment | None, now: Moment, target: float, round_trip: float | None = None) -> Report:
    """The report of what happened between two readings.

    Args:
        before: The reading of the last report; ``None`` if there is none.
        round_trip: Seconds that a look in Redis takes; ``None`` if that is not known.
    """
    seen = so_far(now) if before is None else interval(before, now)
    since = None if before is None else before.at
    made = Report(
        now.at, since, target, seen.counted.tasks, seen.complete, seen.traffic, now.servers, now.untold
    )  # fmt: skip
    if made.below:
        return replace(made, reasons=reasons(seen, round_trip))
    # Calls without a key are in no ratio: they would never be told.
    return replace(made, reasons=tuple(each for each in uncacheable(seen) if each.of >= LEAST))


# -- for people -------------------------------------------------------------------------------------------------------


def line(made: Report) -> str:
    """The report in one line, with the words "hit ratio"."""
    return "; ".join(_parts(made))


def _parts(made: Report) -> Iterator[str]:
    total, ratio = made.total, made.ratio
    span = "so far" if made.seconds is None else f"in {made.seconds:.0f} s"
    if ratio is None:
        yield f"hit ratio: none, as there were no requests {span}"
    else:
        below = f", below the target of {percent(made.target)}" if made.below else ""
        yield f"hit ratio {percent(ratio)} of {made.requests} requests {span}{below}"
    if made.since is None:
        yield "there is no earlier reading to compare with: it is the first report, or Redis has lost the last one's"
    yield f"{total.hits} hits, {total.misses} misses, {total.coalesced} coalesced, {total.seconds_saved:.1f} s saved"
    if not made.complete:
        yield "the counters began anew meanwhile"
    yield _of_server(made)
    if made.below or made.reasons:
        yield "why: " + (". ".join(reason.text for reason in made.reasons) or "no reason stands out")


def _of_server(made: Report) -> str:
    if not made.servers:
        return f"nothing is known of the Redis server: {made.untold or 'it was not asked'}"
    parts = []
    if made.traffic is not None:
        lookups = made.traffic.keyspace_hits + made.traffic.keyspace_misses
        ratio = made.server_ratio
        found = f"{percent(ratio)} of {lookups} lookups found" if ratio is not None else "no lookups"
        parts += [found, f"{made.traffic.evicted_keys} evicted", f"{made.traffic.expired_keys} expired"]
        if not made.traffic.complete:
            parts.append("counted since it started or was reset")
    used, most = sum(each.used_memory for each in made.servers), sum(each.maxmemory for each in made.servers)
    policy = ", ".join(sorted({each.maxmemory_policy for each in made.servers if each.maxmemory_policy}))
    parts.append(f"{size(used)} of {size(most)} used ({policy})" if most else f"{size(used)} used")
    parts.append(f"{sum(each.connected_clients for each in made.servers)} clients")
    return "all that uses this Redis server, broker and results included: " + ", ".join(parts)
