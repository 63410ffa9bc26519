"""The read and write flow: L1, then L2, then one compute under a lease. What to do is decided in `decisions`.

Every fault of L2 ends in the engine: a read goes on without it, and the task's own exception is the only one that
leaves `TieredCache.fetch`. Explicit writes and invalidations let the fault through, as nobody else would hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from celery_cachetiers.attempt import ANY_HOLDER, PLAIN, Attempt, Terms
from celery_cachetiers.call import Call
from celery_cachetiers.clock import chance
from celery_cachetiers.decisions import times_of
from celery_cachetiers.entry import MISSING, Times, unpack_body
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.following import Follower, Shared, Watched
from celery_cachetiers.leading import Inside, Leader
from celery_cachetiers.observing import Observed, Observer
from celery_cachetiers.parts import Parts
from celery_cachetiers.ports import Compute, Leading, Put
from celery_cachetiers.reading import Reader, Reading
from celery_cachetiers.templates import key_tag, namespace_tag, task_tag

COLD: Final = 8
"""Lookups that miss one after the other until a task counts as cold: its next call asks for the lease without looking
first. One hit ends that. A script that returns an entry costs the server about twice what reading it does, and a miss
saves a round trip: above 20 to 35 % of misses it pays."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A value that is put: its times, all its tags, its entry."""

    call: Call
    times: Times
    tags: tuple[str, ...]
    put: Put


