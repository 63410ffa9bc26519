"""What the log is told of events: what an operator must know, and what happens per call only at level DEBUG."""

from __future__ import annotations

import logging

from celery_cachetiers.events import Event, Events

logger = logging.getLogger("celery_cachetiers")

_LINES: dict[Event, tuple[int, str]] = {
    Event.BREAKER_OPENED: (logging.WARNING, "Redis cannot be reached; tasks run uncached until it can"),
    Event.BREAKER_CLOSED: (logging.INFO, "Redis answers again"),
    Event.LEASE_LOST: (logging.WARNING, "a lease was lost while its task ran; the value goes to its caller only"),
    Event.TAKEN_OVER: (logging.WARNING, "a leader outlasted wait_limit and was replaced"),
    Event.HANDED_OVER: (logging.WARNING, "an invalidation is not complete; a worker was asked to invalidate"),
    Event.SINK_FAILED: (logging.WARNING, "a sink has not taken its writes; they are tried again"),
    Event.BURIED: (logging.ERROR, "a write was given up and is in the dead-letter"),
    Event.UNUSABLE: (logging.DEBUG, "an entry could not be read or written"),
    Event.FAILED_OPEN: (logging.DEBUG, "a call goes on without Redis"),
}


def log(event: Event, task: str, details: dict[str, object]) -> None:
    """Writes one line."""
    level, line = _LINES[event]
    logger.log(level, "celery-cachetiers: %s%s%s", f"{task}: " if task else "", line, f" {details}" if details else "")


def listen(events: Events) -> None:
    """Has the log told of an app's events from now on."""
    events.subscribe(log, *_LINES)
