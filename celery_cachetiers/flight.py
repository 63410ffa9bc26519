"""Single flight inside one process: one thread asks L2 and computes, the others share what it brought.

It decides who leads a key in this process. Whether a shared value is new enough for a follower is the follower's
question: it compares `Landing.validated_at` with the moment it joined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from celery_cachetiers.local_port import Mark


class Landing(NamedTuple):
    """What a leader brought back.

    Attributes:
        copy: Makes a value that its receiver may change; ``None`` if the value cannot be shared at all.
        validated_at: Monotonic instant at or after which no invalidation is missed in the value.
        error: Makes the exception that it ended in, if that is shared.
        seconds: What the value took to compute.
    """

    copy: Callable[[], object] | None
    validated_at: float
    error: Callable[[], BaseException] | None = None
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Flight:
    """One lead under way.

    Attributes:
        mark: State of L1 when it began: an invalidation since then dooms its value.
        holder: Token of the lease that its leader holds or waits for; written by the leader.
        landing: What it brought; written once, by the leader, before ``done`` is set.
        done: Set when it has ended; made for the first follower, under the lock of the table.
    """

    mark: Mark
    holder: str = ""
    landing: Landing | None = None
    done: threading.Event | None = None


class Flights:
    """The flights of this process, by key.

    Concurrency: the table changes under one lock. A flight leaves it before its followers are woken, and only its own
    leader or a named successor takes it out: a newcomer joins the flight in the table or starts the only one.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Starts with an empty table and a new lock."""
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def join(self, digest: str, mark: Mark, instead_of: Flight | None = None) -> tuple[Flight, bool]:
        """The key's flight, and whether the caller leads it (and must end it with `land`).

        Args:
            instead_of: A flight that the caller waits for no longer: it leaves the table, if it is still in there, and
                exactly one of those who give it up leads its successor.
        """
        with self._lock:
            flight = self._flights.get(digest)
            if flight is not None and flight is not instead_of:
                if flight.done is None:
                    flight.done = threading.Event()
                return flight, False
            flight = self._flights[digest] = Flight(mark)
            return flight, True

    def under_way(self, digest: str) -> bool:
        """Whether this process leads the key now; to look at."""
        with self._lock:
            return digest in self._flights

    def land(self, digest: str, flight: Flight) -> None:
        """Ends the flight, and wakes its followers; its leader calls it however its lead has ended."""
        with self._lock:
            if self._flights.get(digest) is flight:
                del self._flights[digest]
            done = flight.done
        if done is not None:
            done.set()

    def __repr__(self) -> str:
        return f"<Flights: {len(self._flights)} under way>"