class TieredCache:
    """Memoizes calls.

    Concurrency: thread-safe; after a fork the child must call `reset_after_fork` first.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.events = parts, parts.events
        self._l1, self._store, self._clock = parts.l1, parts.store, parts.clock
        self._inside = Inside()
        self._leader = Leader(parts.l1, parts.clock, parts.events, self._inside)
        self._reader = Reader(parts, self._leader, self._inside)
        self._follower = Follower(parts, self._reader, self._leader, self._inside)
        self._observer = Observer(parts, self._follower.flights)

    def reset_after_fork(self) -> None:
        """Leaves everything that belongs to the parent process."""
        parts = self.parts
        for part in (parts.l1, parts.store, parts.backplane, parts.keeper, parts.wake_ups):
            if part is not None:
                part.reset_after_fork()
        self._follower.flights.reset_after_fork()
        self._leader.unsettled.clear()
        self._inside.reset()

    def settle(self) -> None:
        """Takes in what has become of values that were stored without a wait; else the next call does."""
        if self._leader.unsettled and self._store is not None:
            self._store.settle()

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
            reading = self._reader.remembered(call)
            return MISSING if reading is None else reading.value
        value = self._l1.get(call.digest, memo.tally)
        if self.events.of_l1 and value is not MISSING:
            self.events.tell_l1_hit(memo.task, call.digest)
        return value

    def peek(self, call: Call) -> tuple[object, Callable[[], None]] | None:
        """What `recall` finds, and what counts it as a hit: for a caller that may not come to use it."""
        resident = self._l1.resident(call.digest) if call.memo.policy.l1 else None
        if resident is None:
            return None
        try:
            return resident.copy(), partial(self._reader.count, call, resident)
        except Exception:  # pickled, but not to be unpickled
            self._l1.discard(call.digest)
            return None

    def look(self, call: Call) -> Reading | None:
        """The value in L1 or L2, stale ones included; ``None`` for a miss, or when L2 cannot be asked.

        Costs: an L1 hit nothing, else 1 round trip.
        """
        return self.look_in_l1(call) or self.look_in_l2(call)

    def look_in_l1(self, call: Call) -> Reading | None:
        """The value in L1; as `look`, and without the call's tags. Costs: nothing; a strict read 1 round trip."""
        return self._reader.remembered(call)

    def look_in_l2(self, call: Call) -> Reading | None:
        """The value in L2; as `look`. Costs: 1 round trip."""
        reading = self._reader.read(call)
        if reading is None or reading.value is MISSING:
            return None
        self._hit(call, reading)
        return reading

    def observe(self, call: Call) -> Observed:
        """What the tiers have of a call, seen without a trace; see `Observer.observe`."""
        return self._observer.observe(call)

    def _hit(self, call: Call, reading: Reading) -> None:
        stale, saved = reading.stale, reading.seconds
        self.events.emit(Event.HIT, call.memo.task, tier="l2", stale=stale, key=call.digest, saved=saved)

    def fetch(self, call: Call, compute: Compute, terms: Terms = PLAIN) -> object:
        """The call's value after L1 has missed (`recall`): from L2, computed, or another's compute waited for.

        Args:
            compute: Runs the body; its exceptions pass through, those that a leader shared too.

        Raises:
            HeldElsewhere: It would have to wait, and may not.

        Costs: L2 hit 1 round trip, miss 3 (look, lease, commit; 2 if the caller has looked, or if the last `COLD`
            lookups of the task in this process have missed: then the lease, which looks too, is asked for at once).
        """
        if call.digest in self._inside.digests:
            call.place = self._inside.place_within(call.digest)
            return compute()
        if call.digest in self._leader.unsettled:
            self.settle()
            value = self.recall(call)
            if value is not MISSING:
                return value
        arrived, streak = self._clock.monotonic(), call.memo.streak
        looks = not (terms.looked or terms.refresh or streak.misses >= COLD)
        reading = self._reader.read(call) if looks else None
        if reading is not None and reading.value is not MISSING and not reading.stale:
            streak.misses = 0
            self._hit(call, reading)
            return reading.value
        streak.misses += 1
        attempt = Attempt(call, compute, arrived, terms)
        if reading is not None:
            attempt.rejected, attempt.stale, attempt.saved = reading.rejected, reading.value, reading.seconds
        try:
            return self._follow(attempt)
        finally:
            self._follower.tell_wait(attempt)

    def _follow(self, attempt: Attempt) -> object:
        terms = attempt.terms
        if terms.refresh or attempt.call.memo.policy.coalesce is False:
            attempt.take_over = ANY_HOLDER
            return self._follower.descend(attempt)
        if (
            terms.take_over or not terms.may_block
        ):  # the lease tells who leads now; a flight may be doomed, or wait for us
            return self._follower.descend(attempt)
        return self._follower.fly(attempt)

    def watch(self, call: Call, waits_for: str = "") -> Watched:
        """What there is for those who wait for a key; see `Follower.watch`."""
        return self._follower.watch(call, waits_for)

    def free(self, call: Call, *tokens: str) -> None:
        """Frees the lease of an attempt that cannot do it itself, as its process is gone. Raises `TierUnavailable`."""
        if self._store is not None:
            for token in tokens:
                self._store.release(call.digest, token)

    # -- writing ----------------------------------------------------------------------------------------------------

    def put(self, call: Call, value: object, ttl: float | None = None) -> None:
        """Replaces an entry; a leader that computes from an older state is refused. Costs and errors as `put_all`."""
        self.put_all([(call, value)], ttl)

    def put_all(
        self, values: Sequence[tuple[Call, object]], ttl: float | None = None, beside: object | None = None
    ) -> None:
        """Replaces entries; leaders that compute from an older state are refused.

        Args:
            beside: See `Store.put_all`.

        Raises:
            UnusableEntry: A value cannot be stored; then none is.
            TagError: A value does not give its tags; then none is stored.
            TierUnavailable: L2 was not reached, or would not store it.

        Costs: 1 round trip.
        """
        self.store(self.prepare(values, ttl), beside)

    def prepare(self, values: Sequence[tuple[Call, object]], ttl: float | None = None) -> list[Prepared]:
        """What `store` takes, as the values are now. Raises `UnusableEntry` and `TagError` as `put_all`."""
        return [self._prepared(call, value, ttl) for call, value in values]

    def store(self, prepared: Sequence[Prepared], beside: object | None = None) -> None:
        """The second half of `put_all`. Raises `TierUnavailable`."""
        puts = [each.put for each in prepared]
        try:
            if self._store is not None and len(puts) == 1 and beside is None:
                [put] = puts
                self._store.put(put.request, put.body, put.hard_ttl)
            elif self._store is not None and puts:
                self._store.put_all(puts, beside)
        finally:
            self._l1.invalidate([key_tag(each.call.digest) for each in prepared])
        for each in prepared:
            call, body = each.call, each.put.body
            if self._store is None:
                decoded = call.memo.codec.decode(unpack_body(body), call.digest)
                self._leader.keep(call, decoded, each.tags, each.times, self._l1.mark(), None)
            self.events.emit(Event.STORED, call.memo.task, key=call.digest, size=len(body))

    def _prepared(self, call: Call, value: object, ttl: float | None) -> Prepared:
        policy = call.memo.policy
        draw = chance.random() if policy.jitter else 0.0
        times = times_of(policy, policy.ttl if ttl is None else ttl, self._clock.time(), 0.0, draw)
        found = call.memo.tagging.find(value) if call.memo.tagging is not None else ()
        tags = (*call.tags, *(tag for tag in found if tag not in call.tags))
        body = call.memo.codec.encode(value, times, tags, call.digest)
        hard_ttl = times.expires_at - times.computed_at
        keep_for = max(policy.hard_ttl, hard_ttl) + policy.lease_ttl
        request = Attempt(call).request(times.computed_at)._replace(tags=tags, keep_for=keep_for)
        return Prepared(call, times, tags, Put(request, body, hard_ttl))

    def invalidate_key(self, digest: str, task: str = "") -> None:
        """Removes an entry, and refuses a leader that computes it now. Raises `TierUnavailable`."""
        self.invalidate_keys([digest], task)

    def invalidate_keys(self, digests: Sequence[str], task: str = "") -> None:
        """The same for several keys at once. Costs: 1 round trip for every 1,000."""
        if not digests:
            return
        names = [key_tag(digest) for digest in digests]
        try:
            if self._store is not None:
                self._store.fence(*digests)
        finally:
            self._l1.invalidate(names)
        self.events.emit(Event.INVALIDATED, task, names=tuple(names))

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

    def meet(self, call: Call, task_id: str) -> Leading | Shared | Watched:
        """Takes the key's lease for a message about to be sent under the task id, or tells who computes already.

        Raises:
            TierUnavailable: L2 was not reached.

        Costs: 1 round trip.
        """
        return self._follower.meet(call, task_id)

    def follow(self, call: Call, waits_for: str, timeout: float | None) -> Watched:
        """What the leader's compute gave, waited for; see `Follower.follow`."""
        return self._follower.follow(call, waits_for, timeout)

    def hand_over(self, call: Call, task_id: str, *, only_if_stale: bool) -> bool:
        """Takes the key's lease for a refresh message about to be sent; false if somebody else computes already."""
        if self._store is None:
            return False
        now = self._clock.time()
        look_at = now if only_if_stale else None
        request = Attempt(call).request(now)._replace(now=look_at, hand_to=task_id, will_wait=False)
        try:
            return isinstance(self._store.lease(request), Leading)
        except TierUnavailable as error:
            self._reader.fail_open(call, "hand over", error)
            return False
