"""L1: entries in this process' memory, and when they may not be trusted.

It decides what a hit is: present, not past its time, no tag of it invalidated since it was read, and the backplane
heard of lately. There is no index of tags: an announcement advances one sequence and writes it into the slot
``hash(name) mod 4096``; an entry carries the sequence from before its L2 read or lease and is a hit only while none of
its slots is above it. Two tags in one slot cost a needless miss, never a stale hit.
"""

from __future__ import annotations

import math
import pickle
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from cachetools import Cache, LRUCache

from celery_cachetiers.clock import Clock
from celery_cachetiers.entry import MISSING, Times
from celery_cachetiers.local_port import Heat, L1Count, Mark, Resident, Standing

SLOTS: Final = 4096
OVERHEAD: Final = 464
"""Bytes of bookkeeping that an entry costs besides its value, measured with tracemalloc on CPython 3.11."""
WARM: Final = 2000
"""Entries whose own hits are counted between two readings. What comes later is not among the hottest: an entry with one
hit in a hundred is among the first two thousand that are hit, but once in a billion times."""

IMMUTABLE: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, Decimal, UUID, date, datetime, time, timedelta}
)


def copier(value: object, *, copy: bool = True) -> tuple[Callable[[], object], int] | None:
    """A function that returns the value again and again, and about how many bytes it keeps.

    Immutable scalars, and everything with ``copy=False``, are shared; the rest is pickled once and unpickled for
    every receiver (the bytes never leave the process). ``None`` if the value cannot be pickled.
    """
    if type(value) in IMMUTABLE:
        return (lambda: value), sys.getsizeof(value)
    try:
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return None
    if not copy:
        return (lambda: value), len(pickled)
    return (lambda: pickle.loads(pickled)), len(pickled)


class _Entries(LRUCache[str, Resident]):
    """Counts what goes for want of room, for the tier and for the task.

    Attributes:
        evictions: Entries that went so far.
    """

    evictions = 0

    def popitem(self) -> tuple[str, Resident]:
        digest, resident = super().popitem()
        self.evictions += 1
        if resident.tally is not None:
            resident.tally.l1_evictions += 1
        return digest, resident


