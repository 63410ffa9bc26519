"""Checks of one Redis server, by what it has answered: reached, of age, writable, bounded, and permitted."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Final

from celery_cachetiers.amounts import counted, size, span
from celery_cachetiers.doctor import rights
from celery_cachetiers.doctor.facts import Facts, ServerAnswers
from celery_cachetiers.doctor.findings import Finding, error, info, ok, some, unknown, warning
from celery_cachetiers.doctor.subject import Subject

OLDEST: Final = (6, 2)
ENOUGH: Final = 10
"""A timeout should be so many times what a round trip takes."""
CLOCK_SECONDS: Final = 1.0
NEARLY_FULL: Final = 0.9


def reachable(server: ServerAnswers, subject: Subject) -> Iterator[Finding]:
    """``reachable``, ``timeout``, ``clock``: whether it answers, how fast, and what time it is there."""
    if server.away:
        yield error(
            "reachable",
            f"{server.address} cannot be used: {server.away}. Tasks run uncached, invalidations fail",
            "start it, and check the URL, the credentials in it, and the network between",
        )
        return
    if server.info is not None and server.info.loading:
        yield error(
            "reachable", f"{server.address} is loading its data, and answers nothing else", "wait until it is done"
        )
        return
    took, timeout = median(server.round_trips), subject.settings.timeout
    yield ok("reachable", f"{server.address} answers; a round trip takes {span(took)}")
    if took * ENOUGH > timeout:
        yield warning(
            "timeout",
            f"a round trip takes {span(took)}, and cachetiers_timeout is {span(timeout)}: calls run uncached "
            "whenever the server or the network is a little late",
            f"raise cachetiers_timeout to {round(took * 2 * ENOUGH, 2):g} or more, or move the cache nearer",
        )
    yield from _clock(server, subject)


def _clock(server: ServerAnswers, subject: Subject) -> Iterator[Finding]:
    if server.ahead is None:
        yield unknown("clock", "the server does not tell its time (TIME)")
    elif abs(server.ahead) > CLOCK_SECONDS:
        way = "ahead of" if server.ahead > 0 else "behind"
        behind = ", and writes made while the journal is away are ordered by it" if subject.behind else ""
        yield warning(
            "clock",
            f"the server's clock is {span(abs(server.ahead))} {way} this machine's. Each machine judges by its own "
            f"clock what is fresh: values live so much longer or shorter than their ttl{behind}",
            "let all machines keep time with NTP",
        )
    else:
        yield ok("clock", f"the server's clock and this machine's differ by {span(abs(server.ahead))}")


def state(server: ServerAnswers, subject: Subject) -> Iterator[Finding]:
    """``info``, ``redis-version``, ``role``: what it is, if it tells."""
    if server.info is None:
        reason = "the user may not send INFO" if server.info_denied else "it does not answer INFO"
        yield warning(
            "info",
            f"{reason}: a server that restarts from an old snapshot, or a replica that is promoted, may bring back "
            "what was invalidated meanwhile, and its eviction policy is unknown",
            f"ACL SETUSER {server.user} +info",
        )
        return
    told = server.info
    number = tuple(int(part) for part in told.redis_version.split(".")[:2] if part.isdecimal())
    if number < OLDEST:
        yield error("redis-version", f"Redis is {told.redis_version or 'of an unknown version'}", "use 6.2 or newer")
    else:
        yield ok("redis-version", f"Redis {told.redis_version}")
    if told.role == "slave":
        yield error(
            "role",
            f"{server.address} is a replica: what is written there is refused, or lost",
            "name the primary in the URL",
        )
    else:
        yield ok("role", "it is a primary")


def memory(server: ServerAnswers, subject: Subject) -> Iterator[Finding]:
    """``maxmemory``, ``eviction-policy``, ``evicted``: what happens when L2 is full."""
    told = server.info
    if told is None:
        yield unknown("eviction-policy", "the server does not tell (INFO)")
        return
    if not told.maxmemory:
        yield warning(
            "maxmemory",
            f"the server has no memory limit, and uses {size(told.used_memory)}: it grows until the machine "
            "has no more, and is killed",
            "CONFIG SET maxmemory 2gb, and maxmemory-policy volatile-lru",
        )
    else:
        yield from _limit(server)
    yield from _policy(told.maxmemory_policy, told.maxmemory > 0, subject)
    if told.evicted_keys:
        yield info(
            "evicted",
            f"{counted(told.evicted_keys, 'key was', 'keys were')} evicted since the server started: each was a miss",
            "raise maxmemory, if hits are missed; lower ttl, or cache less",
        )


def _limit(server: ServerAnswers) -> Iterator[Finding]:
    assert server.info is not None
    told = server.info
    share = f"{size(told.used_memory)} of {size(told.maxmemory)}"
    if told.used_memory > NEARLY_FULL * told.maxmemory and told.maxmemory_policy == "noeviction":
        yield warning("maxmemory", f"the server uses {share}, and evicts nothing", "raise maxmemory before it is full")
    else:
        yield ok("maxmemory", f"the server uses {share}")


def _policy(policy: str, limited: bool, subject: Subject) -> Iterator[Finding]:
    """The journal's server has its own check; of one that has both that is the stricter one."""
    shared = subject.beside_broker
    if policy.startswith("allkeys-") and shared:
        yield error(
            "eviction-policy",
            f"{policy}: a full server evicts the broker's queues as well, and their messages are lost",
            "CONFIG SET maxmemory-policy volatile-lru, or give the cache a server of its own",
        )
    elif policy == "noeviction" and limited and shared:
        yield warning(
            "eviction-policy",
            "noeviction: a server that is full refuses messages too, so that nothing can be published",
            "CONFIG SET maxmemory-policy volatile-lru, or give the cache a server of its own",
        )
    elif policy == "noeviction" and limited:
        yield warning(
            "eviction-policy",
            "noeviction: a server that is full refuses values; tasks run, and nothing new is cached",
            "CONFIG SET maxmemory-policy allkeys-lru where the cache is alone on it, else volatile-lru",
        )
    else:
        yield ok("eviction-policy", f"{policy}{'' if limited else ', without a limit'}")


