"""The port of the place where the counters of all processes are added up, and what passes through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from zlib import crc32

Numbers = Mapping[str, int | float]
"""Counters by name: counts are whole numbers, seconds are not."""

HotKey = tuple[str, str]
"""A task and the key of one of its entries."""

OTHERS: Final = "@others"
"""The pattern, or the counter, that stands for all that are not told apart."""

HALF: Final = 60.0
"""Seconds after which a call to a hot key counts half."""


def rank(key: str) -> int:
    """How many halvings a key outlasts: half of all keys one, half of these another one, and the same ones everywhere.

    >>> [rank(key) for key in ("a", "b", "c", "d", "e", "f", "g", "h")]
    [0, 1, 5, 0, 0, 1, 7, 0]
    """
    return 32 - crc32(key.encode()).bit_length()


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
        missed: Misses by task and key, of which the place of sums makes ``first_misses`` and ``repeated_misses``: of
            all keys that have missed, those whose `rank` is at least ``halvings``.
        halvings: How often the keys were too many, and half of them were left out.
        hot: Calls by key, of those keys that were asked for most.
        unusable: Entries that could not be read or written, by reason.
    """

    source: str
    number: int
    tasks: Mapping[str, Numbers] = field(default_factory=dict)
    process: Numbers = field(default_factory=dict)
    invalidated: Mapping[str, int] = field(default_factory=dict)
    outdated: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[HotKey, int] = field(default_factory=dict)
    halvings: int = 0
    hot: Mapping[HotKey, int] = field(default_factory=dict)
    unusable: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sums:
    """What was added up; the attributes are those of `Merge`."""

    tasks: Mapping[str, Numbers]
    process: Numbers
    invalidated: Numbers
    outdated: Numbers = field(default_factory=dict)
    unusable: Numbers = field(default_factory=dict)


class StatsStore(Protocol):
    """Adds up.

    Whether a key is new is told of those alone that every merge would have had, of the last day at least: whose `rank`
    is at least the most ``halvings`` of them all. They stand for the other misses of their task in their merge.
    """

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