class MemoryTier:
    """Bounded, least recently used out first.

    Concurrency: one lock guards entries, sequence and slots; values are copied outside it. `trusted_until` is one
    float that the backplane's thread writes and everybody reads.

    Args:
        maxsize: Entries at most.
        max_bytes: Bytes at most, bookkeeping included.
        clock: Only its monotonic side is used.
        trusted: False until a backplane reports; True where there is no L2 to disagree with.
    """

    def __init__(self, maxsize: int, max_bytes: int, clock: Clock, *, trusted: bool) -> None:
        self._maxsize, self._max_bytes = maxsize, max_bytes
        self._monotonic = clock.monotonic
        self._trusted_from_start = math.inf if trusted else -math.inf
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Empty, with a new lock, and trusted only as at the start."""
        self._lock = threading.Lock()
        self._entries = _Entries(self._max_bytes, lambda resident: resident.size)
        self._generation = 0
        self._sequence = 0
        self._slots = array("Q", bytes(8 * SLOTS))
        self._warm: list[Heat] = []
        self.trusted_until = self._trusted_from_start

    def get(self, digest: str, tally: L1Count) -> object:
        """A value of its own for the caller, or `MISSING`. Costs: no I/O."""
        now = self._monotonic()
        if now >= self.trusted_until:
            return MISSING
        with self._lock:
            resident = self._live(digest, now)
            if resident is None:
                return MISSING
            tally.l1_hits += 1
            tally.l1_seconds_saved += resident.seconds
            heat = resident.heat
            if heat.hits:
                heat.hits += 1
            else:
                self._first_hit(heat)
        try:
            return resident.copy()
        except Exception:  # pickled, but not to be unpickled
            with self._lock:
                tally.l1_hits -= 1
                tally.l1_seconds_saved -= resident.seconds
            self.discard(digest)
            return MISSING

    def resident(self, digest: str) -> Resident | None:
        """The entry behind a hit, not counted, for callers that validate its stamp before they copy it."""
        now = self._monotonic()
        if now >= self.trusted_until:
            return None
        with self._lock:
            return self._live(digest, now)

    def standing(self, digest: str) -> Standing | None:
        """What lies under a key, for who only looks."""
        now = self._monotonic()
        with self._lock:
            if digest not in self._entries:
                return None
            resident: Resident = Cache.__getitem__(self._entries, digest)  # past LRUCache, for which that were a use
            touched = not self._untouched(resident.slots, resident.sequence)
        return Standing(resident, resident.expires - now, touched)

    def count(self, resident: Resident, tally: L1Count) -> None:
        """Counts a hit that was made of `resident`."""
        with self._lock:
            tally.l1_hits += 1
            tally.l1_seconds_saved += resident.seconds
            heat = resident.heat
            if heat.hits:
                heat.hits += 1
            else:
                self._first_hit(heat)

    def take_warm(self) -> list[tuple[Heat, int]]:
        """The entries that were hit since this was asked last, and how often; those that are gone by now too."""
        with self._lock:
            warm, self._warm = self._warm, []
            taken = [(heat, heat.hits) for heat in warm]
            for heat in warm:
                heat.hits = 0
        return taken

    def trusted(self) -> bool:
        """Whether the backplane has been heard of lately."""
        return self._monotonic() < self.trusted_until

    def mark(self) -> Mark:
        """To be taken before the L2 read or the lease whose value is put later."""
        with self._lock:
            return Mark(self._generation, self._sequence)

    def current(self, mark: Mark, names: Iterable[str]) -> bool:
        """Whether nothing that touches the names has happened since the mark."""
        slots = slots_of(names)
        with self._lock:
            return mark.generation == self._generation and self._untouched(slots, mark.sequence)

    def put(
        self,
        digest: str,
        value: object,
        names: tuple[str, ...],
        ttl: float,
        mark: Mark,
        *,
        stamp: bytes | None = None,
        times: Times | None = None,
        copy: bool = True,
        tally: L1Count | None = None,
    ) -> bool:
        """Keeps a value for up to so many seconds; false if it was refused.

        Args:
            names: Its tags and its own key's name: whose announcement ends it.
            mark: Taken before the value was read or its compute started.
            tally: Where it counts if it has to go for want of room.
        """
        now = self._monotonic()
        if now >= self.trusted_until:
            return False
        kept = copier(value, copy=copy)
        if kept is None or kept[1] + OVERHEAD > self._max_bytes:
            self.discard(digest)  # an older value must not outlive the newer one that cannot be kept
            return False
        slots = slots_of(names)
        seconds = times.compute_seconds if times is not None else 0.0
        resident = Resident(
            kept[0], kept[1] + OVERHEAD, now + ttl, mark.sequence, slots, stamp, Heat(digest, names),
            times, names, seconds, tally,
        )  # fmt: skip
        with self._lock:
            if now >= self.trusted_until or mark.generation != self._generation:
                return False
            if mark.sequence != self._sequence and not self._untouched(slots, mark.sequence):
                return False
            if digest in self._entries:
                del self._entries[digest]  # what is replaced is not evicted
            self._entries[digest] = resident
            while len(self._entries) > self._maxsize:
                self._entries.popitem()
        return True

    def invalidate(self, names: Iterable[str]) -> None:
        """Makes misses of all entries under the names, and refuses puts under older marks."""
        slots = slots_of(names)
        with self._lock:
            self._sequence += 1
            for slot in slots:
                self._slots[slot] = self._sequence

    def discard(self, digest: str) -> None:
        """Drops one entry of this process; others are not told."""
        with self._lock:
            self._entries.pop(digest, None)

    def clear(self) -> None:
        """Drops everything and refuses puts under older marks."""
        with self._lock:
            self._generation += 1
            self._entries.clear()

    def distrust(self) -> None:
        """The backplane has a gap: no hit and no put until it reports again, and none from before."""
        self.trusted_until = self._trusted_from_start
        self.clear()

    @property
    def evictions(self) -> int:
        """Entries that went for want of room, since the process began."""
        return self._entries.evictions

    @property
    def bytes(self) -> int:
        """What its entries take now, bookkeeping included."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        trusted = "trusted" if self._monotonic() < self.trusted_until else "not trusted"
        return f"<MemoryTier: {len(self)} entries, {self.bytes} bytes, {trusted}>"

    def _live(self, digest: str, now: float) -> Resident | None:
        try:
            resident = self._entries[digest]
        except KeyError:
            return None
        sequence = resident.sequence
        if now < resident.expires and (sequence == self._sequence or self._untouched(resident.slots, sequence)):
            return resident
        del self._entries[digest]
        return None

    def _first_hit(self, heat: Heat) -> None:
        """Of those since `take_warm`."""
        if len(self._warm) < WARM:
            heat.hits = 1
            self._warm.append(heat)

    def _untouched(self, slots: tuple[int, ...], sequence: int) -> bool:
        return all(self._slots[slot] <= sequence for slot in slots)


def slots_of(names: Iterable[str]) -> tuple[int, ...]:
    """The slots of some names, each once."""
    return tuple({hash(name) % SLOTS for name in names})
