"""What a message on the backplane does in this process: to its L1, and to those who wait."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery_cachetiers.backplane.waiters import Waiters
from celery_cachetiers.events import Event, Events
from celery_cachetiers.tiers.memory import MemoryTier

logger = logging.getLogger("celery_cachetiers")


class Ears:
    """The listener of a process, called in the backplane's thread.

    Args:
        answer: Does what another process asks.
    """

    def __init__(
        self, l1: MemoryTier, wake_ups: Waiters, events: Events,
        answer: Callable[[Mapping[str, Any]], None] = lambda question: None,
    ) -> None:  # fmt: skip
        self._l1, self._wake_ups, self._events, self._answer = l1, wake_ups, events, answer

    def invalidated(self, names: Sequence[str]) -> None:
        """Makes misses of the names' L1 copies."""
        self._l1.invalidate(names)
        self._events.emit(Event.HEARD, names=tuple(names))

    def lost(self, names: Sequence[str]) -> None:
        """Makes misses of the tags' L1 copies, of which nobody has told."""
        self._l1.invalidate(names)
        self._events.emit(Event.HEARD, names=tuple(names), tracked=True)

    def woken(self, digest: str) -> None:
        """Wakes the key's waiters."""
        self._wake_ups.wake(digest)

    def asked(self, question: Mapping[str, Any]) -> None:
        """Does what is asked; what that raises is logged, and L1 stays trusted."""
        try:
            self._answer(question)
        except Exception:
            logger.exception("celery-cachetiers: a question over the backplane could not be answered")

    def heard(self, trusted_until: float) -> None:
        """L1 may be trusted until then."""
        self._l1.trusted_until = trusted_until

    def gap(self) -> None:
        """L1 may not be trusted, and waiters look again."""
        self._l1.distrust()
        self._wake_ups.wake_all()
        self._events.emit(Event.GAP)
