"""Single flight inside one process: one thread asks L2 and computes, the others share what it brought.

It decides who leads a key in this process. Whether a shared value is new enough for a follower is the follower's
question: it compares `Landing.validated_at` with the moment it joined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Landing:
    """What a leader brought back.

    Attributes:
        copy: Makes a value that its receiver may change; ``None`` if the value cannot be shared at all.
        validated_at: Monotonic instant at or after which no invalidation is missed in the value.
    """

    copy: Callable[[], object] | None
    validated_at: float


@dataclass(slots=True, eq=False)
class Flight:
    """One lead under way. ``landing`` is written once, by its leader, before ``done`` is set."""

    done: threading.Event = field(default_factory=threading.Event)
    landing: Landing | None = None


class Flights:
    """The flights of this process, by key.

    Concurrency: the table changes under one lock. A flight leaves it before its followers are woken, and is never
    replaced while it is in: a newcomer joins the flight in the table or starts the only one.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Starts with an empty table and a new lock."""
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def join(self, digest: str) -> tuple[Flight, bool]:
        """The key's flight, and whether the caller leads it (and must `land` it)."""
        with self._lock:
            flight = self._flights.get(digest)
            if flight is not None:
                return flight, False
            flight = self._flights[digest] = Flight()
            return flight, True

    @contextmanager
    def landing(self, digest: str, flight: Flight) -> Iterator[None]:
        """Ends the flight however the block ends, and wakes its followers."""
        try:
            yield
        finally:
            with self._lock:
                if self._flights.get(digest) is flight:
                    del self._flights[digest]
            flight.done.set()

    def __repr__(self) -> str:
        return f"<Flights: {len(self._flights)} under way>"
