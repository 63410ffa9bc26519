"""What users call to invalidate: functions that act at once, each also a Celery task of the same name.

``invalidate_tag("user:1")`` returns when every process that reads L2 sees it; ``invalidate_tag.delay("user:1")`` has a
worker do it, which retries until Redis has taken it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, Task

from celery_cachetiers import app as extension
from celery_cachetiers.errors import TierUnavailable

RETRY_BACKOFF_MAX = 30


class Operation:
    """A function of the process' extension, and its Celery task: ``.delay``, ``.apply_async``, ``.s``, ``.si``."""

    def __init__(self, name: str, act: Callable[..., None]) -> None:
        self.name = f"celery_cachetiers.{name}"
        self.__name__, self.__doc__ = name, act.__doc__
        self.act = act

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.act(extension.installed(), *args, **kwargs)

    @property
    def task(self) -> Any:
        """The task in the app that `installed` finds. Raises `ConfigurationError`."""
        return extension.installed().app.tasks[self.name]

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


def _invalidate_tag(tiers: extension.CacheTiers, tag: str) -> None:
    """Makes every entry under a tag a miss, in every process."""
    tiers.invalidate_tag(tag)


def _invalidate_tags(tiers: extension.CacheTiers, tags: Sequence[str]) -> None:
    """Makes every entry under any of the tags a miss, in every process."""
    tiers.invalidate_tags(tags)


def _invalidate_key(tiers: extension.CacheTiers, key: str) -> None:
    """Removes one entry by its key; a leader that computes it is refused."""
    tiers.invalidate_key(key)


def _clear(tiers: extension.CacheTiers, task: str | None = None) -> None:
    """Makes every entry of one task, or of the whole namespace, a miss."""
    tiers.clear(task)


_OPERATIONS = (
    Operation("invalidate_tag", _invalidate_tag),
    Operation("invalidate_tags", _invalidate_tags),
    Operation("invalidate_key", _invalidate_key),
    Operation("clear", _clear),
)
invalidate_tag, invalidate_tags, invalidate_key, clear = _OPERATIONS


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


def _body(app: Celery, act: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        act(extension.CacheTiers(app), *args, **kwargs)

    run.__doc__, run.__name__, run.__module__ = act.__doc__, act.__name__.lstrip("_"), __name__
    return run
