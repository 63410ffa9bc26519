"""The publish seam's decisions: what may be answered, or left to a leader, without a message, and what then comes back.

`task.CachedTaskMixin.apply_async` asks here; how a value is found is the engine's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from celery.app.task import Context
from celery.utils import uuid

from celery_cachetiers.call import Call
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.ports import Held, Leading
from celery_cachetiers.result import CachedResult, FollowingResult

logger = logging.getLogger("celery_cachetiers")

MODES = ("use", "refresh", "bypass", "only")
REVALIDATE = "revalidate"
"""The mode of a refresh message: compute if the lease was handed to this task id, else leave it to who computes."""

MODE_HEADER, KEY_HEADER, LOOKED_HEADER = "cachetiers_mode", "cachetiers_key", "cachetiers_looked"
ROUTING = ("queue", "exchange", "routing_key", "priority", "serializer", "compression", "connection")
RIDES = ("chain", "chord", "eta", "countdown", "retries")
"""Options by which something rides on the message that a hit would have to do."""

Send = Callable[..., Any]
"""Publishes; takes ``task_id`` and options, returns the result of the stock ``apply_async``."""


def checked_mode(mode: object, *more: str) -> str:
    """A ``cache_mode``. Raises `ConfigurationError` if it is none, nor one more that is allowed."""
    if mode not in (*MODES, *more):
        raise ConfigurationError("cache_mode", mode, "one of " + ", ".join(map(repr, MODES)))
    return str(mode)


def is_plain(task: Any, options: Mapping[str, Any]) -> bool:
    """Whether nothing rides on the message."""
    return not task.app.conf.task_always_eager and not any(options.get(name) for name in RIDES)


def answer(
    task: Any,
    call: Call,
    value: object,
    copy: Callable[[], object],
    task_id: str | None,
    options: Mapping[str, Any],
) -> CachedResult:
    """The result of a hit.

    Args:
        value: The caller's own.
        copy: Makes one for the result backend, if that comes to want it.
    """
    ids = _Ids(task, options)
    task.memoized.extension.events.emit(Event.UNPUBLISHED, call.memo.task, key=call.digest)

    def store(known_id: str) -> None:
        if not ids.ignored:
            task.app.backend.mark_as_done(known_id, copy(), ids.request(known_id), True)

    at_once = task_id is not None and not ids.ignored
    result = CachedResult(value, task_id or uuid(), store, at_once=at_once, app=task.app)
    ids.trail(result)
    return result


def send_refresh(memoized: Memoized, call: Call, stale: bool, send: Send, options: Mapping[str, Any]) -> None:
    """One message that computes the key again; whoever holds the lease makes it needless."""
    task_id = uuid()
    if not memoized.cache.hand_over(call, task_id, only_if_stale=stale):
        return
    routing = {name: options[name] for name in ROUTING if name in options}
    headers = {MODE_HEADER: REVALIDATE}
    try:
        send(task_id=task_id, headers=headers, ignore_result=True, add_to_parent=False, **routing)
    except Exception as error:
        logger.warning("celery-cachetiers: %s: no refresh could be sent: %r", memoized.name, error)


def coalesce(task: Any, call: Call, send: Send, options: Mapping[str, Any]) -> Any:
    """One message per key while it is under way: the first one is sent, the others follow it.

    The lease is handed to the first message's task id before it is sent. The lease TTL bounds how long it may lie in
    its queue; after that the next call sends one too, and it waits in the worker as any duplicate does.

    Costs: 1 round trip.
    """
    memoized: Memoized = task.memoized
    cache, task_id = memoized.cache, uuid()
    try:
        met = cache.meet(call, task_id)
    except TierUnavailable:
        return send(task_id=task_id)
    match met:
        case Leading():
            try:
                return send(task_id=task_id)
            except BaseException:
                _free(memoized, call, task_id)
                raise
        case Held(holder=holder):
            memoized.extension.events.emit(Event.COALESCED, memoized.name, key=call.digest, outcome="follows")
            return _following(task, call, holder, task_id, send, options)
        case Shared(copy=copy, seconds=saved, stale=stale) if copy is not None:
            events = memoized.extension.events
            events.emit(Event.HIT, memoized.name, tier="l2", stale=stale, key=call.digest, saved=saved)
            return answer(task, call, copy(), copy, None, options)
        case _:
            return send(task_id=task_id)


def _following(
    task: Any, call: Call, holder: str, task_id: str, send: Send, options: Mapping[str, Any]
) -> FollowingResult:
    ids, backend, cache = _Ids(task, options), task.app.backend, task.memoized.cache

    def follow(timeout: float | None) -> Watched | None:
        try:
            return cache.follow(call, holder, timeout)  # type: ignore[no-any-return]  # the task is opaque here
        except TierUnavailable:
            return None

    def store(known_id: str, meta: Mapping[str, Any]) -> None:
        if ids.ignored:
            return
        if meta["status"] == "SUCCESS":
            backend.mark_as_done(known_id, meta["result"], ids.request(known_id), True)
        elif meta["status"] == "REVOKED":
            backend.mark_as_revoked(known_id, "revoked", ids.request(known_id), True)
        else:
            backend.mark_as_failure(known_id, meta["result"], None, ids.request(known_id), True)

    def publish() -> None:
        """The leader has brought nothing: whoever receives the message counts the call."""
        task.memoized.extension.events.emit(Event.NOT_COALESCED, call.memo.task, key=call.digest)
        send(task_id=task_id)

    result = FollowingResult(task_id, follow, store, publish, app=task.app)
    ids.trail(result)
    return result


def _free(memoized: Memoized, call: Call, task_id: str) -> None:
    with suppress(TierUnavailable):  # it ends with its TTL
        memoized.cache.free(call, task_id)


class _Ids:
    """What a result without a message needs to know of the call that it answers."""

    def __init__(self, task: Any, options: Mapping[str, Any]) -> None:
        self._task, self._options = task, options
        self._parent = task.app.current_worker_task
        self.ignored = bool(options.get("ignore_result", task.ignore_result))

    def trail(self, result: Any) -> None:
        """Notes the result as a child of the task that asked for it."""
        result.ignored = self.ignored
        if self._parent is not None and self._options.get("add_to_parent", True):
            self._parent.add_trail(result)

    def request(self, known_id: str) -> Context:
        """What a backend wants to know of the request whose result it stores."""
        options, parent = self._options, self._parent.request if self._parent is not None else None
        return Context(
            id=known_id,
            correlation_id=known_id,
            task=self._task.name,
            args=None,
            kwargs=None,
            root_id=options.get("root_id") or (parent and (parent.root_id or parent.id)) or known_id,
            parent_id=options.get("parent_id") or (parent and parent.id),
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            reply_to=options.get("reply_to") or self._task.app.thread_oid,
            delivery_info={},
            retries=0,
            ignore_result=False,
            stamped_headers=options.get("stamped_headers"),
            stamps={name: options[name] for name in options.get("stamped_headers") or ()},
        )
