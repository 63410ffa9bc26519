"""What Celery's `DjangoTask` adds to a task, kept for tasks that name a base of their own."""

from __future__ import annotations

from typing import Any

from celery_cachetiers.errors import ConfigurationError


class OnCommitMixin:
    """``delay_on_commit`` and ``apply_async_on_commit``; without Django they raise `ConfigurationError`."""

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """``delay`` once the database transaction is committed; at once outside of one."""
        _django_task(self).delay_on_commit(self, *args, **kwargs)

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """``apply_async`` once the database transaction is committed; at once outside of one."""
        _django_task(self).apply_async_on_commit(self, *args, **kwargs)


def _django_task(task: object) -> Any:
    try:
        from celery.contrib.django.task import DjangoTask
    except ImportError as error:
        allowed = "delay_on_commit needs Django: pip install django"
        raise ConfigurationError("delay_on_commit", getattr(task, "name", task), allowed) from error
    return DjangoTask
