"""What the engine tells others: names of events, and one dispatcher whose subscribers cannot harm it.

The engine emits; counters, logs and signals subscribe. Nothing here knows who listens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import Enum

logger = logging.getLogger("celery_cachetiers")

Subscriber = Callable[["Event", str, dict[str, object]], None]


class Event(Enum):
    """One thing that happened to one call, entry or connection."""

    HIT = "hit"
    MISS = "miss"
    COALESCED = "coalesced"
    COMPUTED = "computed"
    STORED = "stored"
    REFUSED = "refused"
    FAILED_OPEN = "failed_open"
    UNUSABLE = "unusable"
    UNCACHEABLE = "uncacheable"
    TAKEN_OVER = "taken_over"
    LEASE_LOST = "lease_lost"
    INVALIDATED = "invalidated"
    HANDED_OVER = "handed_over"
    NOT_INVALIDATED = "not_invalidated"
    HEARD = "heard"
    HELD = "held"
    WAITED = "waited"
    UNPUBLISHED = "unpublished"
    NOT_COALESCED = "not_coalesced"
    BREAKER_OPENED = "breaker_opened"
    BREAKER_CLOSED = "breaker_closed"
    GAP = "gap"
    FLUSHED = "flushed"
    SINK_FAILED = "sink_failed"
    BURIED = "buried"
    REPORTED = "reported"

    __hash__ = object.__hash__  # Enum's own is Python's, 0.15 µs; every emit looks an event up


class Events:
    """Hands each event to those who subscribed to it, in the order they did.

    Attributes:
        of_l1: Who is told of hits in L1 too: these emit no event, as that would cost more than the hit.

    Concurrency: subscribing replaces a tuple under a lock, so that `emit` needs none; subscribers run in the emitting
    thread.
    """

    __slots__ = ("_lock", "_subscribers", "of_l1")

    def __init__(self) -> None:
        self._subscribers: dict[Event, tuple[Subscriber, ...]] = dict.fromkeys(Event, ())
        self.of_l1: tuple[Subscriber, ...] = ()
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """The subscribers stay; the lock may have been held by a thread that is gone."""
        self._lock = threading.Lock()

    def subscribe(self, subscriber: Subscriber, *events: Event) -> None:
        """Adds a subscriber to some events, or to all: called as ``subscriber(event, task_name, details)``."""
        with self._lock:
            for event in events or Event:
                self._subscribers[event] += (subscriber,)

    def subscribe_to_l1_hits(self, subscriber: Subscriber) -> None:
        """Adds a subscriber to the hits in L1 that emit no event; it is told of them as of a ``HIT``."""
        with self._lock:
            self.of_l1 += (subscriber,)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Takes a subscriber away; one that is not there is ignored."""
        with self._lock:
            for event, subscribers in self._subscribers.items():
                self._subscribers[event] = tuple(each for each in subscribers if each != subscriber)
            self.of_l1 = tuple(each for each in self.of_l1 if each != subscriber)

    def hears(self, subscriber: Subscriber) -> bool:
        """Whether it is subscribed to anything."""
        return any(subscriber in subscribers for subscribers in (*self._subscribers.values(), self.of_l1))

    def emit(self, event: Event, task: str = "", **details: object) -> None:
        """Tells all subscribers; what they raise is logged and goes no further."""
        self._tell(self._subscribers[event], event, task, details)

    def tell_l1_hit(self, task: str, key: str) -> None:
        """Tells those who asked for it of a hit in L1; to be called only if there are any."""
        self._tell(self.of_l1, Event.HIT, task, {"tier": "l1", "stale": False, "key": key})

    @staticmethod
    def _tell(subscribers: tuple[Subscriber, ...], event: Event, task: str, details: dict[str, object]) -> None:
        for subscriber in subscribers:
            try:
                subscriber(event, task, details)
            except Exception:
                logger.exception("celery-cachetiers: a subscriber of %s failed", event.value)
