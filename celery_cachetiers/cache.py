"""The read and write flow: L1, then L2, then one compute under a lease. What to do is decided in `decisions`.

Every fault of L2 ends here: a read goes on without it, and the task's own exception is the only one that leaves
`TieredCache.fetch`. Explicit writes and invalidations let the fault through, as nobody else would hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from celery_cachetiers.attempt import ANY_HOLDER, Attempt
from celery_cachetiers.call import Call
from celery_cachetiers.clock import Clock, chance
from celery_cachetiers.decisions import (
    Action,
    Freshness,
    Waiting,
    after_lease,
    freshness,
    refresh_is_due,
    times_of,
)
from celery_cachetiers.entry import MISSING, NONCE_BYTES, RawEntry, pack_body, unpack
from celery_cachetiers.errors import TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event, Events
from celery_cachetiers.flight import Flights, Landing
from celery_cachetiers.leading import Inside, Leader, Lease
from celery_cachetiers.ports import (
    Backplane,
    Compute,
    Found,
    Held,
    Leading,
    LocalTier,
    Mark,
    Renewer,
    Resident,
    Store,
    WakeUps,
)
from celery_cachetiers.templates import key_tag, namespace_tag, task_tag

UNPUSHED_WAIT = 0.1
"""Seconds between two looks of a follower whom no wake-up can reach, as the backplane is away."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tier had: a value and whether it wants a refresh; or `MISSING` and an entry that is not usable.

    ``copy`` makes the value again, for a second receiver.
    """

    value: object
    copy: Callable[[], object]
    stale: bool = False
    refresh: bool = False
    rejected: bytes | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a cache is made of. Without a store there is neither backplane nor keeper, and L1 is all there is."""

    l1: LocalTier
    wake_ups: WakeUps
    clock: Clock
    events: Events
    store: Store | None = None
    backplane: Backplane | None = None
    keeper: Renewer | None = None