_CONSEQUENCES: Final = {
    rights.CACHE: (error, "tasks run uncached"),
    rights.INVALIDATE: (error, "invalidations raise TierUnavailable"),
    rights.JOURNAL: (error, "writes go past the journal to their sinks, and flushes raise"),
    rights.BACKPLANE: (
        warning, "processes hear of no invalidation: they use no L1, and duplicates look every 0.1 s",
    ),
    rights.TRACKING: (warning, "cachetiers_l1_tracking has no effect"),
    rights.COUNTERS: (warning, "counters are lost, and stats() has nothing to tell"),
    rights.REPORT: (warning, "there is no hit-ratio report, and no history of it"),
}  # fmt: skip
"""By code: how bad it is, and what it leads to."""


def permissions(server: ServerAnswers, subject: Subject) -> Iterator[Finding]:
    """``acl`` and ``acl-*``: what the server's user may not do and the library does."""
    if server.rights_unknown:
        yield unknown("acl", server.rights_unknown)
        return
    if not server.denied:
        yield ok("acl", f"user {server.user} may do what is needed")
    for code, (judge, consequence) in _CONSEQUENCES.items():
        denied = [denial.right for denial in server.denied if denial.need == code]
        if denied:
            yield judge(
                code,
                f"user {server.user} may not {some(denied, 20)}: {consequence}",
                " ".join(["ACL SETUSER", server.user, *(f"'{right}'" for right in denied)]),
            )


def l2(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """All of them, of the server of L2."""
    if facts.l2 is None:
        return
    for check in (reachable, state, memory, permissions):
        yield from check(facts.l2, subject)
        if not facts.l2.round_trips:
            return  # that it does not answer is all there is to say
