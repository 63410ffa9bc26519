"""A call that no tier could answer: it leads, or it follows a leader, in this process or in another one.

What to do is decided in `decisions`; how to lead is `leading`'s matter. A follower waits by push: for the flight of its
own process, or for the wake-up that its process has registered for in the same step in which it learned of the leader.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from celery_cachetiers import ports
from celery_cachetiers.attempt import ANY_HOLDER, Attempt, HeldElsewhere
from celery_cachetiers.call import Call
from celery_cachetiers.decisions import Action, Waiting, after_lease
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event
from celery_cachetiers.flight import Flights, Landing
from celery_cachetiers.leading import Inside, Leader, Lease, error_key
from celery_cachetiers.local_port import Mark
from celery_cachetiers.parts import Parts
from celery_cachetiers.ports import Found, Free, Held, Leading, LeaseAnswer, LeaseRequest, Left, Store
from celery_cachetiers.reading import Reader

UNPUSHED_WAIT = 0.1
"""Seconds between two looks of a follower whom no wake-up can reach, as the backplane is away."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What another's compute gave: a value, or an exception; each copy belongs to its receiver.

    ``seconds`` is what the value took to compute.
    """

    copy: Callable[[], object] | None = None
    error: Callable[[], BaseException] | None = None
    stale: bool = False
    seconds: float = 0.0


Watched = Shared | Held | Free
"""What a watcher sees: something to answer with, somebody who computes, or nothing."""


class Follower:
    """Brings a call to a value.

    Concurrency: the flights are the only state.
    """

    def __init__(self, parts: Parts, reader: Reader, leader: Leader, inside: Inside) -> None:
        self._parts, self._reader, self._leader, self._inside = parts, reader, leader, inside
        self._l1, self._store, self._clock, self._events = parts.l1, parts.store, parts.clock, parts.events
        self.flights = Flights()

    def fly(self, attempt: Attempt) -> object:
        """Leads in this process, or shares what the leader brings.

        A flight is given up, and replaced by one of those who give it up, when it has outlasted the caller's limit, or
        when the key was invalidated since it began: its value would be refused.
        """
        call, overdue = attempt.call, None
        while True:
            flight, leads = self.flights.join(call.digest, self._l1.mark(), instead_of=overdue)
            if leads:
                attempt.flight = flight
                try:
                    return self.descend(attempt)
                finally:
                    self.flights.land(call.digest, flight)
            if attempt.terms.claim and attempt.terms.claim == flight.holder:  # it waits for this very call
                return self.descend(attempt)
            if attempt.stale is not MISSING:
                self._hit(attempt, stale=True, saved=attempt.saved)
                return attempt.stale
            if overdue is not None:
                attempt.began = self._clock.monotonic()
            overdue = None
            waiting = self._waiting(attempt)
            doomed = not self._l1.current(flight.mark, call.names)
            assert flight.done is not None  # made when this call joined
            if doomed or not self._wait(attempt, flight.done.wait, max(waiting.limit - waiting.waited, 0.0)):
                if waiting.nested:
                    return self.descend(attempt)
                overdue, attempt.waits_for = flight, flight.holder
                continue
            attempt.waited = True
            value = self._landed(attempt, flight.landing)
            if value is not MISSING:
                return value

    def _wait(self, attempt: Attempt, wait: Callable[[float], bool], seconds: float) -> bool:
        """Waits, and notes how long."""
        began = self._clock.monotonic()
        try:
            return wait(seconds)
        finally:
            attempt.wait_seconds = (attempt.wait_seconds or 0.0) + self._clock.monotonic() - began

    def _landed(self, attempt: Attempt, landing: Landing | None) -> object:
        """What a flight has brought to one who waited for it; `MISSING` if that must look again."""
        if landing is None:
            return MISSING
        if landing.error is not None:
            return self._fail(attempt, landing.error)
        if landing.copy is None:
            return self.descend(attempt)
        if landing.validated_at < attempt.arrived:
            return MISSING
        self._coalesced(attempt, "value", landing.seconds)
        return landing.copy()

    def descend(self, attempt: Attempt) -> object:
        """L2, then a lease or a compute without one; what to share goes into the flight that the attempt leads."""
        call, compute = attempt.call, attempt.compute
        mark, asked = (self._l1.mark() if self._store is None else None), self._clock.monotonic()
        if self._store is None and not attempt.terms.refresh:
            remembered = self._reader.remembered(call)  # it may have come between the caller's look and its lead
            if remembered is not None:
                landing = Landing(remembered.copy, asked, seconds=remembered.seconds)
                return self._land(attempt, remembered.value, landing)
        lease: Lease | None = None
        try:
            found = self._resolve(attempt, self._store) if self._store is not None else None
        except TierUnavailable as error:
            self._reader.fail_open(call, "lease", error)
            attempt.unsure = True
            found = None
        if isinstance(found, Shared):
            return self._share(attempt, found, asked)
        lease = found
        try:
            if lease is None or self._store is None or self._parts.keeper is None:
                try:
                    value, landing = self._leader.alone(call, compute, mark, attempt.terms)
                finally:
                    self._give_back(attempt)
            else:
                value, landing = self._leader.lead(call, compute, lease, self._store, self._parts.keeper, attempt.terms)
        except Exception as error:
            self._land_error(attempt, error)
            raise
        return self._land(attempt, value, landing)

    def watch(self, call: Call, waits_for: str) -> Watched:
        """Looks at a key for others that wait, and registers this process to be woken; takes no lease.

        Args:
            waits_for: Token of the leader that they wait for, or "".

        Raises:
            TierUnavailable: L2 was not reached: nothing is known.

        Costs: 1 round trip.
        """
        answer = self._ask(call, Attempt(call).request(self._clock.time())._replace(watch=True, waits_for=waits_for))
        return Free() if isinstance(answer, Leading) else answer

    def meet(self, call: Call, task_id: str) -> Leading | Watched:
        """Takes the key's lease for a task id that will claim it, or tells who computes already; see `watch`."""
        return self._ask(call, Attempt(call).request(self._clock.time())._replace(hand_to=task_id))

    def follow(self, call: Call, waits_for: str, timeout: float | None) -> Watched:
        """Waits for a leader without ever leading: what it gave, `Free` if it is gone, `Held` if it computes still.

        Args:
            timeout: Seconds to wait at most; ``None`` waits for the task's ``wait_limit``.

        Costs: 1 round trip before and 1 after the wait.
        """
        attempt = Attempt(call)
        try:
            return self._watch_until_it_ends(attempt, waits_for, timeout)
        finally:
            self.tell_wait(attempt)

    def _watch_until_it_ends(self, attempt: Attempt, waits_for: str, timeout: float | None) -> Watched:
        call, limit = attempt.call, attempt.call.memo.policy.wait_limit
        deadline = self._clock.monotonic() + (limit if timeout is None else min(timeout, limit))
        with self._parts.wake_ups.registered(call.digest) as woken:
            while True:
                woken.clear()
                seen = self.watch(call, waits_for)
                remaining = deadline - self._clock.monotonic()
                if not isinstance(seen, Held) or remaining <= 0:
                    return seen
                waits_for, bound = seen.holder, min(seen.seconds_left, remaining)
                self._wait(attempt, woken.wait, bound if self._is_pushed() else min(bound, UNPUSHED_WAIT))

    def tell_wait(self, attempt: Attempt) -> None:
        """Tells of an attempt that is over how long it has waited, if it has."""
        if attempt.wait_seconds is not None:
            call = attempt.call
            self._events.emit(Event.WAITED, call.memo.task, key=call.digest, seconds=attempt.wait_seconds)

    def _ask(self, call: Call, request: LeaseRequest) -> Leading | Watched:
        """The answer to a request that does not compute, with entries opened."""
        assert self._store is not None
        if self._parts.backplane is not None:
            self._parts.backplane.start()
        mark = self._l1.mark()
        while True:
            answer = self._store.lease(request)
            match answer:
                case Found(raw=raw) | Held(stale=raw) if raw is not None:
                    reading = self._reader.opened(call, raw, mark, stale=isinstance(answer, Held))
                    if reading.value is not MISSING:
                        return Shared(copy=reading.copy, stale=reading.stale, seconds=reading.seconds)
                    if request.rejected is not None:
                        return Free()
                    request = request._replace(rejected=reading.rejected)
                case Left():
                    shared = self._left(call, answer)
                    if shared is not None:
                        return shared
                    request = request._replace(waits_for="")
                case Leading() | Held() | Free():
                    return answer
                case _:
                    return Free()

    def _resolve(self, attempt: Attempt, store: Store) -> Shared | Lease | None:
        """What was found, a lease to compute under, or ``None``: compute without one."""
        if self._parts.backplane is not None:
            self._parts.backplane.start()
        if not attempt.terms.may_block:
            return self._resolve_with(attempt, store, None)
        with self._parts.wake_ups.registered(attempt.call.digest) as woken:
            return self._resolve_with(attempt, store, woken)

    def _resolve_with(self, attempt: Attempt, store: Store, woken: ports.Waiting | None) -> Shared | Lease | None:
        while True:
            if woken is not None:
                woken.clear()
            mark = self._l1.mark()
            request = attempt.request(self._clock.time())
            answer = store.lease(request)
            if isinstance(answer, Leading):
                return self._leads(attempt, Lease(request, answer.stamp, mark, answer.since, answer.outdated))
            if isinstance(answer, Held):
                attempt.meet(answer.holder, self._clock.monotonic())
            action, bound = after_lease(answer, self._waiting(attempt))
            match action, answer:
                case ((Action.ANSWER | Action.ANSWER_STALE), _):
                    shared = self._shared(attempt, answer, mark)
                    if shared is not None:
                        return shared
                case Action.TAKE_OVER, Held(holder=holder):
                    attempt.take_over, attempt.began = holder, self._clock.monotonic()
                case Action.WAIT, Held():
                    if woken is None:
                        raise HeldElsewhere(answer.holder, answer.seconds_left)
                    attempt.waited = True
                    self._wait(attempt, woken.wait, bound if self._is_pushed() else min(bound, UNPUSHED_WAIT))
                case _:
                    return None

    def _leads(self, attempt: Attempt, lease: Lease) -> Lease:
        attempt.meet(lease.request.token, self._clock.monotonic())
        if attempt.take_over not in ("", ANY_HOLDER):
            self._events.emit(Event.TAKEN_OVER, attempt.call.memo.task, holder=attempt.take_over)
        return lease

    def _shared(self, attempt: Attempt, answer: LeaseAnswer, mark: Mark) -> Shared | None:
        """What came with the answer; ``None`` if it is not usable: then it is not asked for again."""
        if isinstance(answer, Left):
            attempt.waits_for = ""
            return self._left(attempt.call, answer)
        stale = isinstance(answer, Held)
        raw = answer.stale if isinstance(answer, Held) else answer.raw if isinstance(answer, Found) else None
        assert raw is not None
        reading = self._reader.opened(attempt.call, raw, mark, stale=stale)
        attempt.rejected = reading.rejected
        if reading.value is MISSING:
            return None
        return Shared(copy=reading.copy, stale=stale, seconds=reading.seconds)

    def _left(self, call: Call, left: Left) -> Shared | None:
        """What a leader left to its followers; ``None`` if it cannot be read."""
        codec, raw = call.memo.codec, left.raw
        try:
            if not left.failed:
                codec.decode(raw, call.digest)
                seconds = raw.header.times.compute_seconds
                return Shared(copy=partial(codec.decode, raw, call.digest), seconds=seconds)
            load = call.memo.failures.load
            load(codec.decode(raw, error_key(call.digest)))
        except Exception as error:
            reason = error.reason if isinstance(error, UnusableEntry) else "undecodable"
            self._events.emit(Event.UNUSABLE, call.memo.task, reason=reason, key=call.digest)
            return None
        return Shared(error=lambda: load(codec.decode(raw, error_key(call.digest))))

    def _share(self, attempt: Attempt, found: Shared, asked: float) -> object:
        """Answers with another's compute, and lets the followers in this process have it too."""
        if found.error is not None:
            if attempt.flight is not None:
                attempt.flight.landing = Landing(None, asked, found.error)
            return self._fail(attempt, found.error)
        assert found.copy is not None
        attempt.call.memo.streak.misses = 0
        if attempt.waited and not found.stale:
            self._coalesced(attempt, "value", found.seconds)
        else:
            self._hit(attempt, stale=found.stale, saved=found.seconds)
        return self._land(attempt, found.copy(), Landing(found.copy, asked, seconds=found.seconds))

    def _fail(self, attempt: Attempt, error: Callable[[], BaseException]) -> object:
        self._coalesced(attempt, "error", 0.0)
        return attempt.terms.fail(error())

    def _coalesced(self, attempt: Attempt, outcome: str, saved: float) -> None:
        call = attempt.call
        if attempt.terms.counts:
            self._events.emit(Event.COALESCED, call.memo.task, key=call.digest, outcome=outcome, saved=saved)

    def _hit(self, attempt: Attempt, *, stale: bool, saved: float) -> None:
        call = attempt.call
        if attempt.terms.counts:
            self._events.emit(Event.HIT, call.memo.task, tier="l2", stale=stale, key=call.digest, saved=saved)

    @staticmethod
    def _land(attempt: Attempt, value: object, landing: Landing) -> object:
        if attempt.flight is not None:
            attempt.flight.landing = landing
        return value

    def _land_error(self, attempt: Attempt, error: Exception) -> None:
        """Lets the followers in this process have the exception, if it may be shared."""
        memo, flight = attempt.call.memo, attempt.flight
        if flight is None or not memo.policy.share_errors:
            return
        load = memo.failures.load
        try:
            dumped = deepcopy(memo.failures.dump(error))  # the arguments in it are the leader's own
        except Exception:
            return
        if dumped is not None:
            flight.landing = Landing(None, self._clock.monotonic(), lambda: load(deepcopy(dumped)))

    def _waiting(self, attempt: Attempt) -> Waiting:
        return attempt.waiting(self._clock.monotonic(), nested=bool(self._inside.digests))

    def _give_back(self, attempt: Attempt) -> None:
        """Frees a lease that a request whose answer was lost may have got; nobody renews it."""
        if self._store is not None and attempt.unsure:
            with suppress(TierUnavailable):
                self._store.release(attempt.call.digest, attempt.token)

    def _is_pushed(self) -> bool:
        return self._parts.backplane is not None and self._parts.backplane.connected()
