"""Starting this library's own threads; what they do is their owners' matter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("celery_cachetiers")


def started(name: str, run: Callable[[], None]) -> threading.Thread | None:
    """A daemon thread that runs, or ``None`` where the process may have no more of them: tried again later."""
    thread = threading.Thread(target=run, daemon=True, name=name)
    try:
        thread.start()
    except RuntimeError as error:
        logger.warning("celery-cachetiers: %s could not start: %s", name, error)
        return None
    return thread
