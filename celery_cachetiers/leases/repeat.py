"""Something done again and again beside a block of code, such as keeping a claim alive; it decides when, not what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.threads import started

logger = logging.getLogger("celery_cachetiers")


@contextmanager
def repeating(act: Callable[[], object], seconds: float) -> Iterator[None]:
    """Calls a function every so many seconds while the block runs; what it raises ends nothing.

    Concurrency: a thread of its own, for which the end of the block does not wait: the last call may come after it.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            try:
                act()
            except TierUnavailable:
                pass  # tried again when it is due next
            except Exception:
                logger.exception("celery-cachetiers: keeping a claim failed")

    started("cachetiers-claims", run)
    try:
        yield
    finally:
        over.set()
