"""Who in this process waits for which key, and how a wake-up reaches them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


def _nobody(digest: str | None) -> None:
    pass


class Waiter:
    """One thread that may have to wait. Most never do: what it takes to wait is made then.

    Attributes:
        woken: Since it was cleared last.

    Concurrency: `wake` is called under the lock of the `Waiters`, `wait` makes its event under it.
    """

    __slots__ = ("_digest", "_event", "_waiters", "woken")

    def __init__(self, waiters: Waiters, digest: str) -> None:
        self._waiters, self._digest = waiters, digest
        self._event: threading.Event | None = None
        self.woken = False

    def __enter__(self) -> Self:
        waiters = self._waiters
        with waiters._lock:
            waiters._waiting.setdefault(self._digest, set()).add(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        waiters = self._waiters
        with waiters._lock:
            waiting = waiters._waiting.get(self._digest)
            if waiting is not None:
                waiting.discard(self)
                if not waiting:
                    del waiters._waiting[self._digest]

    def clear(self) -> None:
        """Forgets wake-ups so far."""
        with self._waiters._lock:
            self.woken = False
            if self._event is not None:
                self._event.clear()

    def wake(self) -> None:
        """Ends its waiting, now or when it begins."""
        self.woken = True
        if self._event is not None:
            self._event.set()

    def wait(self, timeout: float) -> bool:
        """Waits to be woken, up to so many seconds; false if it was not."""
        with self._waiters._lock:
            if self.woken:
                return True
            event = self._event = self._event or threading.Event()
        return event.wait(timeout)


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
        self._waiting: dict[str, set[Waiter]] = {}

    def registered(self, digest: str) -> Waiter:
        """A waiter that the next wake-up of the key wakes, in the block; clear it before asking again."""
        return Waiter(self, digest)

    def wake(self, digest: str) -> None:
        """Wakes those who wait for one key."""
        with self._lock:
            for waiter in self._waiting.get(digest, ()):
                waiter.wake()
        self.told(digest)

    def wake_all(self) -> None:
        """Wakes everybody: a wake-up may have been lost."""
        with self._lock:
            for waiting in self._waiting.values():
                for waiter in waiting:
                    waiter.wake()
        self.told(None)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __repr__(self) -> str:
        return f"<Waiters: {len(self)} for {len(self._waiting)} keys>"
