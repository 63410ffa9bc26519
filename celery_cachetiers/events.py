"""What the engine tells others: names of events, and one dispatcher whose subscribers cannot harm it.

The engine emits; counters, logs and signals subscribe. Nothing here knows who listens.
"""

from __future__ import annotations

import logging
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
    HEARD = "heard"
    HELD = "held"
    BREAKER_OPENED = "breaker_opened"
    BREAKER_CLOSED = "breaker_closed"
    GAP = "gap"
    FLUSHED = "flushed"
    SINK_FAILED = "sink_failed"
    BURIED = "buried"


class Events:
    """Hands each event to those who subscribed to it, in the order they did.

    Concurrency: subscribing replaces a tuple, so that `emit` needs no lock; subscribers run in the emitting thread.
    """

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        self._subscribers: dict[Event, tuple[Subscriber, ...]] = dict.fromkeys(Event, ())

    def subscribe(self, subscriber: Subscriber, *events: Event) -> None:
        """Adds a subscriber to some events, or to all: called as ``subscriber(event, task_name, details)``."""
        for event in events or Event:
            self._subscribers[event] += (subscriber,)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Takes a subscriber away; one that is not there is ignored."""
        for event, subscribers in self._subscribers.items():
            self._subscribers[event] = tuple(each for each in subscribers if each != subscriber)

    def emit(self, event: Event, task: str = "", **details: object) -> None:
        """Tells all subscribers; what they raise is logged and goes no further."""
        for subscriber in self._subscribers[event]:
            try:
                subscriber(event, task, details)
            except Exception:
                logger.exception("celery-cachetiers: a subscriber of %s failed", event.value)