class TieredCache:
    """Memoizes calls.

    Concurrency: thread-safe; after a fork the child must call `reset_after_fork` first.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.events = parts, parts.events
        self._l1, self._store, self._clock = parts.l1, parts.store, parts.clock
        self._flights, self._inside = Flights(), Inside()
        self._leader = Leader(parts.l1, parts.clock, parts.events, self._inside)

    def reset_after_fork(self) -> None:
        """Leaves everything that belongs to the parent process."""
        parts = self.parts
        for part in (parts.l1, parts.store, parts.backplane, parts.keeper, parts.wake_ups, self._flights):
            if part is not None:
                part.reset_after_fork()
        self._inside.digests = ()

    def close(self) -> None:
        """Ends threads and connections of this process."""
        for part in (self.parts.keeper, self.parts.backplane, self._store):
            if part is not None:
                part.close()

    # -- reading ----------------------------------------------------------------------------------------------------

    def recall(self, call: Call) -> object:
        """The value in L1, or `MISSING`. Costs: nothing; a strict read 1 round trip."""
        memo = call.memo
        if not memo.policy.l1:
            return MISSING
        if self._inside.digests or memo.policy.consistency == "strict":
            reading = self._remembered(call)
            return MISSING if reading is None else reading.value
        return self._l1.get(call.digest, memo.tally)

    def look(self, call: Call) -> Reading | None:
        """The value in L1 or L2, stale ones included; ``None`` for a miss, or when L2 cannot be asked.

        Costs: an L1 hit nothing, else 1 round trip.
        """
        reading = self._remembered(call)
        if reading is not None:
            return reading
        reading = self._read(call)
        if reading is None or reading.value is MISSING:
            return None
        self.events.emit(Event.HIT, call.memo.task, tier="l2", stale=reading.stale)
        return reading

    def fetch(
        self, call: Call, compute: Compute, *, claim: str = "", looked: bool = False, refresh: bool = False
    ) -> object:
        """The call's value after L1 has missed (`recall`): from L2, computed, or another's compute waited for.

        Args:
            compute: Runs the body; its exceptions pass through.
            claim: The task id, to which a lease may have been handed.
            looked: The caller has just missed: L2 is not read again before the lease, which looks too.
            refresh: Compute even so, and replace.

        Costs: L2 hit 1 round trip, miss 3 (look, lease, commit; 2 if ``looked``).
        """
        if call.digest in self._inside.digests:
            return compute()
        arrived = self._clock.monotonic()
        reading = None if looked or refresh else self._read(call)
        if reading is not None and reading.value is not MISSING and not reading.stale:
            self.events.emit(Event.HIT, call.memo.task, tier="l2", stale=False)
            return reading.value
        attempt = Attempt(call, compute, arrived, claim, refresh)
        if reading is not None:
            attempt.rejected, attempt.stale = reading.rejected, reading.value
        if refresh or call.memo.policy.coalesce is False:
            attempt.take_over = ANY_HOLDER
            return self._descend(attempt)[0]
        return self._fly(attempt)

    # -- writing ----------------------------------------------------------------------------------------------------

    def put(self, call: Call, value: object, ttl: float | None = None) -> None:
        """Replaces an entry; a leader that computes from an older state is refused.

        Raises:
            UnusableEntry: The value cannot be stored.
            TierUnavailable: L2 was not reached, or would not store it.

        Costs: 1 round trip.
        """
        policy = call.memo.policy
        times = times_of(policy, policy.ttl if ttl is None else ttl, self._clock.time(), 0.0, chance.random())
        body = call.memo.codec.encode(value, times, call.tags, call.digest)
        hard_ttl = times.expires_at - times.computed_at
        try:
            if self._store is not None:
                keep_for = max(policy.hard_ttl, hard_ttl) + policy.lease_ttl
                request = replace(Attempt(call).request(times.computed_at), keep_for=keep_for)
                self._store.put(request, body, hard_ttl)
        finally:
            self._l1.invalidate([key_tag(call.digest)])
        if self._store is None:
            raw = unpack(body + bytes(NONCE_BYTES * len(call.tags)))
            decoded = call.memo.codec.decode(raw, call.digest)
            self._leader.keep(call, decoded, times, self._l1.mark(), None)
        self.events.emit(Event.STORED, call.memo.task, key=call.digest, size=len(body))

    def invalidate_key(self, digest: str, task: str = "") -> None:
        """Removes an entry, and refuses a leader that computes it now. Raises `TierUnavailable`."""
        try:
            if self._store is not None:
                self._store.fence(digest)
        finally:
            self._l1.invalidate([key_tag(digest)])
        self.events.emit(Event.INVALIDATED, task, names=(key_tag(digest),))

    def invalidate(self, tags: Sequence[str]) -> None:
        """Makes everything under the tags a miss. Raises `TierUnavailable` when that is not certain.

        Args:
            tags: Escaped names.

        Costs: 1 round trip, whatever the number of entries.
        """
        if not tags:
            return
        try:
            if self._store is not None:
                self._store.invalidate(tags)
        finally:
            self._l1.invalidate(tags)
        self.events.emit(Event.INVALIDATED, names=tuple(tags))

    def clear(self, task: str | None = None) -> None:
        """Makes every entry of a task, or of the namespace, a miss. Costs and errors as `invalidate`."""
        self.invalidate([namespace_tag() if task is None else task_tag(task)])

    def hand_over(self, call: Call, task_id: str, *, only_if_stale: bool) -> bool:
        """Takes the key's lease for a refresh message about to be sent; false if somebody else computes already."""
        if self._store is None:
            return False
        now = self._clock.time()
        look_at = now if only_if_stale else None
        request = replace(Attempt(call).request(now), now=look_at, hand_to=task_id, will_wait=False)
        try:
            return isinstance(self._store.lease(request), Leading)
        except TierUnavailable as error:
            self._fail_open(call, "hand over", error)
            return False

    # -- on the way to a value --------------------------------------------------------------------------------------

    def _remembered(self, call: Call) -> Reading | None:
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
            self._fail_open(call, "validate", error)
            return None
        try:
            value = resident.copy()
        except Exception:  # pickled, but not to be unpickled
            self._l1.discard(call.digest)
            return None
        self.events.emit(Event.HIT, call.memo.task, tier="l1", stale=False)
        return Reading(value, resident.copy)

    def _is_current(self, call: Call, resident: Resident) -> bool:
        if self._store is None:
            return True
        if resident.stamp is None or resident.times is None:
            return False
        return self._store.confirms(call.digest, call.tags, resident.stamp, resident.times)

    def _fly(self, attempt: Attempt) -> object:
        """Leads in this process, or shares what the leader brings.

        A flight is given up, and replaced by one of those who give it up, when it has outlasted the caller's limit, or
        when the key was invalidated since it began: its value would be refused.
        """
        call, overdue = attempt.call, None
        while True:
            flight, leads = self._flights.join(call.digest, self._l1.mark(), instead_of=overdue)
            if leads:
                attempt.flight = flight
                with self._flights.landing(call.digest, flight):
                    value, flight.landing = self._descend(attempt)
                    return value
            if attempt.stale is not MISSING:
                self.events.emit(Event.HIT, call.memo.task, tier="l2", stale=True)
                return attempt.stale
            if overdue is not None:
                attempt.began = self._clock.monotonic()
            overdue = None
            waiting = self._waiting(attempt)
            doomed = not self._l1.current(flight.mark, call.names)
            if doomed or not flight.done.wait(max(waiting.limit - waiting.waited, 0.0)):
                if waiting.nested:
                    return self._descend(attempt)[0]
                overdue, attempt.waits_for = flight, flight.holder
                continue
            attempt.waited = True
            landing = flight.landing
            if landing is not None and landing.copy is None:
                return self._descend(attempt)[0]
            if landing is not None and landing.copy is not None and landing.validated_at >= attempt.arrived:
                self.events.emit(Event.COALESCED, call.memo.task, key=call.digest)
                return landing.copy()

    def _descend(self, attempt: Attempt) -> tuple[object, Landing]:
        """L2, then a lease or a compute without one; what to share comes back with the value."""
        call, compute = attempt.call, attempt.compute
        mark, asked = (self._l1.mark() if self._store is None else None), self._clock.monotonic()
        if self._store is None and not attempt.refresh:
            remembered = self._remembered(call)  # it may have come between the caller's look and its lead
            if remembered is not None:
                return remembered.value, Landing(remembered.copy, asked)
        lease: Lease | None = None
        try:
            found = self._resolve(attempt, self._store) if self._store is not None else None
        except TierUnavailable as error:
            self._fail_open(call, "lease", error)
            attempt.unsure = True
            found = None
        if isinstance(found, Lease):
            lease = found
        elif found is not None:
            return found
        if not attempt.refresh:
            self.events.emit(Event.MISS, call.memo.task, key=call.digest)
        if lease is None or self._store is None or self.parts.keeper is None:
            try:
                return self._leader.alone(call, compute, mark)
            finally:
                self._give_back(attempt)
        keeper = self.parts.keeper
        return self._leader.lead(call, compute, lease, self._store, keeper, announce=attempt.refresh)

    def _resolve(self, attempt: Attempt, store: Store) -> tuple[object, Landing] | Lease | None:
        """A value that was found, a lease to compute under, or ``None``: compute without one."""
        if self.parts.backplane is not None:
            self.parts.backplane.start()
        with self.parts.wake_ups.registered(attempt.call.digest) as woken:
            while True:
                woken.clear()
                mark, asked = self._l1.mark(), self._clock.monotonic()
                request = attempt.request(self._clock.time())
                answer = store.lease(request)
                if isinstance(answer, Held):
                    attempt.meet(answer.holder, self._clock.monotonic())
                action, bound = after_lease(answer, self._waiting(attempt))
                match action, answer:
                    case Action.COMPUTE, Leading(stamp=stamp):
                        attempt.meet(request.token, self._clock.monotonic())
                        if attempt.take_over not in ("", ANY_HOLDER):
                            self.events.emit(Event.TAKEN_OVER, attempt.call.memo.task, holder=attempt.take_over)
                        return Lease(request, stamp, mark)
                    case Action.ANSWER, Found(raw=raw):
                        answered = self._answer(attempt, raw, mark, asked, stale=False)
                        if answered is not None:
                            return answered
                    case Action.ANSWER_STALE, Held(stale=raw) if raw is not None:
                        answered = self._answer(attempt, raw, mark, asked, stale=True)
                        if answered is not None:
                            return answered
                    case Action.TAKE_OVER, Held(holder=holder):
                        attempt.take_over, attempt.began = holder, self._clock.monotonic()
                    case Action.WAIT, _:
                        attempt.waited = True
                        woken.wait(bound if self._is_pushed() else min(bound, UNPUSHED_WAIT))
                    case _:
                        return None

    def _read(self, call: Call) -> Reading | None:
        """What L2 has under a valid stamp, fresh (then L1 has it too) or stale; ``None`` too if it cannot be asked."""
        store, policy = self._store, call.memo.policy
        if store is None:
            return None
        if self.parts.backplane is not None:
            self.parts.backplane.start()
        mark = self._l1.mark() if policy.l1 else None
        try:
            raw = store.read(call.digest, call.tags)
        except TierUnavailable as error:
            self._fail_open(call, "read", error)
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
            return Reading(MISSING, lambda: MISSING, rejected=self._reject(call, raw, error))
        copy = partial(call.memo.codec.decode, raw, call.digest)
        if state is Freshness.STALE:
            return Reading(value, copy, stale=True, refresh=True)
        if mark is not None:
            self._leader.keep(call, value, raw.header.times, mark, raw.stamp)
        draw = 1.0 if policy.beta is None else 1.0 - chance.random()
        due = refresh_is_due(raw.header.times, policy, now, draw)
        return Reading(value, copy, refresh=due)

    def _answer(
        self, attempt: Attempt, raw: RawEntry, mark: Mark, asked: float, *, stale: bool
    ) -> tuple[object, Landing] | None:
        """The value of an entry that came with the lease's answer; ``None`` if it is not usable: ask again."""
        call = attempt.call
        try:
            value = call.memo.codec.decode(raw, call.digest)
        except UnusableEntry as error:
            attempt.rejected = self._reject(call, raw, error)
            return None
        if attempt.waited and not stale:
            self.events.emit(Event.COALESCED, call.memo.task, key=call.digest)
        else:
            self.events.emit(Event.HIT, call.memo.task, tier="l2", stale=stale)
        if not stale:
            self._leader.keep(call, value, raw.header.times, mark, raw.stamp)
        return value, Landing(lambda: call.memo.codec.decode(raw, call.digest), asked)

    def _reject(self, call: Call, raw: RawEntry, error: UnusableEntry) -> bytes:
        """The bytes of an entry that is not to be offered again."""
        self.events.emit(Event.UNUSABLE, call.memo.task, reason=error.reason, key=call.digest)
        return pack_body(raw.header, raw.payload) + raw.stamp

    def _waiting(self, attempt: Attempt) -> Waiting:
        return attempt.waiting(self._clock.monotonic(), nested=bool(self._inside.digests))

    def _give_back(self, attempt: Attempt) -> None:
        """Frees a lease that a request whose answer was lost may have got; nobody renews it."""
        if self._store is not None and attempt.unsure:
            with suppress(TierUnavailable):
                self._store.release(attempt.call.digest, attempt.token)

    def _is_pushed(self) -> bool:
        return self.parts.backplane is not None and self.parts.backplane.connected()

    def _fail_open(self, call: Call, step: str, error: TierUnavailable) -> None:
        self.events.emit(Event.FAILED_OPEN, call.memo.task, step=step, error=str(error))
