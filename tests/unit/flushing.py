"""What the tests of the flusher share: a sink that does as it is told, a journal in memory, records that are text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery_cachetiers.errors import UnusableEntry
from celery_cachetiers.events import Event, Events
from celery_cachetiers.flush import Flusher
from celery_cachetiers.journal_port import Journal, Record
from celery_cachetiers.testing import FakeClock, MemoryJournal
from celery_cachetiers.writes import Write

SINK = "orders"


def unpack(record: Record) -> tuple[Write, tuple[str, ...]]:
    """A body is ``value`` or ``value|tag,tag``; "!" cannot be read."""
    text = record.body.decode()
    if text == "!":
        raise UnusableEntry("undecodable")
    value, _, tags = text.partition("|")
    write = Write("task", (record.key,), {}, record.key, value, False, record.sequence, 0.0)
    return write, tuple(tags.split(",")) if tags else ()


@dataclass
class ScriptedSink:
    """A sink that remembers what it was given; ``act`` is called with the keys first, and may raise.

    Attributes:
        calls: The keys of each call.
        rows: What it has taken: key -> (sequence, value), the highest sequence of each key.
    """

    name: str = SINK
    batch_size: int = 100
    attempts: int = 3
    backoff: float = 1.0
    act: Callable[[list[str]], None] = lambda keys: None
    calls: list[list[str]] = field(default_factory=list)
    rows: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def write(self, writes: list[Write]) -> None:
        """Takes all of them, unless ``act`` raises."""
        keys = [write.key for write in writes]
        self.calls.append(keys)
        self.act(keys)
        self.take(writes)

    def take(self, writes: Sequence[Write]) -> None:
        """Keeps the highest sequence of each key."""
        for write in writes:
            self.rows[write.key] = max(self.rows.get(write.key, (0, None)), (write.sequence, write.value))

    def poison(self, *keys: str, error: Exception | None = None) -> None:
        """Fails with every call that has one of these."""

        def act(given: list[str]) -> None:
            if set(keys) & set(given):
                raise error or ValueError(f"poison in {len(given)}")

        self.act = act

    def fail(self, error: BaseException) -> None:
        """Fails with every call."""

        def act(given: list[str]) -> None:
            raise error

        self.act = act

    def heal(self) -> None:
        """Takes everything."""
        self.act = lambda keys: None


class Repeats:
    """A `Repeat` that calls when the test says so."""

    def __init__(self) -> None:
        self.acts: list[Callable[[], object]] = []
        self.every: list[float] = []

    @contextmanager
    def __call__(self, act: Callable[[], object], seconds: float) -> Iterator[None]:
        self.acts.append(act)
        self.every.append(seconds)
        try:
            yield
        finally:
            self.acts.remove(act)

    def fire(self) -> None:
        """As when it is due."""
        for act in list(self.acts):
            act()


class Stage:
    """A sink, its journal, and flushers beside each other."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.sink = FakeClock(), ScriptedSink(**options)
        self.journal = MemoryJournal(self.clock)
        self.repeat, self.events = Repeats(), Events()
        self.heard: list[tuple[Event, str, dict[str, object]]] = []
        self.events.subscribe(lambda *what: self.heard.append(what))
        self.invalidated: list[list[str]] = []
        self.flusher = self.another()

    def another(self, journal: Journal | None = None, **changes: Any) -> Flusher:
        """A flusher in another process."""
        parts: dict[str, Any] = {
            "sink": self.sink,
            "unpack": unpack,
            "invalidate": lambda tags: self.invalidated.append(list(tags)),
            "repeat": self.repeat,
            "clock": self.clock,
            "events": self.events,
            **changes,
        }
        return Flusher(journal or self.journal, **parts)

    def write(self, *keys: str, body: str = "value") -> list[int]:
        """Writes under these keys."""
        return self.journal.write(SINK, [(key, body.encode()) for key in keys], 1_000_000)

    def waiting(self) -> list[str]:
        """Keys in the journal, those that are claimed included."""
        return list(self.journal.shared.sinks[SINK].dirty)

    def due(self) -> list[str]:
        """Keys that another flusher could claim now; it gives them back at once."""
        records = self.journal.claim(SINK, "looks", 1_000_000, 10.0)
        self.journal.give_back(SINK, "looks", [(each.key, each.sequence) for each in records], 0.0, failed=False)
        return [each.key for each in records]

    def attempts(self) -> dict[str, int]:
        """Attempts of each record that has any."""
        dirty = self.journal.shared.sinks[SINK].dirty
        return {key: each.record.attempts for key, each in dirty.items() if each.record.attempts}

    def dead(self) -> list[str]:
        """Keys in the dead-letter."""
        return [each.record.key for each in self.journal.buried(SINK, 0, 1000)]

    def told(self, event: Event) -> list[dict[str, object]]:
        """Details of what was heard of one event."""
        return [details for each, _, details in self.heard if each is event]
