"""A leader's work: run the body, store what it gave under the lease, free the lease whatever happened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from celery_cachetiers.attempt import Terms
from celery_cachetiers.call import Call
from celery_cachetiers.clock import Clock, chance
from celery_cachetiers.decisions import refresh_ahead_at, times_of
from celery_cachetiers.entry import MISSING, Times, unpack_body
from celery_cachetiers.errors import TagError, TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event, Events
from celery_cachetiers.flight import Landing
from celery_cachetiers.journal_port import Place
from celery_cachetiers.local_port import LocalTier, Mark
from celery_cachetiers.ports import (
    NOT_HELD,
    OUT_OF_DATE,
    STORED,
    Compute,
    LeaseRequest,
    Leave,
    LogPosition,
    Renewer,
    ResultTags,
    Store,
)
from celery_cachetiers.templates import key_tag

logger = logging.getLogger("celery_cachetiers")

QUICK = 0.1
"""Seconds: the commit of a body that took less need not be waited for."""
SENT = 2
"""Beside the outcomes of a commit: one whose answer nobody waits for."""
_REFUSED = {NOT_HELD: "lease lost", OUT_OF_DATE: "invalidated meanwhile"}


class Inside(threading.local):
    """The keys that the bodies on this thread's stack are computing."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """In a forked child, none."""
        self.digests: tuple[str, ...] = ()
        self._places: tuple[Place, ...] = ()

    def run(self, call: Call, compute: Compute) -> object:
        """Computes a key, noted for that long."""
        before = self.digests, self._places
        self.digests, self._places = (*self.digests, call.digest), (*self._places, call.place)
        try:
            return compute()
        finally:
            self.digests, self._places = before

    def place_within(self, digest: str) -> Place:
        """For a compute inside another one of its key, whose value is the newer one."""
        outer = self._places[self.digests.index(digest)]
        return replace(outer, sequence=max(outer.sequence - 1, 0))


class Lease(NamedTuple):
    """A lease that the caller holds, and the state of L1 from before it asked for it.

    ``since`` is where the invalidation log stood then, for a task whose results give tags; ``outdated`` is the tag
    whose invalidation has ended the entry that is there, or "".
    """

    request: LeaseRequest
    stamp: bytes
    mark: Mark
    since: LogPosition | None = None
    outdated: str = ""


class _Computed(NamedTuple):
    """A body's value, and what comes out of its entry.

    ``body`` is ``None`` if it cannot be an entry (or be read again), ``storable`` false if it is not to be one.
    ``tags`` are all that it names, those of the call first.
    """

    value: object
    times: Times
    tags: tuple[str, ...]
    storable: bool
    body: bytes | None
    read_again: object = None


