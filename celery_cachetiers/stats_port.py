"""The port of the place where the counters of all processes are added up, and what passes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

Numbers = Mapping[str, int | float]
"""Counters by name: counts are whole numbers, seconds are not."""

HotKey = tuple[str, str]
"""A task and the key of one of its entries."""

HALF: Final = 60.0
"""Seconds after which a call to a hot key counts half."""


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
        hot: Calls by key, of those keys that were asked for most.
    """

    source: str
    number: int
    tasks: Mapping[str, Numbers] = field(default_factory=dict)
    process: Numbers = field(default_factory=dict)
    invalidated: Mapping[str, int] = field(default_factory=dict)
    outdated: Mapping[str, int] = field(default_factory=dict)
    missed: Sequence[tuple[str, str]] = ()
    hot: Mapping[HotKey, int] = field(default_factory=dict)


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

    def hot(self, count: int) -> dict[HotKey, float]:
        """The keys that are asked for most, the hottest first, by calls of which each counts half after `HALF`.

        Raises:
            TierUnavailable: Not reached.

        Costs: 1 round trip.
        """

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections alone."""

    def close(self) -> None:
        """Closes connections that lie idle."""
