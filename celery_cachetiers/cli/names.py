"""Names of tasks as they are typed: known, or refused with those that look alike."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import Refused
from celery_cachetiers.task import CachedTaskMixin


def check_task(tiers: CacheTiers, name: str, counted: Iterable[str]) -> None:
    """Passes for a memoized task of the app, and for one that was counted: another app of the namespace may have it.

    Raises:
        Refused: It is neither.
    """
    counted = set(counted)
    memoized = {str(task.name) for task in tiers.app.tasks.values() if isinstance(task, CachedTaskMixin)}
    if name in memoized | counted:
        return
    if name in tiers.app.tasks:
        raise Refused(f"{name} is not memoized: its base is not CachedTask")
    alike = get_close_matches(name, sorted(memoized | counted), n=3)
    raise Refused(f"there is no task {name}" + (f"; is it {' or '.join(alike)}?" if alike else ""))
