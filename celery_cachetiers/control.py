"""Celery's remote control: ``inspect cache_stats`` and ``control cache_clear_l1``, answered by a worker's main process.

Celery knows a command once this module is imported: by the ``celery`` program through our own command, and in a worker
through the step below. Children of a prefork pool count for themselves and have an L1 of their own: the main process
asks them over the backplane.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from celery import bootsteps
from celery.worker.control import control_command, inspect_command

from celery_cachetiers.amounts import counted
from celery_cachetiers.app import CacheTiers
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.known import complaint
from celery_cachetiers.metrics.totals import Totals, added_up, totals_of
from celery_cachetiers.roll_call import CLEAR, TELL, clear, tell
from celery_cachetiers.stats_port import Sums

_IN_THE_SUMS: Final = ("first_misses", "repeated_misses")
"""What no process can tell of itself: it is known where the sums are."""


class RemoteControl(bootsteps.StartStopStep):
    """Has this module imported in a worker."""


@inspect_command(args=[("task", str)], signature="[TASK]")
def cache_stats(state: Any, task: str | None = None, **_: object) -> dict[str, Any]:
    """What the processes of this worker have counted since they began; of one task alone, if it is named."""
    tiers = CacheTiers(state.app)
    answers, silent = _asked(state, tiers, TELL)
    answers = [tell(tiers), *answers]
    totals = added_up(map(_totals, answers))
    if task is not None:
        if wrong := complaint(tiers.app, task, totals.tasks):
            return {"error": wrong}
        totals = Totals({name: row for name, row in totals.tasks.items() if name == task}, totals.process, {})
    found = totals.as_dict()
    for row in (found["total"], *found["tasks"].values()):
        for name in _IN_THE_SUMS:
            del row[name]
    return {**found, "processes": [_brief(answer, task) for answer in answers], "silent": silent}


@control_command()
def cache_clear_l1(state: Any, **_: object) -> dict[str, Any]:
    """Empty the L1 of the processes of this worker; what is in Redis stays."""
    tiers = CacheTiers(state.app)
    answers, silent = _asked(state, tiers, CLEAR)
    answers = [clear(tiers), *answers]
    entries = sum(each["entries"] for each in answers)
    return {"ok": _said(entries, len(answers), silent), "entries": entries, "processes": answers, "silent": silent}


def _asked(state: Any, tiers: CacheTiers, what: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The answers of the pool's processes, and the ids of those that gave none."""
    pids = _children(state)
    try:
        answers = tiers.roll_call.collect(what, pids)
    except TierUnavailable:
        answers = {}
    return list(answers.values()), sorted(pids - answers.keys())


def _children(state: Any) -> set[int]:
    found = state.consumer.pool.info.get("processes", ())
    return {int(pid) for pid in found} - {os.getpid()} if isinstance(found, Iterable) else set()


def _totals(answer: Mapping[str, Any]) -> Totals:
    names = answer["invalidated"], answer.get("outdated", {}), answer.get("unusable", {})
    return totals_of(Sums(answer["tasks"], answer["process"], *names))


def _brief(answer: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    row = answer["total"] if task is None else answer["tasks"].get(task, {})
    counted = {name: row.get(name, 0) for name in ("hits", "coalesced", "misses", "computes")}
    return {"pid": answer["pid"], "main": answer["pid"] == os.getpid(), **counted, **answer["here"]}


def _said(entries: int, processes: int, silent: list[int]) -> str:
    dropped, emptied = counted(entries, "entry", "entries"), counted(processes, "process", "processes")
    text = f"{dropped} dropped, L1 is empty in {emptied}"
    if silent:
        text += f"; no answer from {len(silent)}, which have not used the cache yet, or cannot be reached"
    return text
