"""Checks of the workers that have answered: that there are some, and that they are of this deployment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_cachetiers.doctor.facts import Facts
from celery_cachetiers.doctor.findings import Finding, error, info, ok, some, unknown, warning
from celery_cachetiers.doctor.subject import Subject
from celery_cachetiers.identity import DISTRIBUTION, MEMORY_ONLY


def workers(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``broker``, ``workers``: how many answer, and whether they know the tasks."""
    asked = facts.workers
    if asked.unknown:
        yield unknown("workers", asked.unknown)
        return
    if asked.broker_away:
        place = f" {subject.broker}" if subject.broker is not None else ""
        yield error(
            "broker", f"the broker{place}: {asked.broker_away}", "start it, and check broker_url and the network"
        )
        return
    if not asked.answers:
        yield warning("workers", "no worker has answered within a second", "start one, or look at those there are")
        return
    yield ok("workers", f"{len(asked.answers)} answer: {some(asked.answers)}")
    without = [name for name, answer in asked.answers.items() if not answer.tells]
    if without:
        yield warning(
            "workers",
            f"{some(without)}: without this extension, or of a version that does not tell",
            f"install {DISTRIBUTION} there, and see that the cached tasks are imported",
        )
    wanted = {task.name for task in subject.tasks}
    known: set[str] = set().union(*(answer.tasks or () for answer in asked.answers.values()))
    if any(answer.tasks is not None for answer in asked.answers.values()) and wanted - known:
        yield warning(
            "workers",
            f"no worker knows {some(wanted - known)}",
            "start one of this version of the code that imports them",
        )


def agreement(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """``worker-version``, ``worker-settings``: whether they and this process are one deployment."""
    told = {name: answer.tells for name, answer in facts.workers.answers.items() if answer.tells}
    ours: dict[str, Any] = {
        "version": facts.versions.get(DISTRIBUTION),
        "namespace": subject.settings.namespace,
        "enabled": subject.settings.enabled,
        "l2": MEMORY_ONLY if subject.l2 is None else str(subject.l2),
    }
    others = {name: [worker for worker, tells in told.items() if tells.get(name) != ours[name]] for name in ours}
    if others["version"]:
        yield warning(
            "worker-version",
            f"{some(others['version'])}: not version {ours['version']} of this extension",
            "deploy them; mixed versions are for the time of a rolling deployment",
        )
    if others["namespace"]:
        yield error(
            "worker-settings",
            f"{some(others['namespace'])}: not in namespace {ours['namespace']}: they share no entry with "
            "this process, and hear none of its invalidations",
            "give all processes one cachetiers_namespace",
        )
    if others["enabled"]:
        there = "off" if ours["enabled"] else "on"
        yield warning(
            "worker-settings", f"{some(others['enabled'])}: the cache is switched {there} there", "switch it alike"
        )
    if others["l2"]:
        places = {str(told[worker].get("l2")) for worker in others["l2"]}
        yield info(
            "worker-settings",
            f"{some(others['l2'])}: L2 is {some(places)}, and {ours['l2']} here",
            "see that these are two names of one server",
        )
    if told and not any(others.values()):
        yield ok("worker-settings", "workers have this version, namespace and L2")
