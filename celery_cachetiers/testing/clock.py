"""Time that passes when a test says so."""

from __future__ import annotations

import threading


class FakeClock:
    """A `celery_cachetiers.clock.Clock` that stands still until it is told to go on.

    Concurrency: any thread may read and advance it.

    Args:
        now: Epoch seconds to begin with. The monotonic side begins elsewhere, so that a mix-up of the two shows.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._lock = threading.Lock()
        self._start, self._passed = now, 0.0

    def time(self) -> float:
        """Epoch seconds."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return 1000.0 + self._passed

    def advance(self, seconds: float) -> None:
        """Lets so many seconds pass, at once."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds!r}")
        with self._lock:
            self._passed += seconds

    def __repr__(self) -> str:
        return f"<FakeClock: {self._passed} s since {self._start}>"
