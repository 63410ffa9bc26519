"""Checks of write-behind: whether what waits is safe, and whether somebody takes it. Beat is known by its traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from celery_cachetiers.amounts import counted, span
from celery_cachetiers.doctor import on_server
from celery_cachetiers.doctor.facts import Facts, ServerAnswers
from celery_cachetiers.doctor.findings import Finding, error, info, ok, some, unknown, warning
from celery_cachetiers.doctor.subject import Subject
from celery_cachetiers.journal_port import Backlog
from celery_cachetiers.server_info import ServerInfo
from celery_cachetiers.sinks import registered

LATE: Final = 6
"""Flushes (or reports) that may fail to come before somebody is told."""
LEAST_LATE: Final = 30.0
"""Seconds that a write may wait in any case: a flush goes on for so long."""
NEARLY_FULL: Final = 0.8
WAITAOF_SINCE: Final = (7, 2)


def server(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """The journal's own server, and what it does with what it was given."""
    journal = facts.journal
    if journal is None:
        return
    if journal is not facts.l2:
        yield from _apart(journal, subject)
    if journal.round_trips and journal.info is not None:
        yield from _keeping(journal.info)
        yield from _durability(journal.info, subject)


def _apart(journal: ServerAnswers, subject: Subject) -> Iterator[Finding]:
    for check in (on_server.reachable, on_server.state, on_server.permissions):
        for found in check(journal, subject):
            yield Finding(found.level, found.code, f"journal: {found.found}", found.remedy)
        if not journal.round_trips:
            return


def _keeping(told: ServerInfo) -> Iterator[Finding]:
    """``journal-eviction``, ``persistence``: whether the server keeps what it has taken."""
    if told.maxmemory_policy.startswith("allkeys-"):
        yield error(
            "journal-eviction",
            f"the journal's server has {told.maxmemory_policy}: if it is full it evicts writes that "
            "wait for their sink. Workers do not start",
            "CONFIG SET maxmemory-policy noeviction (or volatile-lru), or set cachetiers_journal_url to another server",
        )
    else:
        yield ok("journal-eviction", f"the journal's server keeps what waits ({told.maxmemory_policy})")
    if not told.aof_enabled:
        yield warning(
            "persistence",
            "the journal's server has no append-only file: what waits there is lost if it crashes",
            "CONFIG SET appendonly yes, and in redis.conf; a sink's durability= says what each write waits for",
        )
    elif told.aof_last_write_status not in ("", "ok"):
        yield error(
            "persistence",
            f"the last write to the append-only file has failed ({told.aof_last_write_status})",
            "look at the server's log and its disk",
        )
    else:
        yield ok("persistence", "the journal's server has an append-only file")
    if told.rdb_last_bgsave_status not in ("", "ok"):
        yield warning(
            "persistence",
            f"the last snapshot has failed ({told.rdb_last_bgsave_status}); by default Redis refuses writes "
            "until one succeeds",
            "look at the server's log and its disk",
        )


def _durability(told: ServerInfo, subject: Subject) -> Iterator[Finding]:
    """``durability``: whether what a sink's writes wait for can come."""
    then = "each of its writes goes to the sink at once"
    number = tuple(int(part) for part in told.redis_version.split(".")[:2] if part.isdecimal())
    for sink, wanted in subject.behind.items():
        if wanted == "replica" and not told.connected_slaves:
            yield warning(
                "durability", f'{sink} has durability="replica", and there is none: {then}', "start a replica"
            )
        elif wanted == "disk" and number < WAITAOF_SINCE:
            yield warning(
                "durability",
                f'{sink} has durability="disk", which Redis {told.redis_version} cannot tell: {then}',
                "use Redis 7.2 or newer",
            )
        elif wanted == "disk" and not told.aof_enabled:
            yield warning(
                "durability",
                f'{sink} has durability="disk", and there is no append-only file: {then}',
                "CONFIG SET appendonly yes",
            )


def backlogs(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``backlog``, ``dead-letter``: what waits for each sink, and what was given up."""
    for name in subject.behind:
        backlog = facts.backlogs.get(name)
        if backlog is None:
            yield unknown("backlog", f"the journal of {name} cannot be read")
            continue
        yield from _waiting(name, backlog, subject, facts.now)
        if backlog.buried:
            yield warning(
                "dead-letter",
                f"{name} has {counted(backlog.buried, 'write that was', 'writes that were')} given up",
                f"celery -A ... cachetiers dead-letter list {name}; then retry or drop them",
            )


def _waiting(name: str, backlog: Backlog, subject: Subject, now: float) -> Iterator[Finding]:
    age = max(now - backlog.oldest, 0.0) if backlog.oldest is not None else 0.0
    limit = max(LATE * subject.settings.flush_every, LEAST_LATE)
    sink = registered().get(name)
    most = sink.options.max_pending if sink is not None else 0
    waiting = counted(backlog.pending, "write waits", "writes wait")
    if age > limit:
        yield warning(
            "backlog",
            f"{name}: {waiting}, the oldest for {span(age)}, and a flush should come every "
            f"{span(subject.settings.flush_every)}",
            "see that beat runs, that a worker takes the queue of the flushes, and that the sink does not fail",
        )
    elif most and backlog.pending > NEARLY_FULL * most:
        yield warning(
            "backlog",
            f"{name}: {backlog.pending} of {most} writes that may wait (max_pending) do",
            "flush more often, raise batch_size or max_pending, or make the sink faster",
        )
    else:
        yield ok("backlog", f"{name}: {waiting}")


def beat(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``beat``: whether it runs, as far as what it has done can tell."""
    every = subject.settings.report_every if subject.settings.enabled else None  # then none is to be made
    if facts.last_report is not None and every is not None:
        age = max(facts.now - facts.last_report, 0.0)
        if age > LATE * every:
            yield warning(
                "beat",
                f"the last report is {span(age)} old, and one should come every {span(every)}",
                "start celery -A ... beat, and a worker that takes its queue",
            )
        else:
            yield ok("beat", f"the last report is {span(age)} old")
    elif subject.behind:
        waits = [name for name, each in facts.backlogs.items() if each.pending]
        seen = f"writes wait for {some(waits)}" if waits else "nothing waits that it should have sent on"
        yield info("beat", f"whether beat runs cannot be told: {seen}", "celery -A ... beat has to run somewhere, once")
