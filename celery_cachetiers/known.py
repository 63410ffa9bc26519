"""Whether a name is that of a task whose results are memoized, and what was meant if it is not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from celery import Celery

from celery_cachetiers.task import CachedTaskMixin


def complaint(app: Celery, name: str, counted: Iterable[str] = ()) -> str:
    """What is wrong with a name, with those that look alike; ``""`` for a memoized task.

    Args:
        counted: Names that are known besides: another app of the namespace may have them.
    """
    known = {str(each) for each, task in app.tasks.items() if isinstance(task, CachedTaskMixin)} | set(counted)
    if name in known:
        return ""
    if name in app.tasks:
        return f"{name} is not memoized: its base is not CachedTask"
    return f"there is no task {name}{_meant(name, sorted(known))}"


def _meant(name: str, known: list[str]) -> str:
    """The names that are close, also by their last part alone."""
    tails = [each for each in known if each.rpartition(".")[2] == name.rpartition(".")[2]]
    close = list(dict.fromkeys([*tails, *get_close_matches(name, known)]))[:3]
    return f"; is it {' or '.join(close)}?" if close else ""
