"""Which tags the results of entries gave them when this process saw them last: a guess that saves a round trip.

A read compares tags in the round trip that brings the entry, so it must name them before it has the entry. A wrong
guess costs one round trip more, never a stale value: what counts is what the entry names.
"""

from __future__ import annotations

import threading
from typing import Final

from cachetools import LRUCache

MAX_NAMES: Final = 100_000
"""Names remembered at most, over all keys: about 10 MB."""


class SeenTags:
    """The result tags of keys, the least recently used out first.

    Concurrency: one lock.
    """

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Knows nothing, under a new lock."""
        self._lock = threading.Lock()
        self._names: LRUCache[str, tuple[str, ...]] = LRUCache(self._max_names, lambda names: len(names) + 1)

    def of(self, digest: str) -> tuple[str, ...]:
        """The names seen last; none for a key that was never seen."""
        with self._lock:
            return self._names.get(digest, ())

    def learn(self, digest: str, names: tuple[str, ...]) -> None:
        """Remembers what an entry names."""
        if len(names) < self._max_names:
            with self._lock:
                self._names[digest] = names

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<SeenTags: {len(self)} keys>"
