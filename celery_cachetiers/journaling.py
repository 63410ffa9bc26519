"""One process' side of the journal: is it safe, when is a flush asked for, and what is kept while it is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from celery_cachetiers.clock import Clock
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.journal_port import Journal
from celery_cachetiers.sinks import Sink

logger = logging.getLogger("celery_cachetiers")

ASK_EVERY: Final = 1.0
"""Seconds at least between two messages of a process that ask for a flush of a full journal."""


CHECK_EVERY: Final = 30.0
"""Seconds at most that a process writes into the journal without a look at how its server is configured."""

UNNOTED: Final = 10_000
"""Keys of a sink at most whose writes have gone past a journal that did not answer, and are to be noted in it."""


@dataclass(slots=True)
class SafeJournal:
    """The journal of this process, looked at before the first write, and again and again: a server is reconfigured, or
    another one takes its place, while it is written to.

    Attributes:
        journal: Where writes wait.
        send_flush: Asks a worker to flush a sink.
        monotonic: Seconds of a clock that never goes back.
    """

    journal: Journal
    send_flush: Callable[[str], None]
    monotonic: Callable[[], float]
    _checked_at: float | None = None
    _unsafe: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _written: dict[str, int] = field(default_factory=dict)
    _asked: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Looks as soon as the server answers, and then every `CHECK_EVERY` seconds.

        Raises:
            ConfigurationError: The server may lose records by its own configuration, and has from the start.
            TierUnavailable: It may since; or it does not answer.

        Costs: nothing; where a look is due 1 round trip.
        """
        at = self._checked_at
        if at is None or self.monotonic() >= at + CHECK_EVERY:
            self.look()
        elif self._unsafe is not None:
            raise TierUnavailable(self._unsafe)

    def look(self) -> None:
        """The same, now. Costs: 1 round trip."""
        reason = self.journal.unsafe()
        if reason is not None and self._checked_at is None:
            allowed = f"a server that keeps what it has, or write='through': {reason}"
            raise ConfigurationError("cachetiers_journal_url", "(the journal's Redis)", allowed)
        before, self._unsafe, self._checked_at = self._unsafe, reason, self.monotonic()
        if reason is None:
            return
        if before is None:
            logger.error(
                "celery-cachetiers: the journal's Redis is safe no more, what is written goes to its sink at once: %s",
                reason,
            )
        raise TierUnavailable(reason)

    def look_in_passing(self) -> None:
        """Looks, and raises nothing: what waits in a journal that is not safe must go to its sink all the sooner."""
        try:
            self.look()
        except ConfigurationError as error:
            logger.error("celery-cachetiers: %s", error)
        except TierUnavailable:
            pass

    def look_again(self) -> None:
        """Has the next write look, as the server may be another one."""
        if self._checked_at is not None:
            self._checked_at = float("-inf")

    def count(self, sink: Sink, writes: int) -> None:
        """Counts what this process has written; each full batch asks for a flush, which beat may be far from."""
        with self._lock:
            before = self._written.get(sink.name, 0)
            self._written[sink.name] = (before + writes) % sink.options.batch_size
        if before + writes >= sink.options.batch_size:
            self.send_flush(sink.name)

    def ask(self, sink: Sink) -> None:
        """Asks for a flush, however many writes find the journal full: once in a while."""
        with self._lock:
            now = self.monotonic()
            if now < self._asked.get(sink.name, now - ASK_EVERY) + ASK_EVERY:
                return
            self._asked[sink.name] = now
        self.send_flush(sink.name)

    def reset_after_fork(self) -> None:
        """Under a new lock."""
        self._lock = threading.Lock()
        self._written, self._asked = {}, {}


class LocalSequences:
    """Sequences of this process, for while the journal's cannot be drawn: the clock in microseconds, never twice."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Under a new lock."""
        self._lock, self._last = threading.Lock(), 0

    def draw(self) -> int:
        """The next one."""
        with self._lock:
            self._last = max(self._last + 1, int(self._clock.time() * 1_000_000))
            return self._last


class Unnoted:
    """Writes that have gone past a journal which could not be told of them: it is told as soon as it answers.

    Until then it may hold an older write of the same key, which would answer in place of the body and be flushed.

    Concurrency: threads may share it; what two of them tell twice does no harm.
    """

    def __init__(self) -> None:
        self._sequences: dict[str, dict[str, int]] = {}

    def add(self, sink: str, taken: Sequence[tuple[str, int]]) -> None:
        """Keeps these; of too many the first are forgotten."""
        kept = self._sequences.setdefault(sink, {})
        for key, sequence in taken:
            kept[key] = max(kept.get(key, 0), sequence)
        for key in list(kept)[: max(len(kept) - UNNOTED, 0)]:
            kept.pop(key, None)

    def tell(self, journal: Journal, sink: str, *, must_try: bool = False) -> None:
        """Notes what is kept. Raises and ``must_try`` as `Journal.note`. Costs: nothing if there is nothing."""
        kept = self._sequences.pop(sink, None)
        if not kept:
            return
        taken = list(kept.items())
        try:
            journal.note(sink, taken, must_try=must_try)
        except TierUnavailable:
            self.add(sink, taken)
            raise

    def reset_after_fork(self) -> None:
        """The parent tells it."""
        self._sequences = {}
