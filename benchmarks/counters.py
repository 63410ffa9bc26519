"""What the counters cost: a hit in L1 and one in L2 by a direct call, with them and without, side by side.

"Without" is the same task of an app whose L1 does not count and whose engine has no counters among its subscribers,
neither those of tasks nor those of hot keys.
Target: at most 5 % more with them, by the median of each turn's ratio (the two take their turns next to each other, so
that a slow moment of the machine hits both). And while hits are served, no command is sent for the counters: those of
Redis itself are compared, over the same number of calls.
"""

from __future__ import annotations

import statistics
from typing import Any

import redis

from benchmarks.server import redis_server
from benchmarks.subjects import check, connect, extension, memoized, tags
from benchmarks.table import target
from benchmarks.timing import HIT, Contender, race, show, timed
from celery_cachetiers import CacheTiers
from celery_cachetiers.entry import MISSING
from celery_cachetiers.tiers.memory import MemoryTier

LIMIT = 1.05
CALLS = 2000


class Uncounted(MemoryTier):
    """L1 as it would be without counters."""

    def get(self, digest: str, tally: Any) -> object:
        now = self._monotonic()
        if now >= self.trusted_until:
            return MISSING
        with self._lock:
            resident = self._live(digest, now)
            if resident is None:
                return MISSING
        try:
            return resident.copy()
        except Exception:
            self.discard(digest)
            return MISSING


class Counted(MemoryTier):
    """L1 as it is; an object that has changed its class is slower, so both of them have."""


def run(*, quick: bool) -> None:
    """Prints a table and the targets."""
    with redis_server() as server:
        counted, bare = extension(server.url()), extension(server.url())
        tiers = {"without": bare, "with": counted}
        hits = {"L1 hit, shared": {"l1_copy": False}, "L1 hit, copied": {}, "L2 hit": {"l1": False}}
        tasks = {
            name: {how: _task(each, how, name, options) for how, each in tiers.items()}
            for name, options in hits.items()
        }
        counted.cache.parts.l1.__class__ = Counted
        connect(counted, tasks["L2 hit"]["with"])
        _strip(bare, tasks["L2 hit"]["without"])
        for name, pair in tasks.items():
            _compare(name, pair, quick)
        _commands(server.url(), tasks)
        check(*(pair["with"] for pair in tasks.values()))
        counted.reset()
        bare.reset()


def _task(tiers: CacheTiers, how: str, name: str, options: dict[str, Any]) -> Any:
    return memoized(tiers, f"{how} {name}", tags=tags(1), **options)


def _strip(tiers: CacheTiers, task: Any) -> None:
    """Takes the counters out of an app."""
    l1 = tiers.cache.parts.l1
    l1.__class__ = Uncounted  # the very object that the engine and the backplane hold
    tiers.events.unsubscribe(tiers.counters)
    tiers.events.unsubscribe(tiers.counting.hot_keys)
    connect(tiers, task)


def _compare(name: str, pair: dict[str, Any], quick: bool) -> None:
    for task in pair.values():
        task(HIT)
    without, counted = (Contender(f"{name}, {how} counters", timed(task)) for how, task in pair.items())
    race([without, counted], quick=quick)
    show([without, counted], without)
    ratio = statistics.median(a / b for a, b in zip(counted.turns, without.turns, strict=True))
    print(target(name, ratio, LIMIT, "x without") + "\n")


def _commands(url: str, tasks: dict[str, dict[str, Any]]) -> None:
    with redis.Redis.from_url(url) as client:
        for name, pair in tasks.items():
            sent = {}
            for how, task in pair.items():
                before = _processed(client)
                for _ in range(CALLS):
                    task(HIT)
                sent[how] = _processed(client) - before
            print(f"commands for {CALLS} calls, {name}: {sent['without']} without, {sent['with']} with counters")
    print("(every process has a heartbeat on the backplane, every 2 s: a handful of them may be among these)")


def _processed(client: redis.Redis) -> int:
    """Commands so far but those that ask for it."""
    return sum(int(row["calls"]) for name, row in client.info("commandstats").items() if name != "cmdstat_info")
