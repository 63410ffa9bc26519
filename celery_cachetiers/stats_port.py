"""The port of the place where the counters of all processes are added up, and what passes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Numbers = Mapping[str, int | float]
"""Counters by name: counts are whole numbers, seconds are not."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What one process has counted since its last merge.

    Attributes:
        source: Names the process; another one after a fork.
        number: Names the merge among those of its source. A merge whose answer was lost is sent again under it.
        tasks: What has changed, by task.
        process: The same for what belongs to no task.
        invalidated: Invalidations by pattern of the tag.
        outdated: Misses that an invalidation has made, by pattern of the tag.
        missed: Task and key of misses, of which the place of sums makes ``first_misses`` and ``repeated_misses``.
    """

    source: str
    number: int
    tasks: Mapping[str, Numbers] = field(default_factory=dict)
    process: Numbers = field(default_factory=dict)
    invalidated: Mapping[str, int] = field(default_factory=dict)
    outdated: Mapping[str, int] = field(default_factory=dict)
    missed: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Sums:
    """What was added up; the attributes are those of `Merge`."""

    tasks: Mapping[str, Numbers]
    process: Numbers
    invalidated: Numbers
    outdated: Numbers = field(default_factory=dict)


class StatsStore(Protocol):
    """Adds up."""

    def add(self, merge: Merge) -> bool:
        """Adds what a process has counted; false if this merge was added before.

        Raises:
            TierUnavailable: It is not known whether it was added: send it again.

        Costs: 1 round trip.
        """

    def read(self, task: str | None = None) -> Sums:
        """The sums of all tasks, or of one. Raises `TierUnavailable`.

        Costs: 1 round trip; for all tasks 1 more for each 500 of them.
        """

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections alone."""

    def close(self) -> None:
        """Closes connections that lie idle."""
