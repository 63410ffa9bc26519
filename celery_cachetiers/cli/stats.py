"""``cachetiers stats``: what all processes have counted, and what the server tells of itself beside that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from celery_cachetiers.amounts import counted, percent, size, span
from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import as_json, extension, print_json, print_table
from celery_cachetiers.cli.names import check_task
from celery_cachetiers.cli.terminal import say
from celery_cachetiers.client import was_answered
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.server_info import ServerInfo, Traffic

PATTERNS = 10
"""Patterns of invalidated tags that people are shown."""
COLUMNS = ("task", "L1", "L2", "stale", "journal", "coalesced", "misses", "ratio", "computes", "mean", "saved", "waits",
           "mean wait")  # fmt: skip
TROUBLE = {"uncacheable": "uncacheable", "failed_open": "failed open", "refused": "refused", "unusable": "unusable"}
"""Counters that are shown where they are not 0, and the titles of their columns."""
MEMORY_ONLY = (
    "The app has no Redis: each process counts for itself, and this one has only just begun. "
    "Ask the workers: celery inspect cache_stats"
)


@click.command()
@click.argument("task", required=False)
@as_json
@click.pass_context
def stats(ctx: click.Context, task: str | None, as_json: bool) -> None:
    """Show what the cache did: of all tasks, or of TASK alone.

    Hits by tier, coalesced calls, misses, computes, the seconds that were saved, waits; what was invalidated most; and
    what the Redis server tells of itself.
    """
    with extension(ctx) as tiers:
        late = merge_first(tiers)
        found = tiers.stats(task)
        if task is not None and task not in found["tasks"]:
            check_task(tiers, task, tiers.counting.totals().tasks)
        info, note = server_of(tiers)
    found.pop("here")  # of this process, which has done nothing
    if task is not None:
        found |= {"invalidated": {}, "outdated": {}, "unusable": {}}  # these are anybody's
    if as_json:
        print_json({**found, "server": None if info is None else info.as_dict(), "note": note, "late": late})
        return
    _print_tasks(found, task)
    _print_invalidated(found["invalidated"])
    if found["unusable"]:
        click.echo("")
        print_table(("unusable", "times"), list(found["unusable"].items()))
    for line in _about(info, found["ratio"]):
        say(line)
    if note is not None:
        say(note)
    if late:
        who = counted(late, "process has", "processes have")
        say(f"{who} not merged in time: up to 10 s of what was counted may be missing.")


def merge_first(tiers: CacheTiers) -> int:
    """Has all processes merge what they have counted; returns how many have not done so in time."""
    server = tiers.server()
    if server is None:
        return 0
    try:
        return tiers.roll_call.merged(server)
    finally:
        server.close()


def server_of(tiers: CacheTiers) -> tuple[ServerInfo | None, str | None]:
    """What the server tells, or why there is nothing to tell. Raises `TierUnavailable` if it cannot be reached."""
    server = tiers.server()
    if server is None:
        return None, MEMORY_ONLY
    try:
        return server.read(), None
    except TierUnavailable as error:
        if not was_answered(error):
            raise
        return None, f"Redis has refused to tell of itself: {error}"
    finally:
        server.close()


def _print_tasks(found: Mapping[str, Any], task: str | None) -> None:
    if not found["tasks"]:
        say("Nothing was counted yet." if task is None else f"Nothing was counted of {task} yet.")
        return
    trouble = [name for name in TROUBLE if found["total"][name]]
    rows = [_row(name, counted, trouble) for name, counted in found["tasks"].items()]
    if len(rows) > 1:
        rows.append(_row("(all)", found["total"], trouble))
    print_table([*COLUMNS, *(TROUBLE[name] for name in trouble)], rows)


def _row(name: str, counted: Mapping[str, Any], trouble: Sequence[str]) -> tuple[object, ...]:
    calls = [counted[each] for each in ("l1_hits", "l2_hits", "stale_hits", "journal_hits", "coalesced", "misses")]
    mean, wait = _mean(counted, "compute_seconds", "computes"), _mean(counted, "wait_seconds", "waits")
    saved, others = span(counted["seconds_saved"]), (counted[each] for each in trouble)
    times = (counted["computes"], mean, saved, counted["waits"], wait)
    return (name, *calls, percent(counted["hit_ratio"]), *times, *others)


def _mean(counted: Mapping[str, Any], total: str, times: str) -> str:
    return span(counted[total] / counted[times]) if counted[times] else "-"


def _print_invalidated(invalidated: Mapping[str, int]) -> None:
    if invalidated:
        click.echo("")
        print_table(("invalidated", "times"), list(invalidated.items())[:PATTERNS])
        if len(invalidated) > PATTERNS:
            click.echo(f"and {len(invalidated) - PATTERNS} more")


def _about(info: ServerInfo | None, ratio: float | None) -> Iterator[str]:
    yield ""
    if info is None:
        return
    limit = f" of {size(info.maxmemory)}" if info.maxmemory else ""
    policy = f" ({info.maxmemory_policy})" if info.maxmemory_policy else ""
    yield (
        f"Redis {info.redis_version}, up {span(info.uptime_in_seconds)}: {size(info.used_memory)}{limit} "
        f"used{policy}, {info.connected_clients} clients"
    )
    looked = Traffic(info.keyspace_hits, info.keyspace_misses).hit_ratio
    yield (
        f"keyspace: {info.keyspace_hits:,} hits, {info.keyspace_misses:,} misses ({percent(looked)}), "
        f"{info.evicted_keys:,} keys evicted, {info.expired_keys:,} expired"
    )
    yield (
        "This is the server's INFO: it counts everything on that server since its start, broker and results included. "
        f"The cache's own hit ratio is {percent(ratio)}."
    )
