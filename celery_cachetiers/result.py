"""What the publish seam gives back in place of a message: results whose ids are real as soon as anybody sees them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import AsyncResult, assert_will_not_block  # type: ignore[attr-defined]  # the stubs lack one

from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.ports import Held

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


class FollowingResult(Base):
    """Follows another call's compute under an id of its own, without a message.

    The message is published after all, under that id, when the leader is lost, and when the id leaves this object: then
    any process can ask the result backend for it. What befalls this result never touches the leader's.

    Args:
        task_id: The id.
        follow: Waits for so many seconds; see `celery_cachetiers.cache.TieredCache.follow`.
        store: Stores an end in the result backend under the id.
        publish: Sends the message under the id.

    Concurrency: may be asked by several threads.
    """

    def __init__(
        self,
        task_id: str,
        follow: Callable[[float | None], Watched | None],
        store: Callable[[str, Mapping[str, Any]], None],
        publish: Callable[[], object],
        *,
        app: Any,
    ) -> None:
        self._lock = threading.RLock()
        self._follow, self._store, self._publish = follow, store, publish
        self._known = False
        super().__init__(task_id, app=app)

    @property
    def id(self) -> str:
        """The task id; asking for it makes it valid."""
        self._make_known()
        return self._id

    @id.setter
    def id(self, value: str) -> None:
        self._id = value

    def get(self, timeout: float | None = None, propagate: bool = True, *args: Any, **kwargs: Any) -> Any:
        """As `AsyncResult.get`: waits for the leader, then, should that be lost, for a message of its own."""
        if self.ignored:
            return None
        if kwargs.get("disable_sync_subtasks", True):
            assert_will_not_block()
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._is_settled() and not self._settle(self._follow(timeout)):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("The operation timed out.")
            self._make_known()
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        return super().get(left, propagate, *args, **kwargs)

    def revoke(self, *args: Any, **kwargs: Any) -> Any:
        """Revokes this result; the leader, and whoever else follows it, go on."""
        with self._lock:
            if self._known or self._cache is not None:
                return super().revoke(*args, **kwargs)
            self._end(states.REVOKED, TaskRevokedError("revoked"))
            return None

    def forget(self) -> None:
        """Forgets the result; one whose id was never seen was never stored."""
        if self._known:
            super().forget()
        self._known = True

    def _is_settled(self) -> bool:
        """Whether it needs no message: the leader has ended and its end was shared, or there is a message already."""
        return self._known or self._cache is not None

    def _settle(self, seen: Watched | None) -> bool:
        """Takes what the leader has shared; whether that, or a message, settles it."""
        with self._lock:
            if isinstance(seen, Shared) and self._cache is None and not self._known:
                if seen.error is not None:
                    self._end(states.FAILURE, seen.error())
                elif seen.copy is not None:
                    self._end(states.SUCCESS, seen.copy())
        return self._is_settled()

    def _get_task_meta(self) -> Any:
        if not self._is_settled():
            seen = self._follow(0.0)
            if isinstance(seen, Held) and not self._is_settled():
                return {"status": states.PENDING, "result": None}
            if not self._settle(seen):
                self._make_known()
        return super()._get_task_meta()  # type: ignore[misc]  # not in the stubs

    def _end(self, status: str, result: object) -> None:
        self._cache = {"status": status, "result": result, "traceback": None, "children": []}

    def _make_known(self) -> None:
        """Makes the id one that the result backend knows, or will know."""
        with self._lock:
            if self._known:
                return
            self._known = True
            if self._cache is None:
                self._publish()
                return
            try:
                self._store(self._id, self._cache)
            except Exception as error:
                logger.warning("celery-cachetiers: the result backend would not take %s: %r", self._id, error)

    def __del__(self) -> None:
        """As long as nobody has seen the id, nothing is pending with the backend."""
        if self._known and self._cache is None:
            super().__del__()
