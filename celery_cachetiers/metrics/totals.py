"""The sums of all processes as they are read: tallies, and the dict that ``CacheTiers(app).stats()`` returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from celery_cachetiers.metrics.tally import Counters, ProcessTally, Tally
from celery_cachetiers.stats_port import Numbers, Sums


@dataclass(frozen=True, slots=True)
class Totals:
    """What all processes have counted, as far as it was merged.

    Attributes:
        tasks: By name.
        process: What belongs to no task, added up over processes.
        invalidated: Invalidations by pattern of the tag, the most frequent first.
        outdated: Misses that an invalidation has made, the same way.
        unusable: Entries that could not be read or written, by reason, the most frequent first.
    """

    tasks: Mapping[str, Tally]
    process: ProcessTally
    invalidated: Mapping[str, int]
    outdated: Mapping[str, int] = field(default_factory=dict)
    unusable: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> Tally:
        """All tasks together."""
        return added(self.tasks.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON: see `CacheTiers.stats`."""
        total = self.total
        return {
            "tasks": {name: as_dict(tally) for name, tally in sorted(self.tasks.items())},
            "total": as_dict(total),
            "ratio": total.hit_ratio,
            "process": {each.name: getattr(self.process, each.name) for each in fields(ProcessTally)},
            "invalidated": dict(self.invalidated),
            "outdated": dict(self.outdated),
            "unusable": dict(self.unusable),
        }


def totals_of(sums: Sums) -> Totals:
    """The tallies behind sums that were read; counters that this version does not know are left out."""
    tasks = {name: _tally(numbers) for name, numbers in sums.tasks.items()}
    process = ProcessTally(**_known(ProcessTally, sums.process))
    return Totals(tasks, process, *map(_by_frequency, (sums.invalidated, sums.outdated, sums.unusable)))


def totals_here(counters: Counters, task: str | None = None) -> Totals:
    """What this process alone has counted."""
    tasks = {name: tally for name, tally in counters.snapshot().items() if task in (None, name) and tally != Tally()}
    names = map(_by_frequency, (counters.invalidated(), counters.outdated(), counters.unusable()))
    return Totals(tasks, replace(counters.process), *names)


def added_up(totals: Iterable[Totals]) -> Totals:
    """The sums of some totals."""
    found = list(totals)
    names = sorted({name for each in found for name in each.tasks})
    tasks = {name: added(each.tasks[name] for each in found if name in each.tasks) for name in names}
    process, invalidated, outdated, unusable = ProcessTally(), Counter[str](), Counter[str](), Counter[str]()
    for each in found:
        invalidated.update(each.invalidated)
        outdated.update(each.outdated)
        unusable.update(each.unusable)
        for part in fields(ProcessTally):
            setattr(process, part.name, getattr(process, part.name) + getattr(each.process, part.name))
    return Totals(tasks, process, *map(_by_frequency, (invalidated, outdated, unusable)))


def added(tallies: Iterable[Tally]) -> Tally:
    """The sum of some tallies."""
    total = Tally()
    for tally in tallies:
        for each in fields(Tally):
            setattr(total, each.name, getattr(total, each.name) + getattr(tally, each.name))
    return total


def since(now: Tally, before: Tally) -> Tally:
    """What was counted between two readings; a counter that has gone down, as one may be taken back, counts as 0."""
    return Tally(**{each.name: max(getattr(now, each.name) - getattr(before, each.name), 0) for each in fields(Tally)})


def as_dict(tally: Tally) -> dict[str, Any]:
    """All counters by name, and what follows from them: ``hits``, ``hit_ratio``, ``seconds_saved``."""
    counted = {each.name: getattr(tally, each.name) for each in fields(Tally)}
    return {
        "hits": tally.hits, "hit_ratio": tally.hit_ratio, "seconds_saved": tally.seconds_saved, **counted,
    }  # fmt: skip


def _tally(numbers: Numbers) -> Tally:
    return Tally(**_known(Tally, numbers))


def _known(kind: type[Tally] | type[ProcessTally], numbers: Numbers) -> dict[str, Any]:
    return {each.name: numbers[each.name] for each in fields(kind) if each.name in numbers}


def _by_frequency(invalidated: Numbers) -> dict[str, int]:
    return dict(sorted(((name, int(count)) for name, count in invalidated.items()), key=lambda row: (-row[1], row[0])))
