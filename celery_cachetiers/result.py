"""The result of a hit at the publish seam: an `AsyncResult` that knows its value, and an id that is real when seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import states
from celery.result import AsyncResult

logger = logging.getLogger("celery_cachetiers")


if TYPE_CHECKING:
    Base = AsyncResult[Any]
else:  # generic for the type checker only: at run time that begins with Celery 5.6
    Base = AsyncResult


class CachedResult(Base):
    """Answers ``get()``, ``state`` and ``ready()`` from memory.

    Its id is valid everywhere: the value is stored in the result backend under it the first time anything but this
    object can see it (``.id``, ``.as_tuple()``, ``str()``), and at once if the id was given from outside.

    Args:
        value: The value, its holder's own.
        task_id: The id.
        store: Stores the value in the result backend under the id.
        at_once: The id is known already.
    """

    def __init__(self, value: object, task_id: str, store: Callable[[str], None], *, at_once: bool, app: Any) -> None:
        self._store: Callable[[str], None] | None = store
        super().__init__(task_id, app=app)
        self._cache = {"status": states.SUCCESS, "result": value, "traceback": None, "children": []}
        if at_once:
            self._publish_id()

    @property
    def id(self) -> str:
        """The task id; asking for it makes it valid."""
        self._publish_id()
        return self._id

    @id.setter
    def id(self, value: str) -> None:
        self._id = value

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> Any:
        """Calls back at once, as the result is there."""
        promise = self.on_ready.then(callback, on_error)
        if not self.on_ready.ready:
            self.on_ready(self)
        return promise

    def forget(self) -> None:
        """Forgets the result; one whose id was never seen was never stored."""
        if self._store is None:
            super().forget()
        self._store = None

    def _on_fulfilled(self, result: Any) -> Any:
        return result

    def __del__(self) -> None:
        """Nothing is pending with the backend, so there is nothing to cancel."""

    def _publish_id(self) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        try:
            store(self._id)
        except Exception as error:
            # As with a worker that cannot reach the result backend: the call has succeeded, its id leads nowhere.
            logger.warning("celery-cachetiers: the result backend would not take %s: %r", self._id, error)
