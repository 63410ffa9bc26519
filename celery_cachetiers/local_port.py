"""What the engine needs of L1, as a protocol; it never raises and does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from celery_cachetiers.entry import Times


@dataclass(frozen=True, slots=True)
class Mark:
    """The state of L1 before a read or a compute; a put under it is refused if that state is gone."""

    generation: int
    sequence: int


@dataclass(slots=True)
class Heat:
    """How often an entry of L1 was hit since that was asked last.

    Attributes:
        names: Its tags, the task's among them.
        hits: Written by L1 alone, under its lock.
    """

    digest: str
    names: tuple[str, ...]
    hits: int = 0


class Resident(NamedTuple):
    """An entry in L1.

    Attributes:
        names: Its tags, in the stamp's order, and its own key's name as the last.
        stamp, times: The entry's in L2, ``None`` where that is not known.
        heat: Where its own hits count.
        seconds: What its compute took.
        tally: Where its eviction counts.
    """

    copy: Callable[[], object]
    size: int
    expires: float
    sequence: int
    slots: tuple[int, ...]
    stamp: bytes | None
    heat: Heat
    times: Times | None = None
    names: tuple[str, ...] = ()
    seconds: float = 0.0
    tally: L1Count | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """An entry in L1 as it lies there, whether or not it may answer.

    Attributes:
        resident: The entry.
        seconds_left: Until L1 lets it go; not above 0 for one that is past its time.
        touched: Whether a tag of it, or its key, was invalidated since it came.
    """

    resident: Resident
    seconds_left: float
    touched: bool

    @property
    def live(self) -> bool:
        """Whether it may answer, where L1 is trusted."""
        return self.seconds_left > 0 and not self.touched


class L1Count(Protocol):
    """Where L1 counts for a task; nobody else writes these."""

    l1_hits: int
    l1_seconds_saved: float
    l1_evictions: int


class LocalTier(Protocol):
    """L1: never raises, never does I/O."""

    def get(self, digest: str, tally: L1Count) -> object:
        """A value of its own for the caller, counted; or `MISSING`."""

    def resident(self, digest: str) -> Resident | None:
        """The entry behind a hit, for callers that validate its stamp before they copy it."""

    def standing(self, digest: str) -> Standing | None:
        """What lies under a key, for who only looks: it is not counted, nor younger or older for it."""

    def count(self, resident: Resident, tally: L1Count) -> None:
        """Counts a hit that was made of `resident`."""

    def trusted(self) -> bool:
        """Whether the backplane has been heard of lately."""

    def mark(self) -> Mark:
        """To be taken before the L2 read or the lease whose value is put later."""

    def current(self, mark: Mark, names: Iterable[str]) -> bool:
        """Whether nothing that touches the names has happened since the mark."""

    def put(
        self, digest: str, value: object, names: tuple[str, ...], ttl: float, mark: Mark, *,
        stamp: bytes | None = None, times: Times | None = None, copy: bool = True, tally: L1Count | None = None,
    ) -> bool:  # fmt: skip
        """Keeps a value for up to so many seconds; false if it was refused. ``names`` are its tags and its own."""

    def invalidate(self, names: Iterable[str]) -> None:
        """Makes misses of all entries under the names, and refuses puts under older marks."""

    def discard(self, digest: str) -> None:
        """Drops one entry."""

    def reset_after_fork(self) -> None:
        """Empty."""
