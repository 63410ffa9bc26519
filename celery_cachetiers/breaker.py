"""When to leave a failing server alone: a dead Redis costs one timeout per window, not one per call."""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery_cachetiers.clock import Clock


class Breaker:
    """Closed until a failure, then open for a window, then one caller probes.

    Concurrency: `allows` reads one float while closed; the lock is taken only while open and to change state, and
    never held during a call (so that threads do not queue behind a timeout).

    Args:
        window: Seconds to leave the server alone after a failure; 0 never opens.
        on_change: Called with True when it opens and with False when it closes.
    """

    def __init__(self, window: float, clock: Clock, on_change: Callable[[bool], None] = lambda opened: None) -> None:
        self._window, self._monotonic, self._on_change = window, clock.monotonic, on_change
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Closed, with a new lock."""
        self._lock = threading.Lock()
        self._open_until: float | None = None

    @property
    def closed(self) -> bool:
        """Whether the server has answered last; asks for no probe."""
        return self._open_until is None

    def allows(self) -> bool:
        """Whether to try now. While open, true for one caller per window: the probe."""
        if self._open_until is None:
            return True
        with self._lock:
            now, until = self._monotonic(), self._open_until
            if until is not None and now < until:
                return False
            self._open_until = None if until is None else now + self._window
            return True

    def failed(self) -> None:
        """The server did not answer."""
        if not self._window:
            return
        with self._lock:
            opened = self._open_until is None
            self._open_until = self._monotonic() + self._window
        if opened:
            self._on_change(True)

    def succeeded(self) -> None:
        """The server answered."""
        if self._open_until is None:
            return
        with self._lock:
            before, self._open_until = self._open_until, None
        if before is not None:
            self._on_change(False)

    def __repr__(self) -> str:
        return f"<Breaker: {'closed' if self._open_until is None else 'open'}>"
