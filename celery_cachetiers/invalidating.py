"""``invalidates=`` on any task, cached or not: which tasks declare it, and who sees to it that it happens.

The body itself is wrapped, as Celery does for ``autoretry_for``: Celery sends ``task_success`` after it has stored the
result, when whoever waited for it has read the old value already. The signals stand in where there is no body to wrap,
or where it was killed. What is done then is `invalidation`'s matter.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.body import wrap_body
from celery_cachetiers.declaration import invalidation_of, refuse_uncached
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.invalidation import Invalidation

logger = logging.getLogger("celery_cachetiers")

KILLED = (WorkerLostError, TimeLimitExceeded)
"""How a body ends that cannot say so itself: the worker's main process says it."""


# ---- which tasks -----------------------------------------------------------------------------------------------------


def watch(tiers: CacheTiers) -> None:
    """Has the tasks that the app has do what they declare, and listens for bodies that are killed.

    Tasks that come later are seen as they are bound to the app.

    Raises:
        ConfigurationError: What a task declares cannot be used.
    """
    tiers.app.on_after_finalize.connect(lambda **_: declare_all(tiers), weak=False)
    signals.task_failure.connect(_on_failure)
    signals.task_revoked.connect(_on_revoked)
    declare_all(tiers)


def declare_all(tiers: CacheTiers) -> None:
    """Looks at every task of the app; one that was seen before is left as it is. Raises as `watch`, at the end."""
    wrong: list[ConfigurationError] = []
    for task in list(tiers.app._tasks.values()):  # type: ignore[attr-defined]
        try:
            declare(tiers, task)
        except ConfigurationError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0]


def declare(tiers: CacheTiers, task: Any) -> None:
    """Wraps the body of one task, if the task declares that it invalidates. Raises as `watch`."""
    known = tiers.invalidations.get(task.name)
    if known is not None and known.task is task:
        return
    where = f"task {task.name}"
    refuse_uncached(type(task), where)
    options = invalidation_of(type(task), where)
    if "invalidates" not in options:
        return
    invalidation = Invalidation(tiers, task, options, where)
    try:
        invalidation.succession.attend(task)
        wrap_body(task, invalidation.around)
    except (AttributeError, TypeError):
        logger.warning("celery-cachetiers: the body of %s cannot be wrapped: it invalidates late", task.name)
        invalidation.is_wrapped = False
        signals.task_success.connect(_on_success)
    tiers.invalidations[task.name] = invalidation


# ---- what Celery tells -----------------------------------------------------------------------------------------------


def _of(task: Any) -> Invalidation | None:
    tiers = getattr(getattr(task, "app", None), "_cachetiers", None)
    found = tiers.invalidations.get(task.name) if isinstance(tiers, CacheTiers) else None
    return found if found is not None and found.task is task else None


def _on_success(sender: Any = None, result: object = None, **_: object) -> None:
    invalidation = _of(sender)
    if invalidation is not None and not invalidation.is_wrapped and not invalidation.tiers.suspended:
        request = sender.request
        begun = invalidation.begin(tuple(request.args or ()), dict(request.kwargs or {}))
        invalidation.has_succeeded(begun, result)


def _on_failure(sender: Any = None, exception: Any = None, args: Any = None, kwargs: Any = None, **_: object) -> None:
    invalidation = _of(sender)
    if invalidation is not None and (isinstance(exception, KILLED) or not invalidation.is_wrapped):
        invalidation.was_killed(args, kwargs)


def _on_revoked(sender: Any = None, request: Any = None, terminated: bool = False, **_: object) -> None:
    invalidation = _of(sender) if terminated else None
    if invalidation is not None:
        invalidation.was_killed(request.args, request.kwargs)
