"""Which keys are asked for most, in this process: a small summary that is taken, and begun anew, with each merge.

It decides what is forgotten when there is no room. Hits in L1 are counted where they happen, on the entry; all other
calls come as events. Nothing here grows with the number of keys.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Final

from celery_cachetiers.events import Event
from celery_cachetiers.local_port import Heat
from celery_cachetiers.stats_port import HotKey
from celery_cachetiers.tag_names import task_of

CAPACITY: Final = 100
"""Keys that are told apart, in a process and of one merge: whatever has more than a hundredth of its calls is there."""


class Frequent:
    """The most frequent of many items, in the room of a few.

    Holds up to twice its capacity. Then it takes as much from every count as leaves no more than the capacity, and
    forgets what comes to nothing. An item with more than ``1 / (capacity + 1)`` of all that was added is therefore
    never forgotten, and no count is too low by more than that share, nor ever too high.

    Concurrency: its owner's lock.

    Costs: a dict's lookup; every so often, O(capacity).

    Source: Misra and Gries, "Finding repeated elements" (1982); Agarwal et al., "Mergeable summaries" (PODS 2012).
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity, self._counts = capacity, dict[HotKey, int]()

    def add(self, item: HotKey, count: int = 1) -> None:
        """Counts an item."""
        counts = self._counts
        counts[item] = counts.get(item, 0) + count
        if len(counts) > 2 * self._capacity:
            self._shrink()

    def top(self) -> dict[HotKey, int]:
        """The most frequent ones, as many as the capacity at most."""
        rows = sorted(self._counts.items(), key=lambda row: -row[1])
        return dict(rows[: self._capacity])

    def _shrink(self) -> None:
        less = sorted(self._counts.values(), reverse=True)[self._capacity]
        self._counts = {item: count - less for item, count in self._counts.items() if count > less}

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"<Frequent: {len(self)} of {self._capacity}>"


class HotKeys:
    """The keys of this process' calls; subscribe it to `EVENTS`, and not to the hits of L1, which counts its own.

    Concurrency: one lock of its own; L1 counts under its own, and hands over what it has counted.
    """

    EVENTS: Final = (Event.HIT, Event.MISS, Event.COALESCED)

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Nothing was called yet."""
        self._lock, self._keys = threading.Lock(), Frequent()

    def __call__(self, event: Event, task: str, details: dict[str, Any]) -> None:
        key = details.get("key")
        if key is not None:
            with self._lock:
                self._keys.add((task, key))

    def take(self, warm: Iterable[tuple[Heat, int]] = ()) -> dict[HotKey, int]:
        """The most frequent ones since it was asked last, with what L1 has counted meanwhile."""
        with self._lock:
            keys, self._keys = self._keys, Frequent()
        for heat, hits in warm:
            keys.add((next(filter(None, map(task_of, heat.names)), ""), heat.digest), hits)
        return keys.top()

    def __repr__(self) -> str:
        return f"<HotKeys: {self._keys!r}>"
