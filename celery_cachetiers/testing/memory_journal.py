"""The journal in this process' memory: the protocol of lua/journal_*.lua in Python, with the test's clock.

It decides the same as Redis, which the conformance suite proves.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from celery_cachetiers.clock import Clock
from celery_cachetiers.journal_port import FULL, REMEMBERED, REMEMBERED_SECONDS, Backlog, Buried, Exhumed, Record


@dataclass(slots=True)
class Dirty:
    """A record, and where it stands.

    Attributes:
        born: Its first write that no sink has taken, epoch seconds.
        due: When it may be claimed, or until when it is; then its place among those of the same instant.
        token: Whose it is, "" for nobody's.
        failed: When it has failed alone first and last, epoch seconds.
    """

    record: Record
    born: float
    due: tuple[float, int]
    token: str = ""
    failed: tuple[float, float] | None = None


@dataclass(slots=True)
class SinkTable:
    """What one sink has not taken, and what it has taken last, of all keys and of those in its dead-letter."""

    dirty: dict[str, Dirty] = field(default_factory=dict)
    dead: dict[str, Buried] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    overtaking: dict[str, int] = field(default_factory=dict)
    last: int = 0


@dataclass(slots=True)
class SharedTables:
    """What all processes see, under one lock."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    sinks: defaultdict[str, SinkTable] = field(default_factory=lambda: defaultdict(SinkTable))
    on_its_way: float = 0.0
    place: Callable[[], int] = field(default_factory=lambda: count().__next__)


