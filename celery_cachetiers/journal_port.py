"""What write-behind needs of the outside, as protocols: a sink, and a journal with its dirty set and dead-letter.

A record is the last value written under a key that its sink has not taken yet. A rewritten key keeps its place in the
order and has its newest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from celery_cachetiers.writes import Write


@dataclass(frozen=True, slots=True)
class Record:
    """A dirty value.

    Attributes:
        key: Digest of the call.
        sequence: Of its last write.
        body: The write as the codec packed it.
        attempts: How often the sink has failed with it alone, and was known to take others.
        failing_for: Seconds since the sink failed with it alone for the first time, known to take others or not; 0: it
            never has.
        taken_since: Since it last has, the sink has taken something that was written later.
    """

    key: str
    sequence: int
    body: bytes
    attempts: int = 0
    failing_for: float = field(default=0.0, compare=False)
    taken_since: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Buried:
    """A record that was given up.

    Attributes:
        record: As it was at its last attempt.
        reason: The error in one line.
        details: Its traceback.
        buried_at: Epoch seconds.
    """

    record: Record
    reason: str
    details: str
    buried_at: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a sink has not taken.

    Attributes:
        pending: Records, those in a flusher's hands included.
        oldest: Epoch seconds of the oldest one's first write; ``None`` without any.
        buried: Records in the dead-letter.
    """

    pending: int
    oldest: float | None
    buried: int


@dataclass(frozen=True, slots=True)
class Exhumed:
    """What became of records of the dead-letter that were to come back.

    Attributes:
        moved: They are due again.
        overtaken: Their keys have newer writes, which wait or were taken since; they are gone.
    """

    moved: int
    overtaken: int = 0


REMEMBERED: Final = 100_000
"""Keys of a sink of which it is remembered what it has taken last, those with the newest writes."""

REMEMBERED_SECONDS: Final = 3600.0
"""How long after a write that is remembered."""

FULL: Final = 0
"""In place of a sequence: there are as many records as there may be, and the key is not among them."""


Unpack = Callable[[Record], tuple[Write, tuple[str, ...]]]
"""Reads a record: its write, and the tags that it invalidates. May raise `UnusableEntry`."""

Invalidate = Callable[[Sequence[str]], None]
"""Invalidates tags. May raise `TierUnavailable`."""

Repeat = Callable[[Callable[[], object], float], AbstractContextManager[None]]
"""Calls a function every so many seconds, in another thread, while a block runs. What it raises ends nothing."""


class SinkPort(Protocol):
    """Where writes go."""

    @property
    def name(self) -> str:
        """Of the sink, and of its journal."""

    @property
    def batch_size(self) -> int:
        """Writes at most in one call, 1 to 1000."""

    @property
    def attempts(self) -> int:
        """How often a write may fail alone before it is buried, at least 1."""

    @property
    def backoff(self) -> float:
        """Seconds before what has failed once is tried again; doubles with every failure."""

    def write(self, writes: list[Write]) -> None:
        """Takes all of the writes, in their order.

        Raises:
            SinkUnavailable: The sink is down, whatever it is given.
            SinkTimeout: It hung past its limit; it may take them yet.
            SinkRejected: It has taken all but some.
            Exception: Anything else: it has taken none, or nobody knows which.
        """


class Beside(Protocol):
    """A write that happens in one step with something else; ``answer`` is what `Journal.write` returns, then."""

    answer: Any


