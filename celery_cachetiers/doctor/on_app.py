"""Checks of what the app itself says: its switch, addresses, versions, serializers and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Final

from kombu.serialization import registry as _registry  # type: ignore[attr-defined]  # not in celery-types 0.26
from packaging.requirements import Requirement

from celery_cachetiers.amounts import span
from celery_cachetiers.broker_limits import TIMEOUT_NAMES
from celery_cachetiers.doctor.facts import Facts
from celery_cachetiers.doctor.findings import Finding, error, info, ok, some, warning
from celery_cachetiers.doctor.subject import Subject
from celery_cachetiers.identity import DISTRIBUTION

SHOWN: Final = ("celery", "kombu", "redis", "cachetools", "hiredis", DISTRIBUTION)
"""Distributions whose versions are told."""
WITH_CODE: Final = frozenset({"pickle", "yaml"})
"""Serializers whose decoders can be made to run code."""


def switch(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``enabled``: whether anything is cached at all."""
    if subject.switch:
        yield warning(
            "enabled",
            f"the cache is switched off by {subject.switch}: every task runs as if uncached",
            f"take {subject.switch} away, if that was not meant",
        )
    else:
        yield ok("enabled", "the cache is on")


def url(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``url``: where L2 comes from. ``broker-shared``, ``tls``: whom it shares a server with, and who can listen in."""
    if subject.l2 is None:
        yield warning(
            "url",
            "no cachetiers_url and no Redis result backend: each process has its own cache in memory",
            "set cachetiers_url, else processes neither share values nor hear of invalidations",
        )
        return
    sources = {"setting": "cachetiers_url", "backend": "the result backend, as cachetiers_url is not set"}
    yield ok("url", f"L2 is {subject.l2}, from {sources[subject.source]}")
    yield from _shared_with_broker(subject)
    places = {subject.journal: "the journal", subject.l2: "L2"}  # one place is told of once
    for address, name in places.items():
        if address is not None and not (address.is_here or address.is_encrypted):
            yield info(
                "tls",
                f"the connection to {name} at {address.host} is not encrypted",
                "use rediss:// where others can listen in",
            )


def _shared_with_broker(subject: Subject) -> Iterator[Finding]:
    l2, broker = subject.l2, subject.broker
    if l2 is None or broker is None or not subject.beside_broker:
        return
    if l2.database == broker.database:
        yield warning(
            "broker-shared",
            f"L2 is in the broker's own database, {broker}: to flush the cache is to lose all messages",
            "give the cache a database of its own in cachetiers_url, better a server",
        )
    else:
        yield info(
            "broker-shared",
            "L2 is on the broker's server: they share its memory and its eviction policy",
            "give the cache a server of its own if it is to have all the memory there is",
        )


def versions(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``versions``: what is installed, and whether it goes together."""
    shown = [f"{name} {facts.versions.get(name, 'not installed')}" for name in ("Python", *SHOWN)]
    yield ok("versions", ", ".join(shown))
    for name, wanted, found in unmet(facts.versions):
        yield error(
            "versions",
            f"{name} is {found or 'not installed'}, and {wanted} is needed",
            f"pip install -U {DISTRIBUTION}",
        )


def unmet(installed: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What the installed distributions ask of each other and do not have: name, what is asked for, what is there."""
    for owner, extra in ((DISTRIBUTION, ""), ("kombu", "redis")):
        for line in metadata.requires(owner) or ():
            wanted = Requirement(line)
            if wanted.name not in SHOWN or (wanted.marker and not wanted.marker.evaluate({"extra": extra})):
                continue
            found = installed.get(wanted.name, "")
            if not found or not wanted.specifier.contains(found, prereleases=True):
                yield wanted.name, f"{wanted.name}{wanted.specifier} (by {owner})", found


def tasks(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``tasks``: which are cached. ``task-options``, ``unused-tags``: what is wrong with their declarations."""
    off = f"; switched off: {some(subject.off)}" if subject.off else ""
    if subject.tasks:
        yield ok("tasks", f"cached: {some(task.name for task in subject.tasks)}{off}")
    else:
        yield info(
            "tasks",
            f"the app has no task whose cache is on{off}",
            "declare one with base=CachedTask, and see that its module is imported (include=, autodiscover_tasks)",
        )
    for trouble in subject.troubles:
        yield error(
            "task-options", trouble, "correct it: a worker does not start with it, or the task fails at its use"
        )
    for name, pattern in subject.unused:
        yield info("unused-tags", f"{name} invalidates {pattern!r}, and no task here depends on it", "look for a typo")


def serializers(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``pickle``: whether whoever can write to Redis can run code here."""
    risky = {task.name: task.serializer for task in subject.tasks if task.serializer in WITH_CODE}
    if risky and not subject.settings.signing_key:
        yield warning(
            "pickle",
            f"entries of {some(risky)} are read with {some(set(risky.values()))}, and are not signed: "
            "whoever can write to Redis can run code in your workers",
            "set cachetiers_signing_key, or another cachetiers_serializer",
        )
        return
    accepted = (
        subject.conf.accept_content
        if subject.conf.result_accept_content is None
        else (subject.conf.result_accept_content)
    )
    more = sorted(name for name in WITH_CODE if name in accepted or _registry.name_to_type.get(name) in accepted)
    if more and not risky and not subject.settings.signing_key:
        yield warning(
            "pickle",
            f"accept_content has {some(more)}: entries that claim to be of it are decoded, and are not signed",
            "take it out, or set cachetiers_signing_key",
        )
    elif subject.tasks:
        signed = ", signed" if subject.settings.signing_key else ""
        yield ok("pickle", f"entries are {some({task.serializer for task in subject.tasks})}{signed}")


def acknowledgement(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``acks-late``, ``worker-lost``: whether a message outlives its worker."""
    early = [task.name for task in subject.tasks if not task.acks_late]
    if early:
        yield warning(
            "acks-late",
            f"acknowledged before they run: {some(early)}. A duplicate whose leader runs in another worker "
            "blocks its slot, and a worker that is killed takes the call with it",
            "take acks_late=False away: memoized work is repeatable",
        )
    elif subject.tasks:
        yield ok("acks-late", "cached tasks are acknowledged when they have ended")
    lost = [task.name for task in subject.tasks if task.acks_late and not task.rejects_on_worker_lost]
    if lost:
        yield info(
            "worker-lost",
            f"if a child of a pool is killed, out of memory for instance, its call of {some(lost)} fails",
            "task_reject_on_worker_lost=True has it run again; mind a body that kills every child",
        )


def redelivery(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``wait-limit``, ``time-limit``: what takes longer than the broker waits for an acknowledgement."""
    if not subject.driver or not subject.tasks:
        return
    most, name = subject.redelivery / 2, TIMEOUT_NAMES.get(subject.driver, "that time")
    waiting = [task for task in subject.tasks if task.policy.coalesce is not False]
    long = [task.name for task in waiting if task.policy.wait_limit >= most]
    again = f"the broker delivers what is unacknowledged again after {span(subject.redelivery)}"
    if long:
        yield error(
            "wait-limit",
            f"{again}, and wait_limit of {some(long)} is not below half of that: workers do not start",
            f"lower wait_limit, or raise {name}",
        )
    elif waiting:
        yield ok("wait-limit", f"{again}; the longest wait_limit is {span(max(t.policy.wait_limit for t in waiting))}")
    running = [task.name for task in subject.tasks if (task.time_limit or 0.0) >= subject.redelivery]
    if running:
        yield warning(
            "time-limit",
            f"{again}, and {some(running)} may run for longer: their messages come a second time meanwhile",
            f"lower time_limit, or raise {name}. (The second one waits for the first, and computes nothing)",
        )


def results(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``results``: whether, and for how long, callers can read what they asked for."""
    if not subject.tasks:
        return
    backend = str(subject.conf.result_backend or "")
    if not backend or backend.startswith("disabled"):
        yield info("results", "no result backend: callers read hits at delay(), and nothing else", "set result_backend")
        return
    ignoring = [task.name for task in subject.tasks if task.ignores_result]
    if ignoring:
        yield info(
            "results",
            f"results of {some(ignoring)} are ignored: callers read hits at delay(), and nothing else",
            "take ignore_result (task_ignore_result) away, unless they only fill the cache",
        )
    expires = _seconds(subject.conf.result_expires)
    long = [task.name for task in subject.tasks if expires and task.policy.hard_ttl > expires]
    if long:
        yield info(
            "results",
            f"results are gone after {span(expires)} (result_expires), which entries of {some(long)} outlive: "
            "an id that is kept for later does not",
            "raise result_expires, if ids are kept for so long",
        )
    if not ignoring and not long:
        yield ok("results", f"results are kept {f'for {span(expires)}' if expires else 'for ever'}")


def _seconds(value: object) -> float:
    """``result_expires`` as seconds: it may be a number or a timedelta; 0 without an expiry."""
    seconds = getattr(value, "total_seconds", None)
    return float(seconds()) if callable(seconds) else float(value or 0)  # type: ignore[arg-type]  # a number by now


def prefetching(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``prefetch``: whether a worker can hold duplicates without a slot."""
    conf = subject.conf
    if not any(task.policy.coalesce is not False for task in subject.tasks):
        return
    limits = [
        text for text, there in {
            "worker_disable_prefetch": conf.get("worker_disable_prefetch"),
            "worker_eta_task_limit": conf.get("worker_eta_task_limit"),
            "quorum queues": subject.driver == "amqp" and _has_quorum_queues(conf),
        }.items() if there
    ]  # fmt: skip
    if not limits:
        yield ok("prefetch", "workers can hold duplicates without a slot, as the prefetch count grows with them")
    elif conf.worker_prefetch_multiplier == 1:
        yield warning(
            "prefetch",
            f"with {some(limits)} and worker_prefetch_multiplier=1 workers hold no duplicates: those go back "
            "to their queue, or block a slot",
            "raise worker_prefetch_multiplier: half of what is prefetched beyond the pool can be held",
        )
    else:
        yield info(
            "prefetch",
            f"with {some(limits)} a worker holds as many duplicates as half of what it prefetches beyond its "
            "pool; more go back to their queue",
            "raise worker_prefetch_multiplier if there are many duplicates",
        )


def _has_quorum_queues(conf: Mapping[str, object]) -> bool:
    if conf.get("task_default_queue_type") == "quorum":
        return True
    queues = conf.get("task_queues") or ()
    every = queues.values() if isinstance(queues, Mapping) else queues
    arguments = [
        each.get("queue_arguments") if isinstance(each, Mapping) else getattr(each, "queue_arguments", None)
        for each in every  # type: ignore[attr-defined]  # a list of queues, or a mapping of options
    ]
    return any(isinstance(each, Mapping) and each.get("x-queue-type") == "quorum" for each in arguments)
