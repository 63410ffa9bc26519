"""Who in this process waits for which key, and how a wake-up reaches them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nobody(digest: str | None) -> None:
    pass


class Waiters:
    """The waiting threads of this process, by key.

    Attributes:
        told: Called with each key that is woken, and with ``None`` when all are, in the thread that wakes them.

    Concurrency: the table changes under one lock; a waiter registers before it asks L2 for the lease, so that a
    wake-up that comes between the answer and the waiting finds it.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Nobody waits, and nobody is told."""
        self.told: Callable[[str | None], None] = _nobody
        self._lock = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}

    @contextmanager
    def registered(self, digest: str) -> Iterator[threading.Event]:
        """An event that the next wake-up of the key sets; clear it before asking again."""
        event = threading.Event()
        with self._lock:
            self._waiting.setdefault(digest, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                waiting = self._waiting.get(digest)
                if waiting is not None:
                    waiting.discard(event)
                    if not waiting:
                        del self._waiting[digest]

    def wake(self, digest: str) -> None:
        """Wakes those who wait for one key."""
        with self._lock:
            for event in self._waiting.get(digest, ()):
                event.set()
        self.told(digest)

    def wake_all(self) -> None:
        """Wakes everybody: a wake-up may have been lost."""
        with self._lock:
            for waiting in self._waiting.values():
                for event in waiting:
                    event.set()
        self.told(None)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __repr__(self) -> str:
        return f"<Waiters: {len(self)} for {len(self._waiting)} keys>"