class Journal(Protocol):
    """Where writes wait. Every method may raise `TierUnavailable`, and those that change something are atomic.

    A claim belongs to a token for a time; what is done under a claim that has passed to somebody else does nothing.
    A journal that has no room for another write still lets everything else happen: that is how it is emptied.

    Costs: 1 round trip each; `write`, `note`, `exhume` and `drop` one for every 500 records, each of them atomic.
    """

    def write(
        self, sink: str, writes: Sequence[tuple[str, bytes]], max_pending: int, *,
        sequences: Sequence[int] = (), yields: bool = False, durability: str | None = None,
    ) -> list[int]:  # fmt: skip
        """Takes writes, in their order; returns a sequence for each, `FULL` for one that was not taken.

        Args:
            writes: Key and body of each.
            max_pending: Records that there may be.
            sequences: Of the writes, as `begin` gave them; one that a newer record of its key has overtaken counts as
                taken, also where the sink has that one already, see `acknowledge`. Without them each write is newer
                than all before.
            yields: Any record of a write's key has overtaken it, whatever its sequence: see `Place`.
            durability: What is waited for: ``"replica"``, ``"disk"``, or ``None`` for nothing. `TierUnavailable` is
                raised where it does not come in time; the writes may have been taken all the same.
        """

    def beside(self, sink: str, writes: Sequence[tuple[str, bytes]], max_pending: int) -> Beside | None:
        """The same as a step for `Store.put_all`, where that is on the same server; ``None`` where it is not.

        Costs: nothing by itself.
        """

    def begin(self, sink: str, key: str) -> tuple[Record | None, int]:
        """What `look` says, and a sequence below those of all later writes."""

    def sequence(self, sink: str) -> int:
        """A sequence for a write that goes past the journal."""

    def look(self, sink: str, key: str) -> Record | None:
        """The dirty value of a key, whoever has claimed it; its attempts are not told. Changes nothing."""

    def stands(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        """Whether each of these writes is still the last of its key that no sink has taken.

        Args:
            written: Key and sequence of each.
        """

    def claim(self, sink: str, token: str, limit: int, seconds: float, key: str = "") -> list[Record]:
        """Claims records that are due and nobody's, the first due first: in the order in which they were written.

        A claim that has run out is nobody's.

        Args:
            seconds: How long the claim lasts without renewal.
            key: Only this one, due or not, if it is nobody's.
        """

    def renew(self, sink: str, token: str, keys: Sequence[str], seconds: float) -> int:
        """Prolongs claims; returns how many of them are still the token's."""

    def acknowledge(self, sink: str, token: str, taken: Sequence[tuple[str, int]]) -> int:
        """Removes records that the sink has taken; one that was written again meanwhile stays, and is due at once.

        Then it is as old as the write that was taken.

        What was taken is remembered, claimed or not, for the `REMEMBERED` keys with the highest sequences and for
        `REMEMBERED_SECONDS`: a write that began before it is overtaken.

        Args:
            taken: Key and sequence of each.

        Returns:
            How many were removed.
        """

    def note(self, sink: str, taken: Sequence[tuple[str, int]], *, must_try: bool = False) -> None:
        """Remembers the same of writes that the sink has got past the journal, and removes what they have overtaken.

        Later sequences are above theirs.

        Args:
            must_try: Also while the server is left alone after a failure.
        """

    def overtaken(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        """Whether the sink has taken each of these writes or a newer one of its key, as far as that is remembered.

        Args:
            written: Key and sequence of each.
        """

    def give_back(
        self, sink: str, token: str, untaken: Sequence[tuple[str, int]], delay: float, *,
        failed: bool, doubted: bool = False,
    ) -> None:  # fmt: skip
        """Ends claims; the records are due after so many seconds, those that were written again meanwhile at once.

        Args:
            untaken: Key and sequence of each.
            failed: Counts an attempt for each.
            doubted: The sink has failed with each alone, which may be the sink's fault: notes when, and counts nothing.
        """

    def bury(self, sink: str, token: str, record: Record, reason: str, details: str) -> bool:
        """Moves a record to the dead-letter, with the attempts that it says. Of two of a key the newer one is kept.

        False, and nothing moved, if it was written again meanwhile: then it is due at once.
        """

    def backlog(self, sink: str) -> Backlog:
        """How much waits."""

    def buried(self, sink: str, offset: int, limit: int) -> list[Buried]:
        """Records in the dead-letter, the oldest first."""

    def exhume(self, sink: str, keys: Sequence[str]) -> Exhumed:
        """Moves records from the dead-letter back among those that are due, under their sequences.

        One whose key has a newer record is dropped instead, also where the sink has taken that one since, however long
        ago.
        """

    def drop(self, sink: str, keys: Sequence[str]) -> int:
        """Removes records from the dead-letter for good; returns how many."""

    def announce(self, seconds: float) -> bool:
        """Notes that a flush of all sinks is on its way, for so long at most; false if one is already."""

    def arrived(self) -> None:
        """The flush that was on its way has begun, or will not come."""

    def unsafe(self) -> str | None:
        """Why the server may lose records, in words; ``None`` if nothing is known against it."""

    def close(self) -> None:
        """Closes connections that lie idle."""

    def reset_after_fork(self) -> None:
        """Forgets connections that belong to the parent process."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value belongs among the writes of its key.

    Attributes:
        sequence: From before its compute; 0: it is newer than all before.
        looked: False: nobody could see what waits, so that it may have been computed from an older state than that.
            Then it counts as older than whatever waits when it is written, and is not kept in the cache.
    """

    sequence: int = 0
    looked: bool = True


NEWEST: Final = Place()


class Outlet(Protocol):
    """The way of one task's values to its sink."""

    def look(self, key: str) -> Write | None:
        """The write of a key that waits for the sink; to look at. Raises `TierUnavailable` and `UnusableEntry`."""

    def begin(self, key: str) -> tuple[object, Place]:
        """Before a compute: the value under the key that waits for the sink, or `MISSING`, and the compute's place.

        What is written in that place later is older than what anybody else writes meanwhile.
        """

    def begin_anyway(self, key: str) -> Place:
        """The same before a compute that takes place whatever waits: that is delivered first, as far as it can be."""
