"""What the tiers have of a call: L1 as far as it may be trusted, L2 validated, decoded, and kept in L1 while fresh.

Every fault of L2 ends here as a miss and an event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from celery_cachetiers.call import Call
from celery_cachetiers.clock import chance
from celery_cachetiers.decisions import Freshness, freshness, refresh_is_due
from celery_cachetiers.entry import MISSING, RawEntry, pack_body
from celery_cachetiers.errors import TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event
from celery_cachetiers.leading import Inside, Leader
from celery_cachetiers.local_port import Mark, Resident
from celery_cachetiers.parts import Parts


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tier had: a value and whether it wants a refresh; or `MISSING` and an entry that is not usable.

    ``copy`` makes the value again, for a second receiver; ``seconds`` is what it took to compute.
    """

    value: object
    copy: Callable[[], object]
    stale: bool = False
    refresh: bool = False
    rejected: bytes | None = None
    seconds: float = 0.0


class Reader:
    """Reads.

    Concurrency: keeps nothing between calls.
    """

    def __init__(self, parts: Parts, leader: Leader, inside: Inside) -> None:
        self._parts, self._leader, self._inside = parts, leader, inside
        self._l1, self._store, self._clock, self._events = parts.l1, parts.store, parts.clock, parts.events

    def remembered(self, call: Call) -> Reading | None:
        """What L1 has, validated against L2 where the task or a compute around the call wants that."""
        policy = call.memo.policy
        resident = self._l1.resident(call.digest) if policy.l1 else None
        if resident is None:
            return None
        try:
            if (self._inside.digests or policy.consistency == "strict") and not self._is_current(call, resident):
                self._l1.discard(call.digest)
                return None
        except TierUnavailable as error:
            self.fail_open(call, "validate", error)
            return None
        try:
            value = resident.copy()
        except Exception:  # pickled, but not to be unpickled
            self._l1.discard(call.digest)
            return None
        self.count(call, resident)
        return Reading(value, resident.copy, seconds=resident.seconds)

    def count(self, call: Call, resident: Resident) -> None:
        """Counts a hit in L1."""
        self._l1.count(resident, call.memo.tally)
        if self._events.of_l1:
            self._events.tell_l1_hit(call.memo.task, call.digest)

    def _is_current(self, call: Call, resident: Resident) -> bool:
        if self._store is None:
            return True
        if resident.stamp is None or resident.times is None:
            return False
        tags = resident.names[:-1]  # the last is the key's own
        return self._store.confirms(call.digest, tags, resident.stamp, resident.times)

    def read(self, call: Call) -> Reading | None:
        """What L2 has under a valid stamp, fresh (then L1 has it too) or stale; ``None`` too if it cannot be asked."""
        store, policy = self._store, call.memo.policy
        if store is None:
            return None
        if self._parts.backplane is not None:
            self._parts.backplane.start()
        mark = self._l1.mark() if policy.l1 else None
        try:
            raw = store.read(call.digest, call.tags, call.guess)
        except TierUnavailable as error:
            self.fail_open(call, "read", error)
            return None
        if raw is None:
            return None
        now = self._clock.time()
        state = freshness(raw.header.times, now)
        if state is Freshness.EXPIRED:
            return None
        try:
            value = call.memo.codec.decode(raw, call.digest)
        except UnusableEntry as error:
            return Reading(MISSING, lambda: MISSING, rejected=self.reject(call, raw, error))
        copy = partial(call.memo.codec.decode, raw, call.digest)
        seconds = raw.header.times.compute_seconds
        if state is Freshness.STALE:
            return Reading(value, copy, stale=True, refresh=True, seconds=seconds)
        tags = call.tags_of(raw.header)
        if mark is not None:
            self._leader.keep(call, value, tags, raw.header.times, mark, raw.stamp)
        draw = 1.0 if policy.beta is None else 1.0 - chance.random()
        due = refresh_is_due(raw.header.times, policy, now, draw)
        return Reading(value, copy, refresh=due, seconds=seconds)

    def opened(self, call: Call, raw: RawEntry, mark: Mark, *, stale: bool) -> Reading:
        """The value of an entry that came with the answer for a lease; fresh ones go to L1 under the mark."""
        try:
            value = call.memo.codec.decode(raw, call.digest)
        except UnusableEntry as error:
            return Reading(MISSING, lambda: MISSING, rejected=self.reject(call, raw, error))
        tags = call.tags_of(raw.header)
        if not stale:
            self._leader.keep(call, value, tags, raw.header.times, mark, raw.stamp)
        copy, seconds = partial(call.memo.codec.decode, raw, call.digest), raw.header.times.compute_seconds
        return Reading(value, copy, stale=stale, seconds=seconds)

    def reject(self, call: Call, raw: RawEntry, error: UnusableEntry) -> bytes:
        """The bytes of an entry that is not to be offered again."""
        self._events.emit(Event.UNUSABLE, call.memo.task, reason=error.reason, key=call.digest)
        return pack_body(raw.header, raw.payload) + raw.stamp

    def fail_open(self, call: Call, step: str, error: TierUnavailable) -> None:
        """Tells that a call goes on without L2."""
        self._events.emit(Event.FAILED_OPEN, call.memo.task, step=step, error=str(error))