class MemoryJournal:
    """A `celery_cachetiers.journal_port.Journal` in memory.

    Args:
        clock: What "due" is measured by.
        beside: A journal in another process of the same server.
        remembered: Keys of which it is remembered what a sink has taken last.
    """

    def __init__(self, clock: Clock, beside: MemoryJournal | None = None, *, remembered: int = REMEMBERED) -> None:
        self._time, self._remembered = clock.time, remembered
        self.shared: SharedTables = SharedTables() if beside is None else beside.shared

    def write(
        self,
        sink: str,
        writes: Sequence[tuple[str, bytes]],
        max_pending: int,
        *,
        sequences: Sequence[int] = (),
        yields: bool = False,
        durability: str | None = None,
    ) -> list[int]:
        with self.shared.lock:
            rows = zip(writes, sequences or [0] * len(writes), strict=True)
            return [self._write(self.shared.sinks[sink], *write, given, yields, max_pending) for write, given in rows]

    def _write(self, table: SinkTable, key: str, body: bytes, given: int, yields: bool, max_pending: int) -> int:
        dirty = table.dirty.get(key)
        if dirty is not None and given and (yields or dirty.record.sequence > given):
            return given
        if given and table.taken.get(key, 0) >= given:
            return given
        if dirty is None and len(table.dirty) >= max_pending:
            return FULL
        record = Record(key, given or self._next(table), body)
        if dirty is None:
            table.dirty[key] = Dirty(record, self._time(), self._in(0.0))
        else:
            dirty.record, dirty.failed = record, None
        return record.sequence

    def beside(self, sink: str, writes: Sequence[tuple[str, bytes]], max_pending: int) -> None:
        return None

    def begin(self, sink: str, key: str) -> tuple[Record | None, int]:
        with self.shared.lock:
            return self.look(sink, key), self.sequence(sink)

    def look(self, sink: str, key: str) -> Record | None:
        with self.shared.lock:
            dirty = self.shared.sinks[sink].dirty.get(key)
            return None if dirty is None else replace(dirty.record, attempts=0)

    def sequence(self, sink: str) -> int:
        with self.shared.lock:
            return self._next(self.shared.sinks[sink])

    def stands(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        with self.shared.lock:
            dirty = self.shared.sinks[sink].dirty
            return [key in dirty and dirty[key].record.sequence == sequence for key, sequence in written]

    def claim(self, sink: str, token: str, limit: int, seconds: float, key: str = "") -> list[Record]:
        with self.shared.lock:
            dirty = self.shared.sinks[sink].dirty
            if key:
                chosen = [dirty[key]] if key in dirty and not (dirty[key].token and not self._due(dirty[key])) else []
            else:
                chosen = sorted(filter(self._due, dirty.values()), key=lambda each: each.due)[:limit]
            for each in chosen:
                each.token, each.due = token, self._in(seconds)
            return [self._claimed(self.shared.sinks[sink], each) for each in chosen]

    def _claimed(self, table: SinkTable, dirty: Dirty) -> Record:
        if dirty.failed is None:
            return dirty.record
        first, last = dirty.failed
        taken_since = max(table.taken.values(), default=0) > last * 1e6
        return replace(dirty.record, failing_for=self._time() - first, taken_since=taken_since)

    def renew(self, sink: str, token: str, keys: Sequence[str], seconds: float) -> int:
        with self.shared.lock:
            held = [each for key in keys if (each := self._held(sink, token, key)) is not None]
            for each in held:
                each.due = self._in(seconds)
            return len(held)

    def acknowledge(self, sink: str, token: str, taken: Sequence[tuple[str, int]]) -> int:
        with self.shared.lock:
            self._remember(self.shared.sinks[sink], taken)
            return sum(self._acknowledge(sink, token, key, sequence) for key, sequence in taken)

    def _acknowledge(self, sink: str, token: str, key: str, sequence: int) -> bool:
        dirty = self._held(sink, token, key)
        if dirty is None:
            return False
        if dirty.record.sequence == sequence:
            del self.shared.sinks[sink].dirty[key]
            return True
        dirty.token, dirty.due, dirty.born = "", self._in(0.0), min(self._time(), sequence / 1e6)
        return False

    def note(self, sink: str, taken: Sequence[tuple[str, int]], *, must_try: bool = False) -> None:
        with self.shared.lock:
            table = self.shared.sinks[sink]
            self._remember(table, taken)
            for key, sequence in taken:
                table.last = max(table.last, sequence)
                if key in table.dirty and table.dirty[key].record.sequence <= sequence:
                    del table.dirty[key]

    def overtaken(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        with self.shared.lock:
            taken = self.shared.sinks[sink].taken
            return [taken.get(key, 0) >= sequence for key, sequence in written]

    def give_back(
        self, sink: str, token: str, untaken: Sequence[tuple[str, int]], delay: float, *,
        failed: bool, doubted: bool = False,
    ) -> None:  # fmt: skip
        with self.shared.lock:
            for key, sequence in untaken:
                dirty = self._held(sink, token, key)
                if dirty is None:
                    continue
                same = dirty.record.sequence == sequence
                dirty.token, dirty.due = "", self._in(delay if same else 0.0)
                if same and (failed or doubted):
                    now = self._time()
                    dirty.failed = (dirty.failed[0] if dirty.failed is not None else now, now)
                if same and failed:
                    dirty.record = replace(dirty.record, attempts=dirty.record.attempts + 1)

    def bury(self, sink: str, token: str, record: Record, reason: str, details: str) -> bool:
        with self.shared.lock:
            table, dirty = self.shared.sinks[sink], self._held(sink, token, record.key)
            if dirty is None:
                return False
            if dirty.record.sequence != record.sequence:
                dirty.token, dirty.due = "", self._in(0.0)
                return False
            dead = table.dead.get(record.key)
            if dead is None or dead.record.sequence <= record.sequence:
                table.dead.pop(record.key, None)
                table.dead[record.key] = Buried(record, reason, details, self._time())
            del table.dirty[record.key]
            return True

    def backlog(self, sink: str) -> Backlog:
        with self.shared.lock:
            table = self.shared.sinks[sink]
            oldest = min((each.born for each in table.dirty.values()), default=None)
            return Backlog(len(table.dirty), oldest, len(table.dead))

    def buried(self, sink: str, offset: int, limit: int) -> list[Buried]:
        with self.shared.lock:
            return list(self.shared.sinks[sink].dead.values())[offset : offset + limit]

    def exhume(self, sink: str, keys: Sequence[str]) -> Exhumed:
        with self.shared.lock:
            table = self.shared.sinks[sink]
            moved = [self._exhume(table, key) for key in keys if key in table.dead]
            return Exhumed(sum(moved), len(moved) - sum(moved))

    def _exhume(self, table: SinkTable, key: str) -> bool:
        record, dirty = replace(table.dead.pop(key).record, attempts=0), table.dirty.get(key)
        if max(table.overtaking.pop(key, 0), table.taken.get(key, 0)) > record.sequence:
            return False
        if dirty is None:
            table.dirty[key] = Dirty(record, self._time(), self._in(0.0))
        elif dirty.record.sequence < record.sequence:
            dirty.record, dirty.failed = record, None
        else:
            return False
        return True

    def drop(self, sink: str, keys: Sequence[str]) -> int:
        with self.shared.lock:
            for key in keys:
                self.shared.sinks[sink].overtaking.pop(key, None)
            return sum(self.shared.sinks[sink].dead.pop(key, None) is not None for key in keys)

    def announce(self, seconds: float) -> bool:
        with self.shared.lock:
            if self._time() < self.shared.on_its_way:
                return False
            self.shared.on_its_way = self._time() + seconds
            return True

    def arrived(self) -> None:
        with self.shared.lock:
            self.shared.on_its_way = 0.0

    def unsafe(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing lies idle."""

    def reset_after_fork(self) -> None:
        """Nothing belongs to the parent process."""

    def __repr__(self) -> str:
        sinks = self.shared.sinks
        return f"<MemoryJournal: {', '.join(f'{name} {len(sinks[name].dirty)}' for name in sorted(sinks))}>"

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _next(self, table: SinkTable) -> int:
        table.last = max(table.last + 1, int(self._time() * 1e6))
        return table.last

    def _remember(self, table: SinkTable, taken: Sequence[tuple[str, int]]) -> None:
        for key, sequence in taken:
            table.taken[key] = max(table.taken.get(key, 0), sequence)
            if key in table.dead and table.dead[key].record.sequence < sequence:
                table.overtaking[key] = sequence
        oldest = int((self._time() - REMEMBERED_SECONDS) * 1e6)
        kept = sorted(((sequence, key) for key, sequence in table.taken.items() if sequence > oldest), reverse=True)
        table.taken = {key: sequence for sequence, key in kept[: self._remembered]}

    def _in(self, seconds: float) -> tuple[float, int]:
        return (self._time() + seconds, self.shared.place())

    def _due(self, dirty: Dirty) -> bool:
        return dirty.due[0] <= self._time()

    def _held(self, sink: str, token: str, key: str) -> Dirty | None:
        dirty = self.shared.sinks[sink].dirty.get(key)
        return dirty if dirty is not None and dirty.token == token else None
