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
    BREAKER_OPENED = "breaker_opened"
    BREAKER_CLOSED = "breaker_closed"
    GAP = "gap"


class Events:
    """Hands every event to every subscriber, in the order they subscribed.

    Concurrency: subscribing replaces a tuple, so that `emit` needs no lock; subscribers run in the emitting thread.
    """

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Adds a subscriber: called as ``subscriber(event, task_name, details)``."""
        self._subscribers += (subscriber,)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Takes a subscriber away; one that is not there is ignored."""
        self._subscribers = tuple(each for each in self._subscribers if each != subscriber)

    def emit(self, event: Event, task: str = "", **details: object) -> None:
        """Tells all subscribers; what they raise is logged and goes no further."""
        for subscriber in self._subscribers:
            try:
                subscriber(event, task, details)
            except Exception:
                logger.exception("celery-cachetiers: a subscriber of %s failed", event.value)
