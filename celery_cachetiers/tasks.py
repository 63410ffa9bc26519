"""What users call to invalidate: functions that act at once, each also a Celery task of the same name.

``invalidate_tag("user:1")`` returns when every process that reads L2 sees it; ``invalidate_tag.delay("user:1")`` has a
worker do it, which retries until Redis has taken it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.exceptions import SoftTimeLimitExceeded

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.installed import installed

logger = logging.getLogger("celery_cachetiers")

if TYPE_CHECKING:
    Base = Task[Any, Any]
else:  # generic for the type checker only
    Base = Task

RETRY_BACKOFF_MAX = 30
PERIODIC_HEADER = "cachetiers_periodic"
"""Marks the flushes that beat sends."""


class Operation:
    """A function of the process' extension, and its Celery task: ``.delay``, ``.apply_async``, ``.s``, ``.si``."""

    def __init__(self, name: str, act: Callable[..., None]) -> None:
        self.name = f"celery_cachetiers.{name}"
        self.__name__, self.__doc__ = name, act.__doc__
        self.act = act

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.act(installed(), *args, **kwargs)

    @property
    def task(self) -> Any:
        """The task in the app that `installed` finds. Raises `ConfigurationError`."""
        return installed().app.tasks[self.name]

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Sends the task."""
        return self.task.delay(*args, **kwargs)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Sends the task, with options."""
        return self.task.apply_async(*args, **kwargs)

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A signature."""
        return self.task.s(*args, **kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """An immutable signature, for chains."""
        return self.task.si(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _invalidate_tag(tiers: CacheTiers, tag: str, on_commit: Any = None) -> None:
    """Makes every entry under a tag a miss, in every process."""
    tiers.invalidate_tag(tag, on_commit)


def _invalidate_tags(tiers: CacheTiers, tags: Sequence[str], on_commit: Any = None) -> None:
    """Makes every entry under any of the tags a miss, in every process."""
    tiers.invalidate_tags(tags, on_commit)


def _invalidate_key(tiers: CacheTiers, key: str, on_commit: Any = None) -> None:
    """Removes one entry by its key; a leader that computes it is refused."""
    tiers.invalidate_key(key, on_commit)


def _clear(tiers: CacheTiers, task: str | None = None, on_commit: Any = None) -> None:
    """Makes every entry of one task, or of the whole namespace, a miss."""
    tiers.clear(task, on_commit)


_OPERATIONS = (
    Operation("invalidate_tag", _invalidate_tag),
    Operation("invalidate_tags", _invalidate_tags),
    Operation("invalidate_key", _invalidate_key),
    Operation("clear", _clear),
)
invalidate_tag, invalidate_tags, invalidate_key, clear = _OPERATIONS


def or_hand_over(
    tiers: CacheTiers, act: Callable[[], None], operation: str, *args: object,
    task: str = "", eager: bool = False,
) -> None:  # fmt: skip
    """Acts; where Redis cannot be reached, or the act is cut short, has a worker do it, which retries until it can.

    Args:
        operation: The built-in task that does the same with these arguments.
        task: Whose body it follows, if any.
        eager: This process would be the worker itself.

    Raises:
        TierUnavailable: Neither Redis nor the broker has taken it, or there is no worker.
        BaseException: What has cut it short, such as a soft time limit or the end of the process. Where the broker has
            not taken it either, that is told.
    """
    eager = eager or tiers.app.conf.task_always_eager
    try:
        try:
            act()
        except TierUnavailable as error:
            _hand_over(tiers, error, operation, args, eager)
    except TierUnavailable:
        raise
    except BaseException as interrupt:  # whatever it is: nobody knows how far the act has come
        try:
            _hand_over(tiers, interrupt, operation, args, eager)
        except BaseException as refused:
            tell_lost(tiers, task or f"{operation}()", refused, args[0] if operation == "invalidate_tags" else ())
        raise


def _hand_over(tiers: CacheTiers, error: BaseException, operation: str, args: tuple[object, ...], eager: bool) -> None:
    if eager:
        raise error
    try:
        task: Any = tiers.app.tasks[f"celery_cachetiers.{operation}"]
        task.apply_async(args, add_to_parent=False, ignore_result=True)
    except SoftTimeLimitExceeded:
        raise
    except Exception as refused:
        raise TierUnavailable(f"{error}; nor has the broker taken it: {refused}") from refused
    tiers.events.emit(Event.HANDED_OVER, operation=operation, args=args, error=str(error) or repr(error))


def tell_lost(tiers: CacheTiers, name: str, error: BaseException, tags: Any) -> None:
    """Says that something has run, and that not all it has changed is invalidated."""
    tiers.events.emit(Event.NOT_INVALIDATED, name, tags=tuple(tags), error=repr(error))
    logger.error(
        "celery-cachetiers: %s has run, and not all that it changed was invalidated: %s", name, error, exc_info=error
    )


class Flush(Base):
    """The flush; one that beat sends is not sent while another one waits in its queue.

    Whoever sends it by hand, or because a batch is full, has it sent.
    """

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """As `celery.Task.apply_async`; ``None`` if nothing was sent."""
        if not (options.get("headers") or {}).get(PERIODIC_HEADER):
            return super().apply_async(args, kwargs, *more, **options)
        writes = CacheTiers(self.app).writes
        if not writes.announce():
            return None
        try:
            return super().apply_async(args, kwargs, *more, **options)
        except BaseException:
            writes.arrived()
            raise


def register(app: Celery) -> None:
    """Adds the built-in tasks to an app."""
    for operation in _OPERATIONS:
        declare: Any = app.task(  # the stubs know the decorator's form only
            name=operation.name,
            shared=False,  # else every app of the process would have it, bound to this one
            base=Task,  # whatever the app's base is: to invalidate must never be answered from a cache
            autoretry_for=(TierUnavailable,),
            max_retries=None,
            retry_backoff=True,
            retry_backoff_max=RETRY_BACKOFF_MAX,
            acks_late=True,
        )
        declare(_body(app, operation.act))
    _register_flush(app)
    _register_report(app)


def _register_flush(app: Celery) -> None:
    from celery_cachetiers.write_behind import FLUSH_SECONDS

    def flush(self: Any, sink: str | None = None, seconds: float = FLUSH_SECONDS) -> dict[str, dict[str, int]]:
        """Hands what waits in the journal to its sinks, or to one of them."""
        tiers = CacheTiers(app)
        if (self.request.headers or {}).get(PERIODIC_HEADER):
            tiers.writes.arrived()
        try:
            done = tiers.writes.flush(sink, seconds)
        except TierUnavailable as error:  # the next one comes by itself
            tiers.events.emit(Event.FAILED_OPEN, step="flush", error=str(error))
            return {}
        return {name: asdict(each) for name, each in done.items()}

    declare: Any = app.task(
        name="celery_cachetiers.flush", shared=False, base=Flush, bind=True, ignore_result=True, acks_late=True
    )
    declare(flush)


def _register_report(app: Celery) -> None:
    from celery_cachetiers.reporting import REPORT, run

    def report(self: Any) -> float | None:
        """Tells how good the cache was since the last report; returns its hit ratio."""
        return run(CacheTiers(app), self)

    declare: Any = app.task(name=REPORT, shared=False, base=Task, ignore_result=True, bind=True)
    declare(report)


def _body(app: Celery, act: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        act(CacheTiers(app), *args, **kwargs, on_commit=False)  # a message has left its transaction behind

    run.__doc__, run.__name__, run.__module__ = act.__doc__, act.__name__.lstrip("_"), __name__
    return run
