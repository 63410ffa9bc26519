"""Write-behind's way out: batches from a journal to a sink, until nothing is due.

It decides how long to go on. What becomes of one batch is decided in `celery_cachetiers.delivery`.
"""

from __future__ import annotations

import secrets

from celery_cachetiers.clock import Clock
from celery_cachetiers.delivery import CLAIM_SECONDS, Delivery, Flushed, Route
from celery_cachetiers.events import Event, Events
from celery_cachetiers.journal_port import Invalidate, Journal, Repeat, SinkPort, Unpack
from celery_cachetiers.trouble import Trouble

__all__ = ["Flushed", "Flusher"]


class Flusher:
    """Moves the records of one sink from the journal to it: at least once, and in order for each key.

    A flusher may be killed at any point: what it had claimed comes free within ``claim_seconds``, and the next one
    delivers it again, also if the sink had taken it.

    Concurrency: any number of flushers, in any process and thread; a record is in the hands of one of them. Threads may
    share one flusher.

    Args:
        journal: Where the writes wait.
        sink: Where they go.
        unpack: Reads a record. One that cannot be read is buried.
        invalidate: Called with the tags of what the sink has taken, before it is acknowledged.
        repeat: Keeps claims alive while a slow sink writes.
        interrupts: Exceptions that are not the sink's own though they come out of it, such as Celery's soft time limit;
            what is not an `Exception` is one anyway.
        claim_seconds: How long a batch is nobody else's after its flusher was killed; a living one renews its claim
            at a third of it.
    """

    def __init__(
        self, journal: Journal, sink: SinkPort, unpack: Unpack, invalidate: Invalidate, *,
        repeat: Repeat, clock: Clock, events: Events, interrupts: tuple[type[BaseException], ...] = (),
        claim_seconds: float = CLAIM_SECONDS,
    ) -> None:  # fmt: skip
        self._route = Route(journal, sink, unpack, invalidate, repeat, events, interrupts, claim_seconds)
        self._monotonic, self._trouble = clock.monotonic, Trouble()

    def flush(self, limit_seconds: float) -> Flushed:
        """Delivers batches until nothing is due, the sink is down, or time is up; at least one.

        Args:
            limit_seconds: No batch is begun after it.

        Raises:
            TierUnavailable: The journal is away.
        """
        deadline = self._monotonic() + limit_seconds
        flushed = Flushed()
        while True:
            batch = self._deliver(self._route.sink.batch_size)
            flushed += batch
            if not batch.claimed or batch.left or self._monotonic() >= deadline:
                return flushed

    def flush_key(self, key: str) -> Flushed:
        """Delivers one key now, whether it is due or not; does nothing if another flusher has it, or if it is clean.

        Raises:
            TierUnavailable: The journal is away.
        """
        return self._deliver(1, key)

    def _deliver(self, limit: int, key: str = "") -> Flushed:
        journal, sink = self._route.journal, self._route.sink
        began, token = self._monotonic(), secrets.token_hex(8)
        records = journal.claim(sink.name, token, limit, self._route.claim_seconds, key)
        if not records:
            return Flushed()
        done = Delivery(self._route, self._trouble, token, records).run()
        self._route.events.emit(
            Event.FLUSHED, sink=sink.name, seconds=self._monotonic() - began,
            taken=done.taken, failed=done.failed, buried=done.buried, left=done.left,
        )  # fmt: skip
        return done

    def __repr__(self) -> str:
        return f"<Flusher: {self._route.sink.name}, {self._trouble!r}>"
