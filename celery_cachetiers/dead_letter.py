"""A sink's dead-letter: the writes that were given up, for who looks at them, tries them again or throws them away.

What is given up when is decided in `delivery`; how it is kept is the journal's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from celery_cachetiers.errors import UnusableEntry
from celery_cachetiers.journal_port import Buried, Exhumed, Journal, Record
from celery_cachetiers.writes import Write

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class DeadWrite:
    """A write that was given up.

    Attributes:
        sink: The sink that would not take it.
        key: The call's key.
        sequence: The write's.
        attempts: How often the sink has failed with it alone.
        error: Of the last attempt, in one line.
        traceback: The error's.
        buried_at: When it was given up, epoch seconds.
        write: What the sink was given; ``None`` if the record cannot be read, as ``error`` says then.
    """

    sink: str
    key: str
    sequence: int
    attempts: int
    error: str
    traceback: str
    buried_at: float
    write: Write | None


class DeadLetter:
    """The dead-letter of one sink. Every method may raise `TierUnavailable`.

    Concurrency: keeps nothing; flushers may bury and others dig while it is read, and a list shows what was there.

    Args:
        read: Reads a record; raises `UnusableEntry`.
        send_flush: Asks a worker to flush.
    """

    def __init__(
        self, sink: str, journal: Journal, read: Callable[[Record], Write], send_flush: Callable[[str], None]
    ) -> None:
        self.sink, self._journal, self._read, self._send_flush = sink, journal, read, send_flush

    def count(self) -> int:
        """How many there are. Costs: 1 round trip."""
        return self._journal.backlog(self.sink).buried

    def writes(self, limit: int = 50, offset: int = 0) -> list[DeadWrite]:
        """Those that there are, the oldest first. Costs: 2 round trips."""
        return [self._opened(each) for each in self._journal.buried(self.sink, offset, limit)]

    def find(self, key: str) -> DeadWrite | None:
        """The write of one key; ``None`` if there is none. Costs: O(n), 2 round trips for every 500 that are older."""
        for each in self._all():
            if each.record.key == key:
                return self._opened(each)
        return None

    def retry(self, *keys: str) -> Exhumed:
        """Puts writes back into the journal, with all attempts before them, and asks a worker to flush.

        They keep their sequences; one whose key has been written again since is dropped instead, whether that write
        waits or the sink has it.

        Returns:
            How many of the keys were put back (``moved``), and how many dropped (``overtaken``).
        """
        found = self._journal.exhume(self.sink, keys) if keys else Exhumed(0)
        if found.moved:
            self._send_flush(self.sink)
        return found

    def retry_all(self) -> Exhumed:
        """The same for all that are there now."""
        return self.retry(*self._keys())

    def drop(self, *keys: str) -> int:
        """Removes writes for good; returns how many of the keys there were."""
        return self._journal.drop(self.sink, keys) if keys else 0

    def drop_all(self) -> int:
        """The same for all that are there now."""
        return self.drop(*self._keys())

    def __repr__(self) -> str:
        return f"<DeadLetter of {self.sink}>"

    def _keys(self) -> Sequence[str]:
        return [each.record.key for each in self._all()]

    def _all(self) -> Iterator[Buried]:
        offset = 0
        while page := self._journal.buried(self.sink, offset, _PAGE):
            yield from page
            offset += len(page)

    def _opened(self, buried: Buried) -> DeadWrite:
        record = buried.record
        try:
            write, error = self._read(record), buried.reason
        except UnusableEntry as fault:
            write, error = None, f"{buried.reason} (the record cannot be read here: {fault.reason})"
        return DeadWrite(
            self.sink, record.key, record.sequence, record.attempts, error, buried.details, buried.buried_at, write
        )
