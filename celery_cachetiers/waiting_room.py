"""The waiting room: a worker's main process answers hits and holds duplicates, so that neither takes a pool slot.

A consumer bootstep. It stands before the pool, where every request of the worker passes (`consumer.on_task_request`),
and sees every end of those it has sent there. Held requests stay unacknowledged with the broker, as Celery holds those
with an ETA: nothing is lost with this process or with Redis. Who waits for whom is decided in `room`; here it is done.

What touches requests, the prefetch count or the pool runs where Celery does it: in the event loop, or, where the worker
has none (gevent, other transports), in a thread that may block. What asks Redis or stores results runs in threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final

from celery import Task, bootsteps, signals
from celery.worker import state

from celery_cachetiers.answering import Answering
from celery_cachetiers.app import CacheTiers
from celery_cachetiers.broker_limits import capacity, turnover
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.identity import told_by
from celery_cachetiers.loops import Clerk, Loop, nothing
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.publishing import MODE_HEADER
from celery_cachetiers.room import Action, Give, Guest, Hold, Look, LookLater, PutBack, Room, Send
from celery_cachetiers.seat import Answer, GivenBack, Seat, give_seat
from celery_cachetiers.task import CachedTaskMixin
from celery_cachetiers.worker_requests import (
    LOST,
    done_with,
    exception_of,
    given_back,
    let_go,
    may_be_revoked,
    put_back_now,
    started,
)

logger = logging.getLogger("celery_cachetiers")

TICK: Final = 1.0
"""Seconds between two looks for requests that were revoked, expired or have waited for long enough."""
RUN: Final = 0x1
"""The state of a blueprint that neither stops nor has stopped (``celery.bootsteps.RUN``)."""
CLOSING: Final = 5.0
"""Seconds that a shutdown waits for the answer under way."""
PUT_BACK_EVERY: Final = 0.02
"""Seconds between two requests that go back to the broker as the room is full: a worker must not spin with them."""


class WaitingRoom(bootsteps.StartStopStep):
    """The bootstep; `CacheTiers` adds it to its app.

    Raises:
        ConfigurationError: A task's ``wait_limit`` is not below half of the time after which the broker would deliver
            its message again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Waiting room"

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.app = consumer.app
        self.turnover = turnover(self.app)
        self.consumer = consumer
        self.room = Room(time.monotonic, started)
        self._closing = False
        self._hand_on = consumer.on_task_request
        consumer.on_task_request = self.on_task_request  # before Tasks.start, which hands it to the strategies
        self._loop = Loop(consumer) if consumer.hub else Clerk()
        self._answering = Answering(self.app, self._soon)
        self._looks = ThreadPoolExecutor(1, "cachetiers-looks")
        self._ticking: Any = None
        self._grows = False
        self._next_put_back = 0.0  # by the monotonic clock

    def start(self, consumer: Any) -> None:
        """The worker is connected to its broker."""
        self._loop.start()
        self.room.capacity, self._grows = capacity(consumer)
        tiers = CacheTiers(self.app)
        if tiers.settings.enabled and tiers.cache.parts.backplane is not None:
            tiers.cache.parts.wake_ups.told = self._told
            tiers.events.subscribe(self._invalidated, Event.HEARD, Event.INVALIDATED)
            tiers.cache.parts.backplane.start()
        signals.task_revoked.connect(self._revoked)
        self._ticking = consumer.timer.call_repeatedly(TICK, self._soon, (self._tick,))

    def stop(self, consumer: Any) -> None:
        """The connection is lost, or the worker shuts down: then the held requests go back to the broker."""
        CacheTiers(self.app).events.unsubscribe(self._invalidated)
        signals.task_revoked.disconnect(self._revoked)
        if self._ticking is not None:
            self._ticking.cancel()
        shutting_down = consumer.blueprint.state != RUN
        self._closing = shutting_down
        requests = [guest.request for guest in self.room.clear()]
        if not shutting_down:
            self._loop.stop()
            for guest in self.room.running():
                if guest.request not in state.active_requests:  # it waited for a slot, and was forgotten
                    self._do(self.room.ended(guest, lost=False))
            return
        self._looks.shutdown(wait=False, cancel_futures=True)
        for request in (*requests, *self._answering.close(CLOSING)):
            put_back_now(request)
        self._loop.settle()
        self._loop.stop()

    def terminate(self, consumer: Any) -> None:
        """A cold shutdown."""
        self.stop(consumer)

    def info(self, consumer: Any) -> dict[str, Any]:  # type: ignore[override]  # the stubs say that it returns nothing
        """For ``celery inspect stats``."""
        room = {"held": self.room.held, "capacity": self.room.capacity}
        return {"waiting_room": room, "cachetiers": told_by(CacheTiers(self.app))}

    # -- what happens -----------------------------------------------------------------------------------------------

    def on_task_request(self, request: Any) -> Any:
        """Every request passes here, before it takes a slot."""
        guest: Guest | None = None
        found: tuple[Answer, Callable[[], None]] | None = None
        try:
            guest = self._guest(request)
            found = self._from_l1(guest) if guest is not None else None
        except Exception:
            logger.exception("celery-cachetiers: the waiting room failed; the request goes to the pool")
        if found is not None:
            return self._soon(partial(self._answering.give, request, *found))
        if guest is not None:
            return self._do(self.room.arrive(guest))
        return self._hand_on(request)

    def _guest(self, request: Any) -> Guest | None:
        """The request as a guest; ``None`` if it has no place here."""
        task = request.task
        if self._closing or not isinstance(task, CachedTaskMixin):
            return None
        memoized = task.memoized
        if not _takes_part(memoized, request):
            return None
        call = memoized.quiet_call(*task._dumped(tuple(request.args), dict(request.kwargs)))
        return Guest(request, request.id, call, time.monotonic()) if call is not None else None

    def _from_l1(self, guest: Guest) -> tuple[Answer, Callable[[], None]] | None:
        """The answer, and what counts it."""
        memoized: Memoized = guest.request.task.memoized
        if memoized.policy.consistency == "strict" or not memoized.answers_in_main:
            return None
        found = memoized.cache.peek(guest.call)
        if found is None:
            return None
        value, count = found
        return Answer(copy=lambda: value), count

    def _on_success(self, guest: Guest, traced: tuple[Any, Any, Any], **kwargs: Any) -> None:
        failed, value, _ = traced
        given = given_back(value) if failed else None
        if given is not None:
            return self._soon(partial(self._is_given_back, guest, given))
        try:
            # Celery's own method calls self.on_failure for a failure: that one is ours, and notes the end.
            type(guest.request).on_success(guest.request, traced, **kwargs)
        finally:
            if not failed:
                self._has_ended(guest, lost=False)
        return None

    def _on_failure(self, guest: Guest, einfo: Any, *args: Any, **kwargs: Any) -> Any:
        given = given_back(einfo)
        if given is not None:
            return self._soon(partial(self._is_given_back, guest, given))
        try:
            return type(guest.request).on_failure(guest.request, einfo, *args, **kwargs)
        finally:
            self._has_ended(guest, lost=isinstance(exception_of(einfo), LOST))

    def _on_timeout(self, guest: Guest, soft: bool, timeout: float) -> None:
        try:
            type(guest.request).on_timeout(guest.request, soft, timeout)
        finally:
            if not soft:
                self._has_ended(guest, lost=True)

    def _has_ended(self, guest: Guest, *, lost: bool) -> None:
        let_go(guest.request)
        if not lost and self.room.ended_alone(guest):
            return
        self._soon(lambda: self._do(self.room.ended(guest, lost=lost)))

    def _is_given_back(self, guest: Guest, given: GivenBack) -> None:
        """The slot is free again; the request is as it was before it was sent."""
        request = guest.request
        state.active_requests.discard(request)
        request.time_start = request.worker_pid = request._apply_result = None
        if self._closing:
            put_back_now(request)
            self._do(self.room.ended(guest, lost=False))
        else:
            self._do(self.room.given_back(guest, given.holder))

    def _told(self, digest: str | None) -> None:
        """By the backplane's thread: a leader has come to an end."""
        if digest is None:
            self._soon(lambda: self._do(self.room.woken_all()))
        else:
            self._soon(lambda: self._do(self.room.woken(digest)))

    def _invalidated(self, event: Event, task: str, details: dict[str, Any]) -> None:
        if self.room.held:
            self._soon(lambda: self._do(self.room.invalidated(details["names"])))

    def _revoked(self, request: Any, **_: Any) -> None:
        """A revoked request was perhaps the retry that a lease was kept for."""
        task = self.app.tasks.get(getattr(request, "task", None) or getattr(request, "name", ""))
        if not isinstance(task, CachedTaskMixin) or self._closing:
            return
        call = task.memoized.quiet_call(*task._dumped(tuple(request.args or ()), dict(request.kwargs or {})))
        if call is not None and task.memoized.cache.parts.store is not None:
            self._looks.submit(_free, task.memoized.cache, call, (request.id,))

    def _tick(self) -> None:
        now = time.monotonic()
        for guest in self.room.guests():
            request = guest.request
            if may_be_revoked(request) and request.revoked():
                self._leave(guest)
            elif now - guest.arrived > self.turnover and self._leave(guest):
                put_back_now(request)
        for guest in self.room.running():
            if guest.request not in state.reserved_requests:  # discarded before it ran
                self._do(self.room.ended(guest, lost=False))
        self._do(self.room.overdue())

    # -- what is done -----------------------------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Hold(guest):
                    self._hold(guest)
                case Send(guest, take_over):
                    self._send(guest, take_over)
                case Give(guest, shared):
                    self._give(guest, shared)
                case PutBack(guest):
                    self._put_back(guest)
                case Look(call, gone=gone) if self._closing:
                    _free(CacheTiers(self.app).cache, call, gone)  # nobody waits here any longer
                case Look():
                    self._looks.submit(self._look, action)
                case LookLater(digest, seconds):
                    later = partial(self._told, digest)
                    self.consumer.timer.call_after(seconds + 0.01, later)

    def _hold(self, guest: Guest) -> None:
        self._grow(guest, +1)
        guest.held_at = time.monotonic()
        if self._hides():
            state.reserved_requests.discard(guest.request)
        memo = guest.call.memo
        CacheTiers(self.app).events.emit(Event.HELD, memo.task, key=guest.call.digest)

    def _send(self, guest: Guest, take_over: str) -> None:
        request = guest.request
        self._release(guest)
        holds = bool(request.task.acks_late)  # else the message is acknowledged when the pool begins with it
        call = guest.call
        give_seat(request, Seat(guest.nonce, take_over, guest.waits_for, holds, call.digest, call.tags))
        request.on_success = partial(self._on_success, guest)
        request.on_failure = partial(self._on_failure, guest)
        request.on_timeout = partial(self._on_timeout, guest)
        self._hand_on(request)

    def _give(self, guest: Guest, shared: Shared) -> None:
        self._release(guest)
        memoized: Memoized = guest.request.task.memoized
        if memoized.answers_in_main if shared.error is None else memoized.fails_in_main:
            tell = partial(_tell, memoized, guest.call.digest, shared)
            self._answering.give(guest.request, Answer(shared.copy, shared.error), tell)
        else:
            # Its handlers are the user's: it takes a slot for a moment, in which the same is found again.
            give_seat(guest.request, Seat("", waits_for=guest.waits_for, holds=False))
            self._hand_on(guest.request)

    def _put_back(self, guest: Guest) -> None:
        """Back to the broker, behind all others: publishing may take its time, so not here.

        Without a countdown: the request would be at this worker again at once, and count against the very prefetch
        count that cannot grow, until it is due.
        """
        now = time.monotonic()
        self._next_put_back = max(self._next_put_back + PUT_BACK_EVERY, now)
        submit = partial(self._looks.submit, self._publish_again, guest.request)
        self.consumer.timer.call_after(self._next_put_back - now, self._soon, (submit,))

    def _publish_again(self, request: Any) -> None:
        context = request._context
        try:
            again = request.task.signature_from_request(context, retries=context.retries)
            # Past the publish seam: what has been a message remains one, whatever there is by now.
            Task.apply_async(request.task, again.args, again.kwargs, **again.options)
        except Exception as error:
            logger.warning("celery-cachetiers: %s could not be published again: %r", request.id, error)
            self._soon(partial(put_back_now, request))
        else:
            self._soon(partial(done_with, request))

    def _leave(self, guest: Guest) -> bool:
        if not self.room.leave(guest):
            return False
        self._release(guest)
        return True

    def _release(self, guest: Guest) -> None:
        """It is in the room no longer."""
        if guest.counted:
            self._grow(guest, -1)
            if self._hides():
                state.task_reserved(guest.request)
            events, seconds = CacheTiers(self.app).events, time.monotonic() - guest.held_at
            events.emit(Event.WAITED, guest.call.memo.task, key=guest.call.digest, seconds=seconds)

    def _grow(self, guest: Guest, by: int) -> None:
        """A held message does not count against the prefetch count, so that others keep coming."""
        guest.counted = by > 0
        if not self._grows:
            return
        qos = self.consumer.qos
        if by > 0:
            qos.increment_eventually()
            self._soon(nothing)  # the loop tells the broker each time it comes around, and may sleep for a second
        else:
            qos.decrement_eventually()

    def _hides(self) -> bool:
        """Whether the worker takes no more messages than it has reserved requests below its concurrency."""
        return bool(self.app.conf.get("worker_disable_prefetch"))

    def _look(self, look: Look) -> None:
        """In a thread: frees the leases of those that are gone, then looks at the key for all who wait."""
        seen: Watched | None = None
        cache = CacheTiers(self.app).cache
        try:
            cache.free(look.call, *look.gone)
            seen = cache.watch(look.call, look.waits_for)
        except TierUnavailable:
            pass  # whoever waits computes
        except Exception:
            logger.exception("celery-cachetiers: looking at a key for those who wait failed")
        self._soon(lambda: self._do(self.room.looked(look, seen)))

    def _soon(self, act: Callable[[], None]) -> None:
        if self._closing:
            act()
        else:
            self._loop.soon(act)


def _tell(memoized: Memoized, key: str, shared: Shared) -> None:
    """That a held request is answered with what another computed."""
    emit = partial(memoized.extension.events.emit, key=key, saved=shared.seconds)
    if shared.stale:
        emit(Event.HIT, memoized.name, tier="l2", stale=True)
    else:
        emit(Event.COALESCED, memoized.name, outcome="value" if shared.error is None else "error")


def _takes_part(memoized: Memoized, request: Any) -> bool:
    """Whether duplicates of the request wait for each other, and its process can know of it."""
    parts = memoized.cache.parts
    return (
        memoized.enabled
        and not memoized.extension.suspended
        and memoized.policy.coalesce is not False
        and request.request_dict.get(MODE_HEADER, "use") == "use"
        and parts.store is not None
        and parts.store.reachable()
    )


def _free(cache: Any, call: Any, tokens: tuple[str, ...]) -> None:
    with suppress(TierUnavailable):  # it ends with its TTL
        cache.free(call, *tokens)
