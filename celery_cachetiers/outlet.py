"""The way of one task's values to its sink: through the journal (``write="behind"``) or at once (``write="through"``).

It decides when a value goes past the journal: while that cannot be reached, has no room, or cannot hold the value. A
value is never accepted without being in one of the two. How it goes past is `straight_way`'s matter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from celery_cachetiers.clock import Clock
from celery_cachetiers.codec import Codec
from celery_cachetiers.delivery import Flushed
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import JournalFull, TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event, Events
from celery_cachetiers.journal_port import FULL, NEWEST, Beside, Journal, Place
from celery_cachetiers.journaling import LocalSequences, SafeJournal, Unnoted
from celery_cachetiers.records import packed, unpacked
from celery_cachetiers.sinks import Sink
from celery_cachetiers.straight_way import StraightWay
from celery_cachetiers.writes import Write

POLL: Final = 0.05
"""Seconds between two looks at a journal that is full, or at a deletion that another flusher has in its hands."""

DELETION_PATIENCE: Final = 5.0
"""Seconds that a compute waits for what it has to find in the sink, and another flusher has in its hands.

One that it hands over itself takes as long as the sink: until the batches before it are done, and from then on
``time_limit`` at most.
"""


class Pump(Protocol):
    """What moves records from the journal to their sink, in this process."""

    def flush_key(self, sink: Sink, key: str) -> Flushed:
        """Delivers the record of one key, as far as that can be done now; never raises for what is away."""

    def flush_batch(self, sink: Sink) -> Flushed:
        """Delivers what is due, one batch at most. Raises `TierUnavailable`."""

    def send_flush(self, sink: str) -> None:
        """Asks a worker to flush; never raises."""


Keyed = tuple[str, Sequence[Any], Mapping[str, Any], object]
"""Key, positional and keyword arguments, value."""


@dataclass(frozen=True, slots=True)
class BesideWrite:
    """Writes that go into the journal in one step with the puts of their entries."""

    step: Beside
    writes: list[Write]
    bodies: list[tuple[str, bytes]]


class TaskOutlet:
    """What one task writes.

    Concurrency: keeps nothing between writes.

    Args:
        task: The task's name.
        journal: ``None`` for ``write="through"``, or where there is no Redis at all.
        numbers: Whose sequences are drawn for what goes past the journal; ``None`` where there is no Redis.
    """

    def __init__(
        self, task: str, sink: Sink, codec: Codec, clock: Clock, events: Events, sequences: LocalSequences,
        unnoted: Unnoted, *, journal: SafeJournal | None, numbers: Journal | None, pump: Pump,
    ) -> None:  # fmt: skip
        self.task, self.sink = task, sink
        self._codec, self._clock, self._events = codec, clock, events
        self._sequences, self._unnoted = sequences, unnoted
        self._journal, self._pump = journal, pump
        self._straight = StraightWay(sink, numbers, sequences, unnoted, self._tell)

    def look(self, key: str) -> Write | None:
        """What waits under a key, to look at: nothing is delivered, counted or drawn for it. Costs: 1 round trip.

        Raises:
            TierUnavailable: The journal is away.
            UnusableEntry: What waits cannot be read here.
        """
        if self._journal is None:
            return None
        record = self._journal.journal.look(self.sink.name, key)
        return None if record is None else unpacked(self._codec, record)[0]

    def begin(self, key: str) -> tuple[object, Place]:
        """What waits under a key, and the place of what is computed now.

        A deletion that waits is delivered first, as the body would still find what was deleted. If that cannot be done,
        what the body gives is older than the deletion.

        Costs: 1 round trip; with a deletion what it takes to deliver it, see `DELETION_PATIENCE`.
        """
        if self._journal is None:
            return MISSING, Place(self._straight.number())
        write, place = self._pending(self._journal, key)
        if write is not None and not write.deleted:
            return write.value, place
        return MISSING, self._delivered(self._journal, key, write, place)

    def waiting(self, key: str) -> object:
        """The value that waits under a key, for who does not compute; `MISSING` without one, and for a deletion.

        Costs: 1 round trip; with ``write="through"`` nothing.
        """
        if self._journal is None:
            return MISSING
        write, _ = self._pending(self._journal, key)
        return MISSING if write is None or write.deleted else write.value

    def begin_anyway(self, key: str) -> Place:
        """The place of what is computed now, whatever waits: that is delivered first, as the body would not find it.

        If that cannot be done, what the body gives is older than what waits, and not kept in the cache.

        Costs: as `begin` with a deletion.
        """
        if self._journal is None:
            return Place(self._straight.number())
        write, place = self._pending(self._journal, key)
        return self._delivered(self._journal, key, write, place, looked=False)

    def _delivered(
        self, journal: SafeJournal, key: str, write: Write | None, place: Place, *, looked: bool = True
    ) -> Place:
        """Delivers what waits, and returns the place of what is computed then.

        Args:
            looked: Of the place if it cannot be delivered.
        """
        deadline = self._clock.monotonic() + DELETION_PATIENCE
        while write is not None:
            flushed = self._pump.flush_key(self.sink, key)
            if flushed.taken:
                return place
            if flushed.claimed or self._clock.monotonic() >= deadline:
                return Place(write.sequence - 1, looked)
            time.sleep(POLL)  # another flusher has it in its hands
            write, place = self._pending(journal, key)
        return place

    def _pending(self, journal: SafeJournal, key: str) -> tuple[Write | None, Place]:
        """What waits under a key, and the place of a compute that begins now."""
        try:
            self._unnoted.tell(journal.journal, self.sink.name)
            record, sequence = journal.journal.begin(self.sink.name, key)
        except TierUnavailable as error:
            self._tell("look into the journal", error)
            return None, Place(self._sequences.draw(), looked=False)
        if record is None:
            return None, Place(sequence)
        try:
            return unpacked(self._codec, record)[0], Place(sequence)
        except UnusableEntry as error:  # whoever flushes may be able to read it
            self._events.emit(Event.UNUSABLE, self.task, reason=error.reason, key=key)
            return None, Place(record.sequence - 1, looked=False)

    def deliver(
        self, key: str, args: Sequence[Any], kwargs: Mapping[str, Any], value: object, *,
        deleted: bool = False, place: Place = NEWEST, tags: Sequence[str] = (),
    ) -> bool:  # fmt: skip
        """Writes one value; true if the sink has it already, as it went past the journal.

        Args:
            key: "" for a call without one, which goes past the journal.
            place: From `begin`.
            tags: What it invalidates, escaped.

        Raises:
            JournalFull: With ``when_full="raise"``, or after ``time_limit`` with ``"block"``.
            Exception: Whatever the sink raises, where the write goes past the journal.
        """
        return not self.deliver_all([(key, args, kwargs, value)], deleted=deleted, place=place, tags=[tags])

    def deliver_all(
        self, keyed: Sequence[Keyed], *,
        deleted: bool = False, place: Place = NEWEST, tags: Sequence[Sequence[str]] = (),
    ) -> list[tuple[str, int]]:  # fmt: skip
        """The same for several writes, in one round trip. Raises as `deliver`, and may have written some of them.

        Returns:
            Key and sequence of each that the journal has taken.
        """
        writes = self._writes(keyed, deleted, place.sequence)
        taken: list[tuple[str, int]] = []
        past = writes if self._journal is None else self._behind(self._journal, writes, tags, place, taken)
        self._straight.write(past)
        return taken

    def beside(self, keyed: Sequence[Keyed], tags: Sequence[Sequence[str]]) -> BesideWrite | None:
        """The writes as one step with the puts of their entries; ``None`` where that cannot be."""
        journal = self._journal
        if journal is None or self.sink.options.durability is not None:
            return None
        writes = self._writes(keyed, False, 0)
        try:
            bodies = [(each.key, packed(self._codec, each, names)) for each, names in zip(writes, tags, strict=True)]
        except UnusableEntry:
            return None
        try:
            journal.check()
        except TierUnavailable:
            return None
        step = journal.journal.beside(self.sink.name, bodies, self.sink.options.max_pending)
        return None if step is None else BesideWrite(step, writes, bodies)

    def settle(self, done: BesideWrite) -> None:
        """What follows the step: those that the journal had no room for, or all if nobody knows, go another way.

        Raises as `deliver`.
        """
        if not isinstance(done.step.answer, list) or self._journal is None:
            self._straight.write(done.writes)
            return
        self._journal.count(self.sink, sum(sequence != FULL for sequence in done.step.answer))
        left = [at for at, sequence in enumerate(done.step.answer) if sequence == FULL]
        if left and self.sink.options.when_full == "raise":
            raise JournalFull(self.sink.name, self.sink.options.max_pending)
        if left:
            held, bodies = [done.writes[at] for at in left], [done.bodies[at] for at in left]
            through = self.sink.options.when_full == "through"
            self._straight.write(held if through else self._take(self._journal, held, bodies, NEWEST, []))

    def _writes(self, keyed: Sequence[Keyed], deleted: bool, sequence: int) -> list[Write]:
        now = self._clock.time()
        return [
            Write(self.task, tuple(args), dict(kwargs), key, value, deleted, sequence, now)
            for key, args, kwargs, value in keyed
        ]

    def overtaken(self, taken: Sequence[tuple[str, int]]) -> list[str]:
        """Keys of writes that somebody else has overtaken meanwhile, or may have. Costs: 1 round trip."""
        if not taken or self._journal is None:
            return []
        try:
            stands = self._journal.journal.stands(self.sink.name, taken)
        except TierUnavailable as error:
            self._tell("look into the journal", error)
            return [key for key, _ in taken]
        return [key for (key, _), last in zip(taken, stands, strict=True) if not last]

    def _behind(
        self, journal: SafeJournal, writes: list[Write], tags: Sequence[Sequence[str]], place: Place,
        taken: list[tuple[str, int]],
    ) -> list[Write]:  # fmt: skip
        """Those that the journal has not taken; the others go into ``taken``."""
        bodies: list[tuple[str, bytes]] = []
        held, past = list[Write](), list[Write]()
        for at, write in enumerate(writes):
            try:
                if not write.key:
                    raise UnusableEntry("without a key")
                bodies.append((write.key, packed(self._codec, write, tags[at] if at < len(tags) else ())))
                held.append(write)
            except UnusableEntry as error:
                self._events.emit(Event.UNUSABLE, self.task, reason=error.reason, key=write.key)
                # An older value that waits would go on answering, and come after this one.
                waited = bool(write.key) and self._pump.flush_key(self.sink, write.key).claimed > 0
                if place.looked or not waited:
                    past.append(write)
        if not held:
            return past
        try:
            journal.check()
            return past + self._take(journal, held, bodies, place, taken)
        except TierUnavailable as error:
            self._tell("write into the journal", error)
            return past + held

    def _take(
        self, journal: SafeJournal, held: list[Write], bodies: list[tuple[str, bytes]], place: Place,
        taken: list[tuple[str, int]],
    ) -> list[Write]:  # fmt: skip
        """Writes into the journal until it has room; returns what goes past it.

        Who waits for room helps to make it: every slot of a worker may be waiting, and none be left for a flush.
        """
        options, deadline = self.sink.options, self._clock.monotonic() + self.sink.options.time_limit
        while True:
            given = [place.sequence] * len(held) if place.sequence else ()
            sequences = journal.journal.write(
                self.sink.name, bodies, options.max_pending,
                sequences=given, yields=not place.looked, durability=options.durability,
            )  # fmt: skip
            done = [(write.key, each) for write, each in zip(held, sequences, strict=True) if each != FULL]
            taken += done
            journal.count(self.sink, len(done))
            left = [at for at, sequence in enumerate(sequences) if sequence == FULL]
            if not left:
                return []
            held, bodies = [held[at] for at in left], [bodies[at] for at in left]
            if options.when_full == "through":
                return held
            journal.ask(self.sink)
            if options.when_full == "raise" or self._clock.monotonic() >= deadline:
                raise JournalFull(self.sink.name, options.max_pending)
            if not self._pump.flush_batch(self.sink).taken:
                time.sleep(POLL)

    def _tell(self, step: str, error: TierUnavailable) -> None:
        self._events.emit(Event.FAILED_OPEN, self.task, step=step, error=str(error))
