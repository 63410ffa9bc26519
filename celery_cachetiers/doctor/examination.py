"""The whole examination: which checks there are, in their order, and that none of them can hinder another."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from typing import Final

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.doctor import on_app, on_journal, on_server, on_workers
from celery_cachetiers.doctor.asking import ask_servers
from celery_cachetiers.doctor.facts import Facts
from celery_cachetiers.doctor.findings import Finding, unknown
from celery_cachetiers.doctor.subject import Subject, subject_of
from celery_cachetiers.doctor.workers import ask_workers

Check = Callable[[Subject, Facts], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    on_app.switch, on_app.url, on_app.versions, on_server.l2, on_journal.server, on_journal.backlogs, on_journal.beat,
    on_app.tasks, on_app.serializers, on_app.acknowledgement, on_app.redelivery, on_app.results, on_app.prefetching,
    on_workers.workers, on_workers.agreement,
)  # fmt: skip


def examine(tiers: CacheTiers) -> list[Finding]:
    """Everything there is to say about an app's cache, in the order in which it is looked at.

    Raises:
        ConfigurationError: The settings cannot be used, so that nothing can be looked at.

    Costs: a few round trips to each server, and what `ask_workers` waits for; some seconds at most, if neither answers.
    """
    subject = subject_of(tiers)
    facts = ask_servers(tiers, subject, tiers.clock.time())
    facts = replace(facts, workers=ask_workers(tiers), versions=versions())
    return judged(subject, facts)


def judged(subject: Subject, facts: Facts, checks: tuple[Check, ...] = CHECKS) -> list[Finding]:
    """What the checks find; one that breaks says so, and the others go on."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(subject, facts)
        except Exception as error:
            found.append(unknown(check.__name__, f"the check itself has failed: {error!r}"))
    return found


def versions() -> dict[str, str]:
    """What is installed, of `on_app.SHOWN`, and Python."""
    found = {"Python": platform.python_version()}
    for name in on_app.SHOWN:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