class Leader:
    """Computes, with a lease or without.

    Concurrency: keeps nothing between calls but the names of those keys whose commits nobody has waited for.

    Attributes:
        unsettled: These keys: what became of them is told, and L1 has them, when the answer is read.
    """

    def __init__(self, l1: LocalTier, clock: Clock, events: Events, inside: Inside) -> None:
        self._l1, self._clock, self._events, self._inside = l1, clock, events, inside
        self.unsettled: set[str] = set()

    def lead(
        self, call: Call, compute: Compute, lease: Lease, store: Store, keeper: Renewer, terms: Terms
    ) -> tuple[object, Landing]:
        """The body's value, and what followers in this process may share of it.

        The body's exception passes through unchanged. The lease ends with it: handed over to the task id that tries
        again, or free; then the followers share the exception, or the next in line leads.

        Costs: 1 round trip after the body; none if that took a moment and the terms do not wait for the store.
        """
        began = self._clock.monotonic()
        outcome: int | None = None
        leave: Leave | None = None
        try:
            with keeper.keeping(lease.request):
                computed = self._compute(call, compute, terms, lease.outdated)
            sent = self._clock.monotonic()
            if not computed.storable and computed.body is not None:
                leave = Leave(computed.body, False, lease.request.lease_ttl, lease.since)
            elif computed.body is not None and self._commit_later(call, computed, lease, store, terms):
                outcome = SENT
            elif computed.body is not None:
                outcome = self._commit(call, computed, lease, store, terms.refresh)
        except BaseException as error:
            if terms.claim and self._handed_over(call, error, lease.request, store, terms.claim):
                outcome = NOT_HELD
            else:
                leave = self._failure(call, error, lease.since)
            raise
        finally:
            if outcome is None:
                _free(lease.request, store, leave)
        copy = _copier(call, computed.body)
        if outcome != STORED or copy is None:
            return computed.value, Landing(copy, began, seconds=computed.times.compute_seconds)
        self._keep(call, computed, lease)
        return computed.value, Landing(copy, sent, seconds=computed.times.compute_seconds)

    def alone(self, call: Call, compute: Compute, mark: Mark | None, terms: Terms) -> tuple[object, Landing]:
        """The same without L2.

        Args:
            mark: Keeps the value in L1 under this mark, where L1 is all there is; ``None`` keeps it nowhere.
        """
        began = self._clock.monotonic()
        computed = self._compute(call, compute, terms)
        copy = _copier(call, computed.body)
        names = (*computed.tags, key_tag(call.digest))
        if mark is None or copy is None or not computed.storable or not self._l1.current(mark, names):
            return computed.value, Landing(copy, began, seconds=computed.times.compute_seconds)
        checked = self._clock.monotonic()
        if self.keep(call, computed.read_again, computed.tags, computed.times, mark, None):
            self._events.emit(Event.STORED, call.memo.task, key=call.digest, size=len(computed.body or b""))
        return computed.value, Landing(copy, checked, seconds=computed.times.compute_seconds)

    def keep(
        self, call: Call, value: object, tags: tuple[str, ...], times: Times, mark: Mark, stamp: bytes | None
    ) -> bool:
        """Puts a value into L1 for as long as it is fresh, and no refresh of it is due; false if L1 refused it."""
        policy, now = call.memo.policy, self._clock.time()
        ttl = min(policy.l1_ttl, times.fresh_until - now)
        if policy.refresh_ahead is not None:
            ttl = min(ttl, refresh_ahead_at(times, policy.refresh_ahead) - now)
        if not policy.l1 or ttl <= 0:
            return False
        names = (*tags, key_tag(call.digest))
        return self._l1.put(
            call.digest, value, names, ttl, mark,
            stamp=stamp, times=times, copy=policy.l1_copy, tally=call.memo.tally,
        )  # fmt: skip

    def _compute(self, call: Call, compute: Compute, terms: Terms, outdated: str = "") -> _Computed:
        computed_at, began = self._clock.time(), self._clock.monotonic()
        value = self._waiting(call, terms, outdated)
        if value is MISSING:
            value = self._inside.run(call, compute)
            self._events.emit(Event.COMPUTED, call.memo.task, seconds=self._clock.monotonic() - began)
        seconds = self._clock.monotonic() - began
        ttl = self._ttl(call, value)
        draw = chance.random() if call.memo.policy.jitter else 0.0
        times = times_of(call.memo.policy, ttl or call.memo.policy.ttl, computed_at, seconds, draw)
        found = self._result_tags(call, value)
        tags, storable = call.tags + (found or ()), ttl is not None and found is not None and call.place.looked
        codec = call.memo.codec
        try:
            body = codec.encode(value, times, tags, call.digest)
            read_again = value if codec.gives_back(value) else codec.decode(unpack_body(body), call.digest)
        except UnusableEntry as error:
            self._events.emit(Event.UNUSABLE, call.memo.task, reason=error.reason, key=call.digest)
            return _Computed(value, times, tags, storable, None)
        return _Computed(value, times, tags, storable, body, read_again)

    def _waiting(self, call: Call, terms: Terms, outdated: str) -> object:
        """The value that waits for the task's sink, as the database behind the sink is older; else `MISSING`."""
        waiting: object = MISSING
        if call.memo.outlet is not None and terms.refresh:
            call.place = call.memo.outlet.begin_anyway(call.digest)
        elif call.memo.outlet is not None:
            waiting, call.place = call.memo.outlet.begin(call.digest)
        if terms.refresh:
            return MISSING
        if waiting is MISSING and terms.counts:
            ended = {"outdated": outdated} if outdated else {}
            self._events.emit(Event.MISS, call.memo.task, key=call.digest, **ended)
        elif terms.counts:
            self._events.emit(Event.HIT, call.memo.task, tier="journal", stale=False, key=call.digest)
        return waiting

    def _result_tags(self, call: Call, value: object) -> tuple[str, ...] | None:
        """The tags that the value gives beyond the call's; ``None`` if it gives none that are usable."""
        if call.memo.tagging is None:
            return ()
        try:
            found = call.memo.tagging.find(value)
        except TagError as error:
            self._events.emit(Event.UNCACHEABLE, call.memo.task, argument="tags_from")
            logger.warning("celery-cachetiers: %s: not stored, as its result gives no tags: %s", call.memo.task, error)
            return None
        own = {*call.tags}
        return tuple(tag for tag in found if tag not in own)

    def _handed_over(self, call: Call, error: BaseException, request: LeaseRequest, store: Store, claim: str) -> bool:
        """Keeps the lease for the task id under which the body said to try again, until some time after that is due."""
        seconds = call.memo.failures.retry_in(error)
        if seconds is None:
            return False
        try:
            return store.hand_over(request.digest, request.token, claim, seconds + request.lease_ttl)
        except TierUnavailable as fault:
            self._events.emit(Event.FAILED_OPEN, call.memo.task, step="hand over", error=str(fault))
            return False

    def _failure(self, call: Call, error: BaseException, since: LogPosition | None) -> Leave | None:
        """What the body's exception leaves to those who waited for it."""
        policy = call.memo.policy
        dumped = call.memo.failures.dump(error) if policy.share_errors else None
        if dumped is None:
            return None
        now = self._clock.time()
        times = Times(now, now + policy.lease_ttl, now + policy.lease_ttl, 0.0)
        try:
            body = call.memo.codec.encode(dumped, times, call.tags, error_key(call.digest))
        except UnusableEntry:
            return None
        return Leave(body, True, policy.lease_ttl, since)

    def _ttl(self, call: Call, value: object) -> float | None:
        """The value's TTL; ``None`` if the task's own callables would not have it stored, or fail."""
        policy = call.memo.policy
        try:
            if policy.cache_if is not None and not policy.cache_if(value):
                return None
            ttl = policy.ttl_from(value) if policy.ttl_from is not None else None
            ttl = policy.ttl if ttl is None else float(ttl)
        except Exception:
            logger.exception("celery-cachetiers: %s: cache_if or ttl_from failed; not stored", call.memo.task)
            return None
        return ttl if 0 < ttl < float("inf") else None

    def _keep(self, call: Call, computed: _Computed, lease: Lease) -> None:
        """Puts what was stored into L1, too."""
        stamp = lease.stamp if computed.tags == call.tags else None  # the script alone knows that of result tags
        self.keep(call, computed.read_again, computed.tags, computed.times, lease.mark, stamp)

    def _commit(self, call: Call, computed: _Computed, lease: Lease, store: Store, announce: bool) -> int | None:
        """What the store answered; ``None`` if it could not be asked."""
        names = computed.tags[len(call.tags) :]
        result = ResultTags(names, lease.since) if names and lease.since is not None else None
        request, body, hard_ttl = _to_store(computed, lease)
        try:
            outcome = store.commit(request, body, hard_ttl, announce=announce, result=result)
        except TierUnavailable as error:
            self._events.emit(Event.FAILED_OPEN, call.memo.task, step="commit", error=str(error))
            return None
        if outcome == STORED and call.memo.tagging is not None:
            call.memo.tagging.seen.learn(call.digest, names)
        self._tell(call, outcome, len(body))
        return outcome

    def _commit_later(self, call: Call, computed: _Computed, lease: Lease, store: Store, terms: Terms) -> bool:
        """Sends the value of a quick body, and leaves the answer to whoever reads it; false if that cannot be done.

        A slow body's is worth the wait: what it has computed is not to be lost with a connection that has died.
        """
        quick = computed.times.compute_seconds < QUICK and not terms.refresh
        if terms.waits_for_store or not quick or call.memo.tagging is not None or call.memo.outlet is not None:
            return False

        def settled(outcome: int | None) -> None:
            if outcome is None:
                self._events.emit(Event.FAILED_OPEN, call.memo.task, step="commit", error="no answer")
            else:
                self._tell(call, outcome, len(body))
            if outcome == STORED:
                self._keep(call, computed, lease)
            self.unsettled.discard(call.digest)

        request, body, hard_ttl = _to_store(computed, lease)
        self.unsettled.add(call.digest)
        sent = store.commit_later(request, body, hard_ttl, settled)
        if not sent:
            self.unsettled.discard(call.digest)
        return sent

    def _tell(self, call: Call, outcome: int, size: int) -> None:
        """What a commit has come to."""
        if outcome == STORED:
            self._events.emit(Event.STORED, call.memo.task, key=call.digest, size=size)
        else:
            reason = _REFUSED.get(outcome, "no room")
            self._events.emit(Event.REFUSED, call.memo.task, key=call.digest, reason=reason)


def _to_store(computed: _Computed, lease: Lease) -> tuple[LeaseRequest, bytes, float]:
    """What a commit takes: the request, the body, and the hard TTL."""
    request, hard_ttl = lease.request, computed.times.expires_at - computed.times.computed_at
    if hard_ttl + request.lease_ttl > request.keep_for:  # a ttl_from longer than the task's
        request = request._replace(keep_for=hard_ttl + request.lease_ttl)
    return request, computed.body or b"", hard_ttl


def _copier(call: Call, body: bytes | None) -> Callable[[], object] | None:
    if body is None:
        return None
    return lambda: call.memo.codec.decode(unpack_body(body), call.digest)


def error_key(digest: str) -> str:
    """The key that a shared exception is signed for: it must never be taken for a value."""
    return f"{digest}:error"


def _free(request: LeaseRequest, store: Store, leave: Leave | None) -> None:
    try:
        store.release(request.digest, request.token, leave)
    except TierUnavailable:
        pass  # it ends with its TTL
    except Exception:
        logger.exception("celery-cachetiers: freeing a lease failed")
